"""Attention maps of sequences x1 y1 z1 x2 y2 z2 ...: by relative offset, and by type of token."""

import numpy as np

from ..engine.errors import InputError

FIRST = 21  # queries before it have too short a past


def _queries(pattern: np.ndarray, values: np.ndarray, first: int) -> np.ndarray:
    """Mean of values (..., T, n) over the query tokens t >= first with t mod 3 = 0, 1, 2 -> (...,
    3, n)."""
    T = pattern.shape[-1]
    if not 0 <= first <= T - 3:
        raise InputError(f"first must be at least 0 and at most {T - 3}, not {first}")
    kinds = np.arange(first, T) % 3
    return np.stack(
        [values[..., first:, :][..., kinds == kind, :].mean(axis=-2) for kind in range(3)], axis=-2
    )


def by_offset(pattern: np.ndarray, offsets: int = 7, first: int = FIRST) -> np.ndarray:
    """Mean of A[t, t - o] over the query tokens t >= first of each type x, y, z, for o =
    0..offsets-1.

    pattern (..., T, T), rows of queries -> (..., 3, offsets); an offset before the first token
    counts as 0."""
    T = pattern.shape[-1]
    t, o = np.arange(T)[:, None], np.arange(offsets)
    values = np.where(
        t >= o,
        np.take_along_axis(
            pattern, np.broadcast_to(np.maximum(t - o, 0), (*pattern.shape[:-1], offsets)), -1
        ),
        0,
    )
    return _queries(pattern, values, first)


def by_type(pattern: np.ndarray, first: int = FIRST) -> dict[str, np.ndarray]:
    """Mean attention mass of the query tokens t >= first of each type x, y, z (second last axis) on
    groups of keys:

    sink (..., 3, 2)  tokens 0 and 1        x, y, z (..., 3, 1)  later tokens of a type
    own, previous (..., 3, 1)  tokens of the query's triple up to itself, and of the triple before
    pattern (..., T, T). The sink ("no match") is kept out of x and y; x + y + z + sink = 1.
    """
    triple, kind = np.divmod(np.arange(pattern.shape[-1]), 3)
    groups = {
        name: np.broadcast_to((kind == i) & (np.arange(len(kind)) > 1), pattern.shape[-2:])
        for i, name in enumerate("xyz")
    }
    groups |= {
        name: triple[:, None] - triple == back for back, name in enumerate(("own", "previous"))
    }
    masses = {
        name: np.where(keys, pattern, 0).sum(axis=-1, keepdims=True)
        for name, keys in groups.items()
    }
    return {
        name: _queries(pattern, mass, first)
        for name, mass in ({"sink": pattern[..., :2]} | masses).items()
    }
