"""Networks declared as data: a chain of named blocks, each block a tuple of operations, and one
rule for each kind of operation.

An operation is a tuple of its kind, a name where it has parameters, and settings:

    ("linear", name, K, N[, False])             False: without a bias
    ("conv", name, C, N, k, stride, pad)
    ("scale", name, C, value, shift)            a gain, with a shift or not
    ("layernorm", name, C)
    ("batchnorm", name, C)
    ("positions", name, T, C)                   x + shift, shift (T, C), at first Normal(0, 1)
    ("residual", name, mu, operations[, way])   operations(x) + mu way(x), way operations or none
    ("attention", H)                            x = [q | k | v], H heads, all positions seen
    ("act", activation)
    ("maxpool", k)
    ("avgpool", h, w)
    ("swap",)                                   tokens and channels change places
    ("reshape", ...)                            of one example, as (-1,) or (-1, C)
    ("take", at)                                x[at], at a tuple of slices and integers
    ("put", shape, at)                          its transpose: y[at] = x, and zeros elsewhere

Activations are (B, ...) with channels last; linear layers, norms and scales act on the last axis.
The gradient of a function of values x and tangents xdot (the squared norm of a Jacobian is one:
criticality/autoinit.py) carries the pair of their adjoints, xbar and lam, back through the
chain."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ..engine.border import integer
from ..engine.device import Array, Device
from ..engine.errors import require_known
from ..ops import activation, attention, conv, linear, norm
from .protocol import EVALUATION, Shapes, Stage

# -- rules: what the chain knows of an operation ---------------------------------------------------


class Rule(NamedTuple):
    """A kind of operation: its functions, and what they act on.

    forward     (dev, x, *parameters, *settings) -> y, cache
    backward    (dev, dy, cache, *gradients) -> dx
    tangent     (dev, xdot, cache) -> ydot, its cache
    pair        (dev, xbar, lam, cache, cache of the tangent, *gradients) -> xbar, lam of the input
    parameters  (*sizes) -> {name: (shape, first value; None: drawn)}, of those with a name
    sizes       how many of an operation's arguments are sizes; the rest are settings of forward
    rows        acts on arrays (rows, channels)

    An affine map needs forward and backward only: it is its own tangent, without the shift; and as
    it is linear in x and in its weight a, abar = <xbar, dy/da> + <lam, dydot/da>, both adjoints go
    back as dy does."""

    forward: Callable
    backward: Callable
    tangent: Callable | None = None
    pair: Callable | None = None
    parameters: Callable[..., dict] | None = None
    sizes: int = 0
    rows: bool = False


def _linear(K: int, N: int, biased: bool = True) -> dict:
    weight = {"weight": ((K, N), None)}
    return {**weight, "bias": ((N,), None)} if biased else weight


def _conv(C: int, N: int, k: int) -> dict:
    return {"weight": ((k, k, C, N), None), "bias": ((N,), None)}


def _scale(C: int, value: float = 1.0, shift: bool = True) -> dict:
    gain = {"gain": ((C,), value)}
    return {**gain, "shift": ((C,), 0.0)} if shift else gain


def _batchnorm(C: int) -> dict:
    return {**_scale(C), "mean": ((C,), 0.0), "var": ((C,), 1.0)}


def _positions(T: int, C: int) -> dict:
    return {"shift": ((T, C), None)}


def _reshape_forward(dev: Device, x: Array, *shape: int):
    return x.reshape(len(x), *shape), x.shape


def _reshape_backward(dev: Device, dy: Array, shape: tuple) -> Array:
    return dy.reshape(shape)


def _swap_forward(dev: Device, x: Array):
    return x.swapaxes(-1, -2), None


def _swap_backward(dev: Device, dy: Array, cache: None) -> Array:
    return dy.swapaxes(-1, -2)


def _take_forward(dev: Device, x: Array, at: tuple):
    return x[at], (x.shape, at)


def _take_backward(dev: Device, dy: Array, cache: tuple) -> Array:
    shape, at = cache
    dx = dev.zeros(shape)
    dx[at] = dy
    return dx


def _put_forward(dev: Device, x: Array, shape: tuple[int, ...], at: tuple):
    return _take_backward(dev, x, ((len(x), *shape), at)), at


def _put_backward(dev: Device, dy: Array, at: tuple) -> Array:
    return dy[at]


def _positions_forward(dev: Device, x: Array, shift: Array | None):
    return x if shift is None else x + shift, None


def _positions_backward(dev: Device, dy: Array, cache: None, dshift=None, accumulate=False):
    linear.write_or_add(dy.sum(axis=0), dshift, accumulate)
    return dy


def _rule(module: ModuleType, name: str, **more) -> Rule:
    """The functions of an operation by their names in a file of ops: name_forward, ..."""
    parts = ("forward", "backward", "tangent", "pair")
    functions: list[Any] = [getattr(module, f"{name}_{part}", None) for part in parts]
    return Rule(*functions, **more)


def _norm_rule(name: str, axis: int, parameters: Callable) -> Rule:
    """The rule of a norm over an axis: -1 channels, -2 rows."""
    rule = _rule(norm, name, parameters=parameters, sizes=1, rows=True)
    return rule._replace(tangent=partial(norm.norm_tangent, axis=axis), pair=norm.norm_pair)


RULES: dict[str, Rule] = {
    "linear": _rule(linear, "linear", parameters=_linear, sizes=3, rows=True),
    "conv": _rule(conv, "conv", parameters=_conv, sizes=3),
    "scale": _rule(norm, "scale", parameters=_scale, sizes=3, rows=True),
    "layernorm": _norm_rule("layernorm", -1, _scale),
    "batchnorm": _norm_rule("batchnorm", -2, _batchnorm),
    "positions": Rule(_positions_forward, _positions_backward, parameters=_positions, sizes=2),
    "attention": _rule(attention, "self_attention"),
    "act": _rule(activation, "activation"),
    "maxpool": _rule(conv, "maxpool"),
    "avgpool": _rule(conv, "avgpool"),
    "reshape": Rule(_reshape_forward, _reshape_backward),
    "swap": Rule(_swap_forward, _swap_backward),
    "take": Rule(_take_forward, _take_backward),
    "put": Rule(_put_forward, _put_backward),
}
STATE = ("mean", "var", "mu")  # parameters that no gradient trains: the chain's buffers


class Op(NamedTuple):
    """An operation, compiled: kind, name, settings of forward, names of its parameters; of a
    residual connection the operations inside, and those on the way around them."""

    kind: str
    name: str
    settings: tuple
    params: tuple[str, ...]
    inner: tuple["Op", ...] = ()
    way: tuple["Op", ...] = ()


Ops = tuple[Op, ...]


@dataclass
class Pass:
    """What the operations of a chain share: the device, and parameters and buffers w by name.

    g           gradients by name, to write or to add to; None: none
    train       BatchNorm takes and records the statistics of the batch
    affine      False: the map of tangents, without biases and shifts
    accumulate  add to the gradients
    first       the linear layer or convolution that reads the inputs: its dx is not computed
    """

    dev: Device
    w: dict
    g: dict | None = None
    train: bool = True
    affine: bool = True
    accumulate: bool = False
    first: Op | None = None

    def of(self, o: Op, source: dict | None) -> list:
        """[weight, bias] or [gain, shift] of an operation in w or g, None for what there is not."""
        found = []
        for which in o.params[:2]:
            wanted = self.affine or which in ("weight", "gain")
            found.append(source.get(f"{o.name}.{which}") if source and wanted else None)
        return found


# -- one operation, by its rule --------------------------------------------------------------------


def _forward(p: Pass, o: Op, x: Array, _: None = None):
    settings = o.settings
    if o.kind == "batchnorm":
        settings = p.w[o.name + ".mean"], p.w[o.name + ".var"], p.train
    parameters = p.of(o, p.w)
    return RULES[o.kind].forward(p.dev, x, *parameters, *settings)


def _backward(p: Pass, o: Op, dy: Array, cache: Any):
    options = {}
    if o.params:
        options["accumulate"] = p.accumulate
    if o is p.first:
        options["need_dx"] = False
    gradients = p.of(o, p.g)
    return RULES[o.kind].backward(p.dev, dy, cache, *gradients, **options)


def _tangent(p: Pass, o: Op, xdot: Array, cache: Any):
    rule = RULES[o.kind]
    if rule.tangent is not None:
        return rule.tangent(p.dev, xdot, cache)
    return _forward(replace(p, affine=False), o, xdot)


def _pair(p: Pass, o: Op, xbar: Array, lam: Array, cache: Any, dot: Any):
    """The rule's own pair; an affine map y = a x + shift, ydot = a xdot, takes xbar and lam back as
    dy: both add to abar, xbar alone to that of the shift."""
    rule = RULES[o.kind]
    if rule.pair is not None:
        gradients = p.of(o, p.g)
        return rule.pair(p.dev, xbar, lam, cache, dot, *gradients)
    xbar = _backward(p, o, xbar, cache)
    lam = _backward(replace(p, affine=False), o, lam, dot)
    return xbar, lam


def _rows(o: Op, x: Array) -> Array:
    """x (..., C) as the operation takes it: (rows, C), or as it is."""
    return x.reshape(-1, x.shape[-1]) if RULES[o.kind].rows else x


def _unrows(o: Op, y: Array, x: Array) -> Array:
    """A result on the rows of x (..., C) back in its shape: (..., N), or as it is."""
    return y.reshape(*x.shape[:-1], -1) if RULES[o.kind].rows else y


# -- operations one after the other ----------------------------------------------------------------


def _upwards(p: Pass, step: Callable, ops: Ops, x: Array, caches: list | None):
    """x through step(p, operation, x, cache) -> y, kept, from operation to operation: y, all kept.

    residual: y = inner(x) + mu s with s = way(x); kept are s, and those of inner and of way"""
    all_kept = []
    for o, cache in zip(ops, caches or [None] * len(ops), strict=True):
        if o.inner:
            _, inner, way = cache or (None, None, None)
            y, inner = _upwards(p, step, o.inner, x, inner)
            s, way = _upwards(p, step, o.way, x, way)
            x = y + p.w[o.name + ".mu"] * s
            kept = s, inner, way
        else:
            y, kept = step(p, o, _rows(o, x), cache)
            x = _unrows(o, y, x)
        all_kept.append(kept)
    return x, all_kept


def forward(p: Pass, ops: Ops, x: Array) -> tuple[Array, list]:
    """x -> y and a cache for every operation        residual: y = inner(x) + mu way(x)"""
    return _upwards(p, _forward, ops, x, None)


def backward(p: Pass, ops: Ops, dy: Array, caches: list) -> Array:
    """dy -> dx, and the gradients of parameters

    residual: dx = inner'(x)^T dy + way'(x)^T mu dy
    None instead of dx where the first operation reads the inputs: nobody asks for it."""
    for o, cache in zip(reversed(ops), reversed(caches), strict=True):
        if o.inner:
            _, inner, way = cache
            dx = backward(p, o.inner, dy, inner)
            dy = dx + backward(p, o.way, p.w[o.name + ".mu"] * dy, way)
        else:
            dx = _backward(p, o, _rows(o, dy), cache)
            if o is p.first:
                return None
            dy = _unrows(o, dx, dy)
    return dy


def tangent(p: Pass, ops: Ops, xdot: Array, caches: list) -> tuple[Array, list]:
    """xdot -> ydot = F'(x) xdot, and a cache of its own for every operation.

    residual: ydot = inner'(x) xdot + mu way'(x) xdot"""
    return _upwards(p, _tangent, ops, xdot, caches)


def pair(
    p: Pass, ops: Ops, xbar: Array, lam: Array, caches: list, dots: list
) -> tuple[Array, Array]:
    """Adjoints xbar, lam of y and ydot -> of x and xdot, and of every parameter a, added to p.g:

    <xbar, dy> + <lam, dydot> = <new xbar, dx> + <new lam, dxdot> + sum over a of <abar, da>
    residual: y = inner(x) + mu s, ydot = inner'(x) xdot + mu sdot with s = way(x), so that way gets
    mu xbar and mu lam, its results are added to those of inner, mubar = <xbar, s> + <lam, sdot>"""
    for o, cache, dot in zip(reversed(ops), reversed(caches), reversed(dots), strict=True):
        if o.inner:
            s, inner, way = cache
            sdot, inner_dots, way_dots = dot
            mu = o.name + ".mu"
            if p.g is not None and mu in p.g:
                p.g[mu] += (xbar * s).sum() + (lam * sdot).sum()
            around = pair(p, o.way, p.w[mu] * xbar, p.w[mu] * lam, way, way_dots)
            xbar, lam = pair(p, o.inner, xbar, lam, inner, inner_dots)
            xbar = xbar + around[0]
            lam = lam + around[1]
        else:
            new_xbar, new_lam = _pair(p, o, _rows(o, xbar), _rows(o, lam), cache, dot)
            xbar = _unrows(o, new_xbar, xbar)
            lam = _unrows(o, new_lam, lam)
    return xbar, lam


# -- the network -----------------------------------------------------------------------------------


class Chain:
    """A network of blocks [(name, operations)], run one after the other.

    Kernels are (K, N) or (k, k, C, N); the strength mu of a residual connection is a buffer, which
    can be tuned but is not trained. One network, no ensemble axis. Raises InputError for an
    operation that no rule knows.

    >>> import numpy as np
    >>> from tinygrok.engine.device import get_device
    >>> first = "input", (("reshape", -1), ("linear", "input", 12, 4))
    >>> last = "readout", (("act", "tanh"), ("linear", "readout", 4, 3))
    >>> net = Chain([first, last])
    >>> net
    Chain(2 blocks, 67 parameters)
    >>> weights = net.init(np.random.default_rng(0))
    >>> logits, tape = net.forward(get_device("cpu", "float64"), weights, np.ones((5, 2, 2, 3)))
    >>> logits.shape, tape["input"].shape
    ((5, 3), (5, 4))
    """

    by_neurons = False

    def __init__(self, blocks: list[tuple[str, tuple]]):
        self.shapes: Shapes = {}
        self.buffers: Shapes = {}
        self.values: dict[str, float | None] = {}  # first ones; None: drawn
        self.blocks = [(name, self._compile(ops)) for name, ops in blocks]
        self.first = _reader(self.blocks[0][1])
        self.batchnorm = any(name.endswith(".var") for name in self.buffers)
        self.size = sum(math.prod(shape) for shape in self.shapes.values())
        self.no_decay = tuple(name for name in self.shapes if not name.endswith(".weight"))
        self.classes = list(self.shapes.values())[-1][-1]  # outputs of the last layer

    def _compile(self, ops: tuple) -> Ops:
        return tuple(self._operation(*o) for o in ops)

    def _operation(self, kind: str, *args) -> Op:
        """An operation with its parameters declared."""
        if kind == "residual":
            name, mu, *inner_and_way = args
            params = self._declare(name, {"mu": ((1,), mu)})
            return Op(kind, name, (), params, *map(self._compile, inner_and_way))
        require_known(kind, ("residual", *RULES), "operation")
        if kind == "act":
            activation.resolve(*args)  # refuse an unknown name here, not in the first step
        rule = RULES[kind]
        if rule.parameters is None:
            return Op(kind, "", args, ())
        name, *sizes = args
        params = self._declare(name, rule.parameters(*sizes[: rule.sizes]))
        return Op(kind, name, tuple(sizes[rule.sizes :]), params)

    def _declare(self, name: str, parameters: dict) -> tuple[str, ...]:
        for which, (shape, value) in parameters.items():
            kind = self.buffers if which in STATE else self.shapes
            kind[f"{name}.{which}"] = tuple(integer(n, f"sizes of {name}", 1) for n in shape)
            self.values[f"{name}.{which}"] = value
        return tuple(parameters)

    def __repr__(self) -> str:
        return f"Chain({len(self.blocks)} blocks, {self.size:,} parameters)"

    def init(
        self, rng: np.random.Generator, sigma_w=1.0, sigma_b=0.0, fan="in", first=None
    ) -> dict[str, np.ndarray]:
        """Fresh weights on the host, float64: kernels Normal(0, sigma_w^2/fan), biases Normal(0,
        sigma_b^2), the rest as declared.

        fan    "in" K or k^2 C, "out" N or k^2 N, "mean" of both
        first  sigma_w of the first kernel, if another
        He: sigma_w = sqrt 2, fan "in" or "out". Xavier: sigma_w = 1, fan "mean"."""
        weights: dict[str, np.ndarray] = {}
        for name, shape in self.shapes.items():
            draw = rng.standard_normal(shape)  # of every name: what a seed gives rests on it
            value = self.values[name]
            if value is not None:
                weights[name] = np.full(shape, value)
            elif name.endswith(".shift"):  # positions
                weights[name] = draw
            elif len(shape) == 1:
                weights[name] = sigma_b * draw
            else:
                sigma = sigma_w if weights or first is None else first
                weights[name] = sigma / math.sqrt(_fan(shape, fan)) * draw
        return weights

    def init_buffers(self) -> dict[str, np.ndarray]:
        """First values of running statistics and residual strengths, on the host."""
        return {name: np.full(shape, self.values[name]) for name, shape in self.buffers.items()}

    def prepare(self, dev: Device, inputs: np.ndarray) -> Array:
        """Host images (B, H, W, C) on the device."""
        return dev.to_device(inputs)

    def forward(self, dev: Device, w: dict, inputs: Array, mode=EVALUATION) -> tuple[Array, dict]:
        """Outputs of the last block, and the tape: the output of every block by name. With
        mode.train BatchNorm takes and records the statistics of the batch."""
        p = Pass(dev, w, train=mode.train)
        x = inputs
        tape: dict = {"pass": p}
        for name, ops in self.blocks:
            x, caches = forward(p, ops, x)
            tape[name] = x
            tape[name, "caches"] = caches
        return x, tape

    def backward(self, dev: Device, dlogits: Array, tape: dict, g: dict, accumulate=False) -> None:
        """Write the gradient of every parameter into g, or add to g: rule by rule from the last
        block to the first."""
        p = replace(tape["pass"], g=g, accumulate=accumulate, first=self.first)
        dy = dlogits
        for name, ops in reversed(self.blocks):
            dy = backward(p, ops, dy, tape[name, "caches"])

    def still(self, dev: Device, w: dict) -> Pass:
        """A pass in which BatchNorm uses the statistics of the batch and leaves its running ones
        alone."""
        state = {name: w[name].copy() for name in self.buffers}
        return Pass(dev, {**w, **state}, accumulate=True)

    def stages(self, dev: Device, w: dict) -> list[Stage]:
        """The blocks as maps, with the statistics of the batch where there is BatchNorm; no
        gradients of parameters."""
        p = self.still(dev, w)
        return [
            Stage(name, partial(forward, p, ops), partial(backward, p, ops))
            for name, ops in self.blocks
        ]


def _reader(ops: Ops) -> Op | None:
    """The linear layer or convolution that reads the inputs, if one does."""
    for o in ops:
        if o.kind != "reshape":
            return o if o.kind in ("linear", "conv") else None
    return None


def _fan(shape: tuple[int, ...], kind: str) -> float:
    """Inputs, outputs or the mean of both of a kernel (K, N) or (k, k, C, N)."""
    inputs = math.prod(shape[:-1])
    outputs = math.prod(shape) // shape[-2]
    return {"in": inputs, "out": outputs, "mean": (inputs + outputs) / 2}[kind]
