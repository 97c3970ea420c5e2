"""A forward and a backward under audit, and all the ways in which they may be called."""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ..engine import kernels
from ..engine.device import Device
from ..ops import attention, conv
from ..training import batches

Tensors = dict[str, np.ndarray]


COMPILED: dict = {}  # kernels that the audit runs instead of NumPy's (engine/compiled.py)


def cpu_device(dtype: str = "float64") -> Device:
    dev = Device("cpu", np, dtype)
    dev.compiled = COMPILED
    return dev


DEV = cpu_device()
COMPLEX = cpu_device("complex128")
SINGLE = cpu_device("float32")
SMALL = {  # blocks, chunks and shards smaller than the cases
    (kernels, "BLOCK"): 4,
    (attention, "BLOCK"): 2,
    (conv, "COLUMN_BYTES"): {"cpu": 1},
    (batches, "TABLE_SHARD_BYTES"): {"cpu": 50},
    (batches, "TOKEN_SHARD_BYTES"): {"cpu": 400},
}


def erf(z: np.ndarray) -> np.ndarray:
    """erf(z) = 2/sqrt(pi) exp(-z^2) sum_n 2^n z^(2n+1)/(1 3 5 ... (2n+1)); erf(6) rounds to 1."""
    z = np.clip(z.real, -6, 6) + 1j * z.imag
    term = total = z
    for n in range(1, 120):
        term = term * (2 * z * z / (2 * n + 1))
        total = total + term
    return 2 / math.sqrt(math.pi) * np.exp(-z * z) * total


@contextmanager
def replaced(values: dict[tuple[Any, str], Any]) -> Iterator[None]:
    """Attributes {(module, name): value} for a while: small blocks, other functions."""
    before = {where: getattr(*where) for where in values}
    try:
        for where, value in values.items():
            setattr(*where, value)
        yield
    finally:
        for where, value in before.items():
            setattr(*where, value)


def copies(tensors: Tensors) -> Tensors:
    return {k: np.array(x) for k, x in tensors.items()}


def unset(tensors: Tensors) -> Tensors:
    """Arrays for results, whose old contents must not matter."""
    return {k: np.full_like(x, np.nan) for k, x in tensors.items()}


def strided(x: np.ndarray, more: int = 1) -> np.ndarray:
    """The same values with gaps between them; more=0: even gaps, so that axes can be merged."""
    wide = np.full((*(n + more for n in x.shape), 2), np.nan, x.dtype)
    view = wide[(*map(slice, x.shape), ..., 0)]
    view[...] = x
    return view


even = partial(strided, more=0)


@dataclass
class Case:
    """One operation or network to audit, as functions of named tensors.

    inputs      {name: float64 tensor}
    run         (dev, tensors, **options) -> (y, cache)
    back        (dev, dy, cache, g, **options): writes gradients into g, by name, or into its arrays
    source      the functions whose docstrings state the formulas
    accumulates back takes accumulate=True and adds to the arrays of g
    dx          the input whose gradient is written all the same
    analytic    run takes complex tensors
    own         np.array copies tensors that run overwrites
    layout      what arrays in memory may look like
    float32     tolerance of results in float32
    small       {(module, name): value}: blocks, chunks and shards smaller than the case
    more        {title: (inputs, dy) -> (y, gradients)}: further ways
    notes       formulas that stand elsewhere, as text
    """

    name: str
    inputs: Tensors
    run: Callable
    back: Callable
    source: tuple[Callable, ...] = ()
    accumulates: bool = False
    dx: str = ""
    analytic: bool = True
    own: Callable = np.asarray
    layout: Callable = strided
    float32: float = 5e-6
    small: dict = field(default_factory=SMALL.copy)
    more: dict[str, Callable] = field(default_factory=dict)
    notes: str = ""

    def forward(self, t: Tensors) -> np.ndarray:
        """y; complex tensors meet the auditor's own erf."""
        is_complex = any(x.dtype.kind == "c" for x in t.values())
        with replaced({(kernels, "erf"): erf} if is_complex else {}):
            y, _ = self.run(COMPLEX if is_complex else DEV, {k: self.own(x) for k, x in t.items()})
        return y

    def backward(self, t: Tensors, dy: np.ndarray) -> Tensors:
        """{name: gradient}"""
        return self(t, dy, layout=self.own)[1]

    def __call__(self, t, dy, dev=DEV, layout=np.array, g=None, **options) -> tuple:
        """y and the gradients of tensors in a layout; g: arrays for them."""
        tensors = {k: layout(dev.to_device(x)) for k, x in t.items()}
        if g is None:
            g = {k: layout(x) for k, x in unset(tensors).items()}
        y, cache = self.run(dev, tensors)
        self.back(dev, layout(dev.to_device(dy)), cache, g, **options)
        return y, g

    def ways(self) -> dict[str, Callable[[Tensors, np.ndarray], tuple]]:
        """Calls that all must give the same numbers."""
        ways = {
            "again": lambda t, dy: (self.forward(t), self.backward(t, dy)),
            "gaps": partial(self, layout=self.layout),
            "small blocks": self.blocks,
            "float32": partial(self, dev=SINGLE),
        }
        if self.analytic:
            ways["complex"] = self.complex
        if self.accumulates:
            ways["added twice"] = self.added
        return ways | self.more

    def blocks(self, t: Tensors, dy: np.ndarray) -> tuple:
        with replaced(self.small):
            return self(t, dy)

    def complex(self, t: Tensors, dy: np.ndarray) -> tuple:
        """What a complex step sees at no step: no gradients."""
        return self.forward({k: x.astype(complex) for k, x in t.items()}).real, {}

    def added(self, t: Tensors, dy: np.ndarray) -> tuple:
        """Two backwards that add to arrays of ones, less the ones, over two."""
        g = {k: np.ones_like(x) for k, x in t.items()}
        for _ in range(2):
            y, _ = self(t, dy, g=g, accumulate=True)
        return y, {k: x if k == self.dx else (x - 1) / 2 for k, x in g.items()}


