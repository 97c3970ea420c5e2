"""The parameter arena: one flat array, cut parameter by parameter into named views."""

import math

from .device import Array, Device
from .errors import InputError


def cut(flat: Array, shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Consecutive views of a flat array, one per name."""
    views, start = {}, 0
    for name, shape in shapes.items():
        views[name] = flat[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)
    return views


class Arena:
    """Named arrays in one flat buffer, parameter-major: name -> (E, *shape) with members, else
    (*shape).

    Parameter-major order keeps every named view contiguous also with an ensemble axis, which
    batched matrix products need; the flat buffer serves checkpoints and all-reduces.
    """

    def __init__(self, dev: Device, shapes: dict[str, tuple[int, ...]], members: int | None = None):
        self.dev, self.members = dev, members
        lead = () if members is None else (members,)
        self.bare = dict(shapes)  # of one member
        self.shapes = {name: (*lead, *shape) for name, shape in shapes.items()}
        self.flat = dev.zeros((sum(math.prod(s) for s in self.shapes.values()),))
        self.views = cut(self.flat, self.shapes)

    def __getitem__(self, name: str) -> Array:
        return self.views[name]

    def __repr__(self) -> str:
        rows = [
            f"  {name:<12} {'x'.join(map(str, s)):>16} {math.prod(s):>12,}"
            for name, s in self.shapes.items()
        ]
        return "\n".join([*rows, f"  {'total':<12} {'':>16} {self.flat.size:>12,}"])

    def member(self, e: int | None) -> dict[str, Array]:
        """The views of member e, which one network alone would have; all of them for e = None."""
        return self.views if e is None else {name: view[e] for name, view in self.views.items()}

    def load(self, arrays: dict[str, Array], e: int | None = None) -> None:
        """Copy host arrays of matching names and shapes into the arena (into member e)."""
        views = self.member(e)
        if set(arrays) != set(views):
            raise InputError(f"expected the parameters {sorted(views)}, got {sorted(arrays)}")
        for name, view in views.items():
            if tuple(arrays[name].shape) != tuple(view.shape):
                raise InputError(
                    f"{name}: expected shape {tuple(view.shape)}, got {tuple(arrays[name].shape)}"
                )
            view[...] = self.dev.to_device(arrays[name])

    def to_host(self, e: int | None = None) -> dict[str, Array]:
        """Host copies of the arrays (of member e)."""
        return {name: self.dev.to_host(view).copy() for name, view in self.member(e).items()}
