"""Kernels by row: softmax, LayerNorm and cross-entropy, each with sums over rows in one launch.

They are Fused (kernels.py): a NumPy body beside a CUDA body. On a GPU one block of threads makes
one row of N elements of the last argument (..., N): thread t takes the elements t, t + threads, ...
and over_row adds up what the threads have. In a CUDA body `row` counts the rows, `at` is the index
of the row's first element in an array of all rows, and EACH(n, N) runs over the thread's elements.
An array with fewer rows is shared: its rows repeat. Sums of a row are in float64 for every T, so
that they do not depend on the number of threads to the digits of float32.

tests/fakecupy.py runs the same CUDA text as C++: by one thread, or by many that wait for each other
at every __syncthreads.
"""

from collections.abc import Callable

import numpy as np

from .kernels import Fused

SHORT = 256  # elements: up to here a row has a warp of 32 threads, longer ones 256

_OVER_ROW = """
#define EACH(n, N) for (long long n = threadIdx.x; n < N; n += blockDim.x)

__device__ double plus(double a, double b) { return a + b; }
__device__ double larger(double a, double b) { return b > a || isnan(b) ? b : a; }  // as NumPy's

template <double (*combine)(double, double)>
__device__ double over_row(double mine) {
    __shared__ double part[256];
    part[threadIdx.x] = mine;
    for (unsigned int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        const unsigned int t = threadIdx.x;
        if (t < half) part[t] = combine(part[t], part[t + half]);
    }
    __syncthreads();
    const double all = part[0];
    __syncthreads();  // all have read it: part may be used again
    return all;
}
"""


class RowFused(Fused):
    """A kernel whose CUDA body makes a row of the last argument; N, its length, comes first."""

    def launch(self, kernel: Callable, args: tuple) -> None:
        """One block of threads for each row."""
        rows = args[-1]
        N = rows.shape[-1]
        threads = 32 if N <= SHORT else 256
        kernel(N, *args, size=rows.size // N * threads, block_size=threads)


def by_row(inputs: str, outputs: str, cuda: str) -> Callable[[Callable], RowFused]:
    """The decorated function becomes a kernel of its name, and its NumPy twin."""
    body = "const long long row = i / blockDim.x, at = row * N;" + cuda
    inputs = "int64 N, " + inputs
    return lambda numpy: RowFused(numpy.__name__, inputs, outputs, body, numpy, _OVER_ROW)


# -- softmax ---------------------------------------------------------------------------------------

_SOFTMAX = """
double top = z(0), total = 0;
EACH(n, N) top = larger(top, z(n));
top = over_row<larger>(top);
EACH(n, N) { y[at + n] = exp(z(n) - T(top)); total += y[at + n]; }
total = over_row<plus>(total);
EACH(n, N) y[at + n] /= T(total);
"""


def _subtract_max(x: np.ndarray, y: np.ndarray) -> None:
    """y = x - max x, which keeps exp in range.

    The maximum drops out of the result, so that a complex step may take the real part."""
    real = x.real if x.dtype.kind == "c" else x
    np.subtract(x, real.max(axis=-1, keepdims=True), out=y)


@by_row("raw T x", "raw T y", "auto z = [&](long long n) { return x[at + n]; };" + _SOFTMAX)
def softmax(x, y):
    """y_c = exp(x_c - max x) / sum_c exp(x_c - max x); y may be x."""
    _subtract_max(x, y)
    np.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)


@by_row(
    "raw T mask",
    "raw T y",
    """
    const long long from = at % mask.size();
    auto z = [&](long long n) { return y[at + n] + mask[from + n]; };
    """
    + _SOFTMAX,
)
def masked_softmax(mask, y):
    """y <- softmax(y + mask)        mask (Tq, T)   y (..., Tq, T)"""
    y += mask
    _subtract_max(y, y)
    np.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)


@by_row(
    "raw T dy, raw T y, raw T p, raw T dp",
    "raw T dx",
    """
    const long long D = dy.size() / (p.size() / N), from = row * D;
    double inner = 0;
    EACH(d, D) inner += dy[from + d] * y[from + d];
    inner = over_row<plus>(inner);
    EACH(n, N) dx[at + n] = (dp[at + n] - T(inner)) * p[at + n];
    """,
)
def softmax_backward(dy, y, p, dp, dx):
    """dx = p (dp - <dy, y>), p = softmax(x), where <dy, y> = <dp, p>        dx may be dp

    y may be p, or y = p v as attention has it, whose rows are shorter than those of p."""
    inner = (dy * y).sum(axis=-1, keepdims=True)
    np.subtract(dp, inner, out=dx)
    dx *= p


