"""Attention maps of sequences x1 y1 z1 x2 y2 z2 ...: by relative offset, and by type of token."""

import numpy as np

from ..engine.errors import InputError

FIRST = 21  # queries before it have too short a past


def _by_query(values: np.ndarray, first: int) -> np.ndarray:
    """Means of values (..., T, n) over the query tokens t >= first of each type: (..., 3, n).

    Types x, y, z: t mod 3 = 0, 1, 2."""
    T = values.shape[-2]
    if not 0 <= first <= T - 3:
        raise InputError(f"first must be at least 0 and at most {T - 3}, not {first}")
    late = values[..., first:, :]
    kind = np.arange(first, T) % 3
    means = [late[..., kind == k, :].mean(axis=-2) for k in range(3)]
    return np.stack(means, axis=-2)


def by_offset(pattern: np.ndarray, offsets: int = 7, first: int = FIRST) -> np.ndarray:
    """Mean of A[t, t - o] over the query tokens t >= first of each type, o = 0..offsets-1.

    pattern A (..., T, T), rows of queries -> (..., 3, offsets), types x, y, z; an offset before the
    first token counts as 0."""
    t = np.arange(pattern.shape[-1])[:, None]
    o = np.arange(offsets)
    keys = np.maximum(t - o, 0)
    keys = np.broadcast_to(keys, (*pattern.shape[:-1], offsets))
    masses = np.take_along_axis(pattern, keys, axis=-1)
    return _by_query(np.where(t >= o, masses, 0), first)


def by_type(pattern: np.ndarray, first: int = FIRST) -> dict[str, np.ndarray]:
    """Mean attention mass of the query tokens t >= first of each type x, y, z on groups of keys.

    sink (..., 3, 2)           tokens 0 and 1
    x, y, z (..., 3, 1)        later tokens of a type
    own, previous (..., 3, 1)  tokens of the query's triple up to itself, and of the triple before
    pattern (..., T, T); the second last axis is the query's type. The sink ("no match") is kept out
    of x and y; x + y + z + sink = 1.
    """
    token = np.arange(pattern.shape[-1])
    triple, kind = np.divmod(token, 3)
    triples_back = triple[:, None] - triple
    groups = {
        "x": (kind == 0) & (token > 1),
        "y": (kind == 1) & (token > 1),
        "z": kind == 2,
        "own": triples_back == 0,
        "previous": triples_back == 1,
    }
    masses = {"sink": _by_query(pattern[..., :2], first)}
    for name, keys in groups.items():
        mass = np.where(keys, pattern, 0).sum(axis=-1, keepdims=True)
        masses[name] = _by_query(mass, first)
    return masses
