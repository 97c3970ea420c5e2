"""Networks declared as data: a chain of named blocks, each block a tuple of operations, and four
rules for each kind.

An operation is a tuple of its kind, a name where it has parameters, and settings:

("linear", name, K, N)       ("conv", name, C, N, k, stride, pad)   ("residual", name, mu, operations): operations(x) + mu x
("layernorm", name, C)       ("batchnorm", name, C)                 ("scale", name, C, value, shift): a gain, with a shift or not
("act", activation)          ("maxpool", k)                         ("avgpool", h, w)
("swap",): tokens and channels change places                        ("reshape", ...): of one example, as (-1,) or (-1, C)

Activations are (B, ...) with channels last; linear layers, norms and scales act on the last axis.
The gradient of a function of values x and tangents xdot (the squared norm of a Jacobian is one)
carries the pair of their adjoints, xbar and lam, back through the chain (AutoInit, arXiv
2206.13568)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from ..engine.device import Array, Device
from ..engine.errors import InputError
from ..ops import activation, conv, linear, norm
from .protocol import EVALUATION, Mode, Stage


class Op(NamedTuple):
    """An operation: kind, name, settings of its functions, names of its parameters, operations
    inside (residual)."""

    kind: str
    name: str
    settings: tuple
    params: tuple[str, ...]
    inner: tuple


@dataclass
class Pass:
    """What the rules share: parameters and buffers w; gradients g to write, or to add to (None:
    none). affine=False: the map of tangents, without biases and shifts."""

    dev: Device
    w: dict
    g: dict | None = None
    train: bool = True
    affine: bool = True
    accumulate: bool = False
    first: Op | None = (
        None  # the linear layer or convolution that reads the inputs: its dx is not computed
    )

    def of(self, o: Op, source: dict | None) -> list:
        """[weight, bias] or [gain, shift] of an operation in w or g, None for what there is not."""
        return [
            (source or {}).get(f"{o.name}.{x}") if self.affine or x == o.params[0] else None
            for x in o.params[:2]
        ]


# -- rules -----------------------------------------------------------------------------------------


class Rule(NamedTuple):
    """The four functions of a kind of operation: forward (x -> y, cache), backward (dy -> dx),
    tangent (xdot -> ydot, its cache), pair (xbar, lam of y and ydot -> of x and xdot).

    An affine map needs no more than two: it is its own tangent, without the shift; and as it is
    linear in x and in its weight a, abar = <xbar, dy/da> + <lam, dydot/da>, both adjoints go back
    as dy does."""

    forward: Callable
    backward: Callable
    tangent: Callable | None = None
    pair: Callable | None = None


_norms = [[partial(f, axis=axis) for f in (norm.norm_tangent, norm.norm_pair)] for axis in (-1, -2)]
RULES: dict[str, Rule] = {
    "linear": Rule(linear.linear_forward, linear.linear_backward),
    "conv": Rule(conv.conv_forward, conv.conv_backward),
    "scale": Rule(norm.scale_forward, norm.scale_backward),
    "act": Rule(*(getattr(activation, f"activation_{f}") for f in Rule._fields)),
    "layernorm": Rule(norm.layernorm_forward, norm.layernorm_backward, *_norms[0]),
    "batchnorm": Rule(norm.batchnorm_forward, norm.batchnorm_backward, *_norms[1]),
    "maxpool": Rule(conv.maxpool_forward, conv.maxpool_backward, conv.maxpool_tangent),
    "avgpool": Rule(conv.avgpool_forward, conv.avgpool_backward),
    "reshape": Rule(
        lambda dev, x, *shape: (x.reshape(len(x), *shape), x.shape),
        lambda dev, dy, shape: dy.reshape(shape),
    ),
    "swap": Rule(lambda dev, x: (x.swapaxes(-1, -2), None), lambda dev, dy, _: dy.swapaxes(-1, -2)),
}
ROWS = ("linear", "scale", "layernorm", "batchnorm")  # act on arrays (rows, channels)
PARAMETERS: dict[str, Callable] = {  # settings -> name: (shape, first value; None: drawn)
    "linear": lambda K, N: {"weight": ((K, N), None), "bias": ((N,), None)},
    "conv": lambda C, N, k, *_: {"weight": ((k, k, C, N), None), "bias": ((N,), None)},
    "scale": lambda C, value, shift: {
        "gain": ((C,), value),
        **({"shift": ((C,), 0.0)} if shift else {}),
    },
    "layernorm": lambda C: {"gain": ((C,), 1.0), "shift": ((C,), 0.0)},
    "batchnorm": lambda C: {
        "gain": ((C,), 1.0),
        "shift": ((C,), 0.0),
        "mean": ((C,), 0.0),
        "var": ((C,), 1.0),
    },
    "residual": lambda mu, _: {"mu": ((1,), mu)},
}


def _apply(which: str, p: Pass, o: Op, *arrays):
    """One function of an operation's rule."""
    rule = RULES[o.kind]
    if which == "forward":
        state = (
            [p.w[f"{o.name}.{x}"] for x in o.params[2:]] + [p.train]
            if o.kind == "batchnorm"
            else o.settings
        )
        return rule.forward(p.dev, *arrays, *p.of(o, p.w), *state)
    if which == "backward":
        options = ({"accumulate": p.accumulate} if o.params else {}) | (
            {"need_dx": False} if o is p.first else {}
        )
        return rule.backward(p.dev, *arrays, *p.of(o, p.g), **options)
    if which == "tangent":
        return (
            rule.tangent(p.dev, *arrays)
            if rule.tangent
            else _apply("forward", replace(p, affine=False), o, arrays[0])
        )
    if rule.pair:
        return rule.pair(p.dev, *arrays, *p.of(o, p.g))
    xbar, lam, cache, dot = arrays
    return _apply("backward", p, o, xbar, cache), _apply(
        "backward", replace(p, affine=False), o, lam, dot
    )


