"""Modular arithmetic as data: the table of any function of (n_1, ..., n_S) mod p, and its split
into train and test.

Inputs are numbered 0 .. p^S - 1 in lexicographic order, so a table of any size can be walked in
chunks."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..engine.errors import InputError


class TaskError(InputError):
    """A task that does not exist; the message says why in one line."""


def is_prime(n: int) -> bool:
    """Trial division: exact, and quick for every modulus whose table fits in memory."""
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


def require_prime(p: int, why: str) -> None:
    if not is_prime(p):
        raise TaskError(f"{why} needs a prime modulus; {p} is not prime")


@dataclass(frozen=True, eq=False)
class Circle:
    """Coordinates in which a task is a sum on a circle: answer = h((g_1(n_1) + ... + g_S(n_S)) mod
    period).

    positions   (S, p): g_s(n) in 0..period-1, or -1 where n is not on the circle (a zero factor)
    answers     (period,): h(t), the answer at position t
    zero        the answer when any input is off the circle; None where none is
    """

    period: int
    positions: np.ndarray
    answers: np.ndarray
    zero: int | None = None

    def answer(self, n: np.ndarray) -> np.ndarray:
        """The answers (B,) to inputs n (S, B)."""
        at = np.take_along_axis(self.positions, n, axis=1)
        around = self.answers[at.sum(axis=0) % self.period]
        return around if self.zero is None else np.where((at < 0).any(axis=0), self.zero, around)


def everywhere(n: np.ndarray) -> np.ndarray:
    """(B,) of True: every input (S, B) is defined."""
    return np.ones(n.shape[1], dtype=bool)


@dataclass(frozen=True)
class ModularTask:
    """target(n) mod p for inputs n_1 .. n_S in 0..p-1.

    function   integer array (S, B) -> integer array (B,), reduced mod p here
    defined    (S, B) -> boolean (B,): inputs where the function exists (division: n_2 != 0)
    circle     the coordinates in which the task is a sum on a circle, where they are known
    """

    name: str
    p: int
    terms: int
    function: Callable[[np.ndarray], np.ndarray]
    defined: Callable[[np.ndarray], np.ndarray] = everywhere
    circle: Circle | None = None

    def __post_init__(self):
        if self.p < 2:
            raise TaskError(f"the modulus must be at least 2, not {self.p}")
        if self.terms < 1:
            raise TaskError(f"a task needs at least 1 term, not {self.terms}")

    @property
    def wave_order(self) -> np.ndarray | None:
        """The order of inputs and classes along which neurons that generalise are waves: as they
        stand (None) for sums, powers of a primitive root for products and quotients, which are sums
        of discrete logarithms. Raises TaskError where no such order is known."""
        if self.circle is None:
            raise TaskError(f"{self.name}: no order is known along which its neurons are waves")
        return None if self.circle.period == self.p else self.circle.answers

    @property
    def size(self) -> int:
        """Number of inputs, p^S, defined or not."""
        return self.p**self.terms

    def inputs(self, numbers) -> np.ndarray:
        """Inputs (S, B) with the given numbers in lexicographic order (n_1 is the slowest)."""
        return np.stack(np.unravel_index(np.asarray(numbers), (self.p,) * self.terms))

    def labels(self, inputs: np.ndarray) -> np.ndarray:
        """The answers (B,) in 0..p-1 for inputs (S, B)."""
        return self.function(inputs) % self.p

    def table(self) -> np.ndarray:
        """The whole table, shape (p,) * S; -1 where the function is not defined."""
        n = self.inputs(np.arange(self.size))
        return np.where(self.defined(n), self.labels(n), -1).reshape((self.p,) * self.terms)

    def split(self, fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the training and of the test inputs, in random order: the first int(fraction
        size) train.

        Source: d-doshi/Grokking (int(alpha p^2) of one random order). Raises TaskError when either
        part is empty."""
        if not 0 < fraction < 1:
            raise TaskError(
                f"the training fraction must lie strictly between 0 and 1, not {fraction}"
            )
        order = rng.permutation(np.flatnonzero(self.defined(self.inputs(np.arange(self.size)))))
        count = int(fraction * len(order))
        if count in (0, len(order)):
            raise TaskError(
                f"a training fraction of {fraction} leaves {count} of {len(order)} inputs to train on"
            )
        return order[:count], order[count:]


