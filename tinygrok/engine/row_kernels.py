"""Kernels by row: softmax, LayerNorm and two losses, each with its sums in one launch; embeddings;
and the patches and windows of images.

They are Fused (kernels.py): a NumPy body beside a CUDA body. On a GPU a block of threads makes one
row of the last argument (..., N): thread t takes the elements t, t + threads, ... In a CUDA body
`row` counts the rows, and `at` is the index of the row's first element in an array of all rows. All
axes but the last broadcast: an array with fewer rows is shared. None reaches the body as an array
of size 0. Sums of a row are in float64 for every T: no length of a row costs digits of float32.

tests/fakecupy.py runs the same CUDA text as C++: by one thread, or by many that wait for each other
at every __syncthreads.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .kernels import Fused, fused, subtract_onehot

_OVER_ROW = Path(__file__).with_name("over_row.cuh").read_text()  # EACH, SUM and over_row


def block_a_row(kernel: Callable, args: tuple) -> None:
    """Launch a kernel with a block of threads for each row of the last argument."""
    rows = args[-1]
    N = rows.shape[-1]
    threads = 32 if N <= 256 else 256
    given = [rows[:0] if a is None else a for a in args]
    kernel(N, *given, size=rows.size // N * threads, block_size=threads)


def block_in_arrays(kernel: Callable, args: tuple) -> None:
    """The same, of arrays without gaps: what makes a row also reads rows beside its own."""
    block_a_row(kernel, args)


def by_row(inputs: str, outputs: str, cuda: str, launch=block_a_row) -> Callable[..., Fused]:
    """The decorated function becomes a kernel of its name, and its NumPy twin."""
    head = "const long long row = i / blockDim.x, at = row * N;"
    return fused("int64 N, " + inputs, outputs, head + cuda, _OVER_ROW, launch)


# -- softmax: z(n) are the logits ------------------------------------------------------------------

_SHARES = """
const T top = over_row(larger<double>, z(0), N, z);
const T total = SUM(n, N, y[at + n] = exp(z(n) - top));
EACH(n, N) y[at + n] /= total;"""
_SOFTMAX = f"""
const long long m = mask.size() ? at % mask.size() : 0;
auto z = [&](long long n) {{ return mask.size() ? x[at + n] + mask[m + n] : x[at + n]; }};
{_SHARES}"""


@by_row("raw T x, raw T mask", "raw T y", _SOFTMAX)
def softmax(x, mask, y):
    """y_c = exp(z_c - max z) / sum_c exp(z_c - max z), z = x + mask; y may be x

    x (..., B, N)   mask (B, N) or None. The maximum, which keeps exp in range, drops out of the
    result, so that a complex step may take its real part."""
    z = x if mask is None else np.add(x, mask, out=y)
    np.subtract(z, z.real.max(axis=-1, keepdims=True), out=y)
    np.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)


_SOFTMAX_BACKWARD = """
const long long D = dy.size() / (p.size() / N), d0 = row * D;
const T inner = SUM(d, D, dy[d0 + d] * y[d0 + d]);
EACH(n, N) dx[at + n] = (dp[at + n] - inner) * p[at + n];"""


@by_row("raw T dy, raw T y, raw T p, raw T dp", "raw T dx", _SOFTMAX_BACKWARD)
def softmax_backward(dy, y, p, dp, dx):
    """dx = p (dp - <dp, p>), p = softmax(x), where <dp, p> = <dy, y>        dx may be dp

    dy, y (..., B, D) are dp, p, or those of y = p v, whose rows are shorter (ops/attention.py)."""
    inner = (dy * y).sum(axis=-1, keepdims=True)
    np.subtract(dp, inner, out=dx)
    dx *= p


_CROSS_ENTROPY = f"""
const long long label = target[row % target.size()];
const T chosen = x[at + label];
auto z = [&](long long n) {{ return x[at + n]; }};
{_SHARES}
if (threadIdx.x == label % blockDim.x) y[at + label] -= T(1);
if (threadIdx.x == 0) loss[row] = log(total) - (chosen - top);"""


@by_row("raw T x, raw int64 target", "raw T loss, raw T y", _CROSS_ENTROPY)
def cross_entropy(x, target, loss, y):
    """loss = log sum_c exp x_c - x_target        y = softmax(x) - onehot(target); y may be x

    x (..., B, N)   target, loss (..., B, 1)"""
    np.subtract(x, x.real.max(axis=-1, keepdims=True), out=y)
    labelled = (*np.indices(y.shape[:-1], sparse=True), target[..., 0])
    chosen = y[labelled]
    np.exp(y, out=y)
    total = y.sum(axis=-1)
    y /= total[..., None]
    y[labelled] -= 1
    np.subtract(np.log(total), chosen, out=loss[..., 0])


_MSE = """
const long long label = target[row % target.size()];
EACH(n, N) r[at + n] = z[at + n];
if (threadIdx.x == label % blockDim.x) r[at + label] -= T(1);
const T mean = SUM(n, N, r[at + n] * r[at + n]) / N;
if (threadIdx.x == 0) loss[row] = mean;"""


@by_row("raw T z, raw int64 target", "raw T loss, raw T r", _MSE)
def mse(z, target, loss, r):
    """loss = mean_c r_c^2        r = z - onehot(target); r may be z

    z (..., B, N)   target, loss (..., B, 1)"""
    subtract_onehot.numpy(z, target, z.shape[-1], r)
    squares = r * r
    np.multiply(squares.sum(axis=-1), 1 / r.shape[-1], out=loss[..., 0])


# -- LayerNorm: g is the index of the first gain of the row's member -------------------------------

_LAYERNORM = """
const long long g = row / (x.size() / gain.size()) * N;
const T mean = SUM(n, N, x[at + n]) / N;
EACH(n, N) xhat[at + n] = x[at + n] - mean;
const T scale = T(1) / sqrt(T(SUM(n, N, xhat[at + n] * xhat[at + n]) / N) + eps);
EACH(n, N) xhat[at + n] *= scale;
EACH(n, N) y[at + n] = xhat[at + n] * gain[g + n] + (shift.size() ? shift[g + n] : T(0));
if (threadIdx.x == 0) rstd[row] = scale;"""


@by_row("raw T x, raw T gain, raw T shift, T eps", "raw T rstd, raw T xhat, raw T y", _LAYERNORM)
def layernorm(x, gain, shift, eps, rstd, xhat, y):
    """y = gain xhat + shift, xhat = rstd (x - mean), rstd = 1/sqrt(var + eps); shift may be None

    x (..., B, N)   gain, shift (..., 1, N)   rstd (..., B, 1)"""
    np.subtract(x, np.mean(x, axis=-1, keepdims=True), out=xhat)
    np.multiply(xhat, xhat, out=y)
    var = np.mean(y, axis=-1, keepdims=True)
    np.divide(1, np.sqrt(var + eps), out=rstd)
    xhat *= rstd
    np.multiply(xhat, gain, out=y)
    if shift is not None:
        y += shift


_LAYERNORM_DX = """
const long long g = row / (dy.size() / gain.size()) * N;
const T along = SUM(n, N, product[at + n] * gain[g + n]) / N;
const T mean = SUM(n, N, dy[at + n] * gain[g + n]) / N;
EACH(n, N) dx[at + n] = (dy[at + n] * gain[g + n] - xhat[at + n] * along - mean) * rstd[row];"""


@by_row("raw T dy, raw T xhat, raw T rstd, raw T gain, raw T product", "raw T dx", _LAYERNORM_DX)
def layernorm_backward(dy, xhat, rstd, gain, product, dx):
    """dx = rstd (dxhat - mean(dxhat) - xhat mean(dxhat xhat)), dxhat = gain dy; dx may be dy

    product = dy xhat, which is used up. mean(gain dy) = sum_n dy_n gain_n/N: the means are products
    with the column gain/N. BLAS kernels may raise flags on lanes beyond the matrix."""
    column = gain.swapaxes(-1, -2) * (1 / gain.shape[-1])  # (..., N, 1)
    with np.errstate(invalid="ignore"):
        along = np.matmul(product, column)  # mean(dxhat xhat) (..., B, 1)
        mean = np.matmul(dy, column)  # mean(dxhat)
    np.multiply(xhat, along, out=product)
    np.multiply(dy, gain, out=dx)  # dxhat
    dx -= product
    dx -= mean
    dx *= rstd


# -- embeddings: tables u (E, S, P, N) of E members, and rows by number ----------------------------
# Members have rows of their own, or share those of one: then rows, order and starts are of one.

_GATHER_SUM = """
const long long e = row / B, first = e * S * B % rows.size() + row % B;
EACH(n, N) h[at + n] = T(0);
for (long long s = 0; s < S; ++s) {
    const long long from = ((e * S + s) * P + rows[first + s * B]) * N;
    EACH(n, N) h[at + n] += u[from + n];
}"""
_TABLES = ", int64 S, int64 P, int64 B"


@by_row("raw T u, raw int32 rows" + _TABLES, "raw T h", _GATHER_SUM, block_in_arrays)
def gather_sum(u, rows, S, P, B, h):
    """h[e, b] = sum_s u[e, s, rows[e, s, b]]        rows (E, S, B) or (S, B)"""
    index = np.broadcast_to(rows, (*u.shape[:-2], B))[..., None]
    h[...] = np.take_along_axis(u, index, axis=-2).sum(axis=-3)


_SEGMENT_SUM = """
const long long table = row / P, sorted = table % (starts.size() / (P + 1)), e = table / S;
const long long t = sorted * (P + 1) + row % P, begin = sorted * B;
EACH(n, N) du[at + n] = accumulate ? du[at + n] : T(0);
for (long long j = starts[t]; j < starts[t + 1]; ++j) {
    const long long from = (e * B + order[begin + j]) * N;
    EACH(n, N) du[at + n] += dh[from + n];
}"""
_SEGMENTS = "raw T dh, raw int32 order, raw int32 starts" + _TABLES + ", int32 accumulate"


@by_row(_SEGMENTS, "raw T du", _SEGMENT_SUM, block_in_arrays)
def segment_sum(dh, order, starts, S, P, B, accumulate, du):
    """du[e, s, v] = (or +=) the sum of the rows b of dh[e] in order[starts[v] : starts[v + 1]]

    dh (E, B, N)   order (E, S, B) or (S, B)   starts (E, S, P + 1) or (S, P + 1)"""
    if not accumulate:
        du.fill(0)
    order = np.broadcast_to(order, (*du.shape[:-2], B))
    starts = np.broadcast_to(starts, (*du.shape[:-2], P + 1))
    for *e, s, v in np.ndindex(du.shape[:-1]):
        segment = slice(*starts[(*e, s, slice(v, v + 2))])
        inputs = order[(*e, s, segment)]
        du[(*e, s, v)] += dh[tuple(e)][inputs].sum(axis=0)


# -- convolutions: x (B, H, W, C), and its patches, the rows of a matrix (B Ho Wo, k k C) ----------
# Geometry is H, W, Ho, Wo, the side k of a patch, the stride s and the padding p.

_GEOMETRY = ", int64 H, int64 W, int64 Ho, int64 Wo, int64 k, int64 s, int64 p"
_PATCHES = """
const long long image = row / Wo / Ho, top = row / Wo % Ho * s - p, left = row % Wo * s - p;
const long long run = N / k, across = run / k * W, begin = run / k * left, end = across - begin;
for (long long u = 0; u < k; ++u) {
    const long long h = top + u, from = (image * H + h) * across + begin, to = at + u * run;
    const long long first = h < 0 || h >= H ? run : -begin;
    EACH(n, run) rows[to + n] = n >= first && n < end ? x[from + n] : T(0);
}"""


@by_row("raw T x" + _GEOMETRY, "raw T rows", _PATCHES, block_in_arrays)
def patches(x, H, W, Ho, Wo, k, s, p, rows):
    """rows[(b i j), (u v c)] = x[b, s i + u - p, s j + v - p, c], 0 outside the image

    One copy: the k C numbers (v, c) of a patch stand side by side in a line of x, as in the row."""
    B, _, _, C = x.shape
    padded = np.zeros((B, H + 2 * p, W + 2 * p, C), x.dtype)
    padded[:, p : p + H, p : p + W] = x
    lines = padded.reshape(B, H + 2 * p, -1)
    runs = sliding_window_view(lines, (k, k * C), (1, 2))[:, ::s, :: s * C]  # (B, Ho, Wo, k, k C)
    rows.reshape(runs.shape)[...] = runs


_PATCHES_BACKWARD = """
const long long image = row / W / H, h = row / W % H + p, w = row % W + p;
EACH(c, N) dx[at + c] = T(0);
for (long long i = h / s, u = h % s; u < k && i >= 0; --i, u += s)
    for (long long j = w / s, v = w % s; v < k && j >= 0; --j, v += s) {
        const long long patch = (image * Ho + i) * Wo + j, from = ((patch * k + u) * k + v) * N;
        if (i < Ho && j < Wo) EACH(c, N) dx[at + c] += rows[from + c];
    }"""


@by_row("raw T rows" + _GEOMETRY, "raw T dx", _PATCHES_BACKWARD, block_in_arrays)
def patches_backward(rows, H, W, Ho, Wo, k, s, p, dx):
    """dx[b, h, w] = the sum of rows[(b i j), (u v)] with s i + u - p = h and s j + v - p = w

    All patches in which a pixel lies: first over u, in runs of k C numbers, then over v."""
    B, _, _, C = dx.shape
    columns = rows.reshape(B, Ho, Wo, k, k, C)
    high = np.zeros((B, H + 2 * p, Wo, k, C), dx.dtype)
    for u in range(k):
        high[:, u : u + s * Ho : s] += columns[:, :, :, u]
    wide = np.zeros((B, H, W + 2 * p, C), dx.dtype)
    for v in range(k):
        wide[:, :, v : v + s * Wo : s] += high[:, p : p + H, :, v]
    dx[...] = wide[:, :, p : p + W]


# -- max-pooling: x (B, H, W, C), windows k x k; what does not fill one is left out ----------------


def cells(x: np.ndarray, k: int) -> list[np.ndarray]:
    """The k^2 views of x (B, H, W, C) that hold one pixel of every k x k window."""
    H = x.shape[1] // k * k
    W = x.shape[2] // k * k
    return [x[:, n // k : H : k, n % k : W : k] for n in range(k * k)]


_WINDOWS = ", int64 H, int64 W, int64 k"
_MAXPOOL = """
const long long Ho = H / k, Wo = W / k, image = row / Wo / Ho;
const long long corner = (image * H + row / Wo % Ho * k) * W + row % Wo * k;
EACH(c, N) y[at + c] = x[corner * N + c];
EACH(c, N) which[at + c] = 0;
for (int n = 1; n < k * k; ++n) {
    const long long from = (corner + n / k * W + n % k) * N;
    EACH(c, N) which[at + c] = x[from + c] > y[at + c] ? n : which[at + c];
    EACH(c, N) y[at + c] = larger(y[at + c], x[from + c]);
}"""


@by_row("raw T x" + _WINDOWS, "raw int32 which, raw T y", _MAXPOOL, block_in_arrays)
def maxpool(x, H, W, k, which, y):
    """y = the maximum of a window; which = its cell u k + v, the first one of equal ones"""
    first, *others = cells(x, k)
    y[...] = first
    which[...] = 0
    for n, cell in enumerate(others, 1):
        larger = (cell > y) * np.int32(n)
        np.maximum(which, larger, out=which)
        np.maximum(y, cell, out=y)


_MAXPOOL_BACKWARD = """
const long long Ho = H / k, Wo = W / k, image = row / W / H, h = row / W % H, w = row % W;
const long long from = ((image * Ho + h / k) * Wo + w / k) * N;
const int cell = h % k * k + w % k;
const bool inside = h / k < Ho && w / k < Wo;
EACH(c, N) dx[at + c] = inside ? dy[from + c] * T(which[from + c] == cell) : T(0);"""


@by_row("raw T dy, raw int32 which" + _WINDOWS, "raw T dx", _MAXPOOL_BACKWARD, block_in_arrays)
def maxpool_backward(dy, which, H, W, k, dx):
    """dx = dy in the cell that held the maximum, else 0"""
    dx[...] = 0
    for n, cell in enumerate(cells(dx, k)):
        np.multiply(dy, which == n, out=cell)
