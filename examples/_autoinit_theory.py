"""Theory of AutoInit: one block, one multiplier.

A ReLU block without a norm has J = a^2 sigma_w^2/2, a the multiplier of its weights, and no other
multiplier changes it. Let y = sqrt J and kappa = lr sigma_w^2. A step of plain descent,
a <- a - lr dL/da, is

    log loss      y <- y - 2 kappa ln(y)/y
    square loss   y <- y - kappa y (y^2 - 1)

J is even in a: the sign of y does not count. Around J = 1 both multiply y - 1 by 1 - 2 kappa: it is
stable for kappa < 1, and approached from one side for kappa <= 1/2."""

import math

import numpy as np

SETTLED = 0.1  # of the root mean square of ln J over the blocks
CROSSED = 0.05  # of ln J beyond 0
FAR = 1e15  # y or 1/y of a tuning that diverges
# sigma_w of a block by that of the one before, where J = 1 in a ReLU network with BatchNorm: it has
# J = pi/(pi - 1) times the square of this ratio.
BATCHNORM_RATIO = math.sqrt((math.pi - 1) / math.pi)


def residual_sigma(mu: float) -> float:
    """sigma_w of critical ReLU blocks with residual connections: J = mu^2 + sigma_w^2/2."""
    return math.sqrt(2 * (1 - mu**2))


def predicted_loss(J, steps, lr, schedule):
    """The Jacobian log loss before every step of a tuning, from the J of the blocks at its start.

    Every block alone, one multiplier a of its weights, J ~ a^2 (ReLU, no residual connections):
    ln J changes by twice the change of ln a, which is -lr dL/d ln a = -2 lr ln J, at most 0.3."""
    logs = np.log(J)
    losses = []
    for t in range(steps):
        losses.append(0.5 * (logs**2).sum())
        logs = logs + 2 * np.clip(-2 * lr * schedule(t + 1) * logs, -0.3, 0.3)
    return losses


def relu_dynamics(J: float, kappa: float, steps: int, loss: str = "log") -> list[float]:
    """J after 0, 1, ..., steps plain steps; it ends where J is about to leave 1e-30..1e30."""
    y = math.sqrt(J)
    curve = [y * y]
    for _ in range(steps):
        slope = 2 * math.log(y) / y if loss == "log" else y * (y**2 - 1)
        y = abs(y - kappa * slope)
        if not 1 / FAR < y < FAR:
            break
        curve.append(y * y)
    return curve


def relu_one_step(J: float, loss: str = "log") -> float:
    """The kappa with which one step lands on J = 1.        J != 1"""
    y = math.sqrt(J)
    if loss == "log":
        return y * (y - 1) / (2 * math.log(y))
    return 1 / (J + y)


def relu_monotone(J: float, loss: str = "log") -> float:
    """The largest kappa with which J comes to 1 from one side: that of one step from J, and not
    above 1/2, that of one step from close by."""
    return min(relu_one_step(J, loss), 0.5)


def residual_dynamics(J: float, lr: float, steps: int) -> list[float]:
    """J after 0, 1, ... plain steps on the log loss of a block h + a G(h), J = 1 + a^2 c, a = 1 at
    the start: dL/da = 2 a c ln(J)/J. For small a, a^-2 = 1 + 4 c^2 lr t: no step is the last."""
    c = J - 1
    a = 1.0
    curve = [J]
    for _ in range(steps):
        a -= lr * 2 * a * c * math.log(curve[-1]) / curve[-1]
        curve.append(1 + c * a * a)
    return curve


def outcome(means, rms):
    """What became of a tuning: whether the mean of ln J changed sides, and the step from which on
    its rms stayed within SETTLED, None for never.

    means, rms   of ln J over the blocks, before every step and at the end"""
    side = math.copysign(1, means[0])
    outside = [t for t, x in enumerate(rms) if x > SETTLED]
    settled = outside[-1] + 1 if outside else 0
    return {
        "finite": True,
        "crossed": min(side * x for x in means) < -CROSSED,
        "settled": settled if settled < len(rms) else None,
    }


DIVERGED = {"finite": False, "crossed": None, "settled": None}


def predicted(point):
    """The outcome of a point of the maps in theory."""
    sw2 = point["sigma_w"] ** 2
    curve = relu_dynamics(sw2 / 2, point["lr"] * sw2, point["steps"], point["loss"])
    if len(curve) <= point["steps"]:
        return DIVERGED
    logs = np.log(curve)
    return outcome(logs, abs(logs))
