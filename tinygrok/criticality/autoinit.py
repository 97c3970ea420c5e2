"""AutoInit: multipliers of weights tuned until the Jacobian of every block has unit norm (He, Doshi, Gromov, arXiv 2206.13568).

J_l = 1/(B N) sum_b |d h^{l+1}_b / d h^l_b|_F^2 is the averaged partial Jacobian norm of block l, N the size of its output: the
mean of |(dF/dh)^T v|^2 over unit vectors v. Every tensor W becomes a W, and descent on the multipliers a lowers

JLL = 1/2 sum_l (ln J_l)^2  (Jacobian log loss)        JSL = 1/2 sum_l (J_l - 1)^2  (Jacobian square loss)
"""

import numpy as np

from ..engine.device import Array, Device

LOSSES = {  # J -> (terms of the loss, d loss/d J)
    "log": lambda xp, J: (0.5 * xp.log(J) ** 2, xp.log(J) / J),
    "square": lambda xp, J: (0.5 * (J - 1) ** 2, J - 1),
}


def sphere(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One vector of the unit sphere for every example: (B, ...) on the host."""
    v = rng.standard_normal(shape)
    return v / np.sqrt((v * v).sum(axis=tuple(range(1, len(shape))), keepdims=True))


def jacobian_loss(dev: Device, model, w: dict, x: Array, probes, g: dict | None = None, loss: str = "log") -> tuple[Array, Array]:
    """(loss, J of every block); with g the gradient with respect to every tensor in g (written), by hand and exact.

    probes(block, shape of its output) -> unit vectors v, a list of (B, ...) arrays; x (B, ...) the inputs; J_l is the mean of
    sum_b |u_b|^2 / B, u = (dF/dh)^T v, over them. Since d|u|^2 = 2 d(v . F'(h) u) with u held fixed, one tangent u and one
    backward sweep with the pair of adjoints (xbar, lam = dloss/dJ 2/(B n) v) give the gradient (Chain.stages, second).
    """
    stages, steps, J = model.stages(dev, w, g), [], []
    for stage in stages:
        y, cache = stage.forward(x)
        v = probes(len(J), y.shape)
        u = [stage.backward(a, cache) for a in v]
        J.append(sum((a * a).sum() for a in u) * (1 / (len(x) * len(v))))
        steps.append((cache, u, v))
        x = y
    J = dev.xp.stack(J)
    terms, slope = LOSSES[loss](dev.xp, J)
    if g is not None:
        for into in g.values():
            into.fill(0)
        above = dev.xp.zeros_like(x)  # adjoint of the block's output
        for k in reversed(range(len(steps))):
            (cache, u, v), below = steps[k], 0.0
            for udot, probe in zip(u, v, strict=True):
                below = below + stages[k].second(cache, udot, slope[k] * (2 / (len(x) * len(v))) * probe, above)
                above = dev.xp.zeros_like(above)  # counted once
            above = below
    return terms.sum(), J
