"""Networks declared as data: a chain of named blocks, each block a tuple of operations, and four rules for each kind.

An operation is a tuple of its kind, a name where it has parameters, and settings:

("linear", name, K, N)       ("conv", name, C, N, k, stride, pad)   ("residual", name, mu, operations): operations(x) + mu x
("layernorm", name, C)       ("batchnorm", name, C)                 ("scale", name, C, value, shift): a gain, with a shift or not
("act", activation)          ("maxpool", k)                         ("avgpool", h, w)
("swap",): tokens and channels change places                        ("reshape", ...): of one example, as (-1,) or (-1, C)

Activations are (B, ...) with channels last; linear layers, norms and scales act on the last axis. The gradient of a function
of values x and tangents xdot (the squared norm of a Jacobian is one) carries the pair of their adjoints, xbar and lam, back
through the chain (AutoInit, arXiv 2206.13568).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from ..engine.device import Array, Device
from ..engine.errors import InputError
from ..ops import activation, conv, linear, norm


class Op(NamedTuple):
    """An operation: kind, name, settings of its functions, names of its parameters, operations inside."""

    kind: str
    name: str
    settings: tuple
    params: tuple[str, ...]
    inner: tuple


@dataclass
class Pass:
    """What the rules share: parameters and buffers w; gradients g to write, or to add to (None: none). affine=False: the
    map of tangents, without biases and shifts."""

    dev: Device
    w: dict
    g: dict | None = None
    train: bool = True
    affine: bool = True
    accumulate: bool = False

    def of(self, o: Op, source: dict | None) -> list:
        """[weight, bias] or [gain, shift] of an operation in w or g, None for what there is not."""
        found = [(source or {}).get(f"{o.name}.{which}") for which in o.params]
        return found if self.affine else [*found[:1], *(None for _ in found[1:])]


# -- rules: forward (x -> y, cache), backward (dy -> dx), tangent (xdot -> ydot, its cache), pair (xbar, lam of y -> of x) ------


class Rule(NamedTuple):
    """The four functions of a kind of operation, as functions of (pass, operation, arrays)."""

    forward: Callable
    backward: Callable
    tangent: Callable
    pair: Callable


def rule(forward: Callable, backward: Callable, tangent: Callable | None = None, pair: Callable | None = None) -> Rule:
    """The rule made of the functions of an operation. An affine map is its own tangent, without the shift; and as it is
    linear in x and in its weight a, abar = <xbar, dy/da> + <lam, dydot/da> and both adjoints go back as dy does."""

    def run(p: Pass, o: Op, x: Array):
        return forward(p.dev, x, *p.of(o, p.w), *o.settings)

    def back(p: Pass, o: Op, dy: Array, cache):
        return backward(p.dev, dy, cache, *p.of(o, p.g), **({"accumulate": p.accumulate} if o.params else {}))

    def push(p: Pass, o: Op, xdot: Array, cache):
        return tangent(p.dev, xdot, cache) if tangent else run(replace(p, affine=False), o, xdot)

    def both(p: Pass, o: Op, xbar: Array, lam: Array, cache, dot):
        if pair:
            return pair(p.dev, xbar, lam, cache, dot, *p.of(o, p.g))
        return back(p, o, xbar, cache), back(replace(p, affine=False), o, lam, dot)

    return Rule(run, back, push, both)


def _batchnorm(p: Pass, o: Op, x: Array):
    return norm.batchnorm_forward(p.dev, x, *p.of(o, p.w), *(p.w[f"{o.name}.{moment}"] for moment in ("mean", "var")), p.train)


def _residual(p: Pass, o: Op, x: Array):
    y, caches = up("forward", p, o.inner, x)
    return y + p.w[o.name + ".mu"] * x, (x, caches)


def _residual_backward(p: Pass, o: Op, dy: Array, cache):
    return down("backward", p, o.inner, [dy], cache[1])[0] + p.w[o.name + ".mu"] * dy


def _residual_tangent(p: Pass, o: Op, xdot: Array, cache):
    ydot, tangents = up("tangent", p, o.inner, xdot, cache[1])
    return ydot + p.w[o.name + ".mu"] * xdot, (xdot, tangents)


def _residual_pair(p: Pass, o: Op, xbar: Array, lam: Array, cache, dot):
    """mubar = <xbar, x> + <lam, xdot>"""
    mu, into = p.w[o.name + ".mu"], (p.g or {}).get(o.name + ".mu")
    if into is not None:
        into += (xbar * cache[0]).sum() + (lam * dot[0]).sum()
    inner = down("pair", p, o.inner, [xbar, lam], cache[1], dot[1])
    return inner[0] + mu * xbar, inner[1] + mu * lam


_norms = [[partial(f, axis=axis) for f in (norm.norm_tangent, norm.norm_pair)] for axis in (-1, -2)]
RULES: dict[str, Rule] = {
    "linear": rule(linear.linear_forward, linear.linear_backward),
    "conv": rule(conv.conv_forward, conv.conv_backward),
    "scale": rule(norm.scale_forward, norm.scale_backward),
    "act": rule(*(getattr(activation, f"activation_{f}") for f in Rule._fields)),
    "layernorm": rule(norm.layernorm_forward, norm.layernorm_backward, *_norms[0]),
    "batchnorm": rule(norm.batchnorm_forward, norm.batchnorm_backward, *_norms[1])._replace(forward=_batchnorm),
    "maxpool": rule(conv.maxpool_forward, conv.maxpool_backward, conv.maxpool_tangent),
    "avgpool": rule(conv.avgpool_forward, conv.avgpool_backward),
    "reshape": rule(lambda dev, x, *shape: (x.reshape(len(x), *shape), x.shape), lambda dev, dy, shape: dy.reshape(shape)),
    "swap": rule(lambda dev, x: (x.swapaxes(-1, -2), None), lambda dev, dy, _: dy.swapaxes(-1, -2)),
    "residual": Rule(_residual, _residual_backward, _residual_tangent, _residual_pair),
}
ROWS = ("linear", "scale", "layernorm", "batchnorm")  # act on arrays (rows, channels)
PARAMETERS: dict[str, Callable] = {  # settings -> name: (shape, first value; None: drawn)
    "linear": lambda K, N: {"weight": ((K, N), None), "bias": ((N,), None)},
    "conv": lambda C, N, k, *_: {"weight": ((k, k, C, N), None), "bias": ((N,), None)},
    "scale": lambda C, value, shift: {"gain": ((C,), value), **({"shift": ((C,), 0.0)} if shift else {})},
    "layernorm": lambda C: {"gain": ((C,), 1.0), "shift": ((C,), 0.0)},
    "batchnorm": lambda C: {"gain": ((C,), 1.0), "shift": ((C,), 0.0), "mean": ((C,), 0.0), "var": ((C,), 1.0)},
    "residual": lambda mu, _: {"mu": ((1,), mu)},
}


def up(which: str, p: Pass, ops: tuple, x: Array, *caches: list):
    """forward: x -> y and caches; tangent: xdot and the caches of forward -> ydot and its caches."""
    out = []
    for o, *cache in zip(ops, *caches, strict=True):
        lead, x = x.shape[:-1], x.reshape(-1, x.shape[-1]) if o.kind in ROWS else x
        x, new = getattr(RULES[o.kind], which)(p, o, x, *cache)
        x = x.reshape(*lead, -1) if o.kind in ROWS else x
        out.append(new)
    return x, out


def down(which: str, p: Pass, ops: tuple, adjoints: list, *caches: list) -> list:
    """backward: [dy] and caches -> [dx]; pair: [xbar, lam], caches and those of the tangent -> [xbar, lam] of the input."""
    for o, *cache in reversed(list(zip(ops, *caches, strict=True))):
        lead = adjoints[0].shape[:-1]
        adjoints = [a.reshape(-1, a.shape[-1]) for a in adjoints] if o.kind in ROWS else adjoints
        new = getattr(RULES[o.kind], which)(p, o, *adjoints, *cache)
        adjoints = list(new) if which == "pair" else [new]
        adjoints = [a.reshape(*lead, -1) for a in adjoints] if o.kind in ROWS else adjoints
    return adjoints


# -- the network ----------------------------------------------------------------------------------------------------------


class Stage(NamedTuple):
    """A block as a map: forward (x -> y, cache) and backward (dy, cache -> dx); second (cache, xdot, lam, xbar -> xbar of x)
    adds the gradients of a function of y, whose adjoint is xbar, and of the tangent ydot, whose adjoint is lam."""

    name: str
    forward: Callable
    backward: Callable
    second: Callable


class Chain:
    """A network of blocks [(name, operations)]; classes: its outputs. Kernels are (K, N) or (k, k, C, N); the strength mu of a
    residual connection is a buffer, which can be tuned but is not trained. One network, no ensemble axis."""

    def __init__(self, blocks: list[tuple[str, tuple]]):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.buffers: dict[str, tuple[int, ...]] = {}
        self.values: dict[str, float] = {}  # first values of what is not drawn
        self.blocks = [(name, self._compile(ops)) for name, ops in blocks]
        self.batchnorm = any(name.endswith(".var") for name in self.buffers)

    def _compile(self, ops: tuple) -> tuple[Op, ...]:
        compiled = []
        for kind, *rest in ops:
            if kind not in RULES:
                raise InputError(f"unknown operation {kind!r}: choose {', '.join(RULES)}")
            name, *args = rest if kind in PARAMETERS else ["", *rest]
            params = PARAMETERS[kind](*args) if kind in PARAMETERS else {}
            for which, (shape, value) in params.items():
                (self.buffers if which in ("mean", "var", "mu") else self.shapes)[f"{name}.{which}"] = shape
                if value is not None:
                    self.values[f"{name}.{which}"] = value
            settings = tuple(args[3:] if kind == "conv" else () if params else args)
            inner = self._compile(args[1]) if kind == "residual" else ()
            compiled.append(Op(kind, name, settings, tuple(params)[:2], inner))
        return tuple(compiled)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def no_decay(self) -> tuple[str, ...]:
        """Parameters with one axis."""
        return tuple(name for name, shape in self.shapes.items() if len(shape) == 1)

    def __repr__(self) -> str:
        return f"Chain({len(self.blocks)} blocks, {self.size:,} parameters)"

    def init(self, rng: np.random.Generator, sigma_w=1.0, sigma_b=0.0, fan="in", first: float | None = None) -> dict:
        """Fresh weights on the host, float64: kernels Normal(0, sigma_w^2/fan), biases Normal(0, sigma_b^2), the rest as
        declared. fan: "in" K or k^2 C, "out" N or k^2 N, "mean" of both; first: sigma_w of the first kernel, if another.
        He: sigma_w = sqrt 2, fan "in" or "out"; Xavier: sigma_w = 1, fan "mean"."""
        weights: dict = {}
        for name, shape in self.shapes.items():
            fans = {"in": math.prod(shape[:-1]), "out": math.prod(shape) // shape[-2 % len(shape)]}
            fans["mean"] = (fans["in"] + fans["out"]) / 2
            sigma = sigma_w if weights or first is None else first
            std = sigma / math.sqrt(fans[fan]) if len(shape) > 1 else sigma_b
            weights[name] = np.full(shape, self.values[name]) if name in self.values else std * rng.standard_normal(shape)
        return weights

    def init_buffers(self) -> dict[str, np.ndarray]:
        return {name: np.full(shape, self.values[name]) for name, shape in self.buffers.items()}

    def forward(
        self, dev: Device, w: dict, inputs: Array, train=False, dropout=None, weight=None, offset=0, buffer=None, record=False
    ) -> tuple[Array, dict]:
        """Outputs of the last block, and the tape: the output of every block by name. With train BatchNorm takes and records
        the statistics of the batch. The other settings, which other models take, are not used."""
        p, x = Pass(dev, w, train=train), inputs
        tape: dict = {"pass": p, "caches": []}
        for name, ops in self.blocks:
            x, caches = up("forward", p, ops, x)
            tape["caches"].append(caches)
            tape[name] = x
        return x, tape

    def backward(self, dev: Device, dlogits: Array, tape: dict, g: dict, accumulate: bool = False) -> None:
        """Write the gradient of every parameter into g, or add to g: rule by rule from the last block to the first."""
        p, dy = replace(tape["pass"], g=g, accumulate=accumulate), [dlogits]
        for (_, ops), caches in zip(reversed(self.blocks), reversed(tape["caches"]), strict=True):
            dy = down("backward", p, ops, dy, caches)

    def stages(self, dev: Device, w: dict, g: dict | None = None) -> list[Stage]:
        """The blocks as maps, with the statistics of the batch where there is BatchNorm (its running ones stay as they are);
        second adds to g, where backward leaves gradients alone."""
        p = Pass(dev, {**w, **{n: w[n].copy() for n in self.buffers}}, accumulate=True)

        def stage(name: str, ops: tuple) -> Stage:
            def second(cache: list, xdot: Array, lam: Array, xbar: Array) -> Array:
                tangents = up("tangent", p, ops, xdot, cache)[1]
                return down("pair", replace(p, g=g), ops, [xbar, lam], cache, tangents)[0]

            back = lambda dy, cache: down("backward", p, ops, [dy], cache)[0]  # noqa: E731
            return Stage(name, lambda x: up("forward", p, ops, x), back, second)

        return [stage(*block) for block in self.blocks]
