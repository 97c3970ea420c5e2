"""What a decoder does with numbers x -> a x + c mod m.

Digits, look-backs, residues, interventions, its idea of m. A sequence is x_0 .. x_T; the first T
numbers are read, the last T are targets. Look-back k is counted from the target: the prediction of
x_n, made with n numbers in context, has x_(n-k) at look-back k. For a and c of full period the
digit floor(x / p^(i-1)) mod p of a prime power p^i that divides m repeats after p^i numbers.
Source: How can transformers predict pseudo-random numbers, arXiv 2502.10390.
"""

from collections.abc import Callable

import numpy as np

from ..engine.border import integer, integers
from .representation import cosine


def digits(x: np.ndarray, factors: dict[int, int]) -> dict[int, np.ndarray]:
    """{p^i: floor(x / p^(i-1)) mod p} for i = 1..e of every p^e in m = prod p^e, keyed by period.

    factors {p: e}; -1 where x < 0, a predictor's mark for no answer"""
    x = integers(x, "numbers", high=2**64)
    parts = {}
    for p, e in factors.items():
        rest = x
        for i in range(1, e + 1):
            parts[p**i] = np.where(x < 0, -1, rest % p).astype(np.int64)
            rest = rest // p
    return parts


def digit_accuracy(predicted, target, factors: dict[int, int]) -> dict[int, np.ndarray]:
    """{p^i: (T,)}: share of the sequences (B, T) whose digit is right, after 1, 2, ... numbers.

    Chance is 1/p."""
    given = digits(predicted, factors)
    right = digits(target, factors)
    return {q: (given[q] == right[q]).mean(axis=0) for q in given}


def by_valuation(right: np.ndarray, a: np.ndarray) -> dict[int, np.ndarray]:
    """{s: (T,)}: accuracy of the sequences, right (B, T), with 2^s the largest power in a - 1.

    a (B,), 2 or more. A difference over r numbers has v_2(r) zero bits, one of order n has
    n v_2(r) + (n - 1) s: the larger s, the easier."""
    a = integers(a, "multipliers", 2, 2**64)
    lowest_bit = (a - 1) & (1 - a)
    s = np.round(np.log2(lowest_bit.astype(float))).astype(int)
    return {int(v): right[s == v].mean(axis=0) for v in np.unique(s)}


def look_back_mass(pattern: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """r (T,), and the attention (..., T, 2) at look-backs r and r/2, n = 1..T numbers in context.

    r is the largest power of two that is at most n. pattern (..., T, T). For n = 1 both are the
    same token."""
    n = np.arange(1, pattern.shape[-1] + 1)
    r = 2 ** np.floor(np.log2(n)).astype(int)
    half = np.maximum(r // 2, 1)
    at_r = pattern[..., n - 1, n - r]
    at_half = pattern[..., n - 1, n - half]
    return r, np.stack([at_r, at_half], axis=-1)


def largest_mass(pattern: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """(depth, H): mean attention of the queries on the largest number so far.

    pattern (B, depth, H, T, T), tokens (B, T); the latest where it stands more than once."""
    largest = np.maximum.accumulate(tokens, axis=1)
    place = np.where(tokens == largest, np.arange(tokens.shape[1]), 0)
    key = np.maximum.accumulate(place, axis=1)
    mass = np.take_along_axis(pattern, key[:, None, None, :, None], axis=-1)
    return mass.mean(axis=(0, 3, 4))


def interventions(predict: Callable, tokens, m: int, backs: list, deltas: list) -> np.ndarray:
    """How the answer moves when one number of its context moves: table (backs, deltas, m).

    predict   tokens (B, T) -> next numbers (B, T)
    [i, j, u] share of the sequences whose last answer moves by u mod m when the number at look-back
              backs[i] moves by deltas[j] mod m
    """
    m = integer(m, "the modulus", 2)
    tokens = integers(tokens, "tokens", 0)
    backs = integers(backs, "look-backs", 1, tokens.shape[1])
    clean = integers(predict(tokens), "answers")[:, -1]
    table = np.empty((len(backs), len(deltas), m))
    for i, back in enumerate(backs):
        for j, delta in enumerate(deltas):
            changed = tokens.copy()
            changed[:, -back] = (changed[:, -back] + delta) % m
            moved = (integers(predict(changed), "answers")[:, -1] - clean) % m
            table[i, j] = np.bincount(moved, minlength=m) / len(tokens)
    return table


def residue_share(x: np.ndarray, q: int) -> float:
    """Share of the variance of x (n, c), row i for the number i, between the residue classes mod q.

    Where q divides n it is the share of the non-constant Fourier power at frequencies k n/q, the
    periods that divide q: the power of period p^i alone is residue_share(p^i) -
    residue_share(p^(i-1)). Chance is (q-1)/(n-1)."""
    x = x - x.mean(axis=0)
    residue = np.arange(len(x)) % q
    between = 0.0
    for c in range(min(q, len(x))):
        member = residue == c
        centre = x[member].mean(axis=0)
        between += member.sum() * (centre**2).sum()
    total = max((x**2).sum(), np.finfo(float).tiny)
    return float(between / total)


def modulus_estimates(outputs, embedding, tokens) -> tuple[np.ndarray, np.ndarray]:
    """What a head says about m, and the maximum estimator, after every number of tokens (B, T).

    The number v whose embedding (V, C) is most like what the head adds to the stream, outputs (B,
    T, C); max x + 1. Both (B, T)."""
    says = cosine(outputs, embedding).argmax(axis=-1)
    return says, np.maximum.accumulate(integers(tokens, "tokens", 0), axis=1) + 1
