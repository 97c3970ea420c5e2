"""Modular arithmetic as data: the table of any function of (n_1, ..., n_S) mod p, and its split.

Inputs are numbered 0 .. p^S - 1 in lexicographic order, so a table of any size can be walked in
chunks."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..engine.border import integer, integers
from ..engine.errors import InputError

LARGEST_TABLE = 2**24  # tables of p entries; products of residues stay far from 2^63
MOST_TERMS = 64  # axes of an array, and the highest power that is an activation
WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)


class TaskError(InputError):
    """A task that does not exist; the message says why in one line."""


def modulus(p, largest: int = LARGEST_TABLE) -> int:
    """p as a Python integer; TaskError unless it lies between 2 and the largest."""
    try:
        return integer(p, "the modulus", 2, largest)
    except InputError as error:
        raise TaskError(str(error)) from None


def is_prime(n: int) -> bool:
    """Miller and Rabin's test with the first twelve primes: exact below 3.1 10^23.

    Source: Sorenson, Webster, Strong pseudoprimes to twelve prime bases, arXiv 1509.00864."""
    n = integer(n, "n", high=2**64)
    if n < 2 or any(n % b == 0 for b in WITNESSES):
        return n in WITNESSES
    twos = ((n - 1) & (1 - n)).bit_length() - 1  # n - 1 = 2^twos odd
    odd = n >> twos

    def passes(b: int) -> bool:
        powers = [pow(b, odd << i, n) for i in range(twos)]
        return powers[0] == 1 or n - 1 in powers

    return all(passes(b) for b in WITNESSES)


def require_prime(p, why: str) -> int:
    """p as a Python integer; TaskError unless it is prime. `why` names what needs it."""
    p = modulus(p)
    if not is_prime(p):
        raise TaskError(f"{why} needs a prime modulus; {p} is not prime")
    return p


def prime_factors(m: int) -> dict[int, int]:
    """{p: e} with m = prod p^e, the smallest p first; m up to 2^64.

    >>> prime_factors(2352)
    {2: 4, 3: 1, 7: 2}
    """
    exponents: Counter[int] = Counter()
    parts = [integer(m, "m", 1, 2**64)]
    while parts:
        n = parts.pop()
        if is_prime(n):
            exponents[n] += 1
        elif n > 1:
            d = _divisor(n)
            parts += [d, n // d]
    return dict(sorted(exponents.items()))


def _divisor(n: int, c: int = 1) -> int:
    """A divisor of a composite n, not 1 or n: a small prime, or what Pollard's x^2 + c finds."""
    for p in WITNESSES:
        if n % p == 0:
            return p
    slow = fast = 2
    d = 1
    while d == 1:
        slow = (slow * slow + c) % n
        fast = (fast * fast + c) % n
        fast = (fast * fast + c) % n
        d = math.gcd(slow - fast, n)
    return d if d < n else _divisor(n, c + 1)


