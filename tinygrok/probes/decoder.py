"""Experiments on an opened decoder of numbers: its heads read and replaced, its moved answers.

An opened decoder is a models.inspect.Decoder or whatever answers as it does: blocks of H heads with
D channels each, C = H D channels in the residual stream.
"""

import numpy as np

from ..tasks.modular import modulus, prime_factors
from .digits import digits, interventions, modulus_estimates, residue_share
from .representation import cosine


def head_slices(decoder, tokens: np.ndarray, block: int) -> np.ndarray:
    """(B, T, H, D): what every head hands to the block's output matrix, on tokens (B, T)."""
    joined = decoder.read(tokens, f"blocks.{block}.attn.out")
    return joined.reshape(*tokens.shape, decoder.model.heads, -1)


def replace_heads(decoder, tokens: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(depth, H, B, T): the most likely next tokens with one head replaced, for every head.

    values (depth, H, ...): what stands in for the slice of head h of block i is values[i, h], a
    number, a vector (D,) or a donor's slice (B, T, D)."""
    depth, heads = values.shape[:2]
    predicted = np.empty((depth, heads, *tokens.shape), dtype=int)
    for i, h in np.ndindex(depth, heads):
        edit = decoder.set_head(i, h, values[i, h])
        predicted[i, h] = decoder.predict(tokens, edit)
    return predicted


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


def patch_heads(decoder, clean: np.ndarray, donor: np.ndarray, scale: float = 1.25) -> np.ndarray:
    """(depth, H, B, T): replace_heads on clean (B, T), by the slices on donor times a scale.

    1.25 is the authors' factor."""
    blocks = range(decoder.model.depth)
    slices = np.array([head_slices(decoder, donor, i) for i in blocks])
    by_head = np.moveaxis(slices, 3, 1)
    return replace_heads(decoder, clean, scale * by_head)


def head_means(decoder, tokens: np.ndarray) -> np.ndarray:
    """(depth, H, D): mean of head_slices over rows and tokens."""
    means = []
    for i in range(decoder.model.depth):
        slices = head_slices(decoder, tokens, i)
        means.append(slices.mean(axis=(0, 1)))
    return np.array(means)


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