class Pair(Case):
    """An operation: forward(dev, *inputs, *settings) -> (y, cache), backward(dev, dy, cache, ...).

    settings  numbers; arrays, which go to the device; functions of the device
    options   settings with names, where forward takes them
    dx        the input whose gradient backward returns; "": it writes into arrays for all
    out       the input that out= has the shape of; "": y

    The ways are what signatures and docstrings allow.
    """

    def __init__(self, name, inputs, functions, settings=(), options=None, dx="x", out="", **more):
        super().__init__(name, inputs, self._run, self._back, functions, dx=dx, **more)
        takes, gives = [inspect.signature(function).parameters for function in functions]
        docs = [inspect.getdoc(function) or "" for function in functions]
        self.docs = " ".join(" ".join(docs).split())
        self.settings = settings
        self.options = {k: x for k, x in (options or {}).items() if k in takes}
        self.out = out
        after = [*takes][1 + len(inputs) + len(settings) :]
        self.outs = [k for k in ("out", "xhat", "mask") if k in after]
        self.dxs = [k for k in ("dx", "dlogits") if k in gives]
        self.out_in_place = "out may be" in self.docs and "out may be x where" not in self.docs
        self.parameters = [k for k in inputs if k != dx]
        self.accumulates = "accumulate" in gives
        self.own = np.array if "is overwritten" in self.docs else np.asarray

    def _run(self, dev, t: Tensors, **given):
        forward, _ = self.source
        settings = [_on(dev, x) for x in self.settings]
        options = {k: _on(dev, x) for k, x in self.options.items()}
        return forward(dev, *t.values(), *settings, **options, **given)

    def _back(self, dev, dy, cache, g: Tensors, **options) -> None:
        _, backward = self.source
        dx = backward(dev, dy, cache, *[g.get(k) for k in self.parameters], **options)
        if self.dx:
            g[self.dx] = dx

    def ways(self) -> dict:
        ways = super().ways()
        if self.outs or self.dxs:
            ways["arrays given"] = self.given
        if " may be " in self.docs:
            ways["in place"] = self.in_place
        if "where given" in self.docs and self.parameters:
            ways["one by one"] = self.one_by_one
        return ways

    def given(self, t: Tensors, dy: np.ndarray) -> tuple:
        """Results in arrays of the caller, with gaps, and read from there."""
        y, _ = self(t, dy)
        like = np.full_like(t[self.out] if self.out else y, np.nan)
        outs = {k: self.layout(like) for k in self.outs}
        y, cache = self.run(DEV, copies(t), **outs)
        unused = any(np.isnan(x).any() for x in outs.values())
        g = {k: self.layout(x) for k, x in unset(t).items()}
        dxs = dict.fromkeys(self.dxs, g.get(self.dx))
        self.back(DEV, dy, cache, {**g} if dxs else g, **dxs)
        if "out" in outs and not self.out:
            y = outs["out"]
        return y * np.nan if unused else y, g

    def in_place(self, t: Tensors, dy: np.ndarray) -> tuple:
        """Results where the docstrings say that they may be."""
        t = copies(t)
        outs = {"out": t[self.dx]} if self.out_in_place else {}
        y, cache = self.run(DEV, t, **outs)
        y = y.copy()
        g = unset(t)
        dxs = {"dx": dy} if "dx may be dy" in self.docs else {}
        if "dlogits may be" in self.docs:
            dxs["dlogits"] = cache[0]
        self.back(DEV, dy, cache, g, **dxs)
        return y, g

    def one_by_one(self, t: Tensors, dy: np.ndarray) -> tuple:
        """One gradient asked for at a time, the others None."""
        y, cache = self.run(DEV, t)
        g = {}
        self.back(DEV, dy, cache, g)
        for k in self.parameters:
            alone = unset({k: t[k]})
            self.back(DEV, dy, cache, alone)
            g[k] = alone[k]
        return y, g


def _on(dev, setting):
    """A setting on a device: a copy, since running statistics move."""
    if isinstance(setting, np.ndarray):
        return dev.to_device(setting.copy())
    return setting(dev) if callable(setting) else setting
