"""What outputs take the place of: the same command's own old ones, and nothing else."""

import os
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from test_weights_convert import save_as_published

from diffclip_cli.main import main
from diffclip_openclip import to_reference
from diffclip_openclip.explain.attend import attend
from diffclip_openclip.explain.lambda_report import show_lambdas
from diffclip_openclip.files import Folder, check_place, staged
from diffclip_openclip.report.command import report

BOX = Folder("a box", ("lid", "toys", "toys/*.txt"), mark="lid")


def _tree(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder: the content of files, None for directories."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


def _make_box(path: Path, content: str = "old") -> Path:
    (path / "toys").mkdir(parents=True)
    (path / "lid").write_text(content)
    (path / "toys" / "ball.txt").write_text(content)
    return path


def _refused(match: str, *arguments, folder: Path) -> None:
    before = _tree(folder)
    with pytest.raises(FileExistsError, match=match):
        check_place(*arguments)
    assert _tree(folder) == before


# the rule


@pytest.mark.parametrize(
    ("stray", "told"),
    [
        ("note.txt", "it has note.txt in it"),
        (".git", r"it has \.git in it"),
        ("toys/more", "it has toys/more in it"),
        ("toys/ball.md", r"it has toys/ball\.md in it"),
        ("toys/more/ball.txt", "it has toys/more in it"),
    ],
)
def test_a_directory_with_anything_else_in_it_stays(stray, told, tmp_path):
    box = _make_box(tmp_path / "box")
    check_place(box, True, BOX)
    (box / stray).parent.mkdir(exist_ok=True)
    (box / stray).write_text("mine")
    for overwrite in (False, True):  # that the option is no help is said at once
        _refused(f"box is not just a box: {told}", box, overwrite, BOX, folder=tmp_path)


def test_an_empty_folder_inside_is_something_else_too(tmp_path):
    (_make_box(tmp_path / "box") / "checkpoints").mkdir()
    _refused("it has checkpoints in it", tmp_path / "box", True, BOX, folder=tmp_path)


def test_a_directory_that_only_has_names_in_common_stays(tmp_path):
    (_make_box(tmp_path / "box") / "lid").unlink()
    _refused("box is not just a box: it has no lid", tmp_path / "box", True, BOX, folder=tmp_path)


def test_what_a_desktop_leaves_is_not_the_users(tmp_path):
    box = _make_box(tmp_path / "box")
    for folder in (box, box / "toys"):
        (folder / ".DS_Store").write_bytes(b"\0")
    check_place(box, True, BOX)
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / ".DS_Store").write_bytes(b"\0")
    check_place(tmp_path / "seen", False, BOX)


def test_an_old_output_needs_to_be_named_as_such(tmp_path):
    _refused("box exists; .* replace it with --overwrite", _make_box(tmp_path / "box"), False, BOX, folder=tmp_path)


def test_an_empty_directory_may_be_taken(tmp_path):
    (tmp_path / "box").mkdir()
    check_place(tmp_path / "box", False, BOX)
    with staged(tmp_path / "box") as new:
        _make_box(new, "new")
    assert _tree(tmp_path / "box") == {"lid": b"new", "toys": None, "toys/ball.txt": b"new"}
    assert list(tmp_path.iterdir()) == [tmp_path / "box"]


