"""Compute heat maps of what a CLIP's image tower used in an image, for a text or as such.

Source of "chefer", the method of DiffCLIP's Figure 2: Transformer-MM-Explainability (arXiv 2103.15679),
hila-chefer/Transformer-MM-Explainability@58eaea8:CLIP_explainability.ipynb. There the maps' gradients come from a copy
of the model that keeps its maps; here they come from the unchanged model. The gradient at an attention module's output,
taken from the usual backward pass, is carried on to the maps through the module's own formula, which is exact because
the logit depends on the maps through that output alone.

Shape legend::

    B images    T texts    N tokens    E embed_dim    h maps a layer
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffclip_openclip.explain.attention_formulas import weighted_difference, write_out
from diffclip_openclip.explain.maps import (
    RecordedCall,
    Tokens,
    attention_layers,
    check_inputs,
    layer_index,
    recorded,
    tokens_of,
)


class Relevance(NamedTuple):
    """Hold what :func:`relevance` found, in float32, or in float64 for a model in float64."""

    maps: Tensor  # relevance of each patch, not negative, (B, T, h, w) with h x w the grid of patches
    similarity: Tensor  # cosines of images and texts, (B, T)


class _ForwardPass(NamedTuple):
    """Hold a forward pass of images."""

    calls: list[tuple[nn.Module, RecordedCall]]  # of the layers that count, from the first to the last
    logits: Tensor  # (B, T)
    tokens: Tokens


def relevance(
    model: Any, image: Tensor, texts: Tensor, method: str = "chefer", start_layer: int | None = None
) -> Relevance:
    """Compute what in each image speaks for each text; the model is left as it was.

    "chefer": R = I, then R <- R + mean_h(max(dl/dA * A, 0)) R in each layer from ``start_layer`` on, where l is the
    logit of image and text and A is the layer's map, A1 - lambda A2 in differential attention (the authors' own choice
    is not published). The relevances are R's row of the token that the tower reads out, or the mean of the rows if it
    averages tokens.

    "rollout" (arXiv 2005.00928): the product of the layers' (A + I) / 2, A being the mean of the heads' maps. It knows
    no text: all T maps are the same. Rows of A are shares there, so in differential attention negative entries of each
    head count as 0, and each row of their mean is divided by its sum.

    "gradcam" (arXiv 1610.02391): max(sum_c w_c x_c, 0) of each patch, where x is what the last block's attention reads,
    and w the mean of dl/dx over the patches. Behind the last block, patches have no gradient if the class token alone
    is read out (jacobgil/pytorch-grad-cam@master:tutorials/vision_transformers.md).

    Args:
        model: of open_clip, its image tower a ViT.
        image: preprocessed images, (B, 3, H, W), on the model's device and in its dtype; any size that the model takes.
        texts: token ids, (T, N).
        method: "chefer", "rollout" or "gradcam".
        start_layer: the first layer that counts, negative from the end: by default the last for "chefer", as in its
            source, and the first for "rollout"; "gradcam" has none.

    Raises:
        ValueError: the method or layer is unknown, a tensor has another shape, or the image tower has no known
            attention modules. Likewise, except for "gradcam", if it pools its tokens neither by a class token nor by
            their mean.
    """
    check_inputs(image, texts)
    attention = attention_layers(model, "image")
    attention = attention[_first_layer(method, start_layer, len(attention)) :]
    tokens = tokens_of(model, image)
    if tokens.pooled is None and method != "gradcam":
        raise ValueError(
            f"the image tower pools its tokens neither by a class token nor by their mean, so {method!r} cannot tell "
            "what is read out; 'gradcam' needs not know"
        )
    # tensors of inference mode have no gradients
    with torch.inference_mode(False), recorded(model, attention) as calls:
        with torch.no_grad():
            text_TE = F.normalize(model.encode_text(texts), dim=-1)
        with torch.set_grad_enabled(method != "rollout"):
            # so that there are gradients in a model whose weights are frozen
            image = image.detach().clone().requires_grad_()
            cosine_BT = F.normalize(model.encode_image(image), dim=-1) @ text_TE.t()
            logits_BT = cosine_BT * model.logit_scale.detach().exp()
            passed = _ForwardPass([(module, calls[module]) for module in attention], logits_BT, tokens)
            maps_BTP = _METHODS[method](passed)
    dtype = _precise(cosine_BT)
    return Relevance(maps_BTP.unflatten(-1, tokens.grid).detach().to(dtype), cosine_BT.detach().to(dtype))


def upsample(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Interpolate heat maps bilinearly to pixels and stretch each to [0, 1]; a constant one becomes 0.

    Args:
        maps: (B, T, h, w).
        size: (H, W), or one number for both.

    Returns:
        (B, T, H, W).
    """
    # asked before interpolation, whose rounding a constant map would be stretched to
    constant = maps.amax((-2, -1), keepdim=True) == maps.amin((-2, -1), keepdim=True)
    pixels = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    low, high = pixels.amin((-2, -1), keepdim=True), pixels.amax((-2, -1), keepdim=True)
    return ((pixels - low) / (high - low).masked_fill(constant, 1.0)).masked_fill(constant, 0.0)


