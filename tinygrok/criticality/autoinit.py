"""AutoInit: multipliers of weights tuned until the Jacobian of every block has unit norm (He,
Doshi, Gromov, arXiv 2206.13568).

J_l = 1/(B N) sum_b |d h^{l+1}_b / d h^l_b|_F^2 is the averaged partial Jacobian norm of block l, N
the size of its output: the mean of |(dF/dh)^T v|^2 over unit vectors v. Every tensor W becomes a W,
and descent on the multipliers a lowers

JLL = 1/2 sum_l (ln J_l)^2  (Jacobian log loss)        JSL = 1/2 sum_l (J_l - 1)^2  (Jacobian square loss)
"""

import math
from dataclasses import replace

import numpy as np

from ..engine.device import Array, Device
from ..engine.errors import InputError
from ..engine.optim import constant
from ..models import chain


def sphere(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One vector of the unit sphere for every example: (B, ...) on the host."""
    v = rng.standard_normal(shape)
    return v / np.sqrt((v * v).sum(axis=tuple(range(1, len(shape))), keepdims=True))


def jacobian_loss(
    dev: Device, model, w: dict, x: Array, probes, g: dict | None = None, loss: str = "log"
) -> tuple[Array, Array]:
    """(loss, J of every block); with g the gradient with respect to every tensor in g (written), by
    hand and exact.

    probes(block, shape of its output) -> unit vectors v, a list of (B, ...) arrays; x (B, ...) the
    inputs; J_l is the mean of sum_b |u_b|^2 / B, u = (dF/dh)^T v, over them. Since d|u|^2 = 2 d(v .
    F'(h) u) with u held fixed, one tangent u and one backward sweep with the pair of adjoints
    (xbar, lam = dloss/dJ 2/(B n) v) give the gradient."""
    p, steps, J = model.still(dev, w), [], []
    for _, ops in model.blocks:
        y, cache = chain.forward(p, ops, x)
        v = probes(len(J), y.shape)
        u = [chain.backward(p, ops, a, cache) for a in v]
        J.append(sum((a * a).sum() for a in u) * (1 / (len(x) * len(v))))
        steps.append((ops, cache, u, v))
        x = y
    J, p = dev.xp.stack(J), replace(p, g=g)
    terms, slope = (
        (0.5 * dev.xp.log(J) ** 2, dev.xp.log(J) / J)
        if loss == "log"
        else (0.5 * (J - 1) ** 2, J - 1)
    )
    if g is not None:
        for into in g.values():
            into.fill(0)
        xbar = dev.xp.zeros_like(x)
        for k, (ops, cache, u, v) in reversed(list(enumerate(steps))):
            sweeps = []
            for udot, probe in zip(u, v, strict=True):
                lam = slope[k] * (2 / (len(x) * len(v))) * probe
                dots = chain.tangent(p, ops, udot, cache)[1]
                once = dev.xp.zeros_like(xbar) if sweeps else xbar  # xbar counts once
                sweeps.append(chain.pair(p, ops, once, lam, cache, dots)[0])
            xbar = sum(sweeps)
    return terms.sum(), J


def autoinit(
    dev: Device,
    model,
    weights: dict,
    x,
    rng: np.random.Generator,
    steps=100,
    lr=0.1,
    loss="log",
    plain=False,
    probes=2,
    tune=("weight", "bias"),
    schedule=constant,
    tolerance=0.0,
) -> tuple[dict, dict]:
    """One-shot initialisation: (tuned weights on the host, {"loss": [...], "apjn": [J of every
    block, ...]} before every step and at the end). Every step draws fresh probes, unit vectors for
    every example of x and block. InputError for a loss that is not finite.

    plain     a <- a - lr dL/da, else ln a <- ln a - lr a dL/da: with n multipliers in series ln J <- (1 - 4 n lr) ln J where
              blocks do not act on each other, so lr < 1/(2 n) for every scale of the weights;
              |change of ln a| <= 0.3
    tune      endings of the names of what is tuned: weight, bias; gain and shift of norms and scales; mu
    tolerance stop at a loss below; 2/(N B probes) a block is the noise of the estimate for ReLU
    layers of N units"""
    w, x = (
        {n: dev.to_device(a) for n, a in (model.init_buffers() | weights).items()},
        dev.to_device(x),
    )
    a = {n: 1.0 for n in w if n.endswith(tuple(f".{t}" for t in tune))}
    if not a:
        raise InputError(f"the network has nothing named {' or '.join(tune)} to tune")
    g, history = {n: dev.empty(w[n].shape) for n in a}, {"loss": [], "apjn": []}
    draw = lambda _, y: [dev.to_device(sphere(rng, y)) for _ in range(probes)]  # noqa: E731
    for t in range(steps + 1):
        with np.errstate(all="ignore"):
            value, J = jacobian_loss(dev, model, w, x, draw, g if t < steps else None, loss)
        if not math.isfinite(value):
            raise InputError(
                f"the Jacobian loss is {float(value)} in step {t}: start from other weights, or in float64"
            )
        history["loss"].append(float(value))
        history["apjn"].append(dev.to_host(J))
        if t == steps or history["loss"][-1] < tolerance:
            break
        slopes = dev.to_host(dev.xp.stack([(g[n] * w[n]).sum() for n in a])).tolist()  # a dL/da
        for n, slope in zip(a, slopes, strict=True):
            step = -lr * schedule(t + 1) * slope
            factor = 1 + step / a[n] ** 2 if plain else math.exp(min(max(step, -0.3), 0.3))
            a[n], w[n] = a[n] * factor, w[n] * factor
    return {
        n: dev.to_host(w[n]) for n in (*model.shapes, *(n for n in a if n in model.buffers))
    }, history


# -- ReLU layers without norms: every layer alone, J = (a/a*)^2 = y^2, kappa = lr sigma_w^2 --------


def relu_dynamics(J: float, kappa: float, steps: int, loss: str = "log") -> list[float]:
    """J after 0, 1, ..., steps plain steps:  log  y <- y - 2 kappa ln(y)/y        square  y <- y - kappa y (y^2 - 1)"""
    y = [math.sqrt(J)]
    for _ in range(steps):
        y.append(
            abs(
                y[-1]
                - kappa
                * (2 * math.log(y[-1]) / y[-1] if loss == "log" else y[-1] * (y[-1] ** 2 - 1))
            )
        )
    return [v * v for v in y]


def relu_converges(J: float, kappa: float, loss: str = "log") -> bool:
    """kappa < 1 makes J = 1 stable, lr < 1/sigma_w^2 (input layer J = a^2: lr < 1/2); the square
    loss also needs J < 1 + 2/kappa, beyond which it diverges."""
    return kappa < 1 and (loss == "log" or 1 + 2 / kappa > J)


def relu_monotone(J: float, loss: str = "log") -> float:
    """The largest kappa with which the first step does not cross J = 1: it lands on it. J != 1"""
    y = math.sqrt(J)
    return y * (y - 1) / (2 * math.log(y)) if loss == "log" else 1 / (J + y)
