"""AutoInit: multipliers of weights tuned until the Jacobian of every block has unit norm.

J_l = 1/(B N) sum_bb' |d h^{l+1}_b / d h^l_b'|_F^2 is the averaged partial Jacobian norm of block l,
N the size of its output: |(dF/dh)^T v|^2 / B in the mean over unit vectors v, one a sample. Terms
between two samples, b != b', come from BatchNorm alone. Every tensor W becomes a W, and descent on
the multipliers a lowers

    JLL = 1/2 sum_l (ln J_l)^2   Jacobian log loss
    JSL = 1/2 sum_l (J_l - 1)^2  Jacobian square loss

Source: He, Doshi, Gromov, arXiv 2206.13568; gradients and learning rates are worked out here.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..engine.device import Array, Device
from ..engine.errors import InputError
from ..engine.optim import constant
from ..models import chain


def sphere(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One vector of the unit sphere for every example: (B, ...) on the host."""
    v = rng.standard_normal(shape)
    axes = tuple(range(1, len(shape)))
    return v / np.sqrt((v * v).sum(axis=axes, keepdims=True))


# -- the loss and its gradient ---------------------------------------------------------------------


class Block(NamedTuple):
    """What the way up leaves of a block F: caches, probes v, and u = (dF/dh)^T v of each."""

    ops: tuple
    cache: list
    v: list[Array]
    u: list[Array]


def jacobian_loss(
    dev: Device, model: chain.Chain, w: dict, x: Array, probes: Callable, g=None, loss="log"
) -> tuple[Array, Array]:
    """(loss, J of every block); the exact gradient by the tensors in g, unless g is None.

    x       (B, ...), the inputs
    probes  (block, shape of its output) -> a list of n arrays (B, ...) of unit vectors v; J_l is
            the mean over them of sum_b |u_b|^2 / B, u = (dF/dh)^T v
    g       {name of a tensor of w: array, to be written}
    loss    "log" or "square"
    """
    p = model.still(dev, w)
    blocks = []
    squares = []
    h = x
    for _, ops in model.blocks:
        y, cache = chain.forward(p, ops, h)
        v = probes(len(blocks), y.shape)
        u = [chain.backward(p, ops, probe, cache) for probe in v]
        square = sum((a * a).sum() for a in u)
        squares.append(square * (1 / (len(x) * len(v))))
        blocks.append(Block(ops, cache, v, u))
        h = y
    J = dev.xp.stack(squares)
    if loss == "log":
        value = 0.5 * dev.xp.log(J) ** 2
        slope = dev.xp.log(J) / J
    else:
        value = 0.5 * (J - 1) ** 2
        slope = J - 1
    if g is not None:
        _gradient(replace(p, g=g), blocks, slope, dev.xp.zeros_like(h))
    return value.sum(), J


def _gradient(p: chain.Pass, blocks: list[Block], slope: Array, xbar: Array) -> None:
    """Write the gradient into p.g: slope[l] = dloss/dJ_l, xbar = 0 at the top.

    Block l, y = F(h), has J_l = 1/(B n) sum |u|^2 with u = F'(h)^T v, n probes v for each of the B
    inputs. Let udot be u, held fixed while F and h change, and ydot = F'(h) udot its tangent:
        d|u|^2 = 2 udot . du = 2 d(udot . F'(h)^T v) = 2 d(v . F'(h) udot) = 2 v . dydot
    So slope dJ_l = sum over v of lam . dydot with lam = slope 2/(B n) v. The blocks above depend on
    y and have left dloss/dy = xbar. chain.pair takes (xbar, lam) back to dloss/dh, the xbar of the
    block below, and adds the gradients of the block to p.g; its lam of udot is of no use, for udot
    is held fixed.
    """
    for gradient in p.g.values():
        gradient.fill(0)
    for number in reversed(range(len(blocks))):
        ops, cache, v, u = blocks[number]
        weight = slope[number] * (2 / (len(xbar) * len(v)))
        below = []
        for probe, udot in zip(v, u, strict=True):
            _, dots = chain.tangent(p, ops, udot, cache)
            lam = weight * probe
            above = p.dev.xp.zeros_like(xbar) if below else xbar  # xbar goes down once
            adjoint, _ = chain.pair(p, ops, above, lam, cache, dots)
            below.append(adjoint)
        xbar = sum(below)


