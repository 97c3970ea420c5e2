"""Losses on class labels, and the accuracy. Labels stay integers; no one-hot array is ever made.

Labels lie in 0..C-1: batches see to that on the host, for here a GPU would have to wait.

weight (..., B) holds the share of each row: 1 and 0 make a mask. norm is what the sum over rows is
divided by, the sum of the weights (or B) unless given; a shard passes the norm of the whole batch.
"""

from ..engine import kernels, row_kernels
from ..engine.device import Array, Device
from ..engine.kernels import Fused


def _normalised(dev: Device, target: Array, weight, norm):
    """Row factors weight_b / norm: a float, or an array (..., B, 1)."""
    if weight is None:
        total = target.shape[-1] if norm is None else norm
        return 1.0 / total
    total = dev.xp.sum(weight, axis=-1, keepdims=True) if norm is None else norm
    return (weight / total)[..., None]


def _as_column(dloss):
    """dL of every member against (..., B, C): a float, or an array (..., 1, 1)."""
    return dloss if isinstance(dloss, float) else dloss[..., None, None]


def _of_rows(dev: Device, kernel: Fused, logits: Array, target: Array, out=None):
    """(l, r): the loss of every row, and r for its gradient."""
    rows = dev.empty(logits.shape[:-1], logits.dtype)
    r = dev.xp.empty_like(logits) if out is None else out
    kernel(dev, logits, target[..., None], rows[..., None], r)
    return rows, r


def _weighted(of_rows, dev: Device, logits: Array, target: Array, weight, norm, out):
    """(L, (r, q)): the sum over rows of their loss times q = weight/norm; what backward takes."""
    rows, r = of_rows(dev, logits, target, out)
    q = _normalised(dev, target, weight, norm)
    return (rows[..., None] * q).sum(axis=(-1, -2)), (r, q)


def mse_rows(dev: Device, logits: Array, target: Array, out=None) -> tuple[Array, Array]:
    """(l, r): l_b = mean_c r_bc^2 with the residual r_bc = z_bc - [c = target_b]

    l (..., B)   r (..., B, C), in out where given"""
    return _of_rows(dev, row_kernels.mse, logits, target, out)


def mse_forward(dev: Device, logits: Array, target: Array, weight=None, norm=None, out=None):
    """L = sum_b weight_b/norm mean_c (z_bc - [c = target_b])^2

    z (..., B, C)   target (..., B)   L (...); out may be the logits.
    Source: Grokking modular polynomials: MSE over batch and classes."""
    return _weighted(mse_rows, dev, logits, target, weight, norm, out)


def mse_backward(dev: Device, dloss, cache: tuple, dlogits=None):
    """dz_bc = 2 weight_b/(norm C) (z_bc - [c = target_b]) dL

    dL a float or (...). The cache holds the residual r = z - onehot(target) and q = weight/norm;
    dlogits may be r."""
    r, q = cache
    scale = q * (2.0 / r.shape[-1]) * _as_column(dloss)
    return dev.xp.multiply(r, scale, out=dlogits)


def softmax_forward(dev: Device, x: Array, out=None):
    """y_c = exp(x_c - max x) / sum_c exp(x_c - max x) over the last axis. out may be x."""
    y = dev.xp.empty_like(x) if out is None else out
    row_kernels.softmax(dev, x, None, y)
    return y, (y,)


def softmax_backward(dev: Device, dy: Array, cache: tuple):
    """dx = y (dy - sum_c dy_c y_c)"""
    (y,) = cache
    dx = dev.xp.empty_like(dy)
    row_kernels.softmax_backward(dev, dy, y, y, dy, dx)
    return dx


def cross_entropy_rows(dev: Device, logits: Array, target: Array, out=None) -> tuple[Array, Array]:
    """(l, r): l_b = log sum_c exp z_bc - z_b,target and r = softmax(z) - onehot(target)

    l (..., B)   r (..., B, C), in out where given"""
    return _of_rows(dev, row_kernels.cross_entropy, logits, target, out)


def cross_entropy_forward(
    dev: Device, logits: Array, target: Array, weight=None, norm=None, out=None
):
    """L = sum_b weight_b/norm (log sum_c exp z_bc - z_b,target)

    z (..., B, C)   target (..., B)   L (...)
    out may be the logits: it ends up holding softmax(z) - onehot(target).
    """
    return _weighted(cross_entropy_rows, dev, logits, target, weight, norm, out)


def cross_entropy_backward(dev: Device, dloss, cache: tuple, dlogits=None):
    """dz_bc = weight_b/norm (softmax(z)_bc - [c = target_b]) dL        dL a float or (...)

    since log sum_k exp z_k has the derivative exp z_c / sum_k exp z_k = softmax(z)_c. The cache
    holds r = softmax(z) - onehot(target) and q = weight/norm: dz = r q dL. dlogits may be r."""
    r, q = cache
    scale = q * _as_column(dloss)
    return dev.xp.multiply(r, scale, out=dlogits)


def stablemax_rows(dev: Device, logits: Array, target: Array, out=None) -> tuple[Array, Array]:
    """(l, r): l_b = log sum_c s(z_bc) - log s(z_b,target) and r = s'(z)/s(z) (q - onehot(target))

    with q = s(z)/sum_c s(z_c), s(z) = 1 + z for z >= 0 and 1/(1 - z) below, so that s'/s is the
    smaller one of 1/s and s.   l (..., B)   r (..., B, C), in out where given"""
    xp = dev.xp
    s = (1 + xp.maximum(logits, 0)) / (1 - xp.minimum(logits, 0))  # one of the two is 1
    labels = xp.broadcast_to(target, logits.shape[:-1])[..., None]
    picked = xp.take_along_axis(s, labels, axis=-1)
    total = s.sum(axis=-1, keepdims=True)
    r = xp.divide(s, total, out=out)
    kernels.subtract_onehot(dev, r, target[..., None], logits.shape[-1], r)
    r *= xp.minimum(s, 1 / s)
    return (xp.log(total) - xp.log(picked))[..., 0], r


def stablemax_forward(dev: Device, logits: Array, target: Array, weight=None, norm=None, out=None):
    """L = sum_b weight_b/norm (log sum_c s(z_bc) - log s(z_b,target))

    Cross-entropy with s in place of exp: s(z) = 1 + z for z >= 0, 1/(1 - z) below. Its gradient
    vanishes as a power of the logits where that of softmax is rounded to 0.

    z (..., B, C)   target (..., B)   L (...); out may be the logits.
    Source: Prieto et al., Grokking at the edge of numerical stability, arXiv 2501.04697."""
    return _weighted(stablemax_rows, dev, logits, target, weight, norm, out)


def stablemax_backward(dev: Device, dloss, cache: tuple, dlogits=None):
    """dz_bc = weight_b/norm s'(z_bc)/s(z_bc) (s(z_bc)/sum_k s(z_bk) - [c = target_b]) dL

    since log s has the derivative s'/s, and log sum_k s(z_k) has s'(z_c)/sum_k s(z_k). The cache
    holds r = dL/dz of a row and q = weight/norm; dL a float or (...). dlogits may be r."""
    return cross_entropy_backward(dev, dloss, cache, dlogits)


LOSSES = {
    "mse": (mse_forward, mse_backward),
    "cross_entropy": (cross_entropy_forward, cross_entropy_backward),
    "stablemax": (stablemax_forward, stablemax_backward),
}
ROW_LOSSES = {"mse": mse_rows, "cross_entropy": cross_entropy_rows, "stablemax": stablemax_rows}
