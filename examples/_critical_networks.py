"""Random networks of finite width beside the theory of infinite width.

Networks stray from the theory by depth/width, and with BatchNorm by 1/batch, which an average over
many of them can tell from it.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from tinygrok.criticality.jacobian import Propagation, mean_and_error
from tinygrok.criticality.meanfield import MeanField, critical_point
from tinygrok.engine.device import Device
from tinygrok.models.vision import deep_mlp

INPUTS = 256  # entries of an input
ANY = 1000  # K* where any will do (critical_point)
FLOOR = 1e-4  # eps of the norms and float32 hide so much, relative to the theory: no error is less

_critical_point = functools.cache(critical_point)


class Profiles(NamedTuple):
    """Kernel, susceptibility and Jacobian against depth, (..., layers).

    K    K^l, l = 1..depth + 1
    chi  chi_J^l = J^{l,l+1}, l = 1..depth
    J    J^{l,depth+1}, l = 1..depth + 1
    """

    K: np.ndarray
    chi: np.ndarray
    J: np.ndarray


def shared_variance(case: MeanField) -> float:
    """The part of K^1 that comes from the bias of the first layer, the same for all inputs."""
    return 0.0 if case.norm == "batch" else case.sb2


@functools.cache
def start(case: MeanField) -> float:
    """The kernel K^1 that shows no transient with depth: the fixed point from 1, if it is a number.

    At a critical point K* (GELU's is half-stable: kernels from below stop at another fixed point).
    Where K* is 0, infinite or any number: that of inputs of variance 1.
    """
    K = case.fixed_point()
    if case.norm == "none" and case.mu < 1:
        sw2, sb2, critical = _critical_point(case.activation, case.mu)
        if np.allclose((sw2, sb2), (case.sw2, case.sb2), rtol=1e-5, atol=0):
            K = critical
    return K if 1e-6 < K < ANY else 1.0 + shared_variance(case)


def theory(case: MeanField, depth: int) -> Profiles:
    """The profiles at infinite width, by recursion: J^{l,L} is the product of chi over l..L-1."""
    K, chi = case.propagate(start(case), depth)
    J = np.cumprod(chi[::-1])[::-1]
    return Profiles(K, chi, np.append(J, 1.0))


def propagation(dev: Device, case: MeanField, width, depth, batch: int, rng) -> Propagation:
    """Random inputs of kernel `start(case)` on their way through the blocks of a random network."""
    net = deep_mlp(INPUTS, width, depth, 1, case.activation, case.norm, case.mu)
    x = rng.standard_normal((batch, INPUTS))
    square = INPUTS * (start(case) - shared_variance(case))
    x *= math.sqrt(square) / np.linalg.norm(x, axis=1, keepdims=True)
    weights = net.init(rng, math.sqrt(case.sw2), math.sqrt(case.sb2), first=1.0)
    weights |= net.init_buffers()
    w = {name: dev.to_device(a) for name, a in weights.items()}
    first, *blocks, _ = net.stages(dev, w)  # the last is the readout
    h, _ = first.forward(dev.to_device(x))
    return Propagation(dev, blocks, h)


def measure(dev: Device, case: MeanField, width, depth, batch, probes: int, rngs) -> Profiles:
    """Profiles of networks, one a generator of rngs: (networks, layers), means over the inputs."""

    def one(rng):
        run = propagation(dev, case, width, depth, batch, rng)
        chi = run.chi(rng, probes).mean(axis=0)
        return Profiles(run.kernels, chi, run.apjn(rng, probes).mean(axis=0))

    networks = dev.map(one, rngs)
    return Profiles(*(np.array(rows) for rows in zip(*networks, strict=True)))


def measure_last(dev, case: MeanField, width, depth, batch, probes, rngs, last: int) -> float:
    """The mean chi_J of the last blocks of networks, one a generator of rngs."""

    def one(rng):
        run = propagation(dev, case, width, depth, batch, rng)
        chi = run.chi(rng, probes, depth - last)
        return np.mean([samples.mean() for samples in chi.T])

    return np.array(dev.map(one, rngs)).mean()


def decays(chi: np.ndarray) -> np.ndarray:
    """-ln J^{l,L} a layer from l = L/2 to L, of chi (networks, L): a rate 1/xi.

    Times the number of layers over ln(L/l) it is the exponent zeta of J ~ L^-zeta at this depth.
    ln chi is linearised at the mean of the networks: ln m + chi/m - 1, whose mean is ln m.
    """
    half = chi.shape[1] // 2
    mean = chi.mean(axis=0)
    log_chi = np.log(mean) + chi / mean - 1
    return 0.0 - log_chi[:, half:].mean(axis=1)


def compare(case: MeanField, found: Profiles, depth: int) -> dict[str, tuple]:
    """{quantity: (theory, measured, standard error, deviation in standard errors)}"""
    expected = theory(case, depth)
    half = depth // 2
    rows = {}
    if case.norm != "batch":  # there the theory's K is the variance over the batch
        for k in (depth // 4, half, depth):
            rows[f"K^{k + 1}"] = expected.K[k], found.K[:, k]
    for k in (0, half, depth - 1):
        rows[f"chi^{k + 1}"] = expected.chi[k], found.chi[:, k]
    rows["mean chi"] = expected.chi.mean(), found.chi.mean(axis=1)
    for k in (0, half, 3 * depth // 4):
        rows[f"J^({k + 1},{depth + 1})"] = expected.J[k], found.J[:, k]
    rate = decays(expected.chi[None])[0]
    rates = decays(found.chi)
    layers = (depth - half) / math.log(depth / half)
    rows["-d ln J/d ln l"] = layers * rate, layers * rates
    rows["-d ln J/dl"] = rate, rates
    table = {}
    for name, (value, samples) in rows.items():
        mean, error = (float(x) for x in mean_and_error(samples))
        deviation = (mean - value) / max(error, FLOOR * abs(value), 1e-9)
        table[name] = float(value), mean, error, deviation
    return table
