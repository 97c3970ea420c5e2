"""Convolution and pooling of images (B, H, W, C), channels last.

Patches stand side by side in the rows of a matrix, so that a convolution is one matrix product."""

from collections.abc import Iterator

from ..engine import row_kernels
from ..engine.device import Array, Device
from .linear import linear_backward, linear_forward

# Bytes of the patches of a few images, which are multiplied at once.
COLUMN_BYTES = {"cpu": 4_000_000, "cuda": 500_000_000}


def _parts(dev: Device, y: Array, depth: int) -> Iterator[tuple[slice, Array]]:
    """(a slice of the batch, a matrix for the patches of its images), which takes at most
    COLUMN_BYTES, or holds one image.

    y (B, Ho, Wo, N); depth k k C."""
    B, Ho, Wo, _ = y.shape
    image = Ho * Wo * depth * dev.dtype.itemsize
    step = max(1, COLUMN_BYTES[dev.kind] // image)
    for start in range(0, B, step):
        part = slice(start, min(start + step, B))
        yield part, dev.workspace.get("conv.rows", ((part.stop - start) * Ho * Wo, depth))


def conv_forward(dev: Device, x: Array, w: Array, b=None, stride=1, pad=0):
    """y[b,i,j,n] = sum over u, v, c of x[b, s i + u - p, s j + v - p, c] w[u,v,c,n] + b_n

    x = 0 outside the image, stride s, padding p        shapes: x (B, H, W, C)   w (k, k, C, N)
    b (N,)   y (B, Ho, Wo, N) with Ho = (H + 2p - k) // s + 1
    """
    B, H, W, _ = x.shape
    kernel, _, _, N = w.shape
    Ho = (H + 2 * pad - kernel) // stride + 1
    Wo = (W + 2 * pad - kernel) // stride + 1
    geometry = (H, W, Ho, Wo, kernel, stride, pad)
    y = dev.empty((B, Ho, Wo, N))
    matrix = w.reshape(-1, N)
    for part, rows in _parts(dev, y, len(matrix)):
        row_kernels.patches(dev, x[part], *geometry, rows)
        linear_forward(dev, rows, matrix, b, out=y[part].reshape(-1, N))
    return y, (x, matrix, geometry)


def conv_backward(
    dev: Device, dy: Array, cache: tuple, dw=None, db=None, need_dx=True, accumulate=False
):
    """dw[u,v,c,n] = sum over b, i, j of x[b, s i + u - p, s j + v - p, c] dy[b,i,j,n]

    db_n = sum over b, i, j of dy[b,i,j,n]
    dx[b, s i + u - p, s j + v - p, c] gets sum_n dy[b,i,j,n] w[u,v,c,n], for all i, j, u and v
    that meet this pixel. Writes dw and db where given, or adds. need_dx=False: no dx, None (a first
    layer).
    """
    x, matrix, geometry = cache
    dmatrix = None if dw is None else dw.reshape(matrix.shape)
    dx = dev.empty(x.shape) if need_dx else None
    for part, rows in _parts(dev, dy, len(matrix)):
        # y = rows matrix + b, so drows = dy matrix^T, which takes the place of the rows
        if dw is not None:
            row_kernels.patches(dev, x[part], *geometry, rows)
        dy_rows = dy[part].reshape(len(rows), -1)
        add = accumulate or part.start > 0
        linear_backward(dev, dy_rows, (rows, matrix), dmatrix, db, rows, need_dx, add)
        if dx is not None:
            row_kernels.patches_backward(dev, rows, *geometry, dx[part])
    return dx


def maxpool_forward(dev: Device, x: Array, k: int):
    """y[b,i,j,c] = max over u, v < k of x[b, k i + u, k j + v, c]

    shapes: x (B, H, W, C)   y (B, H//k, W//k, C)"""
    B, H, W, C = x.shape
    y = dev.empty((B, H // k, W // k, C))
    which = dev.empty(y.shape, "int32")  # the cell of the maximum, the first one of equal ones
    row_kernels.maxpool(dev, x, H, W, k, which, y)
    return y, (x.shape, which, k)


def maxpool_backward(dev: Device, dy: Array, cache: tuple):
    """dx[b, k i + u, k j + v, c] = dy[b,i,j,c] where (u, v) held the maximum, else 0"""
    shape, which, k = cache
    dx = dev.empty(shape)
    row_kernels.maxpool_backward(dev, dy, which, *shape[1:3], k, dx)
    return dx


def maxpool_tangent(dev: Device, xdot: Array, cache: tuple) -> tuple:
    """ydot[b,i,j,c] = xdot[b, k i + u, k j + v, c] where (u, v) held the maximum

    It is linear in xdot: maxpool_backward with the same cache takes its adjoint back."""
    _, which, k = cache
    ydot = sum(cell * (which == n) for n, cell in enumerate(row_kernels.cells(xdot, k)))
    return ydot, cache


def avgpool_forward(dev: Device, x: Array, h: int, w: int):
    """y[b,i,j,c] = mean over u < h, v < w of x[b, h i + u, w j + v, c]

    shapes: x (B, H, W, C)   y (B, H/h, W/w, C)"""
    B, H, W, C = x.shape
    windows = x.reshape(B, H // h, h, W // w, w, C)
    return windows.mean(axis=(2, 4)), (h, w)


def avgpool_backward(dev: Device, dy: Array, cache: tuple):
    """dx[b, h i + u, w j + v, c] = dy[b,i,j,c]/(h w)"""
    h, w = cache
    share = dy * (1 / (h * w))
    return dev.xp.repeat(dev.xp.repeat(share, h, axis=1), w, axis=2)
