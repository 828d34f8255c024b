"""An accelerator's forward pass runs no kernel too many, counted in passes of tensors that hold no data."""

import json
import sys

import pytest
from support.common import REPOSITORY, run_host, simulates_cuda

COUNT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import kernel_count
plain, *others = (kernel_count.count(name, 2) for name in ("CLIP-nano-baseline", *sys.argv[2:]))
print(json.dumps([[other.calls - plain.calls, other.bytes - plain.bytes] for other in others]))
"""


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """Calls and bytes by kernel that each version adds to plain attention, in passes of CUDA tensors without data."""
    command = [sys.executable, "-c", COUNT, str(REPOSITORY / "benchmarks"), "DiffCLIP-nano", "DiffCLIP-V2-nano"]
    printed = run_host(command, tmp_path_factory.mktemp("count")).stdout
    return json.loads(printed.splitlines()[-1])


LAYERS, HEADS = 4, 2 * 17 * 128 * 2  # batch, tokens, C, bytes


@simulates_cuda
def test_accelerators_run_no_kernels_over_heads_but_these(added):
    """Under autocast: no copy, nothing in float32."""
    calls, size = added[0]
    layers, heads = LAYERS, HEADS
    assert calls["addcmul"] == calls["_fused_rms_norm"] == calls["_scaled_dot_product_efficient_attention"] == layers
    weight_and_statistics = 2 * 64 + 2 * 17 * 2 * 4  # 2 d in half precision; samples, tokens, pairs
    assert size["_fused_rms_norm"] == layers * (2 * heads + weight_and_statistics)
    assert size["addcmul"] == layers * (3 * heads + 2)  # and lambda
    assert all(
        size[name] < layers * heads
        for name in size.keys() - {"addcmul", "_fused_rms_norm", "_scaled_dot_product_efficient_attention"}
    )


@simulates_cuda
def test_version_2_copies_neither_queries_nor_its_input(added):
    calls, size = added[1]
    assert calls["addcmul"] == calls["_scaled_dot_product_flash_attention"] == calls["mm"] == LAYERS
    assert "clone" not in calls
    # values of the second queries' projection; bytes of lambda's projection and values
    weights, small = 128 * 129, 8000
    assert size["_to_copy"] < LAYERS * ((4 + 2) * weights + small)
    # attention reads both queries, keys and values once and writes both outputs
    assert size["_scaled_dot_product_flash_attention"] < LAYERS * (6 * HEADS + small)
    # second queries are written, the input is read for lambda, and the difference is formed
    assert size["addmm"] + size["mm"] + size["addcmul"] < LAYERS * ((1 + 1 + 3) * HEADS + 2 * weights + small)