def test_files_and_directories_do_not_take_each_others_place(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    _make_box(tmp_path / "box")
    for name in ("empty", "box"):
        _refused(f"{name} is a directory, which no file takes the place of", tmp_path / name, True, folder=tmp_path)
    _refused("file is a file, and a box is a directory", tmp_path / "file", True, BOX, folder=tmp_path)
    before = _tree(tmp_path)
    with pytest.raises(FileExistsError, match="box is a directory"), staged(tmp_path / "box", overwrite=True) as new:
        new.write_text("new")
    with pytest.raises(FileExistsError, match="file is a file"), staged(tmp_path / "file", overwrite=True) as new:
        new.mkdir()
    assert _tree(tmp_path) == before


def test_what_is_read_stays(tmp_path):
    box = _make_box(tmp_path / "box")
    (tmp_path / "link").symlink_to(box / "toys" / "ball.txt")
    for path in (box, box / "toys" / "ball.txt", tmp_path / "link"):
        _refused("is what is read, and would go with the old", box, True, BOX, [path], folder=tmp_path)
    _refused("is what is read", box / "lid", True, None, [box / "lid"], folder=tmp_path)
    check_place(box, True, BOX, [tmp_path, tmp_path / "missing", tmp_path / "boxes"])


def test_the_working_directory_stays(tmp_path, monkeypatch):
    """Its shell would be left in a folder that is gone."""
    monkeypatch.chdir(_make_box(tmp_path / "box") / "toys")
    for path in (Path(".."), tmp_path / "box"):
        _refused("is the working directory or above it", path, True, BOX, folder=tmp_path)


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    _make_box(tmp_path / "there" / "box")
    (tmp_path / "there" / "file").write_text("old")
    for name in ("box", "file"):
        (tmp_path / f"{name}.png").symlink_to(tmp_path / "there" / name)
    check_place(tmp_path / "box.png", True, BOX)
    with staged(tmp_path / "box.png", overwrite=True) as new:
        assert new.suffix == ".png"  # by which some writers choose a format
        _make_box(new, "new")
    with staged(tmp_path / "file.png", overwrite=True) as new:
        new.write_text("new")
    assert (tmp_path / "box.png").is_symlink()
    assert (tmp_path / "file.png").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["box.png", "file.png", "there"]
    assert (tmp_path / "there" / "file").read_text() == "new"
    assert _tree(tmp_path / "there" / "box") == {"lid": b"new", "toys": None, "toys/ball.txt": b"new"}
    (tmp_path / "box.png" / "note.txt").write_text("mine")
    _refused(r"it has note\.txt in it", tmp_path / "box.png", True, BOX, folder=tmp_path)


@pytest.mark.parametrize("moves", [0, 1], ids=["the old away", "the new in"])
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_an_interruption_between_the_two_renames_loses_nothing(moves, done, tmp_path, monkeypatch):
    box, rename, calls = _make_box(tmp_path / "box"), Path.rename, []

    def interrupted(self, target):
        calls.append(self)
        if len(calls) - 1 == moves:
            if done:
                rename(self, target)
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), staged(box, overwrite=True) as new:
        _make_box(new, "new")
    assert list(tmp_path.iterdir()) == [box]
    assert (box / "toys" / "ball.txt").read_text() == ("new" if (moves, done) == (1, True) else "old")


# the commands


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return open_clip.create_model("DiffCLIP-nano").eval()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    return save_as_published(model, tmp_path_factory.mktemp("published") / "reference.pt")


@pytest.fixture
def run(model, tmp_path) -> Path:
    """A training run, with the one copy of its checkpoint."""
    folder = tmp_path / "run.png"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "params.txt").write_text("model: DiffCLIP-nano\npretrained: \n")
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, folder / "checkpoints" / "epoch_1.pt")
    return folder


def _main_refuses(capsys, folder: Path, expected: str, *arguments: object) -> None:
    before = _tree(folder)
    assert main([*map(str, arguments), "--overwrite"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert _tree(folder) == before


def test_no_command_replaces_a_run(run, checkpoint, model, tmp_path, capsys):
    source = run / "checkpoints" / "epoch_1.pt"
    for command in (
        ["convert", source, run],
        ["convert", checkpoint, run],
        ["convert", checkpoint, run / "checkpoints"],
        ["warm-start", f"CLIP-nano-baseline:{checkpoint}", run],
        ["report", run, "--output", run],
        ["report", "--paper-only", "--output", run],
    ):
        _main_refuses(capsys, tmp_path, "is not just a", *command)
    (tmp_path / "run.pt").symlink_to(run)
    Image.new("RGB", (48, 48)).save(tmp_path / "photo.png")
    for command in (
        ["convert", checkpoint, tmp_path / "run.pt", "--to", "reference"],
        ["attend", tmp_path / "photo.png", "--text", "a", "--model", f"DiffCLIP-nano,{source}", "-o", run],
        ["lambdas", checkpoint, "-o", run],
    ):
        _main_refuses(capsys, tmp_path, "is a directory, which no file takes the place of", *command)


def test_convert_replaces_a_model_directory(model, checkpoint, tmp_path):
    """Also a larger one, with what `diffclip export` has added, and by a link; see the report's own test for others."""
    out = tmp_path / "OUT"
    (tmp_path / "link").symlink_to(out)
    assert main(["convert", str(checkpoint), str(out), "--variant", "dynamic"]) == 0
    (out / "onnx").mkdir()
    for name in ("image.onnx", "text.onnx", "text.onnx.data"):
        (out / "onnx" / name).write_bytes(b"of the old weights")
    assert main(["convert", str(checkpoint), str(tmp_path / "link"), "--overwrite"]) == 0
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "config.json", "open_clip_config.json", "open_clip_model.safetensors")
    }
    loaded = open_clip.create_model(f"local-dir:{tmp_path / 'link'}")
    assert [layer.attn.lambda_init for layer in loaded.text.transformer.layers] == [0.8, 0.8]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["OUT", "link"]


