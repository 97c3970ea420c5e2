"""Signal propagation in deep networks of infinite width: kernels, Jacobians, critical lines and
exponents.

Blocks h' = W phi(h) + b + mu h, W_ij ~ Normal(0, sw2/N), b_i ~ Normal(0, sb2), with or without a
norm. At infinite width the pre-activations of inputs 1 and 2 are Gaussian with kernel k_ab = E
h(x_a) h(x_b), and layer by layer

    K' = sw2 <phi(z)^2>_K + sb2 + mu^2 K        J' = chi_J J,  chi_J = sw2 <phi'(z)^2>_K + mu^2,  z ~ Normal(0, K)

where J^{l0,l} = E |dh^l/dh^l0|^2 / N_l is the averaged partial Jacobian norm (APJN); chi_J takes
the K of the layer being left. chi_J* = 1 at the fixed point K* is critical: J then follows a power
law l^-zeta, else exp(-+l/xi).
Source: Doshi, He, Gromov, Critical Initialization ... using Partial Jacobians, arXiv 2111.12143;
NumPy, host only."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..engine.device import Device
from ..engine.errors import InputError
from ..engine.kernels import LEAK
from ..models.vision import NORMS
from ..ops.activation import activation_backward, activation_forward, resolve

STEP = 1e-30  # of the complex step: df/dK = Im f(K + i STEP)/STEP, exact to rounding
HOST = Device("cpu", np, "float64")

# Gaussian averages: functions (k11, k22, k12) -> (E phi(u) phi(v), E phi'(u) phi'(v)), u and v with
# these covariances


def _homogeneous(a: float) -> Callable:
    """phi(z) = z for z > 0, a z below: with the angle t = arccos(k12/sqrt(k11 k22)) between the
    inputs

    (1 + a^2) k12/2 + (1 - a)^2 sqrt(k11 k22) (sin t - t cos t)/(2 pi)        (1 + a^2)/2 - (1 - a)^2 t/(2 pi)
    """

    def averages(
        k11, k22, k12
    ):  # t of the real parts: it does not move along k11 = k22 = k12, where derivatives are taken
        t = np.arctan2(np.sqrt(np.maximum((k11 * k22 - k12 * k12).real, 0)), np.real(k12))
        c, d = (1 + a * a) / 2, (1 - a) ** 2 / (2 * np.pi)
        return c * k12 + d * np.sqrt(k11 * k22) * (np.sin(t) - t * np.cos(t)), c - d * t

    return averages


def _erf(k11, k22, k12):
    P, d2 = (1 + 2 * k11) * (1 + 2 * k22), 1 + 2 * (k11 + k22) + 4 * (k11 * k22 - k12 * k12)
    return 2 / np.pi * np.arcsin(2 * k12 / np.sqrt(P)), 4 / np.pi / np.sqrt(d2)


def _gelu(k11, k22, k12):
    P, d2 = (1 + k11) * (1 + k22), 1 + k11 + k22 + (k11 * k22 - k12 * k12)
    d = np.sqrt(d2)
    value = k12 / 4 + ((k12 * k12 + k11 * k22 * d2) / (P * d) + k12 * np.arctan(k12 / d)) / (
        2 * np.pi
    )
    return value, 1 / 4 + (np.arctan(k12 / d) + k12 / d * (1 / d2 + (1 - k11 * k22) / P + 1)) / (
        2 * np.pi
    )


def _quadrature(*functions: Callable) -> Callable:
    """Trapezoid sums over u = sqrt(k11) x, v = (k12 x + sqrt(k11 k22 - k12^2) y)/sqrt(k11), x and y
    in [-12, 12], for phi and phi'. On smooth functions they converge exponentially: 1e-12 with 2401
    points, in two dimensions with 241 x 241."""

    def averages(*kernels):
        k11, k22, k12 = (np.asarray(k)[..., None, None] for k in kernels)
        rest = k11 * k22 - k12 * k12
        x = np.linspace(-12, 12, 241 if rest.any() else 2401)
        y, root = (
            x[:, None] if rest.any() else np.zeros((1, 1)),
            np.sqrt(np.where(k11 == 0, 1, k11)),
        )
        u, v = np.sqrt(k11) * x, (k12 * x + np.sqrt(np.where(rest.real < 0, 0, rest)) * y) / root
        weight = np.exp(-(x * x + y * y) / 2)
        return tuple((f(u) * f(v) * weight).sum(axis=(-1, -2)) / weight.sum() for f in functions)

    return averages


CLOSED = {
    "identity": _homogeneous(1.0),
    "relu": _homogeneous(0.0),
    "leaky_relu": _homogeneous(LEAK),
    "erf": _erf,
    "gelu": _gelu,
}


def dual(activation: str) -> Callable:
    """The Gaussian averages of an activation: in closed form where there is one, else sums over the
    library's own phi."""
    if activation in CLOSED:
        return CLOSED[activation]
    if activation == "silu":
        s = lambda z: (1 + np.tanh(z / 2)) / 2  # noqa: E731
        return _quadrature(lambda z: z * s(z), lambda z: s(z) * (1 + z - z * s(z)))
    resolve(activation)
    return _quadrature(
        lambda z: activation_forward(HOST, z, activation, np.empty_like(z))[0],
        lambda z: activation_backward(HOST, np.ones_like(z), (z, activation), np.empty_like(z)),
    )


