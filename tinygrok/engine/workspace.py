"""Named preallocated buffers: a training step asks for the same ones every time."""

import math
from collections.abc import Callable
from typing import Any


class Workspace:
    """get(name, shape) returns the buffer of that name, with whatever its last user left in it.

    A buffer grows to the largest size asked for and is viewed in the shape asked for, so shards of
    unequal length share one. Two arrays alive at the same time must have two names.
    """

    def __init__(self, empty: Callable):
        self._empty = empty
        self._buffers: dict[tuple, Any] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype=None) -> Any:
        """An array of this shape in the buffer of this name."""
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.size < size:
            buffer = self._empty((size,), dtype)
            self._buffers[name, dtype] = buffer
        return buffer[:size].reshape(shape)
