"""Checkpoints that want more than to be read: code, or more memory than their size; all are refused and named."""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from diffclip_openclip.weights import checkpoint
from diffclip_openclip.weights.checkpoint import read_checkpoint, read_epoch
from diffclip_openclip.weights.pickles import contents

LONG = "a" * 50_000


class _Calls:
    """Is unpickled by a call."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _legacy(content: bytes, tmp_path: Path) -> Path:
    """In PyTorch's older format, around a pickle of one's own."""
    torch.save({}, tmp_path / "frame", _use_new_zipfile_serialization=False)
    head = b"".join(pickle.dumps(part, 2) for part in pickle_parts(tmp_path / "frame"))
    (tmp_path / "x.pt").write_bytes(head + content + pickle.dumps([], 2))
    return tmp_path / "x.pt"


def pickle_parts(path: Path) -> list[object]:
    """Return what stands before the content: a number, a version, the system."""
    with path.open("rb") as file:
        return [pickle.load(file) for _ in range(3)]


def _zipped(content: bytes, tmp_path: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(tmp_path / "x.pt", "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", b"\0" * 8)
    return tmp_path / "x.pt"


@pytest.mark.parametrize("frame", [_zipped, _legacy])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (_Calls(eval, "1"), "eval"),
        (_Calls(getattr, str, "join"), "getattr"),
        (_Calls(__import__, "os"), "__import__"),
        (_Calls(exec, ""), "exec"),
        (_Calls(print), "print"),
        (_Calls(struct.pack, "i", 1), "pack"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_be_run_is_named(call, name, protocol, frame, tmp_path):
    path = frame(pickle.dumps({"state_dict": {"a": call}}, protocol), tmp_path)
    with pytest.raises(ValueError, match=rf"wants to run or build \S*\.{name}, .*nothing in it was run"):
        read_checkpoint(path)


def _opcodes(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


TEXT = b"X" + struct.pack("<i", len(LONG)) + LONG.encode() + b"q\0"
STORAGE = b"((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpu%st"
BOMBS = {
    "one text, many copies": _opcodes(TEXT, b"c_codecs\nencode\nq\1]q\2(", b"h\1h\0\x85R" * 20_000, b"e"),
    "sets of a list": _opcodes(b"c__builtin__\nset\nq\1](", b"K\1" * 9999, b"eq\0](", b"h\1h\0\x85R" * 9999, b"e"),
    "things that hold each other twice": _opcodes(
        b"c__builtin__\nset\nq\1]q\2", b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(2, 90)), b"h\1hP\x85R"
    ),
    "bytes of any number": _opcodes(b"c__builtin__\nbytearray\n", b"J\xff\xff\xff\x7f\x85R"),
    "a storage of any size": _opcodes(b"ctorch\nFloatStorage\n", b"J\xff\xff\xff\x7f\x85R"),
    "a storage that is not there": _opcodes(STORAGE % b"J\xff\xff\xff\x7f", b"Q"),
}


@pytest.mark.parametrize("frame", [_zipped, _legacy])
@pytest.mark.parametrize("name", BOMBS)
def test_more_than_a_file_can_hold(name, frame, tmp_path, monkeypatch):
    path = frame(BOMBS[name], tmp_path)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match=r"which it cannot hold|of any size"):
        read_checkpoint(path)


def test_a_compressed_archive(tmp_path):
    path = _zipped(pickle.dumps([LONG] * 9, 2) + b"\0" * 10**6, tmp_path, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="are not compressed"):
        read_checkpoint(path)


@pytest.mark.parametrize("newer", [True, False])
def test_values_that_are_repeated(newer, tmp_path):
    """A view of four bytes may claim to be 25 GB, and is copied on the way; so may one tensor by many names."""
    tensor = torch.zeros(1000)
    for state_dict in ({"a": torch.zeros(1).expand(80_000, 80_000)}, {f"k{i}": tensor for i in range(9000)}):
        torch.save(state_dict, tmp_path / "x.pt", _use_new_zipfile_serialization=newer)
        with pytest.raises(ValueError, match="it repeats them"):
            read_checkpoint(tmp_path / "x.pt")
    torch.save({"a": tensor, "b": tensor, "c": tensor.view(10, 100).t()}, tmp_path / "x.pt")  # tied weights are fine
    assert read_checkpoint(tmp_path / "x.pt").keys() == {"a", "b", "c"}


def test_more_tensors_than_any_model_has(tmp_path):
    torch.save({f"visual.blocks.{i}.attn.lambda_q1": torch.zeros(1) for i in range(20_001)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds 20001 tensors; no CLIP has more"):
        read_checkpoint(tmp_path / "x.pt")


def test_no_memory_is_not_called_damage(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pt")
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")):
        monkeypatch.setattr(torch, "load", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        with pytest.raises(ValueError, match=r"x\.pt does not fit into the memory"):
            read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("epoch", ["3", 2.5, [1], "1" * 10_000])
def test_an_epoch_that_is_none(epoch, tmp_path):
    torch.save({"epoch": epoch, "state_dict": {"a": torch.zeros(1)}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"has the epoch .*must be a whole number"):
        read_epoch(tmp_path / "x.pt")


@pytest.mark.parametrize("newer", [True, False])
def test_honest_files_stay_far_below_the_bounds(newer, tmp_path):
    parameters = {f"layer{i}.weight": torch.nn.Parameter(torch.zeros(3)) for i in range(300)}
    optimizer = torch.optim.AdamW(parameters.values())
    for parameter in parameters.values():
        parameter.sum().backward()
    optimizer.step()
    content = {"state_dict": parameters, "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=newer)
    found = contents(tmp_path / "x.pt")
    size = (tmp_path / "x.pt").stat().st_size
    assert found.foreign == []
    assert (found.copied < 2 * size, found.elements) == (True, torch.get_rng_state().numel())
    assert len(read_checkpoint(tmp_path / "x.pt")) == 300


@pytest.mark.parametrize("newer", [True, False])
def test_damaged_files_are_told_as_such(newer, tmp_path, capfd):
    """Whatever torch makes of them: 200 files with some bytes changed at random places."""
    generator = torch.Generator().manual_seed(0)
    torch.save(
        {"state_dict": {"a": torch.zeros(2, 2)}, "epoch": 3}, tmp_path / "x.pt", _use_new_zipfile_serialization=newer
    )
    whole = (tmp_path / "x.pt").read_bytes()
    messages = []
    for _ in range(200):
        data = bytearray(whole)
        for place in torch.randint(len(data), (3,), generator=generator).tolist():
            data[place] = int(torch.randint(256, (1,), generator=generator))
        (tmp_path / "y.pt").write_bytes(data)
        try:
            read_checkpoint(tmp_path / "y.pt")
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(message.startswith(str(tmp_path / "y.pt")) for message in messages)


def test_checksums_may_be_left_out(tmp_path):
    """As ``torch.serialization.set_crc32_options(False)`` does; the pickle is looked through all the same."""
    path = _zipped(pickle.dumps({"a": _Calls(eval, "1")}, 2), tmp_path)
    path.write_bytes(path.read_bytes().replace(b"X\x01\x00\x00\x001", b"X\x01\x00\x00\x002"))
    with pytest.raises(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        archive.read("archive/data.pkl")
    assert contents(path).foreign == ["__builtin__.eval"]


def test_weights_are_readable_for_whom_the_umask_says(tmp_path):
    checkpoint.save_safetensors({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "plain").touch()
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