@dataclass(frozen=True)
class MeanField:
    """One kind of block at infinite width; sw2, sb2 and mu are numbers, or arrays that broadcast
    (phase diagrams).

    norm   none    W phi(h) + b + mu h
           pre     W phi(LN(h)) + b + mu h       LayerNorm on pre-activations
           act     W LN(phi(h)) + b + mu h       LayerNorm on activations
           post    LN(W phi(h) + b + mu h)
           batch   W phi(BN(h)) + b + mu h       BatchNorm on a large batch; K is the variance over it, b drops out
    (models.vision.deep_mlp)
    """

    activation: str
    sw2: float
    sb2: float = 0.0
    mu: float = 0.0
    norm: str = "none"

    def __post_init__(self):
        dual(self.activation)
        if self.norm not in NORMS:
            raise InputError(f"unknown norm {self.norm!r}: choose {', '.join(NORMS)}")

    def branch(self, k11, k22, k12):
        """(A, B): the branch W f(h) adds sw2 A to the kernel k12 and sw2 B to the Jacobian, f = phi
        with its norm."""
        f = dual(self.activation)
        if self.norm in ("pre", "batch"):
            s = np.sqrt(k11 * k22)
            A, B = f(1.0, 1.0, 1.0 if k12 is k11 else k12 / s)
            return A - (f(1.0, 1.0, 0.0)[0] if self.norm == "batch" else 0.0), B / s
        A, B = f(k11, k22, k12)
        if self.norm != "act":
            return A, B
        s = math.prod(
            np.sqrt(f(k, k, k)[0] - f(k, k, 0 * k)[0]) for k in (k11, k22)
        )  # f(.., 0) = <phi><phi>
        return (A - f(k11, k22, 0 * k12)[0]) / s, B / s

    def _sum(self, k11, k22, k12):
        A, B = self.branch(k11, k22, k12)
        return self.sw2 * A + (
            self.norm != "batch"
        ) * self.sb2 + self.mu**2 * k12, self.sw2 * B + self.mu**2

    def step(self, K):
        """(K', chi_J): the kernel after one more block, and the factor by which J grows in it"""
        k, chi = self._sum(K, K, K)
        return (k / k, chi / k) if self.norm == "post" else (k, chi)

    def step_pair(self, k11, k22, k12):
        """(k11', k22', k12', chi_12) of two inputs, whose correlation is c = k12/sqrt(k11 k22);
        chi_12 is the factor of the overlap of their Jacobians, and d k12'/d k12 without a norm."""
        p, q, (k, chi) = (
            self._sum(k11, k11, k11)[0],
            self._sum(k22, k22, k22)[0],
            self._sum(k11, k22, k12),
        )
        s = np.sqrt(p * q)
        return (p / p, q / q, k / s, chi / s) if self.norm == "post" else (p, q, k, chi)

    def propagate(self, K, depth: int):
        """(K^1..K^(depth+1), chi^1..chi^depth) from K^1 = K; ln J^{l0,l} is the sum of ln chi over
        l0..l-1."""
        kernels, chis = [K], []
        for _ in range(depth):
            K, chi = self.step(K)
            kernels.append(K)
            chis.append(chi)
        return np.stack(np.broadcast_arrays(*kernels)), np.stack(np.broadcast_arrays(*chis))

    def susceptibilities(self, K):
        """(chi_J, chi_K = dK'/dK, chi_Delta = d chi_J/dK) at K; without norm and residual
        sw2 <phi'^2>, sw2 <phi'^2 + phi phi''>, sw2 <phi''^2 + phi' phi'''>"""
        k, chi = self.step(K + 1j * STEP)
        return np.real(chi), np.imag(k) / STEP, np.imag(chi) / STEP

    def fixed_point(self, K: float = 1.0) -> float:
        """The K* to which the kernel flows from K: a number, 0.0 or inf."""

        def move(K):
            d = self.step(K)[0] / K - 1
            return d if abs(d) > 1e-14 else 0.0

        return _root(move, K, 1.05 if move(K) > 0 else 1 / 1.05)

    def correlation_length(self, K: float = 1.0) -> float:
        """xi = 1/|ln chi_J*|: J ~ exp(-l/xi) where chi_J* < 1, exp(l/xi) where chi_J* > 1; inf at
        criticality"""
        chi = self.step(min(max(self.fixed_point(K), 1e-12), 1e12))[1]
        return 1 / abs(math.log(chi)) if abs(chi - 1) > 1e-9 else math.inf

    def exponent(self, K: float = 1.0) -> float:
        """zeta of J ~ l^-zeta at criticality, nan off it. Where K tends to 0 or inf as a power of
        l, K/|K' - K| is l, so zeta = -d ln J/d ln l = (1 - chi_J) K/|K' - K|; where K settles, J
        does too: zeta = 0. -inf: chi_J tends to 1 more slowly than 1/l, and J grows as a stretched
        exponential."""
        K = min(max(self.fixed_point(K), 1e-8), 1e8)
        k, chi = self.step(K)
        if abs(chi - 1) > 1e-3 or abs(k - K) > 1e-5 * K:  # J, or K, changes by a factor a layer
            return math.nan
        if abs(k - K) < 1e-13 * K:
            return 0.0 if abs(chi - 1) < 1e-9 else math.nan
        zeta = (1 - chi) * K / abs(k - K)
        return float(zeta) if abs(zeta) < 100 else math.copysign(math.inf, zeta)