@dataclass(frozen=True, eq=False)
class Circle:
    """Coordinates in which a task is a sum: answer = h((g_1(n_1) + ... + g_S(n_S)) mod period).

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
        position = np.take_along_axis(self.positions, n, axis=1)
        answer = self.answers[position.sum(axis=0) % self.period]
        if self.zero is None:
            return answer
        off = (position < 0).any(axis=0)
        return np.where(off, self.zero, answer)


def everywhere(n: np.ndarray) -> np.ndarray:
    """(B,) of True: every input (S, B) is defined."""
    return np.ones(n.shape[1], dtype=bool)


@dataclass(frozen=True)
class ModularTask:
    """target(n) mod p for inputs n_1 .. n_S in 0..p-1.

    function   integer array (S, B) -> integer array (B,), reduced mod p here
    defined    (S, B) -> boolean (B,): inputs where the function exists (division: n_2 != 0)
    circle     the coordinates in which the task is a sum on a circle, where they are known

    >>> task = addition(5)
    >>> task.table()[3].tolist()  # 3 + 0, 3 + 1, ... mod 5
    [3, 4, 0, 1, 2]
    >>> train, test = task.split(0.6, np.random.default_rng(0))
    >>> len(train), len(test)
    (15, 10)
    """

    name: str
    p: int
    terms: int
    function: Callable[[np.ndarray], np.ndarray]
    defined: Callable[[np.ndarray], np.ndarray] = everywhere
    circle: Circle | None = None

    def __post_init__(self):
        object.__setattr__(self, "p", modulus(self.p))
        object.__setattr__(self, "terms", integer(self.terms, "terms"))
        if self.terms < 1:
            raise TaskError(f"a task needs at least 1 term, not {self.terms}")

    @property
    def wave_order(self) -> np.ndarray | None:
        """The order of inputs and classes along which neurons that generalise are waves.

        That of the answers around the circle, where each input goes around it in equal steps: for
        sums as they stand (None); for products and quotients, which are sums of discrete
        logarithms, the powers of a primitive root. Raises TaskError where there is no such order.
        """
        if self.circle is not None:
            order = self.circle.answers
            steps = np.diff(self.circle.positions[:, order]) % self.circle.period
            steady = (steps == steps[:, :1]).all()
            if steady and len(np.unique(order)) == len(order):
                return None if np.array_equal(order, np.arange(self.p)) else order
        raise TaskError(f"{self.name}: no order is known along which its neurons are waves")

    @property
    def size(self) -> int:
        """Number of inputs, p^S, defined or not."""
        return self.p**self.terms

    def inputs(self, numbers) -> np.ndarray:
        """Inputs (S, B) with the given numbers in lexicographic order (n_1 is the slowest)."""
        numbers = integers(numbers, "numbers of inputs", 0, self.size - 1)
        return np.stack(np.unravel_index(numbers, (self.p,) * self.terms))

    def labels(self, inputs: np.ndarray) -> np.ndarray:
        """The answers (B,) in 0..p-1 for inputs (S, B); those that are not defined mean nothing."""
        n = integers(inputs, f"inputs of {self.name}", 0, self.p - 1)
        if len(n) != self.terms:
            raise TaskError(f"{self.name} reads inputs ({self.terms}, B), not {n.shape}")
        return integers(self.function(n), f"answers of {self.name}") % self.p

    def table(self) -> np.ndarray:
        """The whole table, shape (p,) * S; -1 where the function is not defined."""
        n = self.inputs(np.arange(self.size))
        answers = np.where(self.defined(n), self.labels(n), -1)
        return answers.reshape((self.p,) * self.terms)

    def split(self, fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the training and of the test inputs: int(fraction size) of them train.

        Both in random order. Source: d-doshi/Grokking (int(alpha p^2) of one random order). Raises
        TaskError when either part is empty."""
        if not 0 < fraction < 1:
            raise TaskError(
                f"the training fraction must lie strictly between 0 and 1, not {fraction}"
            )
        everything = self.inputs(np.arange(self.size))
        order = rng.permutation(np.flatnonzero(self.defined(everything)))
        count = int(fraction * len(order))
        if count in (0, len(order)):
            share = f"{count} of {len(order)} inputs"
            raise TaskError(f"a training fraction of {fraction} leaves {share} to train on")
        return order[:count], order[count:]


# -- sums and products -----------------------------------------------------------------------------


def separable(p: int, tables, h: np.ndarray | None = None) -> ModularTask:
    """h(g_1(n_1) + ... + g_S(n_S)) mod p for any functions, as tables g (S, p) and h (p,).

    h is the identity by default."""
    p = modulus(p)
    answers = np.arange(p) if h is None else integers(h, "the table h") % p
    circle = Circle(p, integers(tables, "the tables g") % p, answers)
    return ModularTask("separable", p, len(circle.positions), circle.answer, circle=circle)


def _one_a_term(given: Sequence[int] | None, terms: int | None, what: str) -> Sequence[int]:
    """The coefficients or exponents, all 1 unless given, of two terms unless more are wanted.

    Raises TaskError where as many are given as there are no terms."""
    if given is None:
        return (1,) * (2 if terms is None else integer(terms, "terms", 1, MOST_TERMS))
    if terms not in (None, len(given)):
        raise TaskError(f"{terms} terms do not fit {len(given)} {what}")
    return given


def addition(
    p: int, coefficients: Sequence[int] | None = None, terms: int | None = None
) -> ModularTask:
    """(c_1 n_1 + ... + c_S n_S) mod p, every c_s != 0 mod p; S = terms, or 2, and all c_s = 1
    unless coefficients are given.

    >>> int(addition(7).table()[5, 4])
    2
    >>> addition(7, (1, 2, 3)).labels(np.array([[1], [1], [1]]))
    array([6])
    >>> addition(11, terms=4).size
    14641
    """
    p = modulus(p)
    coefficients = _one_a_term(coefficients, terms, "coefficients")
    c = integers(coefficients, "coefficients", -math.inf, math.inf) % p
    if (c == 0).any():
        raise TaskError(f"{coefficients} has a 0 mod {p}: that input would not matter")
    return replace(separable(p, np.outer(c, np.arange(p))), name="addition")


def subtraction(p: int) -> ModularTask:
    """(n_1 - n_2) mod p

    >>> int(subtraction(7).table()[2, 5])
    4
    """
    n = np.arange(modulus(p))
    return replace(separable(p, [n, -n]), name="subtraction")


def product(p: int, tables, h: np.ndarray | None = None) -> ModularTask:
    """h(g_1(n_1) g_2(n_2) ...) mod p for any functions, as tables g (S, p) and h (p,), p prime.

    On the nonzero values a product is a sum of discrete logarithms mod p - 1."""
    p = require_prime(p, "multiplication")
    h = np.arange(p) if h is None else integers(h, "the table h") % p
    log = discrete_log(p)
    powers_of_root = np.argsort(log)[1:]  # 1, g, g^2, ...; log 0 = -1 comes first
    circle = Circle(
        p - 1, log[integers(tables, "the tables g") % p], h[powers_of_root], zero=int(h[0])
    )
    return ModularTask("product", p, len(circle.positions), circle.answer, circle=circle)


