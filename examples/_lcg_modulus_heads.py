"""Heads of a network for unseen moduli: residues, pruning by modulus, patching from another one.

Parts of lcg_probe.py; every measure stands beside a control of the same kind."""

import numpy as np
from _lcg_answers import LAST
from _lcg_families import of_full_period, of_small_order, units
from _lcg_modulus import Sequences, estimate, orders
from _lcg_opened import first_block

from tinygrok.models.inspect import Decoder
from tinygrok.probes import decoder as opened
from tinygrok.probes import digits, representation
from tinygrok.tasks import lcg

PRIMES = (2, 3, 5, 7)
PERIODS = (2, 3, 4, 5, 7, 8, 9)
PERMUTATIONS = 200
MODULI = 64  # at most, of the pruning

# -- residues --------------------------------------------------------------------------------------


def above_chance(scores, q):
    """Share of the variance of scores (n, c) between residues mod q, less that of random labels."""
    return digits.residue_share(scores, q) - (q - 1) / (len(scores) - 1)


def residues(decoder, vocab, rng):
    """What the parts of the first block add after a single number: two components, residues.

    Controls: an untrained network, and the numbers permuted (95 % of the largest shares).
    -> ({network: shares above chance (parts, periods)}, {part: (scores (vocab, 2), residue q,
    share)})"""
    untrained = Decoder(decoder.dev, decoder.model, decoder.model.init(rng))
    shares = {}
    points = {}
    for kind, network in {"untrained": untrained, "network": decoder}.items():
        parts = first_block(network, vocab)
        table = []
        for name, x in parts.items():
            scores = representation.pca(x, 2)[0]
            row = np.array([above_chance(scores, q) for q in PERIODS])
            first = int(np.argmax(row >= row.max() - 0.05))  # mod 4 shows whatever mod 2 does
            points[name] = (scores, PERIODS[first], row[first])
            table.append(row)
        shares[kind] = np.array(table)
    by_chance = []
    for _ in range(PERMUTATIONS):
        permuted = rng.permutation(scores)
        by_chance.append(max(above_chance(permuted, q) for q in PERIODS))
    shares["numbers permuted"] = np.quantile(by_chance, 0.95)
    return shares, points


# -- pruning by modulus ----------------------------------------------------------------------------


def flattened(decoder, block, mean, directions):
    """An edit: what the heads of a block hand on, at its mean (C,) along directions (C, D)."""
    mean = decoder.dev.to_device(mean)
    directions = decoder.dev.to_device(directions)

    def edit(name, x, rows):
        if name == f"blocks.{block}.attn.out":
            x -= ((x - mean) @ directions) @ directions.T

    return edit


