"""Named preallocated buffers: a training step asks for the same ones every time and allocates
nothing."""

import math
from collections.abc import Callable
from typing import Any


class Workspace:
    """get(name, shape) returns a buffer that belongs to the name; its contents are whatever the
    last user left.

    A buffer grows to the largest size asked for and is viewed in the shape asked for, so shards of
    unequal length share one. Two arrays alive at the same time must have two names.
    """

    def __init__(self, empty: Callable):
        self._empty = empty
        self._buffers: dict[tuple, Any] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype=None) -> Any:
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name, dtype] = self._empty((size,), dtype)
        return buffer[:size].reshape(shape)
