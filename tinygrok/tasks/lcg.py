"""Linear congruential generators x_{t+1} = (a x_t + c) mod m: sequences, data sets, and the
classical ways to predict them.

Source: Tao, Doshi, Kalra, He, Barkeshli, (How) can transformers predict pseudo-random numbers?,
arXiv 2502.10390, and the authors' code (four experiments: fixed or unseen modulus, one token a
number or base-b digits)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .modular import TaskError

LARGEST = (
    2**32
)  # a x + c <= m (m - 1) fits 64 bits; beyond it only powers of two, where wrapping around is exact
PAPER_TEST_MODULI = (2048, 1521, 1800, 1936, 2178, 2312, 2352)

# -- generators ------------------------------------------------------------------------------------


def check_modulus(m: int) -> int:
    if m < 2 or (m > LARGEST and (m & (m - 1) or m > 2**62)):
        raise TaskError(
            f"the modulus must lie between 2 and 2^32, or be a power of two up to 2^62, not {m}"
        )
    return m


def generate(m, a, c, x0, length: int) -> np.ndarray:
    """x_0, x_1, ..., x_{length-1}: integers that broadcast to (n,) -> int64 (n, length), exact.

    By doubling: x_{t+r} = a_r x_t + c_r with a_{2r} = a_r^2, c_{2r} = a_r c_r + c_r (all mod m),
    a_1 = a, c_1 = c."""
    m, a, c, x0 = np.broadcast_arrays(
        *(np.asarray(v, dtype=np.uint64)[..., None] for v in (m, a, c, x0))
    )
    a, c = a % m, c % m
    x = np.empty((*x0.shape[:-1], length), dtype=np.uint64)
    x[..., :1] = x0 % m
    r = 1
    while r < length:
        k = min(r, length - r)
        x[..., r : r + k] = (a * x[..., :k] + c) % m
        a, c, r = a * a % m, (a * c + c) % m, 2 * r
    return x.astype(np.int64)


def prime_factors(m: int) -> dict[int, int]:
    """{p: e} with m = prod p^e."""
    factors, p = {}, 2
    while p * p <= m:
        while m % p == 0:
            factors[p], m = factors.get(p, 0) + 1, m // p
        p += 1 if p == 2 else 2
    return factors | ({m: factors.get(m, 0) + 1} if m > 1 else {})


def hull_dobell_step(m: int) -> int:
    """lambda(m): the product of the distinct primes of m, twice that if 4 | m. With gcd(c, m) = 1
    every seed has the full period m exactly when lambda(m) divides a - 1 (Hull and Dobell 1962)."""
    return math.prod(prime_factors(check_modulus(m))) * (2 if m % 4 == 0 else 1)


def multipliers(m: int) -> range:
    """A(m) = {k lambda + 1: k = 1, ..., floor(m/lambda) - 1}: the authors' candidates of full
    period.

    Raises TaskError where it is empty: for square-free m (primes too) and for 4 times an odd
    square-free number."""
    step = hull_dobell_step(m)
    if m // step < 2:
        raise TaskError(
            f"mod {m} no multiplier but a = 1 has the full period (Hull-Dobell): choose a power of 2, for instance"
        )
    return range(step + 1, (m // step - 1) * step + 2, step)


def draw_multipliers(
    m: int, count: int, rng: np.random.Generator, replace: bool = False
) -> np.ndarray:
    """`count` elements of A(m), distinct unless replace."""
    candidates = multipliers(m)
    if count > len(candidates) and not replace:
        raise TaskError(
            f"mod {m} there are {len(candidates)} multipliers of full period, fewer than {count}"
        )
    return candidates.start + candidates.step * rng.choice(len(candidates), count, replace=replace)


def increments(m: int) -> np.ndarray:
    """C(m) = {3 <= c < m: gcd(c, m) = 1}, the authors' candidates."""
    candidates = np.arange(3, check_modulus(m))
    return candidates[np.gcd(candidates, m) == 1]


