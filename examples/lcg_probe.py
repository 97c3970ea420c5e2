"""Opens a GPT trained by examples/predict_lcg.py (a token a number): digits, embedding, look-backs,
interventions, heads.

    python examples/lcg_probe.py runs/predict_lcg/checkpoint.npz
    python examples/lcg_probe.py --quick                       # trains a small one first (m = 64), half a minute

A network that was trained with --mode unseen is also asked for its idea of the modulus. Every
analysis is a function in tinygrok.probes that returns numbers; this file asks the model, and draws.
Paper: Tao, Doshi, Kalra, He, Barkeshli, (How) can transformers predict pseudo-random numbers?,
arXiv 2502.10390."""

import time
from argparse import Namespace
from pathlib import Path

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import numpy as np  # isort: skip

import predict_lcg

from tinygrok.engine.rng import generator
from tinygrok.models.inspect import Decoder
from tinygrok.probes import digits, representation
from tinygrok.tasks import lcg
from tinygrok.training.checkpoint import CheckpointError, load_arrays

QUICK_STEPS = 1100
LAST = 8  # numbers at the end of the context over which accuracies are taken
KEYS = (1, 2, 3, 4, 8)
# What to put in the place of a head, given the mean of each of its features; the authors take the
# mean of everything.
REPLACEMENTS = {
    "its mean": lambda v: float(v.mean()),
    "its mean of each feature": lambda v: v,
    "zero": lambda v: 0.0,
}
# Small one-layer networks, m = 64 and 256, of an implementation written for comparison; the paper
# prints no such numbers.
EXPECTED = {
    "power_period_2": "0.98 (m = 256)",
    "power_period_4": "0.70 to 0.84 (m = 256)",
    "attention_r": "0.50 to 0.65",
    "attention_half_r": "0.25 to 0.31",
    "moved_r": "0.97 to 1.00",
    "moved_half_r": "0.97 to 1.00",
    "unmoved_others": "0.97 to 1.00",
    "unmoved_query_even": "0.96 to 1.00",
    "unmoved_query_1": "0.75 to 0.94",
    "top_1": "0.00 (m = 256)",
    "top_2": "0.97 (m = 256)",
    "top_3": "0.99 (m = 256)",
}


def arguments(argv=None):
    p = cli.parser(
        "lcg_probe", "Interpretability analyses of a GPT trained by examples/predict_lcg.py."
    )
    p.add_argument(
        "checkpoint", nargs="?", type=Path, help="(default runs/predict_lcg/checkpoint.npz)"
    )
    p.add_argument(
        "--rows", type=cli.integer(), default=512, help="sequences asked of every test modulus"
    )
    return cli.parse(p, argv)


