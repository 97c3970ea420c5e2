"""Fused elementwise bodies: the NumPy expression and the CUDA line side by side.

Each Fused is one kernel on a GPU and one Python function on the CPU, or the CUDA body compiled for
it (compiled.py). The test suite compiles every CUDA body as C++ and compares it with its NumPy
twin, and through NVRTC where that is installed. In a CUDA body `i` is the linear index of the
element and T the floating point type; a parameter marked raw is indexed by hand. Outputs may alias
inputs of one shape. Kernels that sum over rows stand in row_kernels.py."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .device import Device

KERNELS: dict[str, "Fused"] = {}


def thread_each(kernel: Callable, args: tuple) -> None:
    """Launch a kernel with one thread for each element."""
    kernel(*args)


@dataclass(frozen=True)
class Fused:
    """One kernel: its name, CuPy-style parameter lists, the CUDA body and its NumPy twin.

    numpy   called as numpy(*inputs, *outputs)
    preamble   CUDA functions that the body calls
    launch     launch(kernel, args) runs the compiled kernel
    """

    name: str
    inputs: str
    outputs: str
    cuda: str
    numpy: Callable
    preamble: str = ""
    launch: Callable = thread_each

    def __post_init__(self):
        KERNELS[self.name] = self

    def __call__(self, dev: Device, *args) -> None:
        if dev.kind == "cpu":
            taken = self.name in dev.compiled and dev.compiled[self.name](*args)
            if not taken:
                self.numpy(*args)
            return
        if self.name not in dev.compiled:
            declared = (self.inputs, self.outputs, self.cuda, self.name)
            dev.compiled[self.name] = dev.xp.ElementwiseKernel(*declared, preamble=self.preamble)
        self.launch(dev.compiled[self.name], args)


def fused(inputs: str, outputs: str, cuda: str, *more) -> Callable[[Callable], Fused]:
    """The decorated function becomes a kernel of its name, and its NumPy twin."""
    return lambda numpy: Fused(numpy.__name__, inputs, outputs, cuda, numpy, *more)


# -- erf -------------------------------------------------------------------------------------------
# float64: erf(x) = x P(x^2) for |x| <= 1,
#          erf(x) = 1 - exp(-x^2) Q(t), t = (|x|-3)/(|x|+3), for 1 < |x| < 6; erf(6) rounds to 1.
# P and Q are Chebyshev interpolants of erf(sqrt(u))/sqrt(u) and erfc(x) exp(x^2), computed with 40
# digits; highest power first. Their errors, 1e-19 and 5e-18, lie below the rounding of float64.
# float32: erf(x) = tanh(x R(x^2)), a third of the passes; R is fitted to 3e-8 of erf up to |x| = 4,
#          where erf rounds to 1.

# fmt: off
_ERF_P = (
    5.957176147748911e-11, -1.1372848856791674e-09, 1.4659775274047436e-08,
    -1.6350312701054695e-07, 1.6461000484121368e-06, -1.4925595266831182e-05,
    0.0001205533111164271, -0.000854832698083379, 0.0052239776248180145,
    -0.026866170645076792, 0.11283791670954879, -0.3761263890318375, 1.1283791670955126,
)
_ERF_Q = (
    3.381355142042904e-09, 1.2755818949624478e-06, 2.0135111426447427e-06,
    -8.00978093907608e-06, -1.2845780030775907e-05, 6.406279226046039e-05,
    4.525434558991009e-05, -0.0005970624964924544, 0.0007077464666941425,
    0.004269136356961225, -0.024392499318915004, 0.07166583719747308,
    -0.15011593650077898, 0.24560380171233487, -0.3262335600430372, 0.17900115118138996,
)
_ERF_R = (
    -1.6406464e-09, 5.391338072e-08, -5.150610416e-07, -1.861230399e-06, 7.649000732e-05,
    -0.0006036814744, -0.0002021516198, 0.1027713149, 1.128379202,
)
# fmt: on
# Elements that a chain of NumPy calls takes at a time: its temporaries stay in cache, and the cost
# of the calls is small. GELU took least time from 65,536 to 131,072 (1 MiB of L2 a core).
BLOCK = 65_536


def _horner(coefficients: tuple[float, ...], x: np.ndarray) -> np.ndarray:
    y = coefficients[0] * x
    for c in coefficients[1:-1]:
        y += c
        y *= x
    y += coefficients[-1]
    return y


def erf(x: np.ndarray) -> np.ndarray:
    """erf(x) = 2/sqrt(pi) int_0^x exp(-t^2) dt on NumPy.

    Relative error 1e-15 in float64, 3e-7 in float32."""
    if x.dtype == np.float32:
        return np.tanh(x * _horner(_ERF_R, np.minimum(x * x, 16)))
    size = np.minimum(np.abs(x), 6)
    small = np.minimum(size, 1)
    near = small * _horner(_ERF_P, small * small)
    far = 1 - np.exp(-size * size) * _horner(_ERF_Q, (size - 3) / (size + 3))
    return np.copysign(np.where(size <= 1, near, far), x)


# -- activations: value f, slope f' times the cotangent, curvature f'' -----------------------------


@dataclass(frozen=True)
class Activation:
    """The kernels of f, f' and f'', and the same three as text for readers.

    f, df, d2f   x -> y = f(x);  (x, dy) -> dx = f'(x) dy;  x -> f''(x); "power" takes k first
    formula, slope, curvature   f, f', f'' as Python expressions of x (and k), with erf, exp, log,
                 tanh, sqrt, pi, max, and where(condition, then, otherwise)
    given        assignments that slope and curvature refer to

    tests/test_activations.py evaluates the text and holds it against the kernels.
    """

    f: Fused
    df: Fused
    d2f: Fused
    formula: str
    slope: str
    curvature: str
    given: str = ""


ACTIVATIONS: dict[str, Activation] = {}


def _activation(name: str, text: tuple[str, str, str], f, df, d2f, given="", extra=""):
    """One entry of the table.

    text: (formula, slope, curvature); f, df, d2f: (CUDA body, NumPy twin); extra: CuPy's
    declaration of what they take before x."""
    value = Fused(name, extra + "T x", "T y", *f)
    slope = Fused(name + "_df", extra + "T x, T dy", "T dx", *df)
    curvature = Fused(name + "_d2f", extra + "T x", "T y", *d2f)
    ACTIVATIONS[name] = Activation(value, slope, curvature, *text, given)


def _in_blocks(body: Callable) -> Callable:
    """The same elementwise function of arrays, BLOCK elements at a time where memory allows."""

    def run(*arrays):
        if not all(a.flags.c_contiguous for a in arrays):
            body(*arrays)
            return
        flat = [a.reshape(-1) for a in arrays]
        for i in range(0, flat[0].size, BLOCK):
            body(*(a[i : i + BLOCK] for a in flat))

    return run


_activation(
    "identity",
    ("x", "1", "0"),
    f=("y = x;", lambda x, y: np.copyto(y, x)),
    df=("dx = dy;", lambda x, dy, dx: np.copyto(dx, dy)),
    d2f=("y = T(0);", lambda x, y: y.fill(0)),
)


def _square_df(x, dy, dx):
    np.multiply(x, dy, out=dx)
    np.multiply(dx, 2, out=dx)


_activation(
    "square",
    ("x**2", "2*x", "2"),
    f=("y = x * x;", lambda x, y: np.multiply(x, x, out=y)),
    df=("dx = T(2) * x * dy;", _square_df),
    d2f=("y = T(2);", lambda x, y: y.fill(2)),
)


def _power(x, k, out=None):
    """x^k = x^(k//2) x^(k - k//2) by products.

    np.power is ten times slower, and loses digits on complex numbers."""
    if k == 0:
        return np.positive(np.ones_like(x), out=out)
    if k == 1:
        return np.positive(x, out=out)
    low = x if k < 4 else _power(x, k // 2)
    high = low * x if k % 2 else low
    return np.multiply(low, high, out=out)


def _power_df(k, x, dy, dx):
    np.multiply(k * _power(x, k - 1), dy, out=dx)


def _power_d2f(k, x, y):
    np.copyto(y, k * (k - 1) * _power(x, max(k - 2, 0)))


_CUDA_POWER = "T q = T(1); for (int j = 0; j < {}; ++j) q *= x; "

_activation(
    "power",
    ("x**k", "k*x**(k - 1)", "k*(k - 1)*x**(k - 2)"),
    f=(_CUDA_POWER.format("k") + "y = q;", lambda k, x, y: _power(x, k, y)),
    df=(_CUDA_POWER.format("k - 1") + "dx = T(k) * q * dy;", _power_df),
    d2f=(_CUDA_POWER.format("k - 2") + "y = T(k) * T(k - 1) * q;", _power_d2f),
    extra="int32 k, ",
)

_activation(
    "relu",
    ("max(x, 0)", "where(x > 0, 1, 0)", "0"),
    f=("y = x < T(0) ? T(0) : x;", lambda x, y: np.maximum(x, 0, out=y)),
    df=("dx = dy * (x > T(0) ? T(1) : T(0));", lambda x, dy, dx: np.multiply(dy, x > 0, out=dx)),
    d2f=("y = T(0);", lambda x, y: y.fill(0)),
)

LEAK = 0.01  # slope of leaky ReLU below 0


def _leaky_relu(x, y):
    np.copyto(y, np.where(x < 0, LEAK * x, x))


def _leaky_relu_df(x, dy, dx):
    np.copyto(dx, np.where(x > 0, dy, LEAK * dy))


_activation(
    "leaky_relu",
    (f"where(x > 0, x, {LEAK}*x)", f"where(x > 0, 1, {LEAK})", "0"),
    f=(f"y = x < T(0) ? T({LEAK}) * x : x;", _leaky_relu),
    df=(f"dx = dy * (x > T(0) ? T(1) : T({LEAK}));", _leaky_relu_df),
    d2f=("y = T(0);", lambda x, y: y.fill(0)),
)

_PDF_AT_0 = 1 / math.sqrt(2 * math.pi)
_CUDA_CDF = "T(0.5) * (T(1) + erf(x * T(0.7071067811865476)))"
_CUDA_PDF = f"T({_PDF_AT_0!r}) * exp(T(-0.5) * x * x)"


def _cdf(x):
    """The normal distribution function."""
    return 0.5 * (1 + erf(x * math.sqrt(0.5)))


def _pdf(x):
    """The density of the normal distribution."""
    return _PDF_AT_0 * np.exp(-0.5 * x * x)


_activation(
    "gelu",
    ("x*(1 + erf(x/sqrt(2)))/2", "Phi + x*phi", "(2 - x**2)*phi"),
    given="Phi = (1 + erf(x/sqrt(2)))/2; phi = exp(-x**2/2)/sqrt(2*pi)",
    f=(f"y = x * {_CUDA_CDF};", _in_blocks(lambda x, y: np.multiply(x, _cdf(x), out=y))),
    df=(
        f"dx = ({_CUDA_CDF} + x * {_CUDA_PDF}) * dy;",
        _in_blocks(lambda x, dy, dx: np.multiply(_cdf(x) + x * _pdf(x), dy, out=dx)),
    ),
    d2f=(f"y = (T(2) - x * x) * {_CUDA_PDF};", lambda x, y: np.multiply(2 - x * x, _pdf(x), out=y)),
)

_GELU_A = 0.044715
_GELU_C = math.sqrt(2 / math.pi)
_CUDA_GELU_TANH = (
    f"T x2 = x * x, t = tanh(T({_GELU_C!r}) * x * (T(1) + T({_GELU_A}) * x2)), "
    f"du = T({_GELU_C!r}) * (T(1) + T({3 * _GELU_A!r}) * x2); "
)
_CUDA_GELU_TANH_DDU = f"T ddu = T({6 * _GELU_C * _GELU_A!r}) * x; "


def _gelu_tanh_inner(x):
    """t = tanh(u), du = u', ddu = u''  of  u = c (x + a x^3)"""
    x2 = x * x
    t = np.tanh(_GELU_C * x * (1 + _GELU_A * x2))
    du = _GELU_C * (1 + 3 * _GELU_A * x2)
    ddu = 6 * _GELU_C * _GELU_A * x
    return t, du, ddu


def _gelu_tanh(x, y):
    t, _, _ = _gelu_tanh_inner(x)
    np.multiply(0.5 * x, 1 + t, out=y)


def _gelu_tanh_df(x, dy, dx):
    t, du, _ = _gelu_tanh_inner(x)
    np.multiply(0.5 * (1 + t + x * (1 - t * t) * du), dy, out=dx)


def _gelu_tanh_d2f(x, y):
    t, du, ddu = _gelu_tanh_inner(x)
    np.multiply(1 - t * t, du + 0.5 * x * (ddu - 2 * t * du * du), out=y)


_activation(
    "gelu_tanh",
    (
        "x*(1 + tanh(sqrt(2/pi)*(x + 0.044715*x**3)))/2",
        "(1 + t + x*(1 - t**2)*du)/2",
        "(1 - t**2)*(du + x*(ddu - 2*t*du**2)/2)",
    ),
    given="t = tanh(sqrt(2/pi)*(x + 0.044715*x**3)); du = sqrt(2/pi)*(1 + 3*0.044715*x**2); "
    "ddu = sqrt(2/pi)*6*0.044715*x",
    f=(_CUDA_GELU_TANH + "y = T(0.5) * x * (T(1) + t);", _in_blocks(_gelu_tanh)),
    df=(
        _CUDA_GELU_TANH + "dx = T(0.5) * (T(1) + t + x * (T(1) - t * t) * du) * dy;",
        _in_blocks(_gelu_tanh_df),
    ),
    d2f=(
        _CUDA_GELU_TANH + _CUDA_GELU_TANH_DDU + "T bend = ddu - T(2) * t * du * du; "
        "y = (T(1) - t * t) * (du + T(0.5) * x * bend);",
        _in_blocks(_gelu_tanh_d2f),
    ),
)


def _tanh_df(x, dy, dx):
    np.multiply(1 - np.tanh(x) ** 2, dy, out=dx)


def _tanh_d2f(x, y):
    np.multiply(-2 * np.tanh(x), 1 - np.tanh(x) ** 2, out=y)


_activation(
    "tanh",
    ("tanh(x)", "1 - tanh(x)**2", "-2*tanh(x)*(1 - tanh(x)**2)"),
    f=("y = tanh(x);", lambda x, y: np.tanh(x, out=y)),
    df=("T t = tanh(x); dx = (T(1) - t * t) * dy;", _tanh_df),
    d2f=("T t = tanh(x); y = T(-2) * t * (T(1) - t * t);", _tanh_d2f),
)

_ERF_SLOPE = 2 / math.sqrt(math.pi)  # at 0


def _erf_df(x, dy, dx):
    np.multiply(_ERF_SLOPE * np.exp(-x * x), dy, out=dx)


def _erf_d2f(x, y):
    np.multiply(-2 * _ERF_SLOPE * x, np.exp(-x * x), out=y)


_activation(
    "erf",
    ("erf(x)", "2/sqrt(pi)*exp(-x**2)", "-4/sqrt(pi)*x*exp(-x**2)"),
    f=("y = erf(x);", _in_blocks(lambda x, y: np.copyto(y, erf(x)))),
    df=(f"dx = T({_ERF_SLOPE!r}) * exp(-x * x) * dy;", _erf_df),
    d2f=(f"y = T({-2 * _ERF_SLOPE!r}) * x * exp(-x * x);", _erf_d2f),
)


# -- optimisers ------------------------------------------------------------------------------------


@fused(
    "T g, T shrink, T rate, T b1, T a1, T b2, T a2, T eps",
    "T w, T m, T v",
    "T next_m = b1 * m + a1 * g, next_v = b2 * v + a2 * g * g; "
    "w = shrink * w - rate * next_m / (sqrt(next_v) + eps); m = next_m; v = next_v;",
)
def adamw(g, shrink, rate, b1, a1, b2, a2, eps, w, m, v):
    """shrink = 1 - lr wd, a1 = 1 - b1, a2 = 1 - b2; rate and eps hold the factors of step t

    One array of scratch takes every intermediate: d. The CUDA body reads all before it writes:
    large arenas lie at equal places in their pages, and on a CPU a read waits for a write just
    before it to the same place of another page."""
    d = a1 * g
    m *= b1
    m += d
    np.multiply(g, g, out=d)
    d *= a2
    v *= b2
    v += d
    np.sqrt(v, out=d)
    d += eps
    np.divide(m, d, out=d)
    d *= rate
    w *= shrink
    w -= d


@fused(
    "T g, T rate, T decay, T momentum",
    "T w, T m",
    "m = momentum * m + g + decay * w; w = w - rate * m;",
)
def sgd(g, rate, decay, momentum, w, m):
    """rate = lr, decay = wd"""
    m *= momentum
    m += g
    m += decay * w
    w -= rate * m


# -- dropout: a counter hash, the same bits on every device ----------------------------------------


@fused(
    "raw uint32 keys, uint32 offset, int64 size, uint32 threshold, T scale",
    "T mask",
    """
    unsigned int x = (offset + (unsigned int)(i % size)) ^ keys[2 * (i / size)];
    x ^= x >> 16; x *= 0x7FEB352Du;
    x += keys[2 * (i / size) + 1];
    x ^= x >> 15; x *= 0x846CA68Bu;
    x ^= x >> 16;
    mask = x >= threshold ? scale : T(0);""",
)
def dropout_mask(keys, offset, size, threshold, scale, mask):
    """mask = scale where hash(counter, key) >= threshold, else 0; a row of `size` a member."""
    rows = mask.reshape(-1, size)
    keys = keys.reshape(-1, 2)
    thresholds = np.broadcast_to(np.ravel(threshold), len(rows))
    scales = np.broadcast_to(np.ravel(scale), len(rows))
    for row, (k0, k1), limit, factor in zip(rows, keys, thresholds, scales, strict=True):
        x = np.arange(offset, offset + size).astype(np.uint32)  # wraps at 2^32, as on the device
        x ^= k0
        x ^= x >> 16
        x *= np.uint32(0x7FEB352D)
        x += k1
        x ^= x >> 15
        x *= np.uint32(0x846CA68B)
        x ^= x >> 16
        np.multiply(x >= np.uint32(limit), mask.dtype.type(factor), out=row)


# -- rotary positions: pairs of components turned by an angle --------------------------------------


@fused(
    "T u, T v, T c, T s, T sign",
    "T yu, T yv",
    "T a = u * c - v * (s * sign), b = v * c + u * (s * sign); yu = a; yv = b;",
)
def rotate(u, v, c, s, sign, yu, yv):
    turned = v * c + u * (s * sign)  # before u is overwritten where yu is u
    np.subtract(u * c, v * (s * sign), out=yu)
    yv[...] = turned


# -- losses ----------------------------------------------------------------------------------------


@fused("T z, int64 target, int64 C", "T r", "r = z - (target == i % C ? T(1) : T(0));")
def subtract_onehot(z, target, C, r):
    """r = z - onehot(target) over C classes        target (..., 1); r may be z"""
    np.copyto(r, z)  # nothing is done where r is z
    r[(*np.indices(r.shape[:-1], sparse=True), target[..., 0])] -= 1
