"""Opens a GPT trained by examples/predict_lcg.py: digits, embedding, look-backs, heads.

    python examples/lcg_probe.py runs/predict_lcg/checkpoint.npz
    python examples/lcg_probe.py MODEL.npz --mode unseen --heads 6    # the authors' weights
    python examples/lcg_probe.py --quick          # trains a small one first (m = 64), half a minute

The network must read a token a number. One that was trained with --mode unseen is also asked for
its idea of the modulus, every number beside a control (_lcg_modulus_claims.py). An analysis returns
its results and what the figure of its name shows; what it measures is in tinygrok.probes and in
_lcg_opened.py. Paper: Tao, Doshi, Kalra, He, Barkeshli, (How) can transformers predict
pseudo-random numbers?, arXiv 2502.10390."""

from pathlib import Path

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import numpy as np  # isort: skip

import _lcg_modulus_claims as unseen_moduli
import _lcg_opened as opened
import predict_lcg
from _lcg_answers import LAST
from _lcg_setup import require_numbers
from _published import NUMBERS, add_flags, checked, numbers, open_network

from tinygrok.engine.rng import generator
from tinygrok.models.inspect import Decoder
from tinygrok.probes import digits, representation
from tinygrok.probes.decoder import head_means
from tinygrok.tasks import lcg

CHECKPOINT = Path("runs/predict_lcg/checkpoint.npz")
QUICK_STEPS = 1100
KEYS = (1, 2, 3, 4, 8)
# Small one-layer networks, m = 64 and 256, of an implementation written for comparison; the paper
# prints no such numbers.
TITLE = "small networks of one layer"
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
    p = cli.parser("lcg_probe", __doc__)
    file = f"of predict_lcg.py (default {CHECKPOINT}), or the authors' weights"
    p.add_argument("checkpoint", nargs="?", type=Path, help=file)
    p.add_argument("--rows", type=cli.integer(1, 10**5), default=512, help="sequences a modulus")
    add_flags(p, NUMBERS)
    return checked(cli.parse(p, argv))


def build(args):
    """Data and model of a file that examples/predict_lcg.py wrote."""
    require_numbers(args)
    data = predict_lcg.make_data(args)
    return data, predict_lcg.make_model(args, data)


def train_tiny(args, dev):
    """The same of a short run of the quick setting of examples/predict_lcg.py."""
    flags = ["--quick", "--steps", str(QUICK_STEPS), "--test-rows", "8", "--seed", str(args.seed)]
    tiny = predict_lcg.arguments(flags)
    data, _, run = predict_lcg.build(tiny, dev)
    print(f"no checkpoint: training {run.model!r} for {QUICK_STEPS} steps")
    for _ in range(QUICK_STEPS):
        run.step()
    return tiny, data, run.model, run.params.to_host()


# -- the analyses: (results, what the figure of that name shows) -----------------------------------


def last(decoder, x, edit=None):
    """Accuracy over the last numbers of the context."""
    right = decoder.predict(x[:, :-1], edit) == x[:, 1:]
    return right[:, -LAST:].mean()