@by_row(
    "raw T x, raw int64 target",
    "raw T loss, raw T y",
    """
    const long long label = target[row % target.size()];
    const T chosen = x[at + label];
    auto z = [&](long long n) { return x[at + n]; };
    """
    + _SOFTMAX
    + """
    if (threadIdx.x == label % blockDim.x) y[at + label] -= T(1);
    if (threadIdx.x == 0) loss[row] = log(T(total)) - (chosen - T(top));
    """,
)
def cross_entropy(x, target, loss, y):
    """loss = log sum_c exp x_c - x_target        y = softmax(x) - onehot(target); y may be x."""
    _subtract_max(x, y)
    labelled = (*np.indices(y.shape[:-1], sparse=True), target)
    chosen = y[labelled]
    np.exp(y, out=y)
    total = y.sum(axis=-1, keepdims=True)
    y /= total
    y[labelled] -= 1
    np.subtract(np.log(total[..., 0]), chosen, out=loss)


# -- LayerNorm -------------------------------------------------------------------------------------


@by_row(
    "raw T x, raw T gain, raw T shift, bool shifted, T eps",
    "raw T rstd, raw T xhat, raw T y",
    """
    const long long g = row / (x.size() / gain.size()) * N;  // the gain of its member
    double total = 0, squares = 0;
    EACH(n, N) total += x[at + n];
    const T mean = over_row<plus>(total) / N;
    EACH(n, N) { xhat[at + n] = x[at + n] - mean; squares += xhat[at + n] * xhat[at + n]; }
    const T scale = T(1) / sqrt(T(over_row<plus>(squares) / N) + eps);
    EACH(n, N) {
        xhat[at + n] *= scale;
        y[at + n] = xhat[at + n] * gain[g + n];
        if (shifted) y[at + n] += shift[g + n];
    }
    if (threadIdx.x == 0) rstd[row] = scale;
    """,
)
def layernorm(x, gain, shift, shifted, eps, rstd, xhat, y):
    """y = gain xhat + shift, xhat = rstd (x - mean), rstd = 1/sqrt(var + eps)

    gain, shift (N,) or those of every member (E, N); shift is read where shifted is true."""
    mean = np.mean(x, axis=-1, keepdims=True)
    np.subtract(x, mean, out=xhat)
    np.multiply(xhat, xhat, out=y)
    var = np.mean(y, axis=-1, keepdims=True)
    np.divide(1, np.sqrt(var + eps), out=rstd)
    xhat *= rstd
    np.multiply(xhat, gain[..., None, :], out=y)
    if shifted:
        y += shift[..., None, :]


@by_row(
    "raw T dy, raw T xhat, raw T rstd, raw T gain, raw T product",
    "raw T dx",
    """
    const long long g = row / (dy.size() / gain.size()) * N;
    double along = 0, mean = 0;
    EACH(n, N) { along += product[at + n] * gain[g + n]; mean += dy[at + n] * gain[g + n]; }
    const T a = over_row<plus>(along) / N, m = over_row<plus>(mean) / N;
    EACH(n, N) dx[at + n] = (dy[at + n] * gain[g + n] - xhat[at + n] * a - m) * rstd[row];
    """,
)
def layernorm_backward(dy, xhat, rstd, gain, product, dx):
    """dx = rstd (dxhat - mean(dxhat) - xhat mean(dxhat xhat)), dxhat = gain dy; dx may be dy.

    product = dy xhat, which is used up. mean(gain dy) = sum_n dy_n gain_n/N: the means are products
    with the column gain/N, and BLAS kernels may raise flags on lanes beyond the matrix."""
    column = gain[..., None] * (1 / gain.shape[-1])  # (..., N, 1)
    with np.errstate(invalid="ignore"):
        along = np.matmul(product, column)  # mean(dxhat xhat) (..., B, 1)
        mean = np.matmul(dy, column)  # mean(dxhat)
    np.multiply(xhat, along, out=product)
    np.multiply(dy, gain[..., None, :], out=dx)  # dxhat
    dx -= product
    dx -= mean
    dx *= rstd