# -- tuning ----------------------------------------------------------------------------------------


def autoinit(
    dev: Device,
    model: chain.Chain,
    weights: dict,
    x: np.ndarray,
    rng: np.random.Generator,
    steps: int = 100,
    lr: float = 0.1,
    loss: str = "log",
    plain: bool = False,
    probes: int = 2,
    tune: tuple[str, ...] = ("weight", "bias"),
    schedule: Callable[[int], float] = constant,
) -> tuple[dict, dict]:
    """One-shot initialisation: multiply tensors until every block's Jacobian norm J is near 1.

    Returns the tuned weights on the host, and {"loss": [...], "apjn": [J of every block, ...]}
    before every step and at the end. Every step draws fresh probes, unit vectors for every example
    of x and block. InputError for a loss that is not finite.

    loss      "log" or "square"
    plain     a <- a - lr dL/da; else ln a <- ln a - lr a dL/da, with |change of ln a| <= 0.3: with
              n multipliers in series ln J <- (1 - 4 n lr) ln J where blocks do not act on each
              other, so lr < 1/(2 n) for every scale of the weights
    tune      endings of the names of what is tuned: weight, bias; gain and shift of norms and
              scales; mu
    probes    for every example and block; their noise adds 2/(N B probes) a block to the loss of
              ReLU layers of N units

    >>> import numpy as np
    >>> from tinygrok.criticality.autoinit import autoinit
    >>> from tinygrok.engine.device import get_device
    >>> from tinygrok.models.vision import deep_mlp
    >>> rng = np.random.default_rng(0)
    >>> net = deep_mlp(16, 100, 4, 10)
    >>> weights = net.init(rng, sigma_w=2.0)  # J = 2 where 1 is critical
    >>> x = rng.standard_normal((32, 16))
    >>> tuned, history = autoinit(get_device("cpu", "float64"), net, weights, x, rng, steps=20)
    >>> round(history["loss"][0], 1), round(history["loss"][-1], 1)
    (2.3, 0.0)
    """
    everything = model.init_buffers() | weights
    w = {name: dev.to_device(a) for name, a in everything.items()}
    x = dev.to_device(x)
    endings = tuple(f".{ending}" for ending in tune)
    multipliers = {name: 1.0 for name in w if name.endswith(endings)}
    if not multipliers:
        raise InputError(f"the network has nothing named {' or '.join(tune)} to tune")
    g = {name: dev.empty(w[name].shape) for name in multipliers}
    history = {"loss": [], "apjn": []}

    def draw(_, shape):
        return [dev.to_device(sphere(rng, shape)) for _ in range(probes)]

    for t in range(steps + 1):
        with np.errstate(all="ignore"):
            value, J = jacobian_loss(dev, model, w, x, draw, g if t < steps else None, loss)
        value = float(value)
        if not math.isfinite(value):
            way_out = "start from other weights, or in float64"
            raise InputError(f"the Jacobian loss is {value} in step {t}: {way_out}")
        history["loss"].append(value)
        history["apjn"].append(dev.to_host(J))
        if t == steps:
            break
        slopes = [(g[name] * w[name]).sum() for name in multipliers]  # a dL/da
        slopes = dev.to_host(dev.xp.stack(slopes)).tolist()
        for name, slope in zip(multipliers, slopes, strict=True):
            step = -lr * schedule(t + 1) * slope
            if plain:
                factor = 1 + step / multipliers[name] ** 2
            else:
                factor = math.exp(min(max(step, -0.3), 0.3))
            multipliers[name] *= factor
            w[name] = w[name] * factor
    names = [*model.shapes, *(name for name in multipliers if name in model.buffers)]
    return {name: dev.to_host(w[name]) for name in names}, history
