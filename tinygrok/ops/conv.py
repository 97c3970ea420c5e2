"""Convolution and pooling of images (B, H, W, C), channels last: patches side by side in rows, then
one matrix product."""

from ..engine.device import Array, Device
from .linear import linear_backward, linear_forward

COLUMN_BYTES = {
    "cpu": 4_000_000,
    "cuda": 500_000_000,
}  # of the patches of a few images, which are multiplied at once


def _patches(dev: Device, x: Array, y: Array, kernel: tuple, stride: int, pad: int, gather: bool):
    """For a few images at a time: (slice of images, their patches as rows (b i j, k l c), the
    inside of their padded copy, [(pixels of that copy, columns)]): column (k, l, :) of the rows
    holds the pixels at (s i + k, s j + l)."""
    (k, _, C, _), (B, H, W, _), (_, Ho, Wo, _) = kernel, x.shape, y.shape
    step = max(1, COLUMN_BYTES[dev.kind] // (Ho * Wo * k * k * C * dev.dtype.itemsize))
    for part in (slice(a, min(a + step, B)) for a in range(0, B, step)):
        cols = dev.workspace.get("conv.columns", (part.stop - part.start, Ho, Wo, k, k, C))
        padded = dev.workspace.get("conv.padded", (len(cols), H + 2 * pad, W + 2 * pad, C))
        at = [(i, j) for i in range(k) for j in range(k)]
        pairs = [
            (
                padded[:, i : i + stride * Ho : stride, j : j + stride * Wo : stride],
                cols[:, :, :, i, j],
            )
            for i, j in at
        ]
        padded.fill(0)
        if gather:
            padded[:, pad : pad + H, pad : pad + W] = x[part]
            for pixels, column in pairs:
                column[...] = pixels
        yield part, cols.reshape(-1, k * k * C), padded[:, pad : pad + H, pad : pad + W], pairs


def conv_forward(dev: Device, x: Array, w: Array, b: Array | None, stride: int = 1, pad: int = 0):
    """y[b,i,j,n] = sum over k, l, c of x[b, s i + k - p, s j + l - p, c] w[k,l,c,n] + b_n, x = 0
    outside the image

    shapes: x (B, H, W, C)   w (k, k, C, N)   b (N,)   y (B, Ho, Wo, N), Ho = (H + 2p - k) // s + 1, stride s, padding p
    """
    (B, H, W, _), (k, *_, N) = x.shape, w.shape
    y = dev.empty((B, (H + 2 * pad - k) // stride + 1, (W + 2 * pad - k) // stride + 1, N))
    for part, rows, _, _ in _patches(dev, x, y, w.shape, stride, pad, True):
        linear_forward(dev, rows, w.reshape(-1, N), b, y[part].reshape(-1, N))
    return y, (x, w, stride, pad)


def conv_backward(
    dev: Device,
    dy: Array,
    cache: tuple,
    dw=None,
    db=None,
    need_dx: bool = True,
    accumulate: bool = False,
):
    """dw[k,l,c,n] = sum over b, i, j of x[b, s i + k - p, s j + l - p, c] dy[b,i,j,n]        db = sum over b, i, j of dy

    dx = sum of dy[b,i,j,:] w[k,l,:,:]^T over the patches in which a pixel lies. Writes dw and db
    where given, or adds. need_dx=False: no dx, None (a first layer).
    """
    x, w, stride, pad = cache
    N, dx, into = (
        w.shape[-1],
        dev.empty(x.shape) if need_dx else None,
        None if dw is None else dw.reshape(-1, w.shape[-1]),
    )
    for part, rows, inside, pairs in _patches(dev, x, dy, w.shape, stride, pad, dw is not None):
        cache, more = (rows, w.reshape(-1, N)), accumulate or part.start > 0
        linear_backward(
            dev, dy[part].reshape(-1, N), cache, into, db, rows, need_dx, more
        )  # rows are read, then written
        if not need_dx:
            continue
        inside.fill(0)
        for pixels, column in pairs:
            pixels += column
        dx[part] = inside
    return dx


def _cells(x: Array, k: int) -> list[Array]:
    """The k^2 views of x (B, H, W, C) that hold one pixel of every k x k window; what does not fill
    a window is left out."""
    H, W = x.shape[1] // k * k, x.shape[2] // k * k
    return [x[:, i:H:k, j:W:k] for i in range(k) for j in range(k)]


def maxpool_forward(dev: Device, x: Array, k: int):
    """y[b,i,j,c] = max over u, v < k of x[b, k i + u, k j + v, c]        shapes: x (B, H, W, C)   y (B, H//k, W//k, C)"""
    first, *others = _cells(x, k)
    y, which = (
        first.copy(),
        dev.zeros(first.shape, "uint8"),
    )  # the cell of the maximum, the first one of equal ones
    for n, cell in enumerate(others, 1):
        dev.xp.maximum(which, (cell > y) * dev.xp.uint8(n), out=which)
        dev.xp.maximum(y, cell, out=y)
    return y, (x.shape, which, k)


def maxpool_backward(dev: Device, dy: Array, cache: tuple):
    """dx[b, k i + u, k j + v, c] = dy[b,i,j,c] where (u, v) held the maximum, else 0"""
    shape, which, k = cache
    dx = dev.zeros(shape)
    for n, cell in enumerate(_cells(dx, k)):
        dev.xp.multiply(dy, which == n, out=cell)
    return dx


def maxpool_tangent(dev: Device, xdot: Array, cache: tuple) -> tuple:
    """ydot[b,i,j,c] = xdot[b, k i + u, k j + v, c] where (u, v) held the maximum"""
    return sum(cell * (cache[1] == n) for n, cell in enumerate(_cells(xdot, cache[2]))), cache


def avgpool_forward(dev: Device, x: Array, h: int, w: int):
    """y[b,i,j,c] = mean over u < h, v < w of x[b, h i + u, w j + v, c]        shapes: x (B, H, W, C)   y (B, H/h, W/w, C)"""
    B, H, W, C = x.shape
    return x.reshape(B, H // h, h, W // w, w, C).mean(axis=(2, 4)), (x.shape, h, w)


def avgpool_backward(dev: Device, dy: Array, cache: tuple):
    """dx[b, h i + u, w j + v, c] = dy[b,i,j,c]/(h w)"""
    (B, H, W, C), h, w = cache
    dx = dev.empty((B, H // h, h, W // w, w, C))
    dx[...] = (dy * (1 / (h * w)))[:, :, None, :, None]
    return dx.reshape(B, H, W, C)
