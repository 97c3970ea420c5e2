"""Kernels by row: softmax, LayerNorm and cross-entropy, each with its sums in one launch.

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

from .kernels import Fused, fused

_OVER_ROW = Path(__file__).with_name("over_row.cuh").read_text()  # EACH, SUM and over_row


def _block_a_row(kernel: Callable, args: tuple) -> None:
    rows = args[-1]
    N = rows.shape[-1]
    threads = 32 if N <= 256 else 256
    given = [rows[:0] if a is None else a for a in args]
    kernel(N, *given, size=rows.size // N * threads, block_size=threads)


def by_row(inputs: str, outputs: str, cuda: str) -> Callable[[Callable], Fused]:
    """The decorated function becomes a kernel of its name, and its NumPy twin."""
    head = "const long long row = i / blockDim.x, at = row * N;"
    return fused("int64 N, " + inputs, outputs, head + cuda, _OVER_ROW, _block_a_row)


# -- softmax: z(n) are the logits ------------------------------------------------------------------

_SHARES = """
const T top = over_row(larger, z(0), N, z);
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