def _first_layer(method: str, start_layer: int | None, depth: int) -> int:
    if method not in _METHODS:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(map(repr, _METHODS))}")
    if method == "gradcam" and start_layer is not None:
        raise ValueError(f"start_layer is {start_layer}, but 'gradcam' reads the last layer alone; leave it out")
    if start_layer is None:
        start_layer = 0 if method == "rollout" else -1
    return layer_index(start_layer, depth, "image")


def _chefer(passed: _ForwardPass) -> Tensor:
    outputs = [call.output for _, call in passed.calls]
    written_out = [_with_gradient(*call) for call in passed.calls]
    maps = []
    for logit_B in passed.logits.unbind(1):
        # each image's logit depends on that image alone, so one backward pass serves all of them
        gradients = torch.autograd.grad(logit_B.sum(), outputs, retain_graph=True)
        row_B1N = _readout(passed)
        # only the row that is read out is followed, from the last layer back: r (I + C) = r + r C
        for (map_BhNN, output), gradient in zip(reversed(written_out), reversed(gradients), strict=True):
            (map_gradient,) = torch.autograd.grad(output, map_BhNN, gradient, retain_graph=True)
            share_BhNN = map_gradient.to(row_B1N.dtype) * map_BhNN.detach().to(row_B1N.dtype)
            row_B1N = row_B1N + row_B1N @ share_BhNN.clamp(min=0).mean(1)
        maps.append(row_B1N[:, 0, passed.tokens.num_prefix :])
    return torch.stack(maps, dim=1)


def _with_gradient(module: nn.Module, call: RecordedCall) -> tuple[Tensor, Tensor]:
    """Return the map of a call as a leaf, (B, h, N, N), and the call's output as computed from it."""
    with torch.no_grad():
        written_out = write_out(module, *call.args, **call.kwargs)
        map_BhNN = weighted_difference(*written_out[:3])
    map_BhNN.requires_grad_()
    return map_BhNN, written_out.output(map_BhNN)


def _rollout(passed: _ForwardPass) -> Tensor:
    row_B1N = _readout(passed)
    for module, call in reversed(passed.calls):
        map_BhNN = weighted_difference(*write_out(module, *call.args, **call.kwargs)[:3]).to(row_B1N.dtype)
        shares_BNN = _rows_to_one(map_BhNN.clamp(min=0).mean(1))
        identity = torch.eye(shares_BNN.shape[-1], dtype=shares_BNN.dtype, device=shares_BNN.device)
        row_B1N = row_B1N @ _rows_to_one((shares_BNN + identity) / 2)
    map_BP = row_B1N[:, 0, passed.tokens.num_prefix :]
    return map_BP.unsqueeze(1).repeat(1, passed.logits.shape[1], 1)


def _rows_to_one(shares_BNN: Tensor) -> Tensor:
    """Divide each row by its sum; a row of zeros, where a query looks nowhere, stays."""
    return shares_BNN / shares_BNN.sum(-1, keepdim=True).clamp(min=torch.finfo(shares_BNN.dtype).tiny)


def _gradcam(passed: _ForwardPass) -> Tensor:
    [(_, call)] = passed.calls
    tokens_BNC = call.args[0]
    dtype = _precise(tokens_BNC)
    patches_BPC = tokens_BNC[:, passed.tokens.num_prefix :].detach().to(dtype)
    maps = []
    for logit_B in passed.logits.unbind(1):
        (gradient_BNC,) = torch.autograd.grad(logit_B.sum(), tokens_BNC, retain_graph=True)
        weight_B1C = gradient_BNC[:, passed.tokens.num_prefix :].to(dtype).mean(1, keepdim=True)
        maps.append((weight_B1C * patches_BPC).sum(-1).relu())
    return torch.stack(maps, dim=1)


def _readout(passed: _ForwardPass) -> Tensor:
    """Return the weights with which the tower's output reads the last layer's tokens, (B, 1, N)."""
    output_BNC = passed.calls[-1][1].output
    row_B1N = output_BNC.new_zeros((len(output_BNC), 1, output_BNC.shape[1]), dtype=_precise(output_BNC))
    row_B1N[..., passed.tokens.pooled] = 1.0
    return row_B1N / row_B1N.sum(-1, keepdim=True)


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


_METHODS: dict[str, Callable[[_ForwardPass], Tensor]] = {"chefer": _chefer, "rollout": _rollout, "gradcam": _gradcam}
