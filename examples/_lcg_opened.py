"""Experiments of lcg_probe.py on an opened decoder of numbers: accuracies, periods, moved answers.

An opened decoder is a models.inspect.Decoder or whatever answers as it does: blocks of H heads,
C channels in the residual stream.
"""

import numpy as np

from tinygrok.probes.decoder import replace_heads
from tinygrok.probes.digits import digits, interventions, modulus_estimates, residue_share
from tinygrok.probes.representation import cosine
from tinygrok.tasks.modular import modulus, prime_factors


def accuracy_without_heads(decoder, x, values, factors: dict[int, int], last: int) -> dict:
    """{"number": (1 + depth H,), q: ...}: right numbers and digits among the last of x (B, T + 1).

    First as the decoder is, then with each head replaced by its values (replace_heads); q and
    factors as in digits.digits."""
    before = decoder.predict(x[:, :-1])
    replaced = replace_heads(decoder, x[:, :-1], values)
    answers = np.concatenate([before[None], *replaced])[..., -last:]
    truth = x[:, -last:]
    accuracy: dict[str | int, np.ndarray] = {"number": (answers == truth).mean(axis=(1, 2))}
    true_digits = digits(truth, factors)
    for q, digit in digits(answers, factors).items():
        by_place = (digit == true_digits[q]).mean(axis=1)
        accuracy[q] = by_place.mean(axis=-1)
    return accuracy


def first_block(decoder, vocab: int) -> dict[str, np.ndarray]:
    """{"head 0", ..., "MLP": (vocab, C)}: what block 0 adds to the stream after a single number."""
    single = np.arange(vocab)[:, None]
    heads = decoder.heads(single, [0])[:, 0, :, 0]
    before_mlp = decoder.read(single, "blocks.0.mid")
    after_mlp = decoder.read(single, "blocks.0.end")
    parts = {f"head {h}": heads[:, h] for h in range(heads.shape[1])}
    return parts | {"MLP": after_mlp - before_mlp}


def power_by_period(scores: np.ndarray, periods) -> dict[int, np.ndarray]:
    """{q: (c,)}: share of the power of every column of scores (n, c) that is new at period q.

    residue_share(q) - residue_share(q / p), p the smallest prime factor of q; row i is the number
    i. q / p must be 1 or one of the periods."""
    shares = {}
    for q in (1, *periods):
        columns = [scores[:, [i]] for i in range(scores.shape[1])]
        shares[q] = np.array([residue_share(column, q) for column in columns])
    return {q: shares[q] - shares[q // min(prime_factors(q))] for q in periods}


def order_2_moves(decoder, tokens: np.ndarray, m: int) -> tuple[dict, tuple]:
    """Does the answer move as 2 x_(r/2) - x_r does, when one number of the context (B, T) moves?

    r/2 is the largest divisor of m in half the context. The numbers at look-backs r, r/2, others
    and 1, the query, move one at a time, by 1, 2, r/2 and, where m allows it, by m/4.
    -> moved_r, moved_half_r  shares of answers that move by -delta and 2 delta, at the last delta
       unmoved_...            mean shares of answers that stay when another number moves
    -> (look-backs, deltas, shares (look-backs, deltas, 4)): of the answers that stay, move by
       -delta, by 2 delta, otherwise; a residue mod m that is two of these counts as the first"""
    m = modulus(m)
    longest = min(len(tokens[0]) // 2, m - 1)
    half = max(back for back in range(1, longest + 1) if m % back == 0)
    others = sorted({half // 2, half + half // 2} - {0, 1, half})
    backs = [2 * half, half, *others, 1]
    far = m // 4 if m % (4 * half) == 0 else half
    deltas = sorted({1, 2, half, far})
    table = interventions(decoder.predict, tokens, m, backs, deltas)
    moved_r = table[0, deltas.index(far), -far % m]
    moved_half_r = table[1, deltas.index(far), 2 * far % m]
    shares = np.empty((len(backs), len(deltas), 4))
    for j, delta in enumerate(deltas):
        for kind, move in enumerate((0, -delta, 2 * delta)):
            shares[:, j, kind] = table[:, j, move % m]
            table[:, j, move % m] = 0
    shares[..., 3] = table.sum(axis=-1)
    unmoved = shares[..., 0]
    even = [j for j, delta in enumerate(deltas) if delta % 2 == 0]
    results = {
        "moved_r": moved_r,
        "moved_half_r": moved_half_r,
        "unmoved_others": unmoved[2:-1].mean() if others else np.nan,
        "unmoved_query_even": unmoved[-1, even].mean(),
        "unmoved_query_1": unmoved[-1, 0],
    }
    return results, (backs, deltas, shares)


def heads_on_modulus(decoder, tokens: np.ndarray, embedding: np.ndarray, m: int) -> tuple:
    """Distances, in units of m, of what heads of block 0 say from the largest number so far.

    tokens (B, T), embedding (V, C) -> mean distance over the second half of the numbers (H,); that
    of the maximum estimator from m, at the last number; and cosine similarities (H, T, V) of what
    the heads add with the embeddings of all numbers, for the first row."""
    outputs = decoder.heads(tokens, np.arange(tokens.shape[1]))[:, 0]
    late = slice(tokens.shape[1] // 2, None)
    distances = []
    for h in range(outputs.shape[1]):
        said, above_largest = modulus_estimates(outputs[:, h], embedding, tokens)
        distance = np.abs(said - (above_largest - 1))
        distances.append(distance[:, late].mean() / m)
    error = np.abs(above_largest[:, -1] - m).mean() / m
    return np.array(distances), error, cosine(outputs[0], embedding)
