"""Signal propagation in deep networks of infinite width: kernels, Jacobians, criticality.

Blocks h' = W phi(h) + b + mu h, W_ij ~ Normal(0, sw2/N), b_i ~ Normal(0, sb2), with or without a
norm. At infinite width the pre-activations of inputs 1 and 2 are Gaussian with kernel
k_ab = E h(x_a) h(x_b), and layer by layer, with z ~ Normal(0, K),

    K' = sw2 <phi(z)^2>_K + sb2 + mu^2 K
    J' = chi_J J,  chi_J = sw2 <phi'(z)^2>_K + mu^2

where J^{l0,l} = E |dh^l/dh^l0|^2 / N_l is the averaged partial Jacobian norm (APJN); chi_J takes
the K of the layer being left. chi_J* = 1 at the fixed point K* is critical: J then follows a power
law l^-zeta, else exp(-+l/xi).
Source: Doshi, He, Gromov, Critical Initialization ... using Partial Jacobians, arXiv 2111.12143;
NumPy, host only.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.device import Device
from ..engine.errors import InputError
from ..engine.kernels import LEAK
from ..models.vision import NORMS
from ..ops.activation import activation_backward, activation_forward, resolve

STEP = 1e-30  # of the complex step: df/dK = Im f(K + i STEP)/STEP, exact to rounding
HOST = Device("cpu", np, "float64")

# -- Gaussian averages -----------------------------------------------------------------------------
# Functions (k11, k22, k12) -> (E phi(u) phi(v), E phi'(u) phi'(v)), where u and v are Gaussian with
# these covariances. The second average is the derivative of the first by k12 (Price's theorem).


def _homogeneous(a: float) -> Callable:
    """phi(z) = z above 0, a z below; t = arccos(k12/sqrt(k11 k22)) is the angle between the inputs:

    E phi(u) phi(v)   = (1 + a^2)/2 k12 + (1 - a)^2/(2 pi) sqrt(k11 k22) (sin t - t cos t)
    E phi'(u) phi'(v) = (1 + a^2)/2     - (1 - a)^2/(2 pi) t

    phi(z) = (1 + a)/2 z + (1 - a)/2 |z|; products of u and |v| average to 0, E u v = k12, and
    E |u v| = sqrt(k11 k22) (cos t + 2/pi (sin t - t cos t)).
    """
    smooth = (1 + a * a) / 2
    kink = (1 - a) ** 2 / (2 * np.pi)

    def averages(k11, k22, k12):
        # t of the real parts: it does not move along k11 = k22 = k12, where derivatives are taken
        sine = np.sqrt(np.maximum((k11 * k22 - k12 * k12).real, 0))  # times sqrt(k11 k22), as k12
        t = np.arctan2(sine, np.real(k12))
        length2 = np.sqrt(k11 * k22)
        value = smooth * k12 + kink * length2 * (np.sin(t) - t * np.cos(t))
        return value, smooth - kink * t

    return averages


def _erf(k11, k22, k12):
    """phi = erf; P = (1 + 2 k11)(1 + 2 k22), d^2 = P - 4 k12^2:

    E phi(u) phi(v) = 2/pi arcsin(2 k12/sqrt(P))        E phi'(u) phi'(v) = 4/(pi d)

    erf(u) = 2 Prob(w < u) - 1 for w of variance 1/2: with a w for u and one for v, the first is
    E sign(u - w1) sign(v - w2), of variances k11 + 1/2, k22 + 1/2 and correlation 2 k12/sqrt(P):
    2/pi times its arcsine.
    """
    P = (1 + 2 * k11) * (1 + 2 * k22)
    d2 = 1 + 2 * (k11 + k22) + 4 * (k11 * k22 - k12 * k12)  # large P and k12^2 cancel here
    value = 2 / np.pi * np.arcsin(2 * k12 / np.sqrt(P))
    slope = 4 / np.pi / np.sqrt(d2)
    return value, slope


def _gelu(k11, k22, k12):
    """phi(z) = z Phi(z); P = (1 + k11)(1 + k22), d^2 = P - k12^2, t = arctan(k12/d):

    E phi(u) phi(v)   = k12/4 + [(k12^2 + k11 k22 d^2)/(P d) + k12 t]/(2 pi)
    E phi'(u) phi'(v) = 1/4   + [t + k12/d (1/d^2 + (1 - k11 k22)/P + 1)]/(2 pi)

    By parts (Stein), E u f = k11 E f_u + k12 E f_v; n = Phi', so n'(z) = -z n(z):
      E Phi(u) Phi(v) = 1/4 + t/(2 pi), as with erf;  E n(u) n(v) = 1/(2 pi d)
      (1 + k22) E v n(v) Phi(u) = k12 E n(u) n(v), and with u and v exchanged
      E v n(u) Phi(v) = k22 E n(u) n(v) - k12 E u n(u) Phi(v)
      E u v Phi(u) Phi(v) = k12 E Phi(u) Phi(v) + k11 E v n(u) Phi(v) + k12 E v n(v) Phi(u)
    """
    P = (1 + k11) * (1 + k22)
    d2 = 1 + k11 + k22 + (k11 * k22 - k12 * k12)
    d = np.sqrt(d2)
    t = np.arctan(k12 / d)
    bracket = (k12 * k12 + k11 * k22 * d2) / (P * d) + k12 * t
    value = k12 / 4 + bracket / (2 * np.pi)
    bracket = t + k12 / d * (1 / d2 + (1 - k11 * k22) / P + 1)
    slope = 1 / 4 + bracket / (2 * np.pi)
    return value, slope


def _quadrature(phi: Callable, slope: Callable) -> Callable:
    """Averages as trapezoid sums over x and y in [-12, 12] with weights exp(-(x^2 + y^2)/2):

    u = sqrt(k11) x        v = (k12 x + sqrt(k11 k22 - k12^2) y)/sqrt(k11)

    On smooth functions they converge exponentially: 1e-12 with 2401 points, in two dimensions with
    241 x 241. One dimension is enough where k12^2 = k11 k22.
    """

    def averages(*kernels):
        k11, k22, k12 = (np.asarray(k)[..., None, None] for k in kernels)
        rest = k11 * k22 - k12 * k12
        if rest.any():
            x = np.linspace(-12, 12, 241)
            y = x[:, None]
        else:
            x = np.linspace(-12, 12, 2401)
            y = np.zeros((1, 1))
        root = np.sqrt(np.where(k11 == 0, 1, k11))
        spread = np.sqrt(np.where(np.real(rest) < 0, 0, rest))
        u = np.sqrt(k11) * x
        v = (k12 * x + spread * y) / root
        weight = np.exp(-(x * x + y * y) / 2)

        def average(f):
            products = f(u) * f(v) * weight
            return products.sum(axis=(-1, -2)) / weight.sum()

        return average(phi), average(slope)

    return averages


def _sigmoid(z):
    return (1 + np.tanh(z / 2)) / 2


def _silu(z):
    """z s(z), s(z) = 1/(1 + exp(-z))"""
    return z * _sigmoid(z)


def _silu_slope(z):
    """s(z) (1 + z - z s(z))"""
    s = _sigmoid(z)
    return s * (1 + z - z * s)


# Closed forms; and SiLU, which is no activation of the library's networks.
KNOWN = {"identity": _homogeneous(1.0), "relu": _homogeneous(0.0), "erf": _erf, "gelu": _gelu}
KNOWN |= {"leaky_relu": _homogeneous(LEAK), "silu": _quadrature(_silu, _silu_slope)}


def dual(activation: str) -> Callable:
    """The Gaussian averages of an activation: KNOWN ones, or sums over the library's own phi.

    Returns a function (k11, k22, k12) -> (E phi(u) phi(v), E phi'(u) phi'(v)). InputError for an
    unknown name.
    """
    if activation in KNOWN:
        return KNOWN[activation]
    resolve(activation)  # refuses unknown names

    def phi(z):
        return activation_forward(HOST, z, activation, np.empty_like(z))[0]

    def slope(z):
        return activation_backward(HOST, np.ones_like(z), (z, activation), np.empty_like(z))

    return _quadrature(phi, slope)


# -- recursions ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeanField:
    """One kind of block at infinite width, and what its recursions say.

    sw2, sb2 and mu are numbers, or arrays that broadcast (phase diagrams). InputError for an
    unknown activation or norm. The networks: models.vision.deep_mlp.

    norm   none    W phi(h) + b + mu h
           pre     W phi(LN(h)) + b + mu h       LayerNorm on pre-activations
           act     W LN(phi(h)) + b + mu h       LayerNorm on activations
           post    LN(W phi(h) + b + mu h)
           batch   W phi(BN(h)) + b + mu h       BatchNorm on a large batch; K is the variance over
                                                 it, b drops out

    >>> from tinygrok.criticality.meanfield import MeanField
    >>> net = MeanField("relu", sw2=1.5, sb2=0.1)
    >>> round(net.fixed_point(), 3), round(net.correlation_length(), 3)
    (0.4, 3.476)
    """

    activation: str
    sw2: Any
    sb2: Any = 0.0
    mu: Any = 0.0
    norm: str = "none"

    def __post_init__(self):
        dual(self.activation)
        if self.norm not in NORMS:
            raise InputError(f"unknown norm {self.norm!r}: choose {', '.join(NORMS)}")

    def branch(self, k11, k22, k12):
        """(A, B): the branch W f(h) adds sw2 A to the kernel k12 and sw2 B to the Jacobian.

        f is phi with its norm, s what the norms divide by, in the product for the two inputs:

        none, post  A = <phi phi>_k                              B = <phi' phi'>_k
        pre         A = <phi phi>_c,  c = k/s, s^2 = k11 k22     B = <phi' phi'>_c / s
        batch       A = <phi phi>_c - <phi>^2                    B = <phi' phi'>_c / s
        act         A = Cov(phi, phi)/s, s^2 = Var phi Var phi   B = <phi' phi'>_k / s
        """
        if self.norm in ("pre", "batch"):
            return self._branch_of_normed(k11, k22, k12)
        average = dual(self.activation)
        A, B = average(k11, k22, k12)
        if self.norm != "act":
            return A, B

        def mean_square(K):
            return average(K, K, K)[0]

        def product_of_means(k11, k22):
            return average(k11, k22, 0 * k12)[0]  # without correlation

        deviation1 = np.sqrt(mean_square(k11) - product_of_means(k11, k11))
        deviation2 = np.sqrt(mean_square(k22) - product_of_means(k22, k22))
        s = deviation1 * deviation2
        return (A - product_of_means(k11, k22)) / s, B / s

    def _branch_of_normed(self, k11, k22, k12):
        """The branch where the norm comes before phi: phi sees kernels 1, 1 and c = k12/s."""
        average = dual(self.activation)
        s = np.sqrt(k11 * k22)
        c = 1.0 if k12 is k11 else k12 / s  # of one input
        A, B = average(1.0, 1.0, c)
        if self.norm == "batch":
            A = A - average(1.0, 1.0, 0.0)[0]  # <phi>^2 is common to the batch
        return A, B / s

    def _sum(self, k11, k22, k12):
        """(kernel, chi) of the sum of branch, bias and residual connection."""
        A, B = self.branch(k11, k22, k12)
        sb2 = 0.0 * self.sb2 if self.norm == "batch" else self.sb2  # an array keeps its shape
        kernel = self.sw2 * A + sb2 + self.mu**2 * k12
        chi = self.sw2 * B + self.mu**2
        return kernel, chi

    def step(self, K):
        """(K', chi_J): the kernel after one more block, and the factor by which J grows in it"""
        k, chi = self._sum(K, K, K)
        if self.norm == "post":
            return k / k, chi / k
        return k, chi

    def step_pair(self, k11, k22, k12):
        """(k11', k22', k12', chi_12) of two inputs of correlation c = k12/sqrt(k11 k22).

        chi_12 is the factor of the overlap of their Jacobians, and d k12'/d k12 without a norm.
        """
        new11, _ = self._sum(k11, k11, k11)
        new22, _ = self._sum(k22, k22, k22)
        new12, chi = self._sum(k11, k22, k12)
        if self.norm == "post":
            s = np.sqrt(new11 * new22)
            return new11 / new11, new22 / new22, new12 / s, chi / s
        return new11, new22, new12, chi

    def propagate(self, K, depth: int):
        """(K^1..K^(depth+1), chi^1..chi^depth) from K^1 = K.

        ln J^{l0,l} is the sum of ln chi over l0..l-1.
        """
        kernels = [K]
        chis = []
        for _ in range(depth):
            K, chi = self.step(K)
            kernels.append(K)
            chis.append(chi)
        return np.stack(np.broadcast_arrays(*kernels)), np.stack(np.broadcast_arrays(*chis))

    def susceptibilities(self, K):
        """(chi_J, chi_K = dK'/dK, chi_Delta = d chi_J/dK) at K, by a complex step.

        Without norm and residual chi_J = sw2 <phi'^2>, chi_K = sw2 <phi'^2 + phi phi''>,
        chi_Delta = sw2 <phi''^2 + phi' phi'''>.
        """
        k, chi = self.step(K + 1j * STEP)
        return np.real(chi), np.imag(k) / STEP, np.imag(chi) / STEP

    def fixed_point(self, K: float = 1.0) -> float:
        """The K* to which the kernel flows from K: a number, 0.0 or inf."""

        def growth(K):
            rate = self.step(K)[0] / K - 1
            return rate if abs(rate) > 1e-14 else 0.0

        return _root(growth, K, 1.05 if growth(K) > 0 else 1 / 1.05)

    def correlation_length(self, K: float = 1.0) -> float:
        """xi = 1/|ln chi_J*|, inf at criticality; K: where the kernel starts.

        J ~ exp(-l/xi) where chi_J* < 1, exp(l/xi) where chi_J* > 1.
        """
        K = min(max(self.fixed_point(K), 1e-12), 1e12)
        _, chi = self.step(K)
        return math.inf if abs(chi - 1) <= 1e-9 else 1 / abs(math.log(chi))

    def exponent(self, K: float = 1.0) -> float:
        """zeta of J ~ l^-zeta at criticality, nan off it; K: where the kernel starts.

        Where K ~ 1/l or K ~ l, K/|K' - K| is l, so
        zeta = -d ln J/d ln l = (1 - chi_J) K/|K' - K|; where K settles, J does too: zeta = 0.
        -inf: chi_J tends to 1 more slowly than 1/l, and J grows as a stretched exponential.
        """
        K = min(max(self.fixed_point(K), 1e-8), 1e8)
        k, chi = self.step(K)
        change = abs(k - K)
        if abs(chi - 1) > 1e-3 or change > 1e-5 * K:  # J, or K, changes by a factor a layer
            return math.nan
        if change < 1e-13 * K:
            return 0.0 if abs(chi - 1) < 1e-9 else math.nan
        zeta = (1 - chi) * K / change
        return float(zeta) if abs(zeta) < 100 else math.copysign(math.inf, zeta)


def _root(f: Callable, x: float, factor: float) -> float:
    """The first zero of f from x on, in steps of a factor, then by bisection.

    0.0 or inf where there is none.
    """
    sign = np.sign(f(x))
    if sign == 0:
        return x
    while np.sign(f(x * factor)) == sign:
        x *= factor
        if not 1e-12 < x < 1e12:
            return math.inf if factor > 1 else 0.0
    before = x
    after = x * factor
    for _ in range(60):
        middle = math.sqrt(before * after)
        if np.sign(f(middle)) == sign:
            before = middle
        else:
            after = middle
    return after


def critical_line(activation: str, K, norm: str = "none", mu: float = 0.0):
    """(sw2, sb2) at which K is a fixed point and chi_J = 1; K traces the line.

    sw2 = (1 - mu^2)/B(K)        sb2 = (1 - mu^2) (K - A(K)/B(K))        A, B: MeanField.branch

    from chi_J = sw2 B + mu^2 = 1 and K = sw2 A + sb2 + mu^2 K. At mu = 1 with a norm on
    pre-activations every (sw2, sb2) is critical; BatchNorm at mu < 1, where
    chi_J* = mu^2 + (1 - mu^2) K B/A > 1, has no line: InputError.

    >>> from tinygrok.criticality.meanfield import critical_line
    >>> sw2, sb2 = critical_line("erf", 1.0)
    >>> round(float(sw2), 4), round(float(sb2), 4)
    (1.7562, 0.1841)
    """
    if norm == "batch":
        everywhere = "chaotic at mu < 1, critical everywhere at mu = 1"
        raise InputError(f"with BatchNorm there is no critical line: {everywhere}")
    if norm == "post":  # chi_J = (sw2 B + mu^2)/(sw2 A + sb2 + mu^2) at K = 1: the line of "pre"
        norm = "pre"
        mu = 0.0
    A, B = MeanField(activation, 1.0, norm=norm).branch(K, K, K)
    sw2 = (1 - mu**2) / B
    sb2 = K - A / B
    rounding = abs(sb2) < 1e-12 * K
    return sw2, (1 - mu**2) * np.where(rounding, 0.0, sb2)


def critical_point(activation: str, mu: float = 0.0) -> tuple[float, float, float]:
    """(sw2, sb2, K*) where chi_J = 1 and also chi_K = 1, without a norm.

    K* = 0 for odd bounded phi; ReLU, where any K will do: 1000.

    >>> from tinygrok.criticality.meanfield import critical_point
    >>> [round(x, 4) for x in critical_point("gelu")]
    [1.9831, 0.1729, 3.5616]
    """

    def excess(K):
        chi_J, chi_K, _ = MeanField(activation, 1.0).susceptibilities(K)
        ratio = chi_K / chi_J - 1
        return ratio if abs(ratio) > 1e-13 else 0.0

    K = _root(excess, 1e3, 1 / 1.05)
    sw2, sb2 = critical_line(activation, max(K, 1e-300), mu=mu)
    return float(sw2), float(sb2), K
