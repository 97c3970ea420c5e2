"""What a decoder does with numbers x -> a x + c mod m: digits, look-backs, residues, interventions,
its idea of m.

A sequence is x_0 .. x_T; the first T numbers are read, the last T are targets. Look-back k is
counted from the target: the prediction of x_n, made with n numbers in context, has x_(n-k) at
look-back k. For a and c of full period the digit floor(x / p^(i-1)) mod p of a prime power p^i that
divides m repeats after p^i numbers.
Source: How can transformers predict pseudo-random numbers, arXiv 2502.10390.
"""

from collections.abc import Callable

import numpy as np


def digits(x: np.ndarray, factors: dict[int, int]) -> dict[int, np.ndarray]:
    """{p^i: floor(x / p^(i-1)) mod p} for i = 1..e of every p^e in m = prod p^e, factors {p: e}:
    keyed by period."""
    return {p**i: x // p ** (i - 1) % p for p, e in factors.items() for i in range(1, e + 1)}


def digit_accuracy(
    predicted: np.ndarray, target: np.ndarray, factors: dict[int, int]
) -> dict[int, np.ndarray]:
    """{p^i: (T,)}: share of the sequences (B, T) whose digit is right, after 1, 2, ... numbers;
    chance is 1/p."""
    right = digits(target, factors)
    return {q: (digit == right[q]).mean(axis=0) for q, digit in digits(predicted, factors).items()}


def by_valuation(right: np.ndarray, a: np.ndarray) -> dict[int, np.ndarray]:
    """{s: (T,)}: accuracy of the sequences, right (B, T), with 2^s the largest power of two in a -
    1. a (B,) not 1.

    A difference over r numbers has v_2(r) + s zero bits: the larger s, the easier."""
    s = np.round(np.log2((a - 1) & (1 - a))).astype(int)
    return {int(v): right[s == v].mean(axis=0) for v in np.unique(s)}


def look_back_mass(pattern: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """r (T,), the largest power of two that is at most n, and the attention (..., T, 2) at
    look-backs r and r/2, for

    n = 1..T numbers in context. pattern (..., T, T). For n = 1 both are the same token."""
    n = np.arange(1, pattern.shape[-1] + 1)
    r = 2 ** np.floor(np.log2(n)).astype(int)
    return r, np.stack(
        [pattern[..., n - 1, n - r], pattern[..., n - 1, n - np.maximum(r // 2, 1)]], axis=-1
    )


def largest_mass(pattern: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """(depth, H): mean attention of the queries on the largest number so far, the latest where it
    stands more than once, of

    pattern (B, depth, H, T, T), tokens (B, T)."""
    at = np.maximum.accumulate(
        np.where(tokens == np.maximum.accumulate(tokens, axis=1), np.arange(tokens.shape[1]), 0),
        axis=1,
    )
    return np.take_along_axis(pattern, at[:, None, None, :, None], axis=-1).mean(axis=(0, 3, 4))


def interventions(
    predict: Callable, tokens: np.ndarray, m: int, backs: list[int], deltas: list[int]
) -> np.ndarray:
    """How the answer moves when one number of its context moves (section 3.5, L).

    predict: tokens (B, T) -> next numbers (B, T). [i, j, u]: share of the sequences whose last
    answer moves by u mod m when the number at look-back backs[i] moves by deltas[j] mod m; (backs,
    deltas, m)"""
    clean, table = predict(tokens)[:, -1], np.empty((len(backs), len(deltas), m))
    for i, j in np.ndindex(table.shape[:2]):
        changed = tokens.copy()
        changed[:, -backs[i]] = (changed[:, -backs[i]] + deltas[j]) % m
        table[i, j] = np.bincount((predict(changed)[:, -1] - clean) % m, minlength=m) / len(tokens)
    return table


def residue_share(x: np.ndarray, q: int) -> float:
    """Share of the variance of the rows of x (n, c), row i for the number i, that lies between the
    residue classes mod q.

    Where q divides n it is the share of the non-constant Fourier power at frequencies k n/q, the
    periods that divide q: the power of period p^i alone is residue_share(p^i) -
    residue_share(p^(i-1)). Chance is (q-1)/(n-1)."""
    x, classes = x - x.mean(axis=0), np.arange(len(x)) % q
    between = sum(
        (classes == c).sum() * (x[classes == c].mean(axis=0) ** 2).sum()
        for c in range(min(q, len(x)))
    )
    return float(between / max((x**2).sum(), np.finfo(float).tiny))


def cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """<x_i, y_j> / |x_i| |y_j|        x (..., n, C)   y (V, C)   (..., n, V)"""
    x, y = (
        v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), np.finfo(float).tiny)
        for v in (x, y)
    )
    return x @ y.T


def modulus_estimates(
    outputs: np.ndarray, embedding: np.ndarray, tokens: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What a head says about m, and the maximum estimator: both (B, T), after every number of
    tokens (B, T).

    The number v whose embedding (V, C) is most like what the head adds to the stream, outputs (B,
    T, C); max x + 1."""
    return cosine(outputs, embedding).argmax(axis=-1), np.maximum.accumulate(tokens, axis=1) + 1


def agreements(predictions: list[np.ndarray], targets: list[np.ndarray]) -> np.ndarray:
    """[i, j]: share of predictions i (clean, patched) that equal targets j (clean, donor)."""
    return np.array([[(p == t).mean() for t in targets] for p in predictions])
