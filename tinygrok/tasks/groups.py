"""Finite groups as data: the answer to (a, b) is the element a b, elements numbered 0 .. p - 1.

Source: Power et al., Grokking, arXiv 2201.02177 (S_5, the 120 permutations of five things)."""

import itertools
import math

import numpy as np

from .modular import ModularTask, TaskError, modulus

DEGREES = {math.factorial(k): k for k in range(3, 7)}  # {p: k} with p = k!


def composition(p: int) -> ModularTask:
    """Composition in the symmetric group S_k, p = k! elements: (a b)(i) = a(b(i)).

    Number n is the n-th permutation of 0 .. k-1 in lexicographic order, the identity is 0. Raises
    TaskError unless p is 6, 24, 120 or 720 (k = 3 .. 6).

    >>> task = composition(6)
    >>> task.labels(np.array([[1], [2]]))  # (0 2 1)(1 0 2) = (2 0 1), number 4 of 6
    array([4])
    """
    if p not in DEGREES:
        sizes = ", ".join(map(str, DEGREES))
        raise TaskError(f"composition needs the number of permutations as p: {sizes}, not {p}")
    k = DEGREES[p]
    permutations = np.array(list(itertools.permutations(range(k))))  # (p, k)
    place = k ** np.arange(k)[::-1]
    codes = permutations @ place  # as digits in base k: ascending, like the permutations

    def compose(n: np.ndarray) -> np.ndarray:
        a = permutations[n[0]]
        b = permutations[n[1]]
        return np.searchsorted(codes, np.take_along_axis(a, b, axis=1) @ place)

    return ModularTask("composition", p, 2, compose)


def dihedral(p: int) -> ModularTask:
    """Composition of the p = 2 m symmetries of a regular polygon with m corners.

    Number r + m s sends corner v to r + (-1)^s v mod m: a rotation (s = 0) or a reflection (s = 1).
    (r, s)(r', s') = (r + (-1)^s r', s + s' mod 2); the identity is 0. Raises TaskError unless p is
    even and at least 6 (below, the group is commutative).

    >>> task = dihedral(8)
    >>> task.labels(np.array([[1, 4], [4, 1]]))  # turn after mirror, mirror after turn
    array([5, 7])
    """
    p = modulus(p)
    if p < 6 or p % 2:
        raise TaskError(f"a dihedral group needs an even p of at least 6, not {p}")
    m = p // 2

    def compose(n: np.ndarray) -> np.ndarray:
        mirrored, rotation = np.divmod(n, m)
        sign = 1 - 2 * mirrored[0]
        return (rotation[0] + sign * rotation[1]) % m + m * (mirrored[0] ^ mirrored[1])

    return ModularTask("dihedral", p, 2, compose)