def addition(p: int, coefficients: tuple[int, ...] = (1, 1)) -> ModularTask:
    """(c_1 n_1 + ... + c_S n_S) mod p, every c_s != 0 mod p."""
    if p < 2:
        raise TaskError(f"the modulus must be at least 2, not {p}")
    for c in coefficients:
        if c % p == 0:
            raise TaskError(f"coefficient {c} is 0 mod {p}: that input would not matter")
    return replace(
        separable(p, [[c * n % p for n in range(p)] for c in coefficients]), name="addition"
    )


def separable(p: int, tables, h: np.ndarray | None = None) -> ModularTask:
    """h(g_1(n_1) + ... + g_S(n_S)) mod p for any functions given as tables: g (S, p), h (p,), the
    identity by default."""
    circle = Circle(p, np.asarray(tables) % p, np.arange(p) if h is None else np.asarray(h) % p)
    return ModularTask("separable", p, len(circle.positions), circle.answer, circle=circle)


def product(p: int, tables, h: np.ndarray | None = None) -> ModularTask:
    """h(g_1(n_1) g_2(n_2) ...) mod p, g (S, p) and h (p,): on the nonzero values a sum of discrete
    logarithms mod p - 1."""
    require_prime(p, "multiplication")
    log, h = discrete_log(p), np.arange(p) if h is None else np.asarray(h) % p
    circle = Circle(p - 1, log[np.asarray(tables) % p], h[np.argsort(log)[1:]], int(h[0]))
    return ModularTask("product", p, len(circle.positions), circle.answer, circle=circle)


def primitive_root(p: int) -> int:
    """The smallest g whose powers run through 1..p-1: g^((p-1)/r) != 1 mod p for every prime r that
    divides p - 1."""
    factors = [r for r in range(2, p) if (p - 1) % r == 0 and is_prime(r)]
    return next(g for g in range(1, p) if all(pow(g, (p - 1) // r, p) != 1 for r in factors))


def discrete_log(p: int) -> np.ndarray:
    """lg (p,) with g^lg[x] = x mod p for the smallest primitive root g and x in 1..p-1; lg[0] =
    -1."""
    g, log, x = primitive_root(p), np.full(p, -1), 1
    for t in range(p - 1):
        log[x], x = t, x * g % p
    return log


def subtraction(p: int) -> ModularTask:
    """(n_1 - n_2) mod p"""
    n = np.arange(p)
    return replace(separable(p, [n, -n]), name="subtraction")


def powers(p: int, exponent: int) -> np.ndarray:
    """(p,) n^exponent mod p for n = 0..p-1; 0^0 = 1."""
    return np.array([pow(n, exponent, p) for n in range(p)])


def multiplication(p: int, exponents: tuple[int, ...] = (1, 1)) -> ModularTask:
    """n_1^a_1 n_2^a_2 ... mod p, exponents >= 1. Raises TaskError unless p is prime (Z_p^* must be
    cyclic)."""
    if min(exponents) < 1:
        raise TaskError(f"exponents must be at least 1, not {min(exponents)}")
    return replace(product(p, [powers(p, a) for a in exponents]), name="multiplication")


def division(p: int) -> ModularTask:
    """n_1 / n_2 mod p = n_1 n_2^(p-2) for n_2 != 0 (Fermat). Raises TaskError unless p is prime."""
    require_prime(p, "division")
    task = product(p, [powers(p, 1), powers(p, p - 2)])
    return replace(task, name="division", defined=lambda n: n[1] != 0)


def polynomial(
    p: int, monomials: dict[tuple[int, ...], int], name: str = "polynomial"
) -> ModularTask:
    """sum of c n_1^a_1 n_2^a_2 ... mod p for {(a_1, a_2, ...): c}; 0^0 = 1."""
    if not monomials or len({len(a) for a in monomials}) != 1 or min(min(a) for a in monomials) < 0:
        raise TaskError(
            "a polynomial needs monomials {(a_1, ..., a_S): c} with one exponent >= 0 per variable"
        )

    tables = [(c % p, [powers(p, a) for a in exponents]) for exponents, c in monomials.items()]

    def evaluate(n):
        total = np.zeros_like(n[0])
        for term, factors in tables:
            for x, factor in zip(n, factors, strict=True):
                term = term * factor[x] % p
            total += term
        return total

    return ModularTask(name, p, len(next(iter(monomials))), evaluate)


TASKS: dict[str, Callable[[int], ModularTask]] = {
    "addition": addition,
    "subtraction": subtraction,
    "multiplication": multiplication,
    "division": division,
}
