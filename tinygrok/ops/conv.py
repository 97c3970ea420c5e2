"""Convolution and pooling of images (B, H, W, C), channels last.

Patches stand side by side in the rows of a matrix, so that a convolution is one matrix product."""

from ..engine.device import Array, Device
from .linear import linear_backward, linear_forward

# Bytes of the patches of a few images, which are multiplied at once.
COLUMN_BYTES = {"cpu": 4_000_000, "cuda": 500_000_000}


class _Patches:
    """The patches of a few images, and a copy of the images with a border of zeros.

    rows     (b i j, u v c): the matrix of patches; column (u, v, :) holds the pixels at
             (s i + u, s j + v) of the padded images
    padded   (images, H + 2p, W + 2p, C); inside: the view of it without the border
    pairs    [(pixels, column)] for every (u, v): a view of padded and its place in rows
    """

    def __init__(self, dev: Device, x: Array, y: Array, kernel: int, stride: int, pad: int):
        images, H, W, C = x.shape
        _, Ho, Wo, _ = y.shape
        columns = dev.workspace.get("conv.columns", (images, Ho, Wo, kernel, kernel, C))
        self.padded = dev.workspace.get("conv.padded", (images, H + 2 * pad, W + 2 * pad, C))
        self.inside = self.padded[:, pad : pad + H, pad : pad + W]
        self.rows = columns.reshape(-1, kernel * kernel * C)
        self.pairs = []
        for u in range(kernel):
            for v in range(kernel):
                high = slice(u, u + stride * Ho, stride)
                wide = slice(v, v + stride * Wo, stride)
                self.pairs.append((self.padded[:, high, wide], columns[:, :, :, u, v]))

    def gather(self, x: Array) -> None:
        """rows <- the patches of x"""
        self.padded.fill(0)
        self.inside[...] = x
        for pixels, column in self.pairs:
            column[...] = pixels

    def scatter(self) -> Array:
        """The sum of the rows over all patches in which a pixel lies: the transpose of gather."""
        self.padded.fill(0)
        for pixels, column in self.pairs:
            pixels += column
        return self.inside


def _parts(dev: Device, x: Array, y: Array, kernel: int) -> list[slice]:
    """Slices of the batch, each of a few images whose patches take at most COLUMN_BYTES."""
    B, _, _, C = x.shape
    _, Ho, Wo, _ = y.shape
    image = Ho * Wo * kernel * kernel * C * dev.dtype.itemsize
    step = max(1, COLUMN_BYTES[dev.kind] // image)
    return [slice(start, min(start + step, B)) for start in range(0, B, step)]


def conv_forward(dev: Device, x: Array, w: Array, b=None, stride=1, pad=0):
    """y[b,i,j,n] = sum over u, v, c of x[b, s i + u - p, s j + v - p, c] w[u,v,c,n] + b_n

    x = 0 outside the image, stride s, padding p        shapes: x (B, H, W, C)   w (k, k, C, N)
    b (N,)   y (B, Ho, Wo, N) with Ho = (H + 2p - k) // s + 1
    """
    B, H, W, _ = x.shape
    kernel, _, _, N = w.shape
    Ho = (H + 2 * pad - kernel) // stride + 1
    Wo = (W + 2 * pad - kernel) // stride + 1
    y = dev.empty((B, Ho, Wo, N))
    matrix = w.reshape(-1, N)
    for part in _parts(dev, x, y, kernel):
        patches = _Patches(dev, x[part], y[part], kernel, stride, pad)
        patches.gather(x[part])
        linear_forward(dev, patches.rows, matrix, b, out=y[part].reshape(-1, N))
    return y, (x, w, stride, pad)


def conv_backward(
    dev: Device, dy: Array, cache: tuple, dw=None, db=None, need_dx=True, accumulate=False
):
    """dw[u,v,c,n] = sum over b, i, j of x[b, s i + u - p, s j + v - p, c] dy[b,i,j,n]

    db_n = sum over b, i, j of dy[b,i,j,n]
    dx[b, s i + u - p, s j + v - p, c] gets sum_n dy[b,i,j,n] w[u,v,c,n], for all i, j, u and v
    that meet this pixel. Writes dw and db where given, or adds. need_dx=False: no dx, None (a first
    layer).
    """
    x, w, stride, pad = cache
    kernel, _, _, N = w.shape
    matrix = w.reshape(-1, N)
    dmatrix = None if dw is None else dw.reshape(-1, N)
    dx = dev.empty(x.shape) if need_dx else None
    for part in _parts(dev, x, dy, kernel):
        # y = rows matrix + b, so drows = dy matrix^T, which takes the place of the rows
        patches = _Patches(dev, x[part], dy[part], kernel, stride, pad)
        rows = patches.rows
        if dw is not None:
            patches.gather(x[part])
        dy_rows = dy[part].reshape(-1, N)
        add = accumulate or part.start > 0
        linear_backward(dev, dy_rows, (rows, matrix), dmatrix, db, rows, need_dx, add)
        if dx is not None:
            dx[part] = patches.scatter()
    return dx


def _cells(x: Array, k: int) -> list[Array]:
    """The k^2 views of x (B, H, W, C) that hold one pixel of every k x k window.

    What does not fill a window is left out."""
    H = x.shape[1] // k * k
    W = x.shape[2] // k * k
    cells = []
    for u in range(k):
        for v in range(k):
            cells.append(x[:, u:H:k, v:W:k])
    return cells


def maxpool_forward(dev: Device, x: Array, k: int):
    """y[b,i,j,c] = max over u, v < k of x[b, k i + u, k j + v, c]

    shapes: x (B, H, W, C)   y (B, H//k, W//k, C)"""
    first, *others = _cells(x, k)
    y = first.copy()
    which = dev.zeros(first.shape, "uint8")  # the cell of the maximum, the first one of equal ones
    for n, cell in enumerate(others, 1):
        larger = (cell > y) * dev.xp.uint8(n)
        dev.xp.maximum(which, larger, out=which)
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
    """ydot[b,i,j,c] = xdot[b, k i + u, k j + v, c] where (u, v) held the maximum

    It is linear in xdot: maxpool_backward with the same cache takes its adjoint back."""
    _, which, k = cache
    ydot = sum(cell * (which == n) for n, cell in enumerate(_cells(xdot, k)))
    return ydot, cache


def avgpool_forward(dev: Device, x: Array, h: int, w: int):
    """y[b,i,j,c] = mean over u < h, v < w of x[b, h i + u, w j + v, c]

    shapes: x (B, H, W, C)   y (B, H/h, W/w, C)"""
    B, H, W, C = x.shape
    windows = x.reshape(B, H // h, h, W // w, w, C)
    return windows.mean(axis=(2, 4)), (x.shape, h, w)


def avgpool_backward(dev: Device, dy: Array, cache: tuple):
    """dx[b, h i + u, w j + v, c] = dy[b,i,j,c]/(h w)"""
    (B, H, W, C), h, w = cache
    share = dy * (1 / (h * w))
    dx = dev.empty((B, H // h, h, W // w, w, C))
    dx[...] = share[:, :, None, :, None]
    return dx.reshape(B, H, W, C)