def draw_increments(
    m: int, count: int, rng: np.random.Generator, replace: bool = False
) -> np.ndarray:
    """`count` elements of C(m), distinct unless replace."""
    if m <= 2**20:
        candidates = increments(m)
        if len(candidates) < (1 if replace else count):
            raise TaskError(
                f"mod {m} there are {len(candidates)} increments that are prime to it, fewer than {count}"
            )
        return rng.choice(candidates, count, replace=replace)
    found: dict[int, None] = {}  # in the order of drawing, without repeats
    while len(found) < count:
        c = rng.integers(3, m, count)
        found |= dict.fromkeys(c[np.gcd(c, m) == 1].tolist())
    return np.array(list(found)[:count])


# -- numbers as tokens -----------------------------------------------------------------------------


def to_digits(x: np.ndarray, base: int, count: int) -> np.ndarray:
    """Base-b digits (..., count) of integers (...), the lowest first."""
    return x[..., None] // base ** np.arange(count) % base


def from_digits(digits: np.ndarray, base: int) -> np.ndarray:
    """The integers (...) with digits (..., count), the lowest first."""
    return (digits * base ** np.arange(digits.shape[-1])).sum(axis=-1)


# -- data sets -------------------------------------------------------------------------------------


@dataclass
class LcgData:
    """A stream of training sequences, and test sequences whose modulus, or whose a and c, the
    stream never uses.

    moduli (M,);  a, c (M, n) or (1, n): multipliers and increments to train on, of each modulus or of all
    tests    {name: (m, a, c)}: the modulus and every pair (n,), (n,) to be tested
    length   numbers in a sequence;  first: the number of the first one (x_0 is uniform below m)
    base     None: a token is a number; else numbers are `digits` tokens, lowest digit first
    """

    moduli: np.ndarray
    a: np.ndarray
    c: np.ndarray
    tests: dict[str, tuple[int, np.ndarray, np.ndarray]]
    length: int
    vocab: int
    first: int = 0
    base: int | None = None
    digits: int = 1

    @property
    def positions(self) -> np.ndarray:
        """Input positions that carry loss: all of them."""
        return np.arange(self.length * self.digits - 1)

    def _numbers(self, m, a, c, rng: np.random.Generator) -> np.ndarray:
        return generate(m, a, c, rng.integers(0, m), self.length + self.first)[:, self.first :]

    def batch(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        """A training batch of tokens (rows, length digits): modulus, multiplier, increment and seed
        uniform."""
        i = rng.integers(len(self.moduli), size=rows)
        pick = lambda pool: pool[i if len(pool) > 1 else 0, rng.integers(pool.shape[1], size=rows)]  # noqa: E731
        return self.tokens(self._numbers(self.moduli[i], pick(self.a), pick(self.c), rng))

    def test(self, name: str, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(numbers (rows, length), multipliers (rows,)) of a test set: pairs at random, without
        repeats while they last."""
        m, a, c = self.tests[name]
        order = np.concatenate([rng.permutation(len(a)) for _ in range(-(-rows // len(a)))])[:rows]
        return self._numbers(np.full(rows, m), a[order], c[order], rng), a[order]

    def sets(self, rng: np.random.Generator, rows: int = 512) -> dict[str, np.ndarray]:
        """Sequences to be measured: "train", of the training stream, and every test set by name."""
        tests = {}
        for name in self.tests:
            numbers, _ = self.test(name, rows, rng)
            tests[name] = self.tokens(numbers)
        return {"train": self.batch(rows, rng), **tests}

    def tokens(self, x: np.ndarray) -> np.ndarray:
        """Numbers (B, length) -> tokens (B, length digits)."""
        return x if self.base is None else to_digits(x, self.base, self.digits).reshape(len(x), -1)

    def numbers(self, tokens: np.ndarray) -> np.ndarray:
        """The inverse of `tokens`; also of tokens 1, 2, ... or their predictions: numbers that lack
        digits are dropped."""
        whole = tokens[:, tokens.shape[1] % self.digits :]
        return (
            whole
            if self.base is None
            else from_digits(whole.reshape(len(whole), -1, self.digits), self.base)
        )


def _grid(m: int, a: np.ndarray, c: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """All pairs of multipliers and increments."""
    return m, np.repeat(a, len(c)), np.tile(c, len(a))


def fixed_modulus(m: int, length: int, rng: np.random.Generator, draws: int = 64) -> LcgData:
    """One modulus, a token a number: a and c of full period in the tests (`draws` of each, with
    replacement, all pairs); every other a and c below m in training, most of them of short
    period."""
    a, c = draw_multipliers(m, draws, rng, True), draw_increments(m, draws, rng, True)
    everything = np.arange(1, m)
    pools = (np.setdiff1d(everything, used)[None] for used in (a, c))
    return LcgData(np.array([m]), *pools, {str(m): _grid(m, a, c)}, length, m)


def unseen_modulus(
    m: int,
    length: int,
    rng: np.random.Generator,
    train_moduli: int = 128,
    pool: int = 128,
    draws: int = 64,
    held_out=None,
) -> LcgData:
    """Many moduli around m, a token a number; tests on m and on other moduli that training never
    sees.

    Candidates are the integers from length to floor(1.2 m), the vocabulary; held_out: test moduli
    besides m (default: the paper's six for m = 2048, else the four with most multipliers). All
    moduli share `pool` multipliers and increments, which need not be below the modulus, and exclude
    `draws` test values of each for m. (The authors' period filter keeps all but a few sequences and
    is left out.)"""
    vocab = int(1.2 * m)
    candidates = np.arange(length, vocab + 1)
    if held_out is None:
        held_out = PAPER_TEST_MODULI[1:]
        if m != PAPER_TEST_MODULI[0]:
            choices = candidates[candidates != m]
            held_out = choices[
                np.argsort([hull_dobell_step(int(q)) / q for q in choices], kind="stable")[:4]
            ]
    held_out = [q for q in held_out if q != m]
    if not set(held_out) <= set(range(2, vocab + 1)):
        raise TaskError(
            f"test moduli must lie between 2 and {vocab}, the vocabulary of a network for moduli around {m}"
        )
    moduli = np.setdiff1d(candidates, [m, *held_out])
    if len(moduli) < train_moduli:
        raise TaskError(
            f"{train_moduli} training moduli were asked for, but from {length} to {vocab} there are {len(moduli)}"
        )
    tests = {
        str(m): _grid(
            m, draw_multipliers(m, draws, rng, True), draw_increments(m, draws, rng, True)
        )
    }
    pools = [np.setdiff1d(np.arange(1, vocab), tests[str(m)][i]) for i in (1, 2)]
    if min(map(len, pools)) < pool:
        raise TaskError(
            f"{pool} multipliers and increments were asked for, but {min(map(len, pools))} are left beside the tests"
        )
    a, c = (rng.choice(values, pool, replace=False)[None] for values in pools)
    for q in map(int, held_out):  # all multipliers, 16 increments
        tests[str(q)] = _grid(q, np.array(multipliers(q)), draw_increments(q, 16, rng, True))
    return LcgData(rng.choice(moduli, train_moduli, replace=False), a, c, tests, length, vocab)


def fixed_modulus_digits(
    m: int,
    length: int,
    base: int,
    digits: int,
    rng: np.random.Generator,
    pool: int = 1024,
    draws: int = 64,
) -> LcgData:
    """One modulus up to base^digits, numbers cut in digits; `pool` multipliers and increments of
    full period in training, `draws` others of each in the tests, all pairs. Sequences start at
    x_1."""
    if m > base**digits:
        raise TaskError(
            f"{digits} digits in base {base} hold numbers below {base**digits}, too few for the modulus {m}"
        )
    a, c = draw_multipliers(m, pool + draws, rng), draw_increments(m, pool + draws, rng)
    tests = {str(m): _grid(m, a[pool:], c[pool:])}
    return LcgData(
        np.array([m]), a[None, :pool], c[None, :pool], tests, length, base, 1, base, digits
    )


def unseen_modulus_digits(
    largest: int,
    length: int,
    base: int,
    digits: int,
    rng: np.random.Generator,
    train_moduli: int = 2048,
    pool: int = 8,
    draws: int = 64,
) -> LcgData:
    """Moduli up to `largest`, numbers cut in digits; tests on all powers (at least squares) of 2,
    3, 5, 7 in the range.

    Every training modulus has `pool` multipliers and increments, of full period as far as some 8
    `pool` draws find such besides the tests' values, which no modulus trains on, then arbitrary
    ones below `largest`."""
    if largest > base**digits:
        raise TaskError(
            f"{digits} digits in base {base} hold numbers below {base**digits}, too few for moduli up to {largest}"
        )
    smallest = max(base, length, 5)
    powers = sorted(p**e for p in (2, 3, 5, 7) for e in range(2, 40) if smallest <= p**e <= largest)
    moduli = np.setdiff1d(np.arange(smallest, largest + 1), powers)
    if not powers or len(moduli) < train_moduli:
        raise TaskError(
            f"from {smallest} to {largest} there are {len(moduli)} moduli to train on and {len(powers)} to test"
        )
    tests = {
        str(q): _grid(
            q, draw_multipliers(q, draws, rng, True), draw_increments(q, draws, rng, True)
        )
        for q in powers
    }
    banned = [np.unique(np.concatenate([test[i] for test in tests.values()])) for i in (1, 2)]
    moduli, pools, draws = (
        np.sort(rng.choice(moduli, train_moduli, replace=False)),
        ([], []),
        8 * pool + 64,
    )
    for q in moduli.tolist():
        step = hull_dobell_step(q)
        a, c = 1 + step * rng.integers(1, max(q // step, 2), draws), rng.integers(3, q, draws)
        for into, full, used in zip(pools, (a[a < q], c[np.gcd(c, q) == 1]), banned, strict=True):
            values = np.concatenate([full, rng.integers(1, largest, draws)])
            into.append(list(dict.fromkeys(values[~np.isin(values, used)].tolist()))[:pool])
    return LcgData(
        moduli, np.array(pools[0]), np.array(pools[1]), tests, length, base, 1, base, digits
    )


def elements_needed(accuracy: np.ndarray, level: float) -> int | None:
    """The fewest numbers in context from which on the accuracy stays at least at a level; accuracy
    (T,), with 1, 2, ..., T numbers in context. None if it never does."""
    below = np.flatnonzero(~(np.asarray(accuracy) >= level))
    needed = below[-1] + 2 if len(below) else 1
    return int(needed) if needed <= len(accuracy) else None


# -- classical predictors --------------------------------------------------------------------------
# Like a network they read x_0 ... x_t and answer x_{t+1}, at every t: (B, T) -> (B, T), -1 where
# they have no answer.


def known_modulus(x: np.ndarray, m) -> np.ndarray:
    """With d_i = x_{i+1} - x_i, d_{i+1} = a d_i: combine the pairs (d_i, d_{i+1}) by Euclid's
    algorithm to (g, a g), g their common divisor with m; then x_{t+1} = x_t + (d_{t-1}/g) (a g) mod
    m wherever g divides d_{t-1}.

    Under Hull-Dobell d_0 is prime to m, so that three numbers suffice. m (B,) or an integer.
    """
    m = np.broadcast_to(np.asarray(m, dtype=np.uint64), len(x)).copy()
    x = x.astype(np.uint64)
    d = (x[:, 1:] + (m[:, None] - x[:, :-1])) % m[:, None]
    g, e = m.copy(), np.zeros_like(m)  # the pair (m, a m = 0) holds as well
    answer = np.full(x.shape, -1)
    for t in range(1, x.shape[1]):
        if t > 1:
            p, q = d[:, t - 2].copy(), d[:, t - 1].copy()
            while p.any():
                on = p > 0
                k = g[on] // p[on]
                g[on], e[on], p[on], q[on] = (
                    p[on],
                    q[on],
                    g[on] - k * p[on],
                    (e[on] + (m[on] - k * q[on] % m[on])) % m[on],
                )
        last = d[:, t - 1]
        next_x = (x[:, t] + last // g * e % m) % m
        answer[:, t] = np.where(last % g == 0, next_x.astype(np.int64), -1)
    return answer


def estimated_modulus(x: np.ndarray) -> np.ndarray:
    """m from x_0 ... x_t at every t, (B, T); -1 as long as nothing is known.

    d_{i+2} d_i - d_{i+1}^2 is a multiple of m; M_t, the greatest common divisor of all of them, is
    m times a small factor soon: the estimate is the smallest M_t / q, q <= 64, that is above every
    number seen."""
    d = np.diff(x).astype(
        object if x.max(initial=0) >= 2**30 else np.int64
    )  # the products reach 2 m^2
    divisor = np.gcd.accumulate(np.abs(d[:, 2:] * d[:, :-2] - d[:, 1:-1] ** 2), axis=1)
    estimate, largest = np.full(x.shape, -1), np.maximum.accumulate(x, axis=1)[:, 3:]
    for q in range(64, 0, -1):
        fits = (
            (divisor % q == 0)
            & (divisor // q > largest)
            & (estimate[:, 3:] < 0)
            & (divisor // q < 2**63)
        )
        estimate[:, 3:][fits] = (divisor // q)[fits]
    return estimate


def unknown_modulus(x: np.ndarray, m=None) -> np.ndarray:
    """known_modulus with the estimate of the modulus at every position; m is not used."""
    estimate, answer = estimated_modulus(x), np.full(x.shape, -1)
    for t in range(3, x.shape[1]):
        new = (estimate[:, t] > 0) & ((estimate[:, t] != estimate[:, t - 1]) | (t == 3))
        if new.any():
            answer[new, t:] = known_modulus(x[new], estimate[new, t])[:, t:]
    return np.where(estimate > 0, answer, -1)


def look_back(x: np.ndarray, m: int, order: int = 1) -> np.ndarray:
    """x_{t+1} = sum_{j=1..n} (-1)^(j+1) C(n, j) x_{t+1-jr} mod m, n = order, with the largest
    divisor r of m that the context allows (n r <= t + 1).

    Order 1 copies: the digits of period r repeat (x mod p^i has the period p^i), the others are
    wrong. Order n is right when n (v_p(r) + s) - s >= v_p(m), s = v_p(a - 1), for all p.
    """
    weights = [(-1) ** (j + 1) * math.comb(order, j) for j in range(1, order + 1)]
    answer = np.full(x.shape, -1)
    divisors = [r for r in range(1, x.shape[1] // order + 1) if m % r == 0]
    for r, end in zip(divisors, [*divisors[1:], None], strict=True):
        first, last = (
            order * r,
            x.shape[1] if end is None else min(order * end - 1, x.shape[1]),
        )  # elements in context
        terms = (w * x[:, first - j * r : last + 1 - j * r] for j, w in enumerate(weights, start=1))
        answer[:, first - 1 : last] = sum(terms) % m
    return answer


SOLVERS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "known modulus": known_modulus,
    "unknown modulus": unknown_modulus,
    "copy by period": look_back,
    "look-back order 2": lambda x, m: look_back(x, m, 2),
    "look-back order 3": lambda x, m: look_back(x, m, 3),
}
