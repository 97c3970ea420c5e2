"""Shares of several kinds of training rows, which move over training."""

from collections.abc import Mapping

import numpy as np

from tinygrok.tasks.modular import TaskError

Shares = Mapping[str, float]


def moved(step: float, start: int, end: int) -> float:
    """How far a step is on the way from one step to another: from 0 to 1, linear in between."""
    return min(max((step - start) / (end - start), 0.0), 1.0)


class MovingShares:
    """Called with a step: (names,) shares of the kinds `names`, which sum to 1.

    start, end   up to step ramp[0], and from step ramp[1] on; linear in between. What they do not
                 name has no share
    used         the kinds that ever have one

    Raises TaskError for other kinds, for shares that do not sum to 1, and for an empty ramp.

    >>> shares = MovingShares(("easy", "hard"), {"easy": 1.0}, {"hard": 1.0}, (100, 200))
    >>> shares(125).tolist()
    [0.75, 0.25]
    """

    def __init__(self, names: tuple[str, ...], start: Shares, end: Shares, ramp: tuple[int, int]):
        first, last = ramp
        if first >= last:
            raise TaskError(f"shares move from a step to a later one, not from {first} to {last}")
        for shares in (start, end):
            whole = abs(sum(shares.values()) - 1) < 1e-12 and min(shares.values()) >= 0
            if set(shares) - set(names) or not whole:
                raise TaskError(f"{dict(shares)}: shares of {', '.join(names)} that sum to 1")
        self.ramp = ramp
        self.start = np.array([start.get(name, 0.0) for name in names])
        self.end = np.array([end.get(name, 0.0) for name in names])
        self.used = [name for name in names if start.get(name) or end.get(name)]

    def __call__(self, step: float) -> np.ndarray:
        return self.start + moved(step, *self.ramp) * (self.end - self.start)
