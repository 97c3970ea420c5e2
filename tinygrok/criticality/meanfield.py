"""Signal propagation in deep networks of infinite width: kernels, Jacobians, criticality.

Blocks h' = W phi(h) + b + mu h, W_ij ~ Normal(0, sw2/N), b_i ~ Normal(0, sb2), with or without a
norm. At infinite width the pre-activations are Gaussian with kernel K = E h^2, and layer by layer,
with z ~ Normal(0, K),

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
from ..engine.errors import InputError, require_known
from ..engine.kernels import LEAK
from ..models.vision import NORMS
from ..ops.activation import activation_backward, activation_forward, resolve

STEP = 1e-30  # of the complex step: df/dK = Im f(K + i STEP)/STEP, exact to rounding
HOST = Device("cpu", np, "float64")

# -- Gaussian averages -----------------------------------------------------------------------------
# Functions K -> (V, D, M2): V = <phi(z)^2>, D = <phi'(z)^2>, M2 = <phi(z)>^2 for z ~ Normal(0, K).


def _homogeneous(a: float) -> Callable:
    """phi(z) = z above 0, a z below:

    V = (1 + a^2)/2 K        D = (1 + a^2)/2        M2 = (1 - a)^2 K/(2 pi)

    Half of z^2 counts as it is, half of it a^2 times; phi(z) = (1 + a)/2 z + (1 - a)/2 |z|, and
    <|z|> = sqrt(2 K/pi).
    """
    smooth = (1 + a * a) / 2
    kink = (1 - a) ** 2 / (2 * np.pi)

    def averages(K):
        return smooth * K, smooth + 0 * K, kink * K

    return averages


def _erf(K):
    """phi = erf:  V = 2/pi arcsin(2 K/(1 + 2 K))        D = 4/(pi sqrt(1 + 4 K))        M2 = 0

    erf(z) = 2 Prob(w < z) - 1 for w of variance 1/2: with two such w, V is
    E sign(z - w1) sign(z - w2), of variances K + 1/2 and correlation 2 K/(1 + 2 K): 2/pi times its
    arcsine. D is 4/pi <exp(-2 z^2)>.
    """
    V = 2 / np.pi * np.arcsin(2 * K / (1 + 2 * K))
    D = 4 / np.pi / np.sqrt(1 + 4 * K)
    return V, D, 0 * K


def _gelu(K):
    """phi(z) = z Phi(z); P = (1 + K)^2, d^2 = 1 + 2 K, t = arctan(K/d):

    V  = K/4 + [(K^2 + K^2 d^2)/(P d) + K t]/(2 pi)
    D  = 1/4 + [t + K/d (1/d^2 + (1 - K^2)/P + 1)]/(2 pi)
    M2 = K^2/(2 pi (1 + K))

    By parts (Stein), <z f(z)> = K <f'(z)>; n = Phi', so n'(z) = -z n(z):
      <z Phi> = K <n> = K/sqrt(2 pi (1 + K))
      <Phi^2> = 1/4 + t/(2 pi), as with erf;  <n^2> = 1/(2 pi d)
      <z n Phi> = K <n^2> - K <z n Phi>, so (1 + K) <z n Phi> = K <n^2>
      V = <z^2 Phi^2> = K <Phi^2> + 2 K <z n Phi>;  (K^2 + K^2 d^2)/P = 2 K^2/(1 + K)
      D = <(Phi + z n)^2> = <Phi^2> + 2 <z n Phi> + <z^2 n^2>;  <z^2 n^2> = K/(2 pi d^3), and
      (1 - K^2)/P + 1 = 2/(1 + K)
    """
    P = (1 + K) * (1 + K)
    d2 = 1 + K + K
    d = np.sqrt(d2)
    t = np.arctan(K / d)
    bracket = (K * K + K * K * d2) / (P * d) + K * t
    V = K / 4 + bracket / (2 * np.pi)
    bracket = t + K / d * (1 / d2 + (1 - K * K) / P + 1)
    D = 1 / 4 + bracket / (2 * np.pi)
    return V, D, K * K / (2 * np.pi * (1 + K))


def _quadrature(phi: Callable, slope: Callable) -> Callable:
    """Averages as trapezoid sums over z = sqrt(K) x, x in [-12, 12], with weights exp(-x^2/2).

    On smooth functions they converge exponentially: 1e-12 with 2401 points.
    """

    def averages(K):
        x = np.linspace(-12, 12, 2401)
        z = np.sqrt(np.asarray(K)[..., None]) * x
        weight = np.exp(-x * x / 2)
        weight /= weight.sum()
        value = phi(z)
        V = (value * value * weight).sum(axis=-1)
        D = (slope(z) ** 2 * weight).sum(axis=-1)
        M = (value * weight).sum(axis=-1)
        return V, D, M * M

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


def averages(activation: str) -> Callable:
    """The Gaussian averages of an activation: KNOWN ones, or sums over the library's own phi.

    Returns a function K -> (V, D, M2). InputError for an unknown name.
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
        averages(self.activation)
        require_known(self.norm, NORMS, "norm")

    def branch(self, K):
        """(A, B): the branch W f(h) adds sw2 A to the kernel and sw2 B to the Jacobian.

        f is phi with its norm:

        none, post  A = V(K)              B = D(K)
        pre         A = V(1)              B = D(1)/K
        batch       A = V(1) - M2(1)      B = D(1)/K        M2 is common to the batch
        act         A = 1                 B = D(K)/s        s = V(K) - M2(K), the variance of phi
        """
        average = averages(self.activation)
        if self.norm in ("pre", "batch"):
            V, D, M2 = average(1.0)
            return V - M2 if self.norm == "batch" else V, D / K
        V, D, M2 = average(K)
        if self.norm == "act":
            s = V - M2
            return s / s, D / s
        return V, D

    def step(self, K):
        """(K', chi_J): the kernel after one more block, and the factor by which J grows in it"""
        A, B = self.branch(K)
        sb2 = 0.0 * self.sb2 if self.norm == "batch" else self.sb2  # an array keeps its shape
        k = self.sw2 * A + sb2 + self.mu**2 * K
        chi = self.sw2 * B + self.mu**2
        if self.norm == "post":
            return k / k, chi / k
        return k, chi

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
    A, B = MeanField(activation, 1.0, norm=norm).branch(K)
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
