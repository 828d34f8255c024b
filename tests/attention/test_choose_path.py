"""Which way a layer computes: the rules of choose_path, and use_path over them."""

from types import SimpleNamespace

import pytest
import torch
from support.common import REPOSITORY

from diffclip_openclip import DifferentialAttention, DifferentialAttentionV2
from diffclip_openclip.attention import choice, choose_path, use_path

PLAIN = {"masked": False, "dropout_p": 0.0, "fusible": True}


def _qkv(device="cpu", batch_size=8):
    """What choose_path reads of queries, keys and values at ViT-B/16's size."""
    return SimpleNamespace(device=torch.device(device), shape=(batch_size, 197, 3 * 768))


@pytest.mark.parametrize(
    ("change", "path"),
    [({}, "blocks"), ({"masked": True}, "maps"), ({"dropout_p": 0.1}, "maps"), ({"fusible": False}, "maps")],
)
def test_on_the_cpu(change, path):
    assert choose_path(_qkv(), 12, **(PLAIN | change)) == path


def test_maps_that_fit_in_the_cache_are_explicit():
    assert choose_path(_qkv(batch_size=1), 12, **PLAIN) == "maps"
    assert choose_path(_qkv(batch_size=2), 12, **PLAIN) == "blocks"


@pytest.mark.parametrize("change", [{}, {"masked": True}, {"dropout_p": 0.1}, {"fusible": False}])
@pytest.mark.parametrize("device", ["cuda", "xpu", "meta"])
def test_accelerators_keep_no_map(device, change):
    assert choose_path(_qkv(device), 12, **(PLAIN | change)) == "sdpa"


MEASURED = (
    choice.Measured((9, 0), (2, 11), 256, "maps", "short.json"),
    choice.Measured((9, 0), (2, 11), 1024, "sdpa", "long.json"),
)


@pytest.mark.parametrize(
    ("capability", "version", "num_tokens", "path"),
    [
        ((9, 0), (2, 11), 197, "maps"),
        ((9, 0), (2, 15), 257, "sdpa"),
        ((9, 0), (2, 10), 197, None),
        ((8, 0), (2, 15), 197, None),
        ((9, 0), (2, 15), 2048, None),
    ],
)
def test_what_was_measured_on_a_device_decides(capability, version, num_tokens, path):
    assert choice.measured_path(MEASURED, capability, version, num_tokens) == path


def test_choose_path_asks_the_table(monkeypatch):
    monkeypatch.setattr(choice, "MEASURED", (choice.Measured((9, 0), (2, 0), 197, "maps", "here.json"),))
    for capability, path in (((9, 0), "maps"), ((8, 9), "sdpa")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        assert choose_path(_qkv("cuda"), 12, **PLAIN) == path


def test_measured_rows_name_a_path_and_a_file_that_is_there():
    for row in choice.MEASURED:
        assert row.path in choice.PATHS
        assert (REPOSITORY / "benchmarks" / "results" / row.source).exists()


@pytest.mark.parametrize(("takes_wide_values", "path"), [(True, "sdpa"), (False, "maps")])
def test_mps_gets_wide_values_only_where_their_shape_is_right(takes_wide_values, path, monkeypatch):
    """pytorch/pytorch#176767, mended in 2.12."""
    monkeypatch.setattr(choice, "MPS_TAKES_WIDE_VALUES", takes_wide_values)
    assert choose_path(_qkv("mps"), 12, **PLAIN) == path


@pytest.mark.parametrize("path", choice.PATHS)
def test_the_override_decides_and_ends(path):
    before = choose_path(_qkv(), 12, **PLAIN)
    with use_path(path):
        assert choose_path(_qkv(), 12, **PLAIN) == path
        with use_path("maps"):
            assert choose_path(_qkv(), 12, **PLAIN) == "maps"
        assert choose_path(_qkv(), 12, **PLAIN) == path
    assert choose_path(_qkv(), 12, **PLAIN) == before


def test_an_unknown_path_is_refused():
    with pytest.raises(ValueError, match="'flash'; it must be one of 'maps', 'blocks', 'sdpa'"), use_path("flash"):
        pass


@pytest.mark.parametrize("arguments", [{"attn_mask": torch.ones(5, 5, dtype=torch.bool)}, {}], ids=["mask", "dropout"])
def test_blocks_refuse_what_they_cannot_compute(arguments):
    layer = DifferentialAttention(16, 4, attn_drop=0.0 if arguments else 0.1)
    with use_path("blocks"), pytest.raises(ValueError, match="blocks take tensors on the CPU without attn_mask"):
        layer(torch.randn(2, 5, 16), **arguments)


def test_version_2_has_one_way():
    layer, x = DifferentialAttentionV2(16, 4), torch.randn(2, 5, 16)
    expected = layer(x)
    for path in choice.PATHS:
        with use_path(path):
            assert torch.equal(layer(x), expected)