def test_convert_keeps_what_it_did_not_write(checkpoint, tmp_path, capsys):
    out = tmp_path / "OUT"
    assert main(["convert", str(checkpoint), str(out)]) == 0
    capsys.readouterr()
    for name in ("tower.safetensors", "onnx/notes.txt"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
        _main_refuses(capsys, out, f"it has {name} in it", "convert", checkpoint, out)
        (out / name).unlink()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    _main_refuses(capsys, tmp_path, "it has no open_clip_config.json", "convert", checkpoint, tmp_path / "mine")


def test_convert_and_warm_start_keep_their_source(model, checkpoint, tmp_path, capsys):
    """A directory's weights alone would come back as the static variant; a warm start would end what it starts from."""
    out, plain = tmp_path / "OUT", tmp_path / "PLAIN"
    assert main(["convert", str(checkpoint), str(out), "--variant", "dynamic"]) == 0
    baseline = tmp_path / "baseline.pt"
    torch.save(to_reference(open_clip.create_model("CLIP-nano-baseline").state_dict()), baseline)
    assert main(["convert", str(baseline), str(plain)]) == 0
    capsys.readouterr()
    file, copy = out / "open_clip_model.safetensors", shutil.copy(checkpoint, tmp_path / "copy.pt")
    for command in (
        ["convert", file, out, "--preprocess", "slip"],
        ["convert", copy, copy, "--to", "reference"],
        ["convert", file, file, "--to", "timm"],
        ["warm-start", f"local-dir:{plain}", plain],
        ["warm-start", f"CLIP-nano-baseline:{plain / 'open_clip_model.safetensors'}", plain],
    ):
        _main_refuses(capsys, tmp_path, "is what is read", *command)
    assert main(["convert", str(out), str(out), "--overwrite"]) == 0  # corrects its path


def test_attend_keeps_its_photo(checkpoint, tmp_path):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (48, 48)).save(photo)
    assert main(["convert", str(checkpoint), str(tmp_path / "OUT")]) == 0
    before = photo.read_bytes()
    with pytest.raises(FileExistsError, match=r"photo\.png is what is read"):
        attend([photo], ["a mug"], [f"local-dir:{tmp_path / 'OUT'}"], photo, overwrite=True)
    assert photo.read_bytes() == before


def test_lambdas_into_an_empty_directory(checkpoint, tmp_path):
    (tmp_path / "plot.png").mkdir()
    with pytest.raises(FileExistsError, match="is a directory, which no file takes the place of"):
        show_lambdas(str(checkpoint), tmp_path / "plot.png", overwrite=True)


def test_a_report_replaces_a_report_and_no_results(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    report(None, out, paper_only=True)
    first = _tree(out)
    (out / "index.html").write_text("old")
    report(None, out, paper_only=True, overwrite=True)
    assert _tree(out) == first
    for name in ("figures/mine.png", "tables/mine.md", "DiffCLIP-1a/few_shot/dtd.json"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
        before = _tree(out)
        with pytest.raises(
            FileExistsError, match=f"out is not just a report: it has {name.removesuffix('/few_shot/dtd.json')} in it"
        ):
            report(None, out, paper_only=True, overwrite=True)
        assert _tree(out) == before
        (out / name).unlink()