def accuracies(decoder, data, sets, main):
    """Digits and numbers after 1, 2, ... numbers in context; by s = v_2(a - 1) where 4 | m."""
    results = {}
    tables = {}
    for name, (x, a) in sets.items():
        m = data.tests[name][0]
        predicted = decoder.predict(x[:, :-1])
        right = predicted == x[:, 1:]
        tables[name] = digits.digit_accuracy(predicted, x[:, 1:], lcg.prime_factors(m))
        tables[name]["number"] = right.mean(axis=0)
        results[f"accuracy mod {name}"] = right[:, -LAST:].mean()
        results |= {f"digit {q} mod {name}": curve for q, curve in tables[name].items()}
        if name == main:
            same = predicted == lcg.look_back(x[:, :-1], m, 2)
            results["same_as_order_2"] = same[:, x.shape[1] // 2 :].mean()
            by_s = digits.by_valuation(right, a) if m % 4 == 0 and a.min() > 1 else {}
            results |= {f"accuracy by s {s}": c[-LAST:].mean() for s, c in by_s.items()}
    return results, (tables, by_s)


def embedding(weights, periods):
    """Principal components of both embeddings and their power by period; cosines."""
    results = {}
    for name in ("position", "token"):
        if f"embed.{name}" not in weights:  # rotary positions have no embedding
            continue
        scores, variance, _ = representation.pca(weights[f"embed.{name}"], 10)
        power = opened.power_by_period(scores, periods)
        results |= {f"{name} power at period {q}": share for q, share in power.items()}
        results[f"{name} variance"] = variance
    for q, rank in ((2, -1), (4, -2)):  # the components of parity (one) and of x mod 4 (a plane)
        if q in power:
            results[f"power_period_{q}"] = np.sort(power[q])[rank]
    numbers = weights["embed.token"][:700]
    cosines = representation.cosine(numbers, numbers)
    powers_of_two = [2**k for k in range(10) if 2**k < len(cosines)]
    offsets = {offset: np.diagonal(cosines, offset).mean() for offset in powers_of_two}
    results |= {f"cosine at offset {offset}": mean for offset, mean in offsets.items()}
    return results, (scores, power, cosines, offsets)


def attention(decoder, tokens):
    """Attention at look-backs r and r/2 of the target, and on the largest number so far."""
    patterns = decoder.patterns(tokens)
    mean = patterns.mean(axis=0, dtype=float)
    r, mass = digits.look_back_mass(mean)
    at_the_end = mass[..., min(LAST, len(r)) - 1 :, :]
    results = {
        "attention_r": at_the_end[..., 0].mean(axis=-1),
        "attention_half_r": at_the_end[..., 1].mean(axis=-1),
        "attention_largest": digits.largest_mass(patterns, tokens),
    }
    return results, (mean, r, mass)


def interventions(decoder, x, m):
    """Moved numbers, in the whole context and in three quarters of it."""
    T = x.shape[1] - 1
    results = {}
    shown = {}
    for n in (T, 3 * T // 4):
        shares, shown[n] = opened.order_2_moves(decoder, x[:, :n], m)
        for name, share in shares.items():
            results.setdefault(name, []).append(share)
    return results, (shown,)


def edits(decoder, data, sets, main, rng):
    """Accuracies with attention to k keys only, and with one head replaced (first column: none).

    The authors put the mean of everything in the place of a head (Figure 8)."""
    x, _ = sets[main]
    top_k = {k: last(decoder, x, decoder.top_k(k)) for k in KEYS}
    results = {f"top_{k}": value for k, value in top_k.items()}
    top_k["all"] = last(decoder, x)
    means = head_means(decoder, data.batch(256, rng)[:, :-1])
    replacements = {"its mean": means.mean(axis=-1), "its mean of each feature": means}
    replacements["zero"] = np.zeros(means.shape[:2])
    tables = {kind: [] for kind in replacements}
    for name, (x, _) in sets.items():
        factors = lcg.prime_factors(data.tests[name][0])
        for kind, values in replacements.items():
            right = opened.accuracy_without_heads(decoder, x, values, factors, LAST)
            tables[kind].append(right.pop("number"))
            results |= {f"digit {q} mod {name}, head to {kind}": r for q, r in right.items()}
    results |= {f"accuracy, head to {kind}": table for kind, table in tables.items()}
    heads = ["none", *(f"{i}.{h}" for i, h in np.ndindex(means.shape[:2]))]
    return results, (top_k, tables, list(sets), heads)


def analyse(decoder, data, unseen, weights, rows, rng):
    """{name: (results, what the figure of that name shows)}, and the lines beside a control."""
    names = unseen_moduli.tests_of(data)
    sets = {name: data.test(name, rows, rng) for name in names}
    first = names[0]
    m = data.tests[first][0]
    x, _ = sets[first]
    print(f"{decoder.model!r}; tests mod {', '.join(sets)}")

    few = {p: min(exponent, 4) for p, exponent in lcg.prime_factors(m).items()}
    powers = sorted(digits.digits(x, few))
    analyses = {
        "digits": accuracies(decoder, data, sets, first),
        "embedding": embedding(weights, [2, 3, 4, 5, 7, 8, 9] if unseen else powers),
        "attention": attention(decoder, x[:64, :-1]),
        "interventions": interventions(decoder, x, m),
        "edits": edits(decoder, data, {first: sets[first]}, first, rng),
    }
    lines = []
    if unseen:
        found = unseen_moduli.analyse(decoder, data, names, weights["embed.token"], rows, rng)
        for name, (*analysis, compared) in found.items():
            analyses[name] = analysis
            lines += compared
    return analyses, lines


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    rng = generator(args.seed, "probes")
    if args.quick and args.checkpoint is None:
        experiment.open()  # refused before the training
        config, data, model, weights = train_tiny(args, experiment.dev)
    else:
        network = open_network(args, CHECKPOINT, predict_lcg, build, numbers)
        config, data, model, weights = network
    decoder = Decoder(experiment.dev, model, weights)
    experiment.open()
    unseen = config.mode == "unseen"
    analyses, lines = analyse(decoder, data, unseen, weights, args.rows, rng)
    results = {}
    for found, _ in analyses.values():
        results |= {name: np.round(x, 4).tolist() for name, x in found.items()}
    short = {k: v for k, v in results.items() if 0 < np.size(v) <= 4 and "digit" not in k}
    results |= unseen_moduli.written(lines)

    def figures(out):
        import _figures_lcg as plots
        import _figures_lcg_modulus as further

        for name, (_, shown) in analyses.items():
            draw = getattr(further if hasattr(further, name) else plots, name)
            draw(*shown, out / f"{name}.png")

    unseen_moduli.print_lines(lines, results.get(unseen_moduli.LEFT_OUT, ()))
    experiment.finish(results, None, figures, {} if unseen else EXPECTED, TITLE, short)


if __name__ == "__main__":
    cli.main(main)
