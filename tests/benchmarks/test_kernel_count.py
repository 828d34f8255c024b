"""An accelerator's forward pass runs no kernel too many, counted in passes of tensors that hold no data."""

import json
import sys

from support.common import REPOSITORY, run_host, simulates_cuda

COUNT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import kernel_count
plain, differential = (kernel_count.count(name, 2) for name in ("CLIP-nano-baseline", "DiffCLIP-nano"))
print(json.dumps([differential.calls - plain.calls, differential.bytes - plain.bytes]))
"""


@simulates_cuda
def test_accelerators_run_no_kernels_over_heads_but_these(tmp_path):
    """Count them in a pass of CUDA tensors without data, under autocast: no copy, nothing in float32."""
    printed = run_host([sys.executable, "-c", COUNT, str(REPOSITORY / "benchmarks")], tmp_path).stdout
    calls, size = json.loads(printed.splitlines()[-1])
    layers, heads = 4, 2 * 17 * 128 * 2  # batch, tokens, C, bytes
    assert calls["addcmul"] == calls["_fused_rms_norm"] == calls["_scaled_dot_product_efficient_attention"] == layers
    weight_and_statistics = 2 * 64 + 2 * 17 * 2 * 4  # 2 d in half precision; samples, tokens, pairs
    assert size["_fused_rms_norm"] == layers * (2 * heads + weight_and_statistics)
    assert size["addcmul"] == layers * (3 * heads + 2)  # and lambda
    assert all(
        size[name] < layers * heads
        for name in size.keys() - {"addcmul", "_fused_rms_norm", "_scaled_dot_product_efficient_attention"}
    )
