"""AdamW and SGD on parameter arenas, and learning-rate schedules as pure functions of the step.

Learning rate and weight decay are floats, or one value per ensemble member. On the CPU an arena is
updated in blocks that stay in cache, member by member, so that a member of an ensemble is updated
exactly as a network alone."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from . import kernels
from .device import Device
from .gemm import matmul
from .params import Arena

BLOCK = 32_768  # elements: four blocks of float32 (w, g, m, v) are half a MiB


def constant(t: int) -> float:
    """factor(t) = 1"""
    return 1.0


def linear_warmup(steps: int) -> Callable[[int], float]:
    """factor(t) = min(t / steps, 1), t = 1, 2, ..."""
    return lambda t: min(t / steps, 1.0) if steps else 1.0


def cosine(warmup: int, total: int, final: float = 0.0) -> Callable[[int], float]:
    """Linear warm-up for `warmup` steps, then final + (1 - final) (1 + cos(pi (t - warmup)/(total -
    warmup)))/2."""

    def factor(t: int) -> float:
        if t < warmup:
            return t / warmup
        progress = min((t - warmup) / max(total - warmup, 1), 1.0)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def clip_by_global_norm(dev: Device, grads: Arena, limit: float) -> None:
    """g <- g min(1, limit / (|g| + 1e-6)), |g| over all tensors of a member (as
    torch.nn.utils.clip_grad_norm_)."""
    rows = [view.reshape(grads.members or 1, 1, -1) for view in grads.views.values()]
    squares = sum(matmul(dev, g, g, tb=True) for g in rows)  # (E, 1, 1)
    factor = dev.xp.minimum(limit / (dev.xp.sqrt(squares) + 1e-6), 1.0)
    if dev.kind == "cuda" or (factor < 1).any():  # reading it would wait for a GPU
        for g in rows:
            g *= factor


class _Optimizer:
    """What both optimisers share: hyperparameters per member, state arenas, and the walk over
    blocks.

    clip   largest norm of a member's gradient; None: any
    """

    state_names: tuple[str, ...]

    def __init__(
        self, dev: Device, params: Arena, grads: Arena, lr, weight_decay, schedule, no_decay, clip
    ):
        self.dev, self.params, self.grads, self.schedule, self.clip = (
            dev,
            params,
            grads,
            schedule,
            clip,
        )
        E = params.members
        self.lr, self.weight_decay = (
            np.broadcast_to(np.asarray(h, dtype=float), (E or 1,)) for h in (lr, weight_decay)
        )
        self.state = {name: Arena(dev, params.bare, E) for name in self.state_names}
        unknown = set(no_decay) - set(params.bare)
        if unknown:
            raise ValueError(f"no_decay names no parameter: {sorted(unknown)}")
        self._blocks = list(self._split(frozenset(no_decay)))

    def _split(self, no_decay) -> Iterator[tuple]:
        """(views, member or None, decayed?) of every block; on a GPU a block is a whole tensor with
        its member axis."""
        arenas = (self.params, self.grads, *self.state.values())
        for name in self.params.shapes:
            views = [a[name].reshape(self.params.members or 1, -1) for a in arenas]
            if self.dev.kind == "cuda":
                yield views, None, name not in no_decay
                continue
            for e in range(len(views[0])):
                for start in range(0, views[0].shape[1], BLOCK):
                    yield [v[e, start : start + BLOCK] for v in views], e, name not in no_decay

    def step(self, t: int) -> None:
        """Update the parameters from the gradients; t = 1, 2, ... is the number of this step."""
        if self.clip is not None:
            clip_by_global_norm(self.dev, self.grads, self.clip)
        lr, decay = self.lr * self.schedule(t), self.weight_decay
        if self.dev.kind == "cuda":
            for views, _, decayed in self._blocks:
                self._update(views, *self._scalars(t, lr, decay if decayed else 0.0 * decay))
            return

        def update(block):
            views, e, decayed = block
            with np.errstate(
                over="ignore", invalid="ignore"
            ):  # the loss shows it, and its message names the tensor
                self._update(views, *self._scalars(t, lr[e], decay[e] if decayed else 0.0))

        spread = (
            self.dev.map if len(self._blocks) >= 32 else map
        )  # waking the workers costs as much as a few blocks
        list(spread(update, self._blocks))

    def _member(self, value):
        """A per-member value as a kernel argument: a Python float, or a device column (E, 1)."""
        if np.ndim(value) == 0:
            return float(value)
        return float(value[0]) if len(set(value)) == 1 else self.dev.to_device(value[:, None])


class AdamW(_Optimizer):
    """m <- b1 m + (1-b1) g;  v <- b2 v + (1-b2) g^2;  w <- (1 - lr wd) w - lr (m/(1-b1^t)) / (sqrt(v/(1-b2^t)) + eps)

    Decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2), the papers' "Adam
    with weight decay"."""

    state_names = ("m", "v")

    def __init__(
        self,
        dev,
        params,
        grads,
        lr=1e-3,
        betas=(0.9, 0.98),
        eps=1e-8,
        weight_decay=0.0,
        schedule=constant,
        no_decay=(),
        clip=None,
    ):
        super().__init__(dev, params, grads, lr, weight_decay, schedule, no_decay, clip)
        self.betas, self.eps = betas, eps

    def _scalars(self, t, lr, decay):
        b1, b2 = self.betas
        shrink, rate = self._member(1 - lr * decay), self._member(lr / (1 - b1**t))
        return shrink, rate, b1, 1 - b1, b2, 1 - b2, 1 / (1 - b2**t), self.eps

    def _update(self, views, *scalars):
        w, g, m, v = views
        kernels.adamw(self.dev, g, *scalars, w, m, v)


class SGD(_Optimizer):
    """m <- momentum m + g + wd w;  w <- w - lr m        (coupled weight decay, as torch.optim.SGD)"""

    state_names = ("m",)

    def __init__(
        self,
        dev,
        params,
        grads,
        lr=1e-2,
        momentum=0.0,
        weight_decay=0.0,
        schedule=constant,
        no_decay=(),
        clip=None,
    ):
        super().__init__(dev, params, grads, lr, weight_decay, schedule, no_decay, clip)
        self.momentum = momentum

    def _scalars(self, t, lr, decay):
        return self._member(lr), self._member(decay), self.momentum

    def _update(self, views, *scalars):
        w, g, m = views
        kernels.sgd(self.dev, g, *scalars, w, m)
