"""AdamW and its relatives, Muon and SGD on parameter arenas; learning-rate schedules as pure
functions of the step.

Learning rate and weight decay are floats, or one value per ensemble member. On the CPU an arena is
updated in blocks that stay in cache, member by member, so that a member of an ensemble is updated
exactly as a network alone.

A new optimiser is a subclass of Optimizer, with its own formula in `_update_flat`, and a
row in OPTIMIZERS."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import kernels
from .border import rates
from .device import Array, Device
from .gemm import matmul
from .params import Arena

# Elements of a block. Smaller ones cost Python calls, larger ones leave the cache: AdamW took least
# time from 131,072 to 262,144, in NumPy and compiled (1 MiB of L2 a core, 32 MiB of L3).
BLOCK = 131_072
PerMember = float | Sequence[float]  # one value for all members, or one each
RATES = {"lr": "the learning rate", "weight_decay": "the weight decay", "norm": "the norm"}
NUMBERS = (int, float, tuple, list, np.ndarray, type(None))  # what a hyperparameter can be
WORTH_THREADS = 1_000_000  # elements, 2 ms of AdamW: for fewer the worker threads stay asleep


def constant(t: int) -> float:
    """factor(t) = 1"""
    return 1.0


def linear_warmup(steps: int) -> Callable[[int], float]:
    """factor(t) = min(t / steps, 1), t = 1, 2, ..."""

    def factor(t: int) -> float:
        return min(t / steps, 1.0) if steps else 1.0

    return factor


def cosine(warmup: int, total: int, final: float = 0.0) -> Callable[[int], float]:
    """factor(t) = t/warmup up to t = warmup, then final + (1 - final) (1 + cos(pi s))/2.

    s = (t - warmup)/(total - warmup), at most 1."""

    def factor(t: int) -> float:
        if t < warmup:
            return t / warmup
        progress = min((t - warmup) / max(total - warmup, 1), 1.0)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def constant_then_linear(warmup: int, hold: int, total: int) -> Callable[[int], float]:
    """factor(t) = t/warmup up to t = warmup, 1 up to t = hold, then (total - t)/(total - hold)."""

    def factor(t: int) -> float:
        falling = (total - t) / max(total - hold, 1)
        return max(min(t / max(warmup, 1), 1.0, falling), 0.0)

    return factor


def _rows(arena: Arena) -> list[Array]:
    """Every tensor as (E, 1, n): a row of each member."""
    return [view.reshape(arena.members or 1, 1, -1) for view in arena.views.values()]


def global_norm(dev: Device, arena: Arena) -> Array:
    """(E, 1, 1): the norm over all tensors of a member."""
    return dev.xp.sqrt(sum(matmul(dev, x, x, tb=True) for x in _rows(arena)))


def clip_by_global_norm(dev: Device, grads: Arena, limit: float) -> None:
    """g <- g min(1, limit / (|g| + 1e-6)), |g| the norm over all tensors of a member.

    As torch.nn.utils.clip_grad_norm_."""
    factor = dev.xp.minimum(limit / (global_norm(dev, grads) + 1e-6), 1.0)
    if dev.kind == "cuda" or (factor < 1).any():  # reading it would wait for a GPU
        for g in _rows(grads):
            g *= factor


class _Block(NamedTuple):
    """What is updated at once: views of parameters, gradients and state, and whose they are."""

    views: list[Array]
    member: int | slice  # its learning rate is lr[member]; a slice takes all members at once
    decayed: bool
    whole: bool  # a member's tensor in its own shape


class Optimizer:
    """What the optimisers share: hyperparameters per member, state arenas, the walk over blocks.

    Every optimiser takes a device, arenas of parameters and gradients, and as `common` what follows
    lr.

    lr, weight_decay   floats, or one value per member
    schedule           step -> factor of lr
    no_decay           names of parameters without weight decay
    clip               largest norm of a member's gradient; None: any

    Numbers may be set anew between steps: optimizer.lr = 1e-3, or one value per member.

    state_names     class attribute: the arenas of state, in the order in which updates get them
    """

    state_names: tuple[str, ...]
    lr: Any  # floats (E,), as weight_decay, whatever is set
    weight_decay: Any

    def __init__(
        self,
        dev: Device,
        params: Arena,
        grads: Arena,
        lr: PerMember,
        weight_decay: PerMember = 0.0,
        schedule: Callable[[int], float] = constant,
        no_decay: Sequence[str] = (),
        clip: float | None = None,
    ):
        self.dev = dev
        self.params = params
        self.grads = grads
        self.schedule = schedule
        self.clip = clip
        self.lr = lr
        self.weight_decay = weight_decay
        self.state = {name: Arena(dev, params.bare, params.members) for name in self.state_names}
        self._no_decay = _some_of(params.bare, no_decay, "no_decay names no parameter")

    def __setattr__(self, name: str, value) -> None:
        """What is set as a rate becomes an array of one for each member."""
        if name in RATES:
            value = rates(value, RATES[name], self.params.members or 1)
        super().__setattr__(name, value)

    def hyperparameters(self) -> dict:
        """{name: value} of all that may be set anew between steps, as JSON holds it."""
        public = {name: x for name, x in vars(self).items() if not name.startswith("_")}
        numbers = {name: x for name, x in public.items() if isinstance(x, NUMBERS)}
        return {name: np.asarray(x).tolist() for name, x in numbers.items()}

    def __getstate__(self) -> dict:
        """Of a copy, which has its own blocks."""
        return {name: x for name, x in vars(self).items() if name != "_blocks"}

    @functools.cached_property
    def _blocks(self) -> list[_Block]:
        return list(self._split())

    def _split(self) -> Iterator[_Block]:
        """The blocks of all arenas. Tensors of one network that stand side by side and are updated
        alike share blocks; of an ensemble every tensor has its own, for its members lie apart."""
        E = len(self.lr)
        arenas = (self.params, self.grads, *self.state.values())

        def alike(name: str) -> tuple[bool, str]:
            own = E > 1 or self._whole(name)
            return name not in self._no_decay, name if own else ""

        start = 0
        for (decayed, _), names in itertools.groupby(self.params.bare, alike):
            first, *more = names
            size = sum(self.params[name].size for name in (first, *more))
            flat = [arena.flat[start : start + size].reshape(E, -1) for arena in arenas]
            start += size
            if self._whole(first):
                shape = self.params.bare[first]
                for e in range(E):
                    yield _Block([tensor[e].reshape(shape) for tensor in flat], e, decayed, True)
            elif self.dev.kind == "cuda":
                yield _Block(flat, slice(None), decayed, False)
            else:
                starts = range(0, flat[0].shape[1], BLOCK)
                for e, i in itertools.product(range(E), starts):
                    views = [tensor[e, i : i + BLOCK] for tensor in flat]
                    yield _Block(views, e, decayed, False)

    def step(self, t: int) -> None:
        """Update the parameters from the gradients; t = 1, 2, ... is the number of this step."""
        if self.clip is not None:
            clip_by_global_norm(self.dev, self.grads, self.clip)
        lr = self.lr * self.schedule(t)

        def update(block: _Block) -> None:
            decay = self.weight_decay * block.decayed
            # The loss shows what is not finite, and its message names the tensor.
            with np.errstate(over="ignore", invalid="ignore"):
                change = self._update_whole if block.whole else self._update_flat
                change(block.views, t, lr[block.member], decay[block.member])

        spread = self.dev.map if self.params.flat.size >= WORTH_THREADS else map
        list(spread(update, self._blocks))

    def _member(self, value):
        """A per-member value as a kernel argument: a Python float, or a device column (E, 1)."""
        if np.ndim(value) == 0 or len(set(value)) == 1:
            return float(np.ravel(value)[0])
        return self.dev.to_device(value[:, None])

    def _whole(self, name: str) -> bool:
        """Whether _update_whole gets every member's whole tensor of this name, in its own shape;
        else _update_flat gets flat blocks, on a GPU of all members."""
        return False

    def _update_flat(self, views: list[Array], t: int, lr, decay) -> None:
        """Step t: update the views in place: parameter, gradient, then state in order of
        state_names; rate and decay of their members."""
        raise NotImplementedError

    def _update_whole(self, views: list[Array], t: int, lr, decay) -> None:
        """The same for a whole tensor of one member."""
        raise NotImplementedError


def _some_of(known: Iterable[str], names: Sequence[str], problem: str) -> frozenset[str]:
    """The names as a set. Raises ValueError with those that are not known."""
    unknown = set(names) - set(known)
    if unknown:
        raise ValueError(f"{problem}: {sorted(unknown)}")
    return frozenset(names)


class AdamW(Optimizer):
    """m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2, then the weights with decoupled decay:

    w <- (1 - lr wd) w - lr (m/(1 - b1^t)) / (sqrt(v/(1 - b2^t)) + eps)

    betas is (b1, b2); weight_decay, schedule, no_decay and clip as in Optimizer.
    Source: Loshchilov and Hutter, arXiv 1711.05101, algorithm 2; the papers' "Adam with weight
    decay".

    >>> import numpy as np
    >>> from tinygrok.engine.device import get_device
    >>> dev = get_device("cpu", dtype="float64", threads=1)
    >>> params, grads = (Arena(dev, {"w": (2,)}) for _ in range(2))
    >>> params.load({"w": np.array([1.0, -1.0])})
    >>> grads.load({"w": np.array([0.3, 0.0])})
    >>> AdamW(dev, params, grads, lr=0.1, weight_decay=0.5).step(1)
    >>> params["w"].round(6).tolist()
    [0.85, -0.95]
    """

    state_names = ("m", "v")

    def __init__(
        self, dev, params, grads, lr: PerMember = 1e-3, betas=(0.9, 0.98), eps=1e-8, **common
    ):
        super().__init__(dev, params, grads, lr, **common)
        self.betas = betas
        self.eps = eps

    def _update_flat(self, views, t, lr, decay):
        w, g, m, v = views
        b1, b2 = self.betas
        shrink = self._member(1 - lr * decay)
        # (m/c1) / (sqrt(v/c2) + eps) = (sqrt(c2)/c1) m / (sqrt(v) + sqrt(c2) eps): a pass less
        root = math.sqrt(1 - b2**t)
        rate = self._member(lr * root / (1 - b1**t))
        scalars = (shrink, rate, b1, 1 - b1, b2, 1 - b2, root * self.eps)
        kernels.adamw(self.dev, g, *scalars, w, m, v)


class Grokfast(AdamW):
    """AdamW on g + gain h, where h is a running mean of the gradient, its slow part:

    h <- a h + (1 - a) g,  a = memory;  h = g in step 1

    memory, gain   alpha and lambda of the source, 0.98 and 2 as in its experiments with modular
                   arithmetic; the rest as in AdamW
    Source: Lee et al., Grokfast, arXiv 2405.20233, algorithm 2 (Grokfast-EMA).

    >>> import numpy as np
    >>> from tinygrok.engine.device import get_device
    >>> dev = get_device("cpu", dtype="float64", threads=1)
    >>> params, grads = (Arena(dev, {"w": (2,)}) for _ in range(2))
    >>> optimizer = Grokfast(dev, params, grads, memory=0.75)
    >>> for t in (1, 2):
    ...     grads.load({"w": np.array([0.4, -0.4 * t])})
    ...     optimizer.step(t)
    >>> grads["w"].round(6).tolist()  # h = 0.4 and -0.5
    [1.2, -1.8]
    """

    state_names = ("m", "v", "slow")

    def __init__(self, dev, params, grads, lr: PerMember = 1e-3, memory=0.98, gain=2.0, **common):
        super().__init__(dev, params, grads, lr, **common)
        self.memory = memory
        self.gain = gain

    def _update_flat(self, views, t, lr, decay):
        w, g, m, v, slow = views
        if t == 1:
            slow[...] = g
        slow *= self.memory
        slow += (1 - self.memory) * g
        g += self.gain * slow
        super()._update_flat([w, g, m, v], t, lr, decay)


class ConstantNorm(AdamW):
    """AdamW, and after every step w <- w c/|w|, |w| the norm over all tensors of a member.

    norm   c, or one value per member; None: the norm that the weights have now
    Source: Liu et al., Omnigrok, arXiv 2210.01117, whose landscapes are trained at a fixed norm,
    without weight decay.

    >>> import numpy as np
    >>> from tinygrok.engine.device import get_device
    >>> dev = get_device("cpu", dtype="float64", threads=1)
    >>> params, grads = (Arena(dev, {"w": (2,)}) for _ in range(2))
    >>> params.load({"w": np.array([3.0, -4.0])})
    >>> grads.load({"w": np.array([0.3, 0.0])})
    >>> ConstantNorm(dev, params, grads, lr=1.0).step(1)
    >>> params["w"].round(6).tolist()  # 5/sqrt(20) of [2, -4]
    [2.236068, -4.472136]
    """

    norm: Any  # floats (E,), whatever is set

    def __init__(self, dev, params, grads, lr: PerMember = 1e-3, norm=None, **common):
        super().__init__(dev, params, grads, lr, **common)
        self.norm = dev.to_host(global_norm(dev, params)).ravel() if norm is None else norm

    def step(self, t):
        super().step(t)
        target = self.dev.to_device(self.norm[:, None, None])
        factor = target / global_norm(self.dev, self.params)
        for w in _rows(self.params):
            w *= factor


class Muon(AdamW):
    """m <- b m + (1 - b) g,  u = orthogonalised((1 - b) g + b m), then for K x N matrices

        w <- (1 - r wd) w - r sqrt(max(1, N/K)) u,        r = matrix_lr

    and AdamW for everything else, with its own rate lr. b is `momentum`, and the schedule moves
    both rates. A matrix maps rows of length K to rows of length N.

    matrices   names of the parameters that are updated as matrices, those of more than two axes as
               stacks of them: the source's choice is those inside the network, not embeddings and
               read-outs
    Source: Jordan et al., Muon: an optimizer for hidden layers in neural networks (2024); used for
    modular tasks in arXiv 2504.16041.

    >>> import numpy as np
    >>> from tinygrok.engine.device import get_device
    >>> dev = get_device("cpu", dtype="float64", threads=1)
    >>> params, grads = (Arena(dev, {"w": (2, 2)}) for _ in range(2))
    >>> grads.load({"w": np.array([[3.0, 0.0], [0.0, 0.1]])})
    >>> Muon(dev, params, grads, matrices=["w"], matrix_lr=1.0).step(1)
    >>> params["w"].round(1).tolist()  # both directions alike
    [[-0.7, 0.0], [0.0, -1.1]]
    """

    def __init__(
        self, dev, params, grads, lr: PerMember = 1e-3, *, matrices, matrix_lr=0.02, **common
    ):
        known = [name for name, shape in params.bare.items() if len(shape) > 1]
        self.matrices = _some_of(known, matrices, "matrices names no matrix")
        self.matrix_lr = matrix_lr
        self.momentum = 0.95
        super().__init__(dev, params, grads, lr, **common)

    def _whole(self, name):
        return name in self.matrices

    def _update_whole(self, views, t, lr, decay):
        w, g, m, _ = views
        rate = self.matrix_lr * self.schedule(t)
        b = self.momentum
        m *= b
        m += (1 - b) * g
        update = orthogonalised(self.dev, (1 - b) * g + b * m)
        w *= 1 - rate * float(decay)
        w -= rate * max(1.0, w.shape[-1] / w.shape[-2]) ** 0.5 * update


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalised(dev: Device, g: Array, steps: int = 5) -> Array:
    """About U V^T of g = U S V^T (K, N): singular values from 0.002 |g| on become 0.68 to 1.21.

    X <- a X + b (X X^T) X + c (X X^T)^2 X, from X = g/|g|, acts on every singular value s as
    a s + b s^3 + c s^5, which lifts small ones fast, to 485 s in five steps; a, b, c =
    NEWTON_SCHULZ."""
    a, b, c = NEWTON_SCHULZ
    wide = g.shape[-2] <= g.shape[-1]
    x = g if wide else g.swapaxes(-1, -2)
    norm = dev.xp.sqrt((x * x).sum(axis=(-1, -2), keepdims=True))
    x = x / (norm + 1e-7)
    for _ in range(steps):
        gram = matmul(dev, x, x, tb=True)
        x = a * x + matmul(dev, b * gram + c * matmul(dev, gram, gram), x)
    return x if wide else x.swapaxes(-1, -2)


class SGD(Optimizer):
    """m <- momentum m + g + wd w,  then w <- w - lr m        (coupled decay, as torch.optim.SGD)

    weight_decay, schedule, no_decay and clip as in Optimizer.

    >>> import numpy as np
    >>> from tinygrok.engine.device import get_device
    >>> dev = get_device("cpu", dtype="float64", threads=1)
    >>> params, grads = (Arena(dev, {"w": (2,)}) for _ in range(2))
    >>> params.load({"w": np.array([1.0, -1.0])})
    >>> grads.load({"w": np.array([0.3, 0.0])})
    >>> SGD(dev, params, grads, lr=0.1, weight_decay=0.5).step(1)
    >>> params["w"].round(6).tolist()
    [0.92, -0.95]
    """

    state_names = ("m",)

    def __init__(self, dev, params, grads, lr: PerMember = 1e-2, momentum=0.0, **common):
        super().__init__(dev, params, grads, lr, **common)
        self.momentum = momentum

    def _update_flat(self, views, t, lr, decay):
        w, g, m = views
        kernels.sgd(self.dev, g, self._member(lr), self._member(decay), self.momentum, w, m)


OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "sgd": SGD, "muon": Muon}
OPTIMIZERS |= {"grokfast": Grokfast, "constant_norm": ConstantNorm}
