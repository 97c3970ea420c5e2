"""The parameter arena: one flat array, cut parameter by parameter into named views."""

import math
from collections.abc import Mapping
from typing import Any

from .device import Array, Device
from .errors import InputError, one_line


def cut(flat: Array, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Consecutive views of a flat array, one per name."""
    views = {}
    start = 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape)
        views[name] = flat[start:stop].reshape(shape)
        start = stop
    return views


class Arena:
    """Named arrays in one flat buffer: name -> (E, *shape) with E members, else shape.

    Parameter-major order keeps every named view contiguous also with an ensemble axis, which
    batched matrix products need; the flat buffer serves checkpoints and all-reduces.

    >>> import numpy as np
    >>> from tinygrok.engine.device import get_device
    >>> arena = Arena(get_device("cpu"), {"w": (2, 3), "b": (3,)}, members=4)
    >>> arena.load({"w": np.eye(2, 3), "b": np.arange(3)}, e=1)
    >>> arena["w"].shape, arena.flat.size
    ((4, 2, 3), 36)
    >>> arena.to_host(e=1)["b"].tolist()
    [0.0, 1.0, 2.0]
    """

    def __init__(self, dev: Device, shapes: dict[str, tuple[int, ...]], members: int | None = None):
        self.dev = dev
        self.members = members
        lead = () if members is None else (members,)  # the member axis
        self.bare = dict(shapes)  # of one member
        self.shapes = {name: (*lead, *shape) for name, shape in shapes.items()}
        size = sum(math.prod(shape) for shape in self.shapes.values())
        self.flat = dev.zeros((size,))
        self.views = cut(self.flat, self.shapes)

    def __deepcopy__(self, memo) -> "Arena":
        twin = Arena(self.dev, self.bare, self.members)
        twin.flat[...] = self.flat
        return twin

    def __getitem__(self, name: str) -> Array:
        return self.views[name]

    def member(self, e: int | None) -> dict[str, Array]:
        """The views of member e, which one network alone would have; all of them for e = None."""
        if e is None:
            return self.views
        return {name: view[e] for name, view in self.views.items()}

    def load(self, arrays: dict[str, Array], e: int | None = None) -> None:
        """Copy host arrays of matching names and shapes into the arena (into member e)."""
        views = self.member(e)
        check_shapes(arrays, {name: tuple(view.shape) for name, view in views.items()})
        for name, view in views.items():
            view[...] = self.dev.to_device(arrays[name])

    def to_host(self, e: int | None = None) -> dict[str, Array]:
        """Host copies of the arrays (of member e)."""
        views = self.member(e)
        return {name: self.dev.to_host(view).copy() for name, view in views.items()}


def check_shapes(found: Mapping[str, Any], expected: Mapping[str, tuple], where="") -> None:
    """Refuse missing, foreign and misshapen arrays. where: what the line begins with."""
    wrong = sorted(set(expected) ^ set(found))
    if wrong:
        names = one_line(", ".join(wrong))
        raise InputError(f"{where}missing or foreign arrays: {names}")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise InputError(f"{where}{name}: expected shape {shape}, got {found[name].shape}")