def load(path):
    """Configuration, data, model and weights of a file that examples/predict_lcg.py wrote."""
    meta, arrays = load_arrays(path)
    config = Namespace(**meta.get("config", {}))
    try:
        if config.base is not None:
            raise CheckpointError(
                f"{path}: this network reads digits; the analyses are of those that read numbers (no --base)"
            )
        data = predict_lcg.make_data(config)
        model = predict_lcg.make_model(config, data)
    except (AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: not of examples/predict_lcg.py ({error})") from error
    weights = {k.removeprefix("weight/"): x for k, x in arrays.items() if k.startswith("weight/")}
    if bad := [name for name, x in weights.items() if not np.isfinite(x).all()]:
        raise CheckpointError(f"{path}: {bad[0]} is not finite")
    return config, data, model, weights


def train_tiny(args, dev):
    """The same of a short run of the quick setting of examples/predict_lcg.py."""
    tiny = predict_lcg.arguments(
        ["--quick", "--steps", str(QUICK_STEPS), "--test-rows", "8", "--seed", str(args.seed)]
    )
    data, _, run = predict_lcg.build(tiny, dev)
    print(f"no checkpoint: training {run.model!r} for {QUICK_STEPS} steps")
    for _ in range(QUICK_STEPS):
        run.step()
    return tiny, data, run.model, run.params.to_host()


def last(predicted, x):
    """Accuracy over the last numbers of the context."""
    return (predicted == x[:, 1:])[:, -LAST:].mean()


def accuracies(decoder, data, sets, main):
    """A. Digits and numbers, after 1, 2, ... numbers in context; by s = v_2(a - 1) where 4 divides
    the modulus."""
    results, tables, by_s = {}, {}, {}
    for name, (x, a) in sets.items():
        predicted, target, m = decoder.predict(x[:, :-1]), x[:, 1:], data.tests[name][0]
        rows = digits.digit_accuracy(predicted, target, lcg.prime_factors(m))
        tables[name] = {str(q): curve for q, curve in rows.items()} | {
            "number": (predicted == target).mean(axis=0)
        }
        results[f"accuracy mod {name}"] = last(predicted, x)
        results |= {f"digit {q} mod {name}": curve for q, curve in tables[name].items()}
        if name == main:
            half, rule = slice(x.shape[1] // 2, None), lcg.look_back(x[:, :-1], m, 2)
            results["same_as_order_2"] = (predicted == rule)[:, half].mean()
            by_s = digits.by_valuation(predicted == target, a) if m % 4 == 0 else {}
            results["accuracy by s"] = {s: curve[-LAST:].mean() for s, curve in by_s.items()}
    return results, (tables, by_s)


def spectra(table, qs):
    """B, C. Principal components of a table, and the share of each component's power at every
    period of qs (where these do not divide the number of rows: of its variance between
    residues)."""
    scores, variance, _ = representation.pca(table, 10)
    shares = {
        q: np.array([digits.residue_share(scores[:, [i]], q) for i in range(scores.shape[1])])
        for q in (1, *qs)
    }
    return scores, {q: shares[q] - shares[q // min(lcg.prime_factors(q))] for q in qs}, variance


def intervene(decoder, x, m, n):
    """L. The answer after n numbers when one of them moves: shares not moved, by -delta, by 2
    delta, otherwise.

    r is twice the largest divisor of m that fits in half the context; the deltas in the results
    keep the low digits."""
    half = max(r for r in range(1, n // 2 + 1) if m % r == 0 and r < m)
    others = sorted({half // 2, half + half // 2} - {0, 1, half})
    backs, far = [2 * half, half, *others, 1], m // 4 if m % (4 * half) == 0 else half
    deltas = sorted({1, 2, half, far})
    table = digits.interventions(decoder.predict, x[:, :n], m, backs, deltas)
    results = {
        "moved_r": table[0, deltas.index(far), -far % m],
        "moved_half_r": table[1, deltas.index(far), 2 * far % m],
    }
    moves = np.zeros((*table.shape[:2], 4))
    for i, j, kind in np.ndindex(*table.shape[:2], 3):
        u = (0, -deltas[j], 2 * deltas[j])[
            kind
        ] % m  # where two of these are one residue, the bar counts it as the first
        moves[i, j, kind], table[i, j, u] = table[i, j, u], 0
    moves[..., 3] = table.sum(axis=-1)
    results |= {"unmoved_others": moves[2:-1, :, 0].mean() if others else np.nan}
    even = [j for j, delta in enumerate(deltas) if delta % 2 == 0]
    results |= {"unmoved_query_even": moves[-1, even, 0].mean(), "unmoved_query_1": moves[-1, 0, 0]}
    return results, (backs, deltas, moves)


def prune(decoder, data, sets, rng):
    """G. Accuracies of numbers and digits with one head replaced, the first column none."""
    train, H, results = data.batch(256, rng)[:, :-1], decoder.model.heads, {}
    heads = list(np.ndindex(decoder.model.depth, H))
    means = [
        decoder.read(train, f"blocks.{i}.attn.out").mean(axis=(0, 1)).reshape(H, -1)
        for i in range(decoder.model.depth)
    ]
    pruned = {kind: np.zeros((len(sets), 1 + len(heads))) for kind in REPLACEMENTS}
    for row, (name, (x, _)) in enumerate(sets.items()):
        before, factors = decoder.predict(x[:, :-1]), lcg.prime_factors(data.tests[name][0])
        for kind, value in REPLACEMENTS.items():
            asked = [
                before,
                *(
                    decoder.predict(x[:, :-1], decoder.set_head(i, h, value(means[i][h])))
                    for i, h in heads
                ),
            ]
            pruned[kind][row] = [last(p, x) for p in asked]
            kept = [digits.digit_accuracy(p[:, -LAST:], x[:, -LAST:], factors) for p in asked]
            results |= {
                f"digit {q} mod {name}, head to {kind}": [k[q].mean() for k in kept]
                for q in kept[0]
            }
    results |= {f"accuracy, head to {kind}": table for kind, table in pruned.items()}
    return results, (pruned, list(sets), ["none", *(f"{i}.{h}" for i, h in heads)])


def residues(decoder, m, qs):
    """F. What the heads and the MLP of the first block add after a single number: two components,
    and the residue they show."""
    single = np.arange(m)[:, None]
    parts = {
        f"head {h}": x
        for h, x in enumerate(np.moveaxis(decoder.heads(single, [0])[:, 0, :, 0], 1, 0))
    }
    parts["MLP"] = decoder.read(single, "blocks.0.end") - decoder.read(single, "blocks.0.mid")
    points, results = {}, {}
    for name, x in parts.items():
        scores = representation.pca(x, 2)[0]
        shares = {
            q: digits.residue_share(scores, q) - (q - 1) / (m - 1) for q in qs
        }  # above chance
        q = next(
            q for q in qs if shares[q] >= max(shares.values()) - 0.05
        )  # mod 4 shows whatever mod 2 does
        points[name], results[f"{name} residue"] = (scores, q, shares[q]), shares
    return results, points


def modulus(decoder, data, m, embedding, rows, rng):
    """H, I. The number that a head's output is most like, beside the largest one so far; patching
    heads from modulus m // 2."""
    _, a, c = data.tests[str(m)]
    pick, small, H = rng.integers(len(a), size=rows), m // 2, decoder.model.heads
    x0 = rng.integers(small, size=rows)
    clean, donor = (lcg.generate(q, a[pick], c[pick], x0, data.length) for q in (m, small))
    tokens = clean[:, : data.length // 2]
    outputs = decoder.heads(tokens, np.arange(tokens.shape[1]))[:, 0]
    estimates, largest = zip(
        *(digits.modulus_estimates(outputs[:, h], embedding, tokens) for h in range(H)), strict=True
    )
    late = slice(tokens.shape[1] // 2, None)
    results = {
        "head_from_largest": [
            np.abs(e - g + 1)[:, late].mean() / m for e, g in zip(estimates, largest, strict=True)
        ]
    }
    results["maximum_estimator_error"] = np.abs(largest[0][:, -1] - m).mean() / m
    before, tables = decoder.predict(clean[:, :-1]), np.zeros((3, decoder.model.depth, H))
    for i, h in np.ndindex(*tables.shape[1:]):
        slices = decoder.read(donor[:, :-1], f"blocks.{i}.attn.out").reshape(
            rows, -1, H, decoder.model.width // H
        )[:, :, h]
        after = decoder.predict(
            clean[:, :-1], decoder.set_head(i, h, 1.25 * slices)
        )  # the authors' factor
        agree = digits.agreements([before, after], [clean[:, 1:], donor[:, 1:]])
        tables[:, i, h] = (after < small).mean(), *agree[1]
    patched = dict(zip(("below m/2", "as the clean run", "as the donor, m/2"), tables, strict=True))
    results |= {f"patched {k}": v for k, v in patched.items()} | {
        "unpatched as clean and donor": agree[0]
    }
    return results, (representation.cosine(outputs[0], embedding), tokens[0], m, patched)


def flat(results):
    """One level of names; lists and floats of four decimals."""
    out = {}
    for name, value in results.items():
        parts = (
            {f"{name} {k}": v for k, v in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
        out |= {k: np.round(v, 4).tolist() for k, v in parts.items()}
    return out


def main(argv=None):
    args = arguments(argv)
    dev, began, rng = cli.device(args), time.perf_counter(), generator(args.seed, "probes")
    tiny = args.quick and args.checkpoint is None
    early = cli.output_folder(args) if tiny else None  # refused before the training
    config, data, model, weights = (
        train_tiny(args, dev)
        if tiny
        else load(args.checkpoint or "runs/predict_lcg/checkpoint.npz")
    )
    decoder, m, unseen, T = (
        Decoder(dev, model, weights),
        config.modulus,
        config.mode == "unseen",
        config.context,
    )
    out = early or cli.output_folder(args)
    sets = {name: data.test(name, args.rows, rng) for name in data.tests}
    x = sets[str(m)][0]
    print(f"{model!r}; tests mod {', '.join(sets)}")

    results, tables = accuracies(decoder, data, sets, str(m))
    powers = sorted(p**i for p, e in lcg.prime_factors(m).items() for i in range(1, min(e, 4) + 1))
    qs, embedding = (2, 3, 4, 5, 7, 8, 9) if unseen else powers, weights["embed.token"]
    for name in ("position", "token"):
        scores, periods, variance = spectra(weights[f"embed.{name}"], qs)
        results |= {f"{name} power at period": periods, f"{name} variance": variance}
    for q, rank in ((2, -1), (4, -2)):  # the components of parity (one) and of x mod 4 (a plane)
        if q in periods:
            results[f"power_period_{q}"] = np.sort(periods[q])[rank]
    cosines = representation.cosine(embedding[:700], embedding[:700])
    offsets = {2**k: np.diagonal(cosines, 2**k).mean() for k in range(10) if 2**k < len(cosines)}
    attention = decoder.patterns(x[:64, :-1])
    patterns, largest = (
        attention.mean(axis=0, dtype=float),
        digits.largest_mass(attention, x[:64, :-1]),
    )
    r, mass = digits.look_back_mass(patterns)
    masses = {
        name: mass[..., min(LAST, T) - 1 :, i].mean(axis=-1)
        for i, name in enumerate(("attention_r", "attention_half_r"))
    }
    results |= {"cosine at offset": offsets} | masses | {"attention_largest": largest}
    moved = {n: intervene(decoder, x, m, n) for n in (T, 3 * T // 4)}
    results |= {key: [case[0][key] for case in moved.values()] for key in moved[T][0]}
    top_k = {k: last(decoder.predict(x[:, :-1], decoder.top_k(k)), x) for k in KEYS}
    pruned, pruning = prune(decoder, data, sets, rng)
    results |= {f"top_{k}": value for k, value in top_k.items()} | pruned
    if unseen:
        parts, points = residues(decoder, m, qs)
        idea, ideas = modulus(decoder, data, m, embedding, 32, rng)
        results |= parts | idea

    results = flat(results)
    cli.write_run(out, args, dev, time.perf_counter() - began, results)
    if cli.plotting(args):
        from tinygrok.plots import lcg as plots

        plots.digits(*tables, out / "digits.png")
        plots.embedding(scores, periods, cosines, offsets, out / "embedding.png")
        plots.attention(patterns, r, mass, out / "attention.png")
        plots.interventions({n: case for n, (_, case) in moved.items()}, out / "interventions.png")
        plots.edits(top_k | {"all": results[f"accuracy mod {m}"]}, *pruning, out / "edits.png")
        if unseen:
            plots.residues(points, out / "residues.png")
            plots.modulus(*ideas, out / "modulus.png")
    short = {k: v for k, v in results.items() if np.size(v) <= 4 and "digit" not in k}
    cli.report(out, short, {} if unseen else EXPECTED, "small networks of one layer")


if __name__ == "__main__":
    cli.main(main)