def many_moduli(data, rows, rng, wrap):
    """`rows` sequences of every modulus that has such, seen or not: of full period, or a = 1."""
    choices = {}
    for m in range(int(data.moduli.min()), data.vocab + 1):
        a = np.ones(1, dtype=np.int64)
        if not wrap:
            a = of_full_period(of_small_order(m, data.length // 2), m)
        if len(a):
            choices[m] = a
    if len(choices) > MODULI:
        kept = rng.choice(list(choices), MODULI, replace=False)
        choices = {m: choices[m] for m in sorted(kept.tolist())}
    m = np.repeat(list(choices), rows)
    a = np.concatenate([rng.choice(a, rows) for a in choices.values()])
    x = lcg.generate(m, a, units(m, rng), rng.integers(0, m), data.length)
    return Sequences(x, m, a, orders(a, m))


def by_modulus(values, sequences):
    """(..., B) of sequences -> means (..., moduli), in the order of the moduli."""
    means = [values[..., sequences.m == m].mean(axis=-1) for m in np.unique(sequences.m)]
    return np.stack(means, axis=-1)


def specificity(lost, divisible):
    """How much more an edit costs moduli of a kind than others: (edits,), standard errors.

    lost (edits, moduli) less the means of its rows and columns: what is special to an edit and a
    modulus. Its mean over the moduli that are divisible (moduli,) less that over the others."""
    rest = lost - lost.mean(axis=0) - lost.mean(axis=1, keepdims=True) + lost.mean()
    parts = (rest[:, divisible], rest[:, ~divisible])
    variance = sum(part.var(axis=1) / part.shape[1] for part in parts)
    return parts[0].mean(axis=1) - parts[1].mean(axis=1), np.sqrt(variance)


def pruning(decoder, data, sequences, rng):
    """The share of its right answers that a modulus loses, with each head at its mean.

    Control: as many random directions of what the heads of the block hand on, at their mean. Of
    moduli that are answered rightly at least half the time."""
    tokens = sequences.x[:, :-1]
    truth = sequences.x[:, -LAST:]

    def right(edit=None):
        return (decoder.predict(tokens, edit)[:, -LAST:] == truth).mean(axis=1)

    means = opened.head_means(decoder, data.batch(256, rng)[:, :-1])
    depth, H, D = means.shape
    clean = right()
    kept = by_modulus(clean, sequences)
    lost = {"head": [], "random": []}
    for i, h in np.ndindex(depth, H):
        whole = np.eye(H * D)
        rotated = np.linalg.qr(rng.standard_normal((H * D, H * D)))[0]
        for kind, basis in {"head": whole, "random": rotated}.items():
            edit = flattened(decoder, i, means[i].ravel(), basis[:, h * D : (h + 1) * D])
            lost[kind].append(by_modulus(clean - right(edit), sequences))
    moduli = np.unique(sequences.m)
    answered = kept >= 0.5
    share = {kind: np.array(x)[:, answered] / kept[answered] for kind, x in lost.items()}
    return share, moduli[answered]


def largest_specificity(lost, moduli, rng):
    """The largest |specificity| of edits (edits, moduli) for a prime, and by chance.

    -> ([value, error], "row 3, prime 2", [95 % of the same with the moduli permuted, 0])"""

    def table(order):
        pairs = []
        for p in PRIMES:
            divisible = moduli[order] % p == 0
            enough = 2 < divisible.sum() < len(moduli) - 2
            pairs.append(specificity(lost, divisible) if enough else np.zeros((2, len(lost))))
        return np.moveaxis(np.array(pairs), 1, 0)  # (value and error, primes, edits)

    value, error = table(np.arange(len(moduli)))
    p, edit = np.unravel_index(np.abs(value).argmax(), value.shape)
    drawn = [np.abs(table(rng.permutation(len(moduli)))[0]).max() for _ in range(PERMUTATIONS)]
    found = [abs(value[p, edit]), error[p, edit]]
    return found, f"row {edit}, prime {PRIMES[p]}", [np.quantile(drawn, 0.95), 0.0]


# -- patching from another modulus -----------------------------------------------------------------


def patching(decoder, data, names, rows, rng):
    """Answers below m/2 with each head's output from a run mod m/2: (depth, H, 2) and errors.

    The authors' donor has the same a, c and x_0, and so x_t mod m/2; their factor is 1.25. Controls
    are the donor with its first number m - 1, which leaves all that follows but the largest number,
    and x_t + m/2 mod m, a run mod m with the same low digits. Of the even moduli m whose half is in
    the range of training, or of the first. In the second half of the context.
    -> {donor: (depth, H, 2)}, shares with errors, and without patching (2,)"""
    tests = [data.tests[name] for name in names]
    halves = [t for t in tests if t[0] % 2 == 0 and t[0] // 2 >= data.moduli.min()]
    kinds = ("m/2", "m/2, but one number m - 1", "m")
    parts = {kind: [] for kind in ("clean", *kinds)}
    for m, a, c in halves or tests[:1]:
        pick = rng.integers(len(a), size=rows)
        half = m // 2
        x0 = rng.integers(half, size=rows)
        clean = lcg.generate(m, a[pick], c[pick], x0, data.length - 1)
        donor = lcg.generate(half, a[pick], c[pick], x0, data.length - 1)
        restored = donor.copy()
        restored[:, 0] = m - 1
        runs = (clean, donor, restored, (clean + half) % m)
        for part, x in zip(parts.values(), runs, strict=True):
            part.append(x)
    limits = np.repeat([[m // 2] for m, *_ in halves or tests[:1]], rows, axis=0)
    clean = np.concatenate(parts.pop("clean"))
    late = slice(clean.shape[1] // 2, None)

    def below(answers):
        shares = (answers < limits)[..., late].mean(axis=-1)
        return np.array([[estimate(row) for row in block] for block in shares])

    found = {}
    for kind, donors in parts.items():
        found[kind] = below(opened.patch_heads(decoder, clean, np.concatenate(donors)))
    return found, below(decoder.predict(clean)[None, None])[0, 0]
