"""Does a network for unseen moduli estimate the modulus, and from the largest number it saw?

Parts of lcg_probe.py. Sequences are those of moduli that it never trained on; every measure stands
beside a control of the same kind. A pair [mean, standard error] is over sequences, which are
independent. Paper: (How) can transformers predict pseudo-random numbers, arXiv 2502.10390."""

from typing import NamedTuple

import numpy as np
from _lcg_families import FAMILIES, MixedLcg, units

from tinygrok.models.inspect import Decoder
from tinygrok.probes import digits
from tinygrok.tasks import lcg

RIDGE = 1e-3  # of the probe, in units of the variance of a feature
RESAMPLES = 200  # of the bootstrap


class Sequences(NamedTuple):
    """x (B, T + 1), numbers; modulus, multiplier and the multiplier's order mod m, each (B,).

    The differences x_{t+1} - x_t repeat mod m with the order."""

    x: np.ndarray
    m: np.ndarray
    a: np.ndarray
    order: np.ndarray


def orders(a, m):
    """The least r >= 1 with a^r = 1 mod m, for a prime to m; (B,).

    >>> orders(np.array([1, 3, 7]), np.array([10, 10, 8]))
    array([1, 4, 2])
    """
    power = a % m
    order = np.ones_like(power)
    while (power != 1).any():
        order += power != 1
        power = np.where(power == 1, 1, power * a % m)
    return order


def unseen(data, names, rows, rng):
    """So many sequences of each test of these names."""
    tests = [data.test(name, rows, rng) for name in names]
    x = np.concatenate([numbers for numbers, _ in tests])
    a = np.concatenate([multipliers for _, multipliers in tests])
    m = np.repeat([data.tests[name][0] for name in names], rows)
    return Sequences(x, m, a, orders(a, m))


def asks_full_period(data):
    """Whether a mixture trains on multipliers of full period, in the end."""
    return data.shares(np.inf)[FAMILIES.index("full")] > 0


def trained(data, rows, rng):
    """(x (rows, T + 1), m (rows,)) of training moduli.

    Of a mixture half of them add and wrap, half have the full period, where it has such a family;
    otherwise any multiplier of the pool."""
    m = rng.choice(data.moduli, rows)
    a = rng.choice(data.a[0], rows)
    if isinstance(data, MixedLcg):
        a[:] = 1
        if asks_full_period(data):
            half = rows // 2
            m[:half], a[:half] = data.full.draw(half, rng)
    return lcg.generate(m, a, units(m, rng), rng.integers(0, m), data.length), m


def estimate(values):
    """[mean, standard error] of independent values; nan are left out."""
    known = values[np.isfinite(values)].astype(float)
    if len(known) < 2:
        return [np.nan, np.nan]
    return [known.mean(), known.std(ddof=1) / np.sqrt(len(known))]


# -- a linear probe for log m ----------------------------------------------------------------------


def features_of(decoder, tokens, counts):
    """{name: (len(counts), B, C)}: the residual stream, and what heads add, after so many numbers.

    "number": the stream before the first block, that is the last number alone."""
    at = np.array(counts) - 1
    number = decoder.read(tokens, "blocks.0.in").reshape(*tokens.shape, -1)
    after = decoder.residuals(tokens, at)
    heads = decoder.heads(tokens, at)
    found = {"number": number[:, at]}
    found |= {f"block {i}": after[:, i] for i in range(after.shape[1])}
    found |= {f"head {i}.{h}": heads[:, i, h] for i, h in np.ndindex(heads.shape[1:3])}
    return {name: x.swapaxes(0, 1).astype(float) for name, x in found.items()}


def linear_probe(features, target, new):
    """Ridge regression of a target (n,) on features (n, C), read at new features (k, C): (k,)."""
    centre = features.mean(axis=0)
    scale = features.std(axis=0) + 1e-12
    x = (features - centre) / scale
    penalty = RIDGE * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(x.T @ x + penalty, x.T @ (target - target.mean()))
    return target.mean() + (new - centre) / scale @ weights


def r_squared(said, true):
    """1 - sum (said - true)^2 / sum (true - mean)^2; nan if all true values are the same."""
    total = ((true - true.mean()) ** 2).sum()
    return 1 - ((said - true) ** 2).sum() / total if total else np.nan


def median_error(said, true):
    """Median of |m' - m| / m, from logarithms."""
    return np.median(np.abs(np.expm1(said - true)))


def with_error(measure, said, true, rng):
    """[measure(said, true), its standard error by the bootstrap over sequences]"""
    n = len(true)
    drawn = [rng.integers(n, size=n) for _ in range(RESAMPLES)]
    return [measure(said, true), np.std([measure(said[i], true[i]) for i in drawn])]