def up(which: str, p: Pass, ops: tuple, x: Array, *caches: list):
    """forward: x -> y and caches; tangent: xdot and the caches of forward -> ydot and its
    caches."""
    out = []
    for o, *cache in zip(ops, *caches, strict=True):
        if o.inner:
            y, inner = up(which, p, o.inner, x, *(c for _, c in cache))
            x, new = y + p.w[o.name + ".mu"] * x, (x, inner)
        else:
            y, new = _apply(
                which, p, o, x.reshape(-1, x.shape[-1]) if o.kind in ROWS else x, *cache
            )
            x = y.reshape(*x.shape[:-1], -1) if o.kind in ROWS else y
        out.append(new)
    return x, out


def down(which: str, p: Pass, ops: tuple, adjoints: list, *caches: list) -> list:
    """backward: [dy] and caches -> [dx]; pair: [xbar, lam], caches and those of the tangent ->
    [xbar, lam] of the input. The strength mu of a residual connection gets mubar = <xbar, x> +
    <lam, xdot>."""
    for o, *cache in reversed(list(zip(ops, *caches, strict=True))):
        if o.inner:
            if p.g is not None and f"{o.name}.mu" in p.g:
                p.g[o.name + ".mu"] += sum(
                    (a * x).sum() for a, (x, _) in zip(adjoints, cache, strict=True)
                )
            inner = down(which, p, o.inner, adjoints, *(c for _, c in cache))
            adjoints = [a + p.w[o.name + ".mu"] * b for a, b in zip(inner, adjoints, strict=True)]
        else:
            rows = [a.reshape(-1, a.shape[-1]) if o.kind in ROWS else a for a in adjoints]
            new = _apply(which, p, o, *rows, *cache)
            if o is p.first:
                return []
            new = [new] if which == "backward" else new
            adjoints = [
                a.reshape(*adjoints[0].shape[:-1], -1) if o.kind in ROWS else a for a in new
            ]
    return adjoints


# -- the network -----------------------------------------------------------------------------------