def multiplication(
    p: int, exponents: Sequence[int] | None = None, terms: int | None = None
) -> ModularTask:
    """n_1^a_1 ... n_S^a_S mod p, exponents >= 1; S = terms, or 2, and all a_s = 1 unless exponents
    are given.

    Raises TaskError unless p is prime (Z_p^* must be cyclic).

    >>> int(multiplication(7).table()[3, 5])
    1
    """
    exponents = _one_a_term(exponents, terms, "exponents")
    if min(exponents) < 1:
        raise TaskError(f"exponents must be at least 1, not {min(exponents)}")
    return replace(product(p, [powers(p, a) for a in exponents]), name="multiplication")


def division(p: int) -> ModularTask:
    """n_1 / n_2 mod p for n_2 != 0. Raises TaskError unless p is prime.

    >>> division(7).table()[1].tolist()  # 1/0 is not defined, 1/2 = 4 mod 7
    [-1, 1, 4, 5, 2, 3, 6]
    """
    p = require_prime(p, "division")
    task = product(p, [np.arange(p), inverses(p)])
    return replace(task, name="division", defined=lambda n: n[1] != 0)


# -- tables of number theory -----------------------------------------------------------------------


def all_pairs(p: int) -> np.ndarray:
    """(p^2, 2): pair number x p + y is (x, y)."""
    p = modulus(p)
    return np.stack(np.divmod(np.arange(p * p), p), axis=1)


def pair_numbers(pairs: np.ndarray, p: int) -> np.ndarray:
    """(n,) the numbers x p + y of pairs (n, 2)."""
    p = modulus(p)
    return integers(pairs, "pairs", 0, p - 1) @ np.array([p, 1])


def powers(p: int, exponent: int) -> np.ndarray:
    """(p,) n^exponent mod p for n = 0..p-1; 0^0 = 1."""
    p = modulus(p)
    exponent = integer(exponent, "exponents", 0, math.inf)
    return np.array([pow(n, exponent, p) for n in range(p)])


def inverses(p: int) -> np.ndarray:
    """(p,) n^-1 mod p for n = 0..p-1 and prime p; 0 for n = 0."""
    p = require_prime(p, "the table of inverses")
    return np.array([0] + [pow(n, -1, p) for n in range(1, p)])


def directions(p: int) -> np.ndarray:
    """(p^2,) the line through 0 that holds a pair (x, y): y/x mod p, p for x = 0, -1 for (0, 0)."""
    p = modulus(p)
    x, y = all_pairs(p).T
    slope = y * inverses(p)[x] % p
    on_axis = np.where(y > 0, p, -1)
    return np.where(x > 0, slope, on_axis)


def primitive_root(p: int) -> int:
    """The smallest g whose powers run through 1..p-1, p prime.

    That is g^((p-1)/r) != 1 mod p for every prime r that divides p - 1."""
    p = require_prime(p, "a primitive root")

    def generates(g: int) -> bool:
        return all(pow(g, (p - 1) // r, p) != 1 for r in prime_factors(p - 1))

    return next(g for g in range(1, p) if generates(g))


def discrete_log(p: int) -> np.ndarray:
    """log (p,): g^log[x] = x mod p for x = 1..p-1, g the smallest primitive root; log[0] = -1."""
    p = require_prime(p, "the discrete logarithm")
    g = primitive_root(p)
    log = np.full(p, -1)
    x = 1
    for t in range(p - 1):
        log[x] = t
        x = x * g % p
    return log


# -- polynomials -----------------------------------------------------------------------------------


def polynomial(p: int, monomials: dict[tuple, int], name="polynomial") -> ModularTask:
    """sum of c n_1^a_1 n_2^a_2 ... mod p for {(a_1, a_2, ...): c}; 0^0 = 1.

    >>> task = polynomial(7, {(2, 0): 1, (0, 1): 3})  # n_1^2 + 3 n_2
    >>> int(task.table()[2, 1])
    0
    """
    lengths = {len(exponents) for exponents in monomials}
    negative = any(min(exponents, default=0) < 0 for exponents in monomials)
    if len(lengths) != 1 or negative:
        raise TaskError(
            "a polynomial needs monomials {(a_1, ..., a_S): c} with one exponent >= 0 per variable"
        )
    p = modulus(p)
    terms = []
    for exponents, c in monomials.items():
        coefficient = integer(c, "coefficients", -math.inf, math.inf) % p
        terms.append((coefficient, [powers(p, a) for a in exponents]))

    def evaluate(n: np.ndarray) -> np.ndarray:
        total = np.zeros_like(n[0])
        for coefficient, factors in terms:
            value = coefficient
            for x, factor in zip(n, factors, strict=True):
                value = value * factor[x] % p
            total += value
        return total

    return ModularTask(name, p, lengths.pop(), evaluate)