def _root(f: Callable, x: float, factor: float) -> float:
    """The first zero of f from x on, in steps of a factor, then by bisection; 0.0 or inf where
    there is none."""
    sign = np.sign(f(x))
    while sign and np.sign(f(x * factor)) == sign:
        x *= factor
        if not 1e-12 < x < 1e12:
            return math.inf if factor > 1 else 0.0
    a, b = x, x * factor if sign else x
    for _ in range(60):
        m = math.sqrt(a * b)
        a, b = (m, b) if np.sign(f(m)) == sign else (a, m)
    return b


def critical_line(activation: str, K, norm: str = "none", mu: float = 0.0):
    """(sw2, sb2) at which K is a fixed point and chi_J = 1:  sw2 = (1 - mu^2)/B(K),  sb2 = (1 - mu^2) (K - A(K)/B(K)).

    K traces the line. At mu = 1 with a norm on pre-activations every (sw2, sb2) is critical;
    BatchNorm at mu < 1, where chi_J* = mu^2 + (1 - mu^2) B/A > 1, has no line: InputError.
    """
    if norm == "batch":
        raise InputError(
            "with BatchNorm there is no critical line: chaotic at mu < 1, critical everywhere at mu = 1"
        )
    if norm == "post":  # chi_J = (sw2 B + mu^2)/(sw2 A + sb2 + mu^2) at K = 1: the line of "pre"
        norm, mu = "pre", 0.0
    A, B = MeanField(activation, 1.0, norm=norm).branch(K, K, K)
    sb2 = K - A / B
    return (1 - mu**2) / B, (1 - mu**2) * np.where(abs(sb2) < 1e-12 * K, 0.0, sb2)


def critical_point(activation: str, mu: float = 0.0) -> tuple[float, float, float]:
    """(sw2, sb2, K*) where also chi_K = 1, without a norm. K* = 0 for odd bounded phi; ReLU, where
    any K will do: 1000."""

    def excess(K):
        chi_J, chi_K, _ = MeanField(activation, 1.0).susceptibilities(K)
        return chi_K / chi_J - 1 if abs(chi_K / chi_J - 1) > 1e-13 else 0.0

    K = _root(excess, 1e3, 1 / 1.05)
    sw2, sb2 = critical_line(activation, max(K, 1e-300), mu=mu)
    return float(sw2), float(sb2), K