class Chain:
    """A network of blocks [(name, operations)]. Kernels are (K, N) or (k, k, C, N); the strength mu
    of a residual connection is a buffer, which can be tuned but is not trained. One network, no
    ensemble axis."""

    by_neurons = False

    def __init__(self, blocks: list[tuple[str, tuple]]):
        self.shapes, self.buffers, self.values = (
            {},
            {},
            {},
        )  # by name; values: first ones, None where they are drawn
        self.blocks = [(name, self._compile(ops)) for name, ops in blocks]
        reads = next((o for o in self.blocks[0][1] if o.kind != "reshape"), None)
        self.first = reads if reads and reads.kind in ("linear", "conv") else None
        self.batchnorm = any(name.endswith(".var") for name in self.buffers)
        self.size = sum(math.prod(shape) for shape in self.shapes.values())
        self.no_decay = tuple(name for name, shape in self.shapes.items() if len(shape) == 1)

    def _compile(self, ops: tuple) -> tuple[Op, ...]:
        compiled = []
        for kind, *args in ops:
            if kind not in {*RULES, *PARAMETERS}:
                raise InputError(f"unknown operation {kind!r}: choose residual, {', '.join(RULES)}")
            if kind == "act":
                activation.resolve(*args)
            name = args.pop(0) if kind in PARAMETERS else ""
            params = PARAMETERS[kind](*args) if name else {}
            for which, (shape, value) in params.items():
                (self.buffers if which in ("mean", "var", "mu") else self.shapes)[
                    f"{name}.{which}"
                ] = shape
                self.values[f"{name}.{which}"] = value
            settings = args[3:] if kind == "conv" else () if name else args
            compiled.append(
                Op(
                    kind,
                    name,
                    settings,
                    tuple(params),
                    self._compile(args[1]) if kind == "residual" else (),
                )
            )
        return tuple(compiled)

    def __repr__(self) -> str:
        return f"Chain({len(self.blocks)} blocks, {self.size:,} parameters)"

    def init(
        self,
        rng: np.random.Generator,
        sigma_w=1.0,
        sigma_b=0.0,
        fan="in",
        first: float | None = None,
    ) -> dict:
        """Fresh weights on the host, float64: kernels Normal(0, sigma_w^2/fan), biases Normal(0,
        sigma_b^2), the rest as declared. fan: "in" K or k^2 C, "out" N or k^2 N, "mean" of both;
        first: sigma_w of the first kernel, if another. He: sigma_w = sqrt 2, fan "in" or "out";
        Xavier: sigma_w = 1, fan "mean"."""
        weights: dict = {}
        for name, shape in self.shapes.items():
            K, N = math.prod(shape[:-1]), math.prod(shape) // shape[-2 % len(shape)]
            sigma = (sigma_w if weights or first is None else first) / math.sqrt(
                {"in": K, "out": N, "mean": (K + N) / 2}[fan]
            )
            draw = (sigma if len(shape) > 1 else sigma_b) * rng.standard_normal(shape)
            weights[name] = draw if self.values[name] is None else np.full(shape, self.values[name])
        return weights

    def init_buffers(self) -> dict[str, np.ndarray]:
        return {name: np.full(shape, self.values[name]) for name, shape in self.buffers.items()}

    def prepare(self, dev: Device, inputs: np.ndarray) -> Array:
        """Host images (B, H, W, C) on the device."""
        return dev.to_device(inputs)

    def forward(
        self, dev: Device, w: dict, inputs: Array, mode: Mode = EVALUATION
    ) -> tuple[Array, dict]:
        """Outputs of the last block, and the tape: the output of every block by name. With
        mode.train BatchNorm takes and records the statistics of the batch."""
        p = Pass(dev, w, train=mode.train)
        x = inputs
        tape = {}
        for name, ops in self.blocks:
            x, caches = up("forward", p, ops, x)
            tape |= {name: x, (name, "caches"): caches}
        return x, tape | {"pass": p}

    def backward(
        self, dev: Device, dlogits: Array, tape: dict, g: dict, accumulate: bool = False
    ) -> None:
        """Write the gradient of every parameter into g, or add to g: rule by rule from the last
        block to the first."""
        p, dy = replace(tape["pass"], g=g, accumulate=accumulate, first=self.first), [dlogits]
        for name, ops in reversed(self.blocks):
            dy = down("backward", p, ops, dy, tape[name, "caches"])

    def still(self, dev: Device, w: dict) -> Pass:
        """A pass in which BatchNorm uses the statistics of the batch and leaves its running ones
        alone."""
        return Pass(dev, {**w, **{n: w[n].copy() for n in self.buffers}}, accumulate=True)

    def stages(self, dev: Device, w: dict) -> list[Stage]:
        """The blocks as maps, with the statistics of the batch where there is BatchNorm; no
        gradients of parameters."""
        p, back = (
            self.still(dev, w),
            lambda p, ops, dy, caches: down("backward", p, ops, [dy], caches)[0],
        )
        return [
            Stage(name, partial(up, "forward", p, ops), partial(back, p, ops))
            for name, ops in self.blocks
        ]
