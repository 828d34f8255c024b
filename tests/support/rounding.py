"""How far rounding can take differential attention from its exact value, on any processor and in any order of sums.

First-order running error analysis (Higham, Accuracy and Stability of Numerical Algorithms, sections 3.1 and 3.3): a sum
of n products differs from its exact value by at most n u times the sum of the products' magnitudes, with u the unit
roundoff, in whatever order it is added. Errors of a step's inputs go through it by its derivative. What is left out, of
second order, is covered by the factor of 2 at the end.

Everything is computed in float64 from the exact values.
"""

from typing import NamedTuple

import torch


class CoreError(NamedTuple):
    """Bounds of the absolute error of each element."""

    heads: torch.Tensor
    normed: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    lambda_: torch.Tensor
    weight: torch.Tensor


_EXP = 8  # units in the last place by which vectorised exp, rsqrt and divisions are off at most, with room


def bound(q_MBPNd, k_MBPNd, v_BPNe, lambda_, weight_e, grad_BPNe, eps, is_causal, u, u_stored, least) -> CoreError:
    """Bound the errors of RMSNorm((A1 - lambda A2) v) weight and of its gradients; M = 2 maps.

    ``u`` is the unit roundoff of the arithmetic, ``u_stored`` that of tensors between its steps (0 if it is the same),
    and ``least`` half the smallest number that these can hold.
    """

    def stored(x):
        return u_stored * x.abs() + least

    d, (N, e) = q_MBPNd.shape[-1], v_BPNe.shape[-2:]
    sign_M = torch.stack([torch.ones_like(lambda_), -lambda_]).view(2, 1, 1, 1, 1)
    scale = d**-0.5

    # scores and maps
    s = q_MBPNd @ k_MBPNd.mT * scale
    s_error = (d + 2) * u * (q_MBPNd.abs() @ k_MBPNd.mT.abs() * scale)
    if is_causal:
        hidden = torch.ones(N, N, dtype=torch.bool).triu(1)
        s, s_error = s.masked_fill(hidden, -torch.inf), s_error.masked_fill(hidden, 0.0)
    a = s.softmax(-1)
    depth = (s.amax(-1, keepdim=True) - s).masked_fill(a == 0, 0.0).amax(-1, keepdim=True)
    a_relative = 2 * s_error.amax(-1, keepdim=True) + (depth + N + 2 * _EXP) * u
    difference = (sign_M * a).sum(0)
    magnitude = (sign_M * a).abs().sum(0)
    difference_error = (sign_M.abs() * a * a_relative).sum(0) + 2 * u * magnitude + stored(difference)

    # heads and norm
    h = difference @ v_BPNe
    h_error = difference_error @ v_BPNe.abs() + N * u * magnitude @ v_BPNe.abs() + stored(h)
    r = (h.square().mean(-1, keepdim=True) + eps).rsqrt()
    r_relative = (h.abs() * h_error).mean(-1, keepdim=True) * r.square() + (e + _EXP) * u
    n, n_error = h * r, r * h_error + h.abs() * r * (r_relative + u)
    y_error = n_error * weight_e + 2 * u * (n * weight_e).abs() + stored(n * weight_e)

    # backward: norm
    wg = weight_e * grad_BPNe
    mean = (wg * n).mean(-1, keepdim=True)
    mean_error = (wg.abs() * n_error).mean(-1, keepdim=True) + (e + 2) * u * (wg * n).abs().mean(-1, keepdim=True)
    dh = r * (wg - n * mean)
    dh_error = r * (n_error * mean.abs() + n.abs() * mean_error)
    dh_error += (r_relative + 4 * u) * r * (wg.abs() + (n * mean).abs()) + stored(r * (wg.abs() + (n * mean).abs()))
    weight_error = (grad_BPNe.abs() * n_error + grad_BPNe.numel() // e * u * (grad_BPNe * n).abs()).sum((0, 1, 2))

    # product and maps; both maps share the gradient of their difference
    v_error = difference_error.mT @ dh.abs() + magnitude.mT @ dh_error + N * u * magnitude.mT @ dh.abs()
    dd = dh @ v_BPNe.mT
    dd_error = dh_error @ v_BPNe.mT.abs() + e * u * dh.abs() @ v_BPNe.mT.abs()
    c = (dd * a).sum(-1, keepdim=True)
    c_magnitude = (dd * a).abs().sum(-1, keepdim=True)
    c_error = (dd_error * a + (a_relative + N * u) * (dd * a).abs()).sum(-1, keepdim=True)
    rows = c[1].numel()
    lambda_error = (c_error[1] + rows * u * c_magnitude[1]).sum()

    # softmax and scores
    ds = sign_M * a * (dd - c)
    ds_error = (sign_M * a).abs() * (dd_error + c_error + (a_relative + 4 * u) * (dd.abs() + c.abs()))
    ds_error += stored((sign_M * a) * (dd.abs() + c.abs()))
    q_error = scale * (ds_error @ k_MBPNd.abs() + (N + 2) * u * ds.abs() @ k_MBPNd.abs())
    k_error = scale * (ds_error.mT @ q_MBPNd.abs() + (N + 2) * u * ds.abs().mT @ q_MBPNd.abs())
    q, k = scale * ds @ k_MBPNd, scale * ds.mT @ q_MBPNd
    q_error, k_error = q_error + stored(q), k_error + stored(k)
    v_error = v_error + stored(difference.mT @ dh)
    return CoreError(*(2 * x for x in (h_error, y_error, q_error, k_error, v_error, lambda_error, weight_error)))