def probe(decoder, data, sequences, rows, rng):
    """log m read linearly from the stream and from heads, after 1, 2, 4, ... numbers.

    Fitted on training moduli, read on the unseen ones of the sequences. Controls: an untrained
    network, and the moduli of the fit shuffled. Beside it what the largest number L of n says:
    L + 1, and L (n + 1) / n, which is m on average if numbers are uniform.
    -> {(measure, name): (counts, 2) values and standard errors}, counts"""
    T = sequences.x.shape[1] - 1
    counts = [2**k for k in range(1, 12) if 2**k < T] + [T]
    x, m = trained(data, rows, rng)
    true = np.log(sequences.m)
    shuffled = rng.permutation(np.log(m))
    untrained = Decoder(decoder.dev, decoder.model, decoder.model.init(rng))
    said = {}
    for kind, opened in {"": decoder, "untrained ": untrained}.items():
        train = features_of(opened, x[:, :-1], counts)
        test = features_of(opened, sequences.x[:, :-1], counts)
        for name in train:
            pairs = list(zip(train[name], test[name], strict=True))
            said[kind + name] = [linear_probe(f, np.log(m), new) for f, new in pairs]
            if not kind:
                said["shuffled " + name] = [linear_probe(f, shuffled, new) for f, new in pairs]
    largest = np.maximum.accumulate(sequences.x, axis=1)
    said["largest + 1"] = [np.log(largest[:, n - 1] + 1) for n in counts]
    stretched = [(largest[:, n - 1] + 0.5) * (n + 1) / n for n in counts]
    said["largest (n + 1) / n"] = [np.log(values) for values in stretched]
    found = {}
    for title, measure in {"R^2": r_squared, "median error": median_error}.items():
        for name, values in said.items():
            rows = [with_error(measure, v, true, rng) for v in values]
            found[title, name] = np.array(rows)
    return found, counts


# -- what the largest number of the context does ---------------------------------------------------


def without_key(decoder, places):
    """An edit: no later query of a sequence sees the number at its place, places (B,)."""

    def edit(name, x, rows):
        if name.endswith("pattern"):
            T = x.shape[-1]
            keys = np.arange(T)
            hidden = (keys == places[rows, None])[:, None, :] & (keys < keys[:, None])
            x *= decoder.dev.to_device(~hidden)[:, None]
            x /= x.sum(axis=-1, keepdims=True)

    return edit


def replaced(tokens, places, values):
    """Tokens (B, T) with one number of each sequence replaced."""
    changed = tokens.copy()
    changed[np.arange(len(tokens)), places] = values
    return changed


def reach(x, order):
    """x_t + x_{t+1-r} - x_{t-r}, r the order: x_{t+1} before it wraps; (B, T) as x, -1 for t < r.

    Inside 0 .. m - 1 it is x_{t+1}; outside the answer has to wrap."""
    t = np.arange(x.shape[1])
    back = np.maximum(t - order[:, None], 0)
    step = np.take_along_axis(x, back + 1, axis=1) - np.take_along_axis(x, back, axis=1)
    return np.where(t >= order[:, None], x + step, -1)


def largest_number(decoder, sequences, n, vocab, rng):
    """How the answer to n numbers changes when the largest of them is another, or is not seen.

    Kept: sequences answered rightly, with n above the order of a, whose largest number is none of
    the last two. Replaced by v >= m it would make the modulus v + 1. An answer must wrap if its
    reach is outside 0 .. m - 1; it `follows` where it wraps by v + 1. Controls: the same v in the
    place of a random other number, and a smaller number, below the largest, in both places.
    -> {what is done: {"changed", "follows": [share, standard error]}}, empty if none is kept"""
    tokens = sequences.x[:, :n]
    truth = sequences.x[:, n]
    right = decoder.predict(tokens)[:, -1] == truth
    inside = tokens.argmax(axis=1) < n - 2
    kept = right & inside & (sequences.order < n) & (sequences.m < vocab)
    if not kept.any():
        return {}
    tokens = tokens[kept]
    truth = truth[kept]
    m = sequences.m[kept]
    largest = tokens.argmax(axis=1)
    other = (largest + rng.integers(1, n - 2, size=len(m))) % (n - 2)
    larger = rng.integers(m, vocab)
    smaller = rng.integers(0, tokens.max(axis=1))
    reached = reach(tokens, sequences.order[kept])[:, -1]
    wraps = (reached < 0) | (reached >= m)
    done = {
        "largest, by a larger": (replaced(tokens, largest, larger), None),
        "another, by a larger": (replaced(tokens, other, larger), None),
        "largest, by a smaller": (replaced(tokens, largest, smaller), None),
        "another, by a smaller": (replaced(tokens, other, smaller), None),
        "largest, hidden": (tokens, without_key(decoder, largest)),
        "another, hidden": (tokens, without_key(decoder, other)),
    }
    table = {}
    for name, (changed, edit) in done.items():
        answer = decoder.predict(changed, edit)[:, -1]
        follows = answer == reached % (larger + 1)
        table[name] = {"changed": estimate(answer != truth), "follows": estimate(follows[wraps])}
    return table


def attention_on_largest(decoder, sequences):
    """Attention on the largest number so far, and where it stands in the next sequence.

    The second is the control: the same queries and look-backs, another sequence. (2, depth, H, 2):
    means and errors."""
    tokens = sequences.x[:, :-1]
    patterns = decoder.patterns(tokens)
    kinds = []
    for asked in (tokens, np.roll(tokens, 1, axis=0)):
        each = range(len(tokens))
        masses = np.array([digits.largest_mass(patterns[[i]], asked[[i]]) for i in each])
        error = masses.std(axis=0, ddof=1) / np.sqrt(len(masses))
        kinds.append(np.stack([masses.mean(axis=0), error], axis=-1))
    return np.array(kinds)
