"""Compute what attention maps and heads look like, layer by layer: attention_inside.py defines the measures.

Shape legend: B inputs, N tokens, C embed_dim, h maps a layer, R rows of tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from diffclip_openclip.explain.attention_formulas import WrittenOut, weighted_difference, write_out
from diffclip_openclip.explain.maps import attention_layers, recorded

# one map


def column_weights(map_BhNN: Tensor) -> Tensor:
    """Return each column's sum of absolute values, (B, h, N)."""
    return map_BhNN.abs().sum(-2)


def sink_ratio(map_BhNN: Tensor) -> Tensor:
    """Return the largest over the median column weight, (B, h)."""
    weights_BhN = column_weights(map_BhNN)
    median_Bh = weights_BhN.quantile(0.5, dim=-1)
    return weights_BhN.amax(-1) / median_Bh.clamp(min=torch.finfo(median_Bh.dtype).tiny)


def negative_mass(map_BhNN: Tensor) -> Tensor:
    """Return the share of the negative entries in the sum of absolute values, (B, h)."""
    return -map_BhNN.clamp(max=0).sum((-2, -1)) / map_BhNN.abs().sum((-2, -1))


# the heads of a layer


class SecondMoments:
    """Sum up rows and their products, from which the covariance of all channels follows."""

    def __init__(self) -> None:
        self.count = 0
        self.sum_C: Tensor | float = 0.0
        self.products_CC: Tensor | float = 0.0

    def add(self, rows_RC: Tensor) -> None:
        """Take in rows, in float64: the covariance is a small difference of large sums."""
        rows_RC = rows_RC.double()
        self.count += len(rows_RC)
        self.sum_C = self.sum_C + rows_RC.sum(0)
        self.products_CC = self.products_CC + rows_RC.t() @ rows_RC

    def covariance(self) -> Tensor:
        """Return the covariance of all rows, (C, C), times their number."""
        assert isinstance(self.sum_C, Tensor)
        assert isinstance(self.products_CC, Tensor)
        return self.products_CC - torch.outer(self.sum_C, self.sum_C) / self.count


def cka_of_heads(covariance_CC: Tensor, heads: int) -> float:
    """Return linear CKA between the heads' channels, mean over pairs of heads; NaN for one head.

    Of two heads with centred outputs X and Y it is |Y^T X|^2 / (|X^T X| |Y^T Y|) in Frobenius norms, and these products
    are blocks of the covariance.
    """
    if heads < 2:
        return float("nan")
    size = len(covariance_CC) // heads
    norms_hh = covariance_CC.unfold(0, size, size).unfold(1, size, size).flatten(2).norm(dim=-1)
    own_h = norms_hh.diagonal()
    cka_hh = norms_hh.square() / torch.outer(own_h, own_h)
    first, second = torch.triu_indices(heads, heads, offset=1)
    return float(cka_hh[first, second].mean())


def head_outputs(attention: nn.Module, written: WrittenOut) -> Tensor:
    """Return what the output projection of a call reads, the heads' outputs joined, (B, N, C)."""
    projection = attention.get_submodule("proj" if hasattr(attention, "proj") else "out_proj")
    with recorded(attention, [projection]) as calls:
        written.output(weighted_difference(*written[:3]))
        outputs: Tensor = calls[projection].args[0]
    return outputs


# one tower


class _Layer:
    """Collect what is measured of a layer, over the batches."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = defaultdict(list)
        self.moments = SecondMoments()
        self.heads = 0

    def add(self, written: WrittenOut, outputs_BNC: Tensor) -> None:
        N = outputs_BNC.shape[1]
        a1, a2, lambda_ = written[:3]
        effective = weighted_difference(a1, a2, lambda_)
        self._add("sink", sink_ratio(effective).log())
        self._add("first token", (column_weights(effective).argmax(-1) == 0).double())
        if a2 is not None and lambda_ is not None:
            self._add("sink of A1", sink_ratio(a1).log())
            self._add("sink of A2", sink_ratio(a2).log())
            self._add("negative mass", negative_mass(effective))
            self._add("lambda", lambda_.expand(*a1.shape[:2], N, 1) if lambda_.dim() else lambda_[None])
        self.moments.add(outputs_BNC.flatten(0, 1))
        self.heads = a1.shape[1]

    def _add(self, measure: str, values: Tensor) -> None:
        self.values[measure].append(values.double().flatten().cpu())

    def result(self) -> dict[str, float]:
        joined = {measure: torch.cat(values) for measure, values in self.values.items()}
        found = {name: float(values.mean()) for name, values in joined.items()}
        found |= {name: float(values.mean().exp()) for name, values in joined.items() if name.startswith("sink")}
        if "lambda" in joined:
            found["spread of lambda"] = float(joined["lambda"].std(correction=0))
        return found | {"CKA of heads": cka_of_heads(self.moments.covariance(), self.heads)}


@torch.no_grad()
def measure_tower(model: Any, tower: str, batches: Iterable[Tensor]) -> list[dict[str, float]]:
    """Return the measures of each layer of a tower.

    Args:
        tower: "image" or "text".
        batches: preprocessed images, (B, 3, H, W); or token ids, (B, N), of texts of one length.
    """
    encode = model.encode_image if tower == "image" else model.encode_text
    attention = attention_layers(model, tower)
    layers = [_Layer() for _ in attention]
    for batch in batches:
        length = int(batch[0].argmax()) + 1 if tower == "text" else None
        with recorded(model, attention) as calls:
            encode(batch)
        for module, layer in zip(attention, layers, strict=True):
            call = calls[module]
            written = write_out(module, *call.args, **call.kwargs)
            outputs_BNC = head_outputs(module, written)[:, :length]
            layer.add(_cropped(written, length), outputs_BNC)
    return [layer.result() for layer in layers]


def _cropped(written: WrittenOut, length: int | None) -> WrittenOut:
    """Leave out the tokens behind a text's last one, at which no token before them looks."""
    a1, a2, lambda_, output = written
    a1, a2 = a1[..., :length, :length], None if a2 is None else a2[..., :length, :length]
    if lambda_ is not None and lambda_.dim() and lambda_.shape[-2] > 1:
        lambda_ = lambda_[..., :length, :]
    return WrittenOut(a1, a2, lambda_, output)
