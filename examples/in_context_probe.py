"""Opens a GPT trained by examples/in_context.py: attention heads, circles of numbers, ratio
matching, wrong labels.

    python examples/in_context_probe.py runs/in_context/best.npz       # the weights with the best o.o.d. accuracy
    python examples/in_context_probe.py CHECKPOINT --task 6 6 --shot 2 --device cuda
    python examples/in_context_probe.py --quick                        # trains a tiny one first, a few seconds

Every analysis is a function in tinygrok.probes that returns numbers; this file asks the model, and
draws. Paper: He, Doshi, Das, Gromov, Learning to grok, arXiv 2406.02550.
"""

import time
from pathlib import Path

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import numpy as np  # isort: skip

import in_context

from tinygrok.engine.rng import generator
from tinygrok.models.gpt import GPT
from tinygrok.models.inspect import Decoder
from tinygrok.probes import attention, representation, shots
from tinygrok.tasks.in_context import InContextData
from tinygrok.tasks.modular import all_pairs, discrete_log
from tinygrok.training.checkpoint import CheckpointError, load_arrays

SETTINGS = (
    "p",
    "shots",
    "tasks",
    "alpha",
    "rule",
    "repeats",
    "depth",
    "width",
    "heads",
    "vocab",
    "seed",
)
QUICK = {"grid_tasks": 4, "draws": 20}
QUICK_STEPS = 250


def arguments(argv=None):
    p = cli.parser(
        "in_context_probe", "Interpretability analyses of a GPT trained by examples/in_context.py."
    )
    p.add_argument(
        "checkpoint",
        nargs="?",
        type=Path,
        help="best.npz or checkpoint.npz (default runs/in_context/best.npz)",
    )
    p.add_argument(
        "--task",
        nargs=2,
        type=cli.integer(0),
        metavar=("A", "B"),
        help="default: the first held-out task",
    )
    p.add_argument(
        "--shot",
        type=cli.integer(0),
        help="the triple that runs through all pairs (x, y); default 5, or the last",
    )
    p.add_argument(
        "--grid-tasks",
        type=cli.integer(),
        default=8,
        help="tasks of each kind asked with all queries",
    )
    p.add_argument(
        "--contexts", type=cli.integer(), default=4, help="contexts for each of these tasks"
    )
    p.add_argument(
        "--draws",
        type=cli.integer(),
        default=60,
        help="sequences a task with wrong labels, of up to 64 tasks",
    )
    return cli.parse(p, argv, QUICK)


def load(path):
    """Configuration and weights of a file that examples/in_context.py wrote."""
    meta, arrays = load_arrays(path)
    config = meta.get("config", {})
    if missing := [name for name in SETTINGS if name not in config]:
        raise CheckpointError(
            f"{path}: not of examples/in_context.py, it lacks {', '.join(missing)}"
        )
    weights = {
        k.removeprefix("weight/"): x
        for k, x in arrays.items()
        if k.startswith("weight/") or "/" not in k
    }
    if bad := [name for name, x in weights.items() if not np.isfinite(x).all()]:
        raise CheckpointError(f"{path}: {bad[0]} is not finite")
    return config, weights


def train_tiny(args, dev):
    """Configuration and weights of a short run of the quick setting of examples/in_context.py (p =
    5)."""
    tiny = in_context.arguments(["--quick", "--seed", str(args.seed)])
    run = in_context.build(tiny, dev)[-1]
    print(f"no checkpoint: training {run.model!r} for {QUICK_STEPS} steps")
    for _ in range(QUICK_STEPS):
        run.step()
    return cli.config(tiny), run.params.to_host()


def build(config, weights, dev):
    """The run's data, remade from its seed, and the decoder."""
    c = {name: config[name] for name in SETTINGS}
    split = generator(c["seed"], "split")
    data = InContextData.make(
        c["p"], c["shots"], c["tasks"], c["alpha"], split, c["rule"], c["repeats"]
    )
    net = GPT.in_context(c["vocab"] or c["p"], c["width"], c["depth"], c["heads"], 3 * c["shots"])
    return data, Decoder(dev, net, weights, c["p"])


def triples(data, tasks, pool, rows, rng):
    """(tasks rows, shots, 3): the same rows of inputs for every task."""
    return data.sequences(tasks, data.draw_pairs(pool, rows, rng)).reshape(-1, data.shots, 3)


def heads(decoder, data, held, rng):
    """4.1 Attention maps: relative offsets and types of tokens."""
    patterns = decoder.patterns(triples(data, held[:8], data.train_pool, 4, rng))
    mean, first = patterns.mean(axis=0, dtype=float), min(attention.FIRST, 3 * data.shots - 3)
    offsets, masses = attention.by_offset(mean, first=first), attention.by_type(mean, first)
    results = {
        "head_offset": offsets[..., 1:].argmax(axis=-1) + 1,
        "head_offset_score": offsets[..., 1:].max(axis=-1),
    }
    results |= {f"attention_{name}": mass.sum(axis=-1) for name, mass in masses.items()}
    return results, (patterns[0, :, :, :48, :48], offsets, masses["sink"].sum(axis=-1))


def numbers(embedding, outputs, order):
    """4.2-4.4 Circles and the Legendre symbol in the embedding and in the heads' outputs at the x
    and y token.

    outputs (p^2, depth, H, 3, C)
    """
    p = len(embedding)
    feature = np.moveaxis(outputs[:, :, :, :2], 0, 2).reshape(
        *outputs.shape[1:3], p, p, -1
    )  # (depth, H, x, y, 2 C)
    x, y = (
        [[representation.circle(f.mean(axis=axis), order) for f in block] for block in feature]
        for axis in (1, 0)
    )
    scores = np.array(
        [[representation.pca(f.reshape(p * p, -1))[0] for f in block] for block in feature]
    )
    i, h = np.unravel_index(
        np.nan_to_num([[t["share"] for t in block] for block in x]).argmax(), feature.shape[:2]
    )
    shown, results = {}, {}
    for key, name, f in (
        ("embedding", "embedding", embedding),
        ("head", f"block {i} head {h}, mean over y", feature[i, h].mean(axis=1)),
    ):
        circle, legendre = representation.circle(f, order), representation.legendre(f, order)
        log, base = discrete_log(p), circle["base"] or int(order[1])
        log = np.where(log < 0, -1, log * pow(int(log[base]), -1, p - 1) % (p - 1))
        power = representation.character_power(f, order)
        shown[name] = {
            "scores": representation.pca(f)[0],
            "log": log,
            "base": base,
            "legendre": legendre,
            "power": power,
        }
        results |= {
            f"{key}_circle": circle["share"],
            f"{key}_circle_m": circle["m"],
            f"{key}_circle_zero": circle["zero"],
        }
        results |= {
            f"{key}_legendre": abs(legendre["correlation"]).max(),
            f"{key}_legendre_r2": legendre["r2"],
        }
    results |= {"circle_chance": 2 / (p - 2), "best_head": f"block {i} head {h}"}
    for name, tests in (("x", x), ("y", y)):
        results |= {
            f"circle_{name}_{key}": [[t[key] for t in block] for block in tests]
            for key in ("share", "m", "gcd")
        }
    return results, shown, (scores, shown[f"block {i} head {h}, mean over y"]["log"], x, y)


def similarities(streams, outputs, task):
    """4.5 Cosine maps of block outputs (p^2, depth, 3, C) and head outputs (p^2, depth, H, 3, C),
    with their scores."""
    p = round(len(streams) ** 0.5)
    labels = {"ratio": shots.directions(p), "answer": all_pairs(p) @ task % p}
    results, maps, titles = {}, {"block": [], "head": []}, {"block": [], "head": []}
    for i in range(streams.shape[1]):
        y1 = np.arange(p) * p + 1  # the x token does not know y: one y
        blocks = [("x", streams[y1, i, 0]), ("y", streams[:, i, 1]), ("z", streams[:, i, 2])]
        ends = [(f"head {h}, z", outputs[:, i, h, 2]) for h in range(outputs.shape[2])]
        for kind, features in (("block", blocks), ("head", ends)):
            maps[kind].append([representation.cosine_map(f) for _, f in features])
            titles[kind].append([f"block {i}, {name}" for name, _ in features])
            for column, (token, _) in enumerate(features):
                if token != "x":
                    scores = {
                        n: representation.pair_score(maps[kind][-1][column], label)
                        for n, label in labels.items()
                    }
                    titles[kind][-1][column] += "".join(
                        f"\n{name} {score:+.2f}" for name, score in scores.items()
                    )
                    for name, score in scores.items():
                        results.setdefault(f"{name}_score_{kind}_{token[-1]}", []).append(score)
    return results, maps, titles


def by_class(decoder, data, tasks, counts, number, rng):
    """4.6, 4.8 Accuracy by what a query needs, train inputs and test inputs apart, and failures of
    whole lines."""
    p, pool = data.p, np.isin(np.arange(data.p**2), data.train_pool @ [data.p, 1])
    right, total = (np.zeros((2, 4, len(counts))) for _ in range(2))
    errors, whole, shuffled = 0, 0, 0
    for pairs in data.draw_pairs(data.train_pool, number, rng):
        for task in tasks:
            for column, k in enumerate(counts):
                context = pairs[:k]
                correct = shots.grid(decoder.logits, p, task, context)["correct"]
                for row, mask in enumerate(shots.classes(p, context).values()):
                    for side, inputs in enumerate((pool, ~pool)):
                        right[side, row, column] += correct[mask & inputs].sum()
                        total[side, row, column] += (mask & inputs).sum()
                ratio, mixed = shots.covered(p, context), correct.copy()
                mixed[ratio] = rng.permutation(
                    correct[ratio]
                )  # as many errors, anywhere in the set
                failed = shots.line_failures(p, correct, ratio)
                errors, whole = errors + failed["errors"], whole + failed["on_lines"]
                shuffled += shots.line_failures(p, mixed, ratio)["on_lines"]
    return right, total, np.array([whole, shuffled]) / max(1, errors)


def wrong_labels(decoder, data, held, rng):
    """4.9 One wrong label, whether the query is a multiple of that example or not: share of right
    answers that stay right."""
    clean_triples = triples(data, held[:8], data.train_pool, 16, rng)
    right, clean = shots.noise_single(decoder.logits, data.p, clean_triples, rng)
    lines = shots.directions(data.p)[clean_triples[..., :2] @ [data.p, 1]]
    same = (lines[:, :-1] == lines[:, -1:]) & clean[:, -1:]
    other = ~(lines[:, :-1] == lines[:, -1:]) & clean[:, -1:]
    last = right[:, :-1, -1]
    return {
        "one_wrong_matching": last[same].mean() if same.any() else np.nan,
        "one_wrong_other": last[other].mean(),
    }


def main(argv=None):
    args = arguments(argv)
    dev, began, rng = cli.device(args), time.perf_counter(), generator(args.seed, "probes")
    tiny = args.quick and args.checkpoint is None
    path = args.checkpoint or Path("runs/in_context/best.npz")
    config, weights = train_tiny(args, dev) if tiny else load(path)
    try:
        data, decoder = build(config, weights, dev)
    except TypeError as error:
        raise CheckpointError(
            f"{path}: its settings are not of examples/in_context.py ({error})"
        ) from error
    p, held = data.p, data.ood_tasks
    task = np.array(args.task or held[0])
    if task.max() >= p:
        raise cli.InputError(f"--task {task[0]} {task[1]}: the numbers are 0..{p - 1}")
    s = min(5, data.shots - 1) if args.shot is None else args.shot
    if s >= data.shots:
        raise cli.InputError(f"--shot {s}: the triples of this model are 0..{data.shots - 1}")
    out = cli.output_folder(args)
    print(
        f"{decoder.model!r}; task ({task[0]}, {task[1]}), {len(data.id_tasks)} pre-training tasks mod {p}"
    )

    # All p^2 pairs at triple s after the same s triples; what comes later is not seen there.
    order = np.argsort(discrete_log(p))[1:]
    probe = np.empty((p * p, s + 1, 3), dtype=int)
    probe[:, :s, :2], probe[:, s, :2] = (
        data.draw_pairs(data.train_pool, 1, rng)[0, :s],
        all_pairs(p),
    )
    probe[..., 2] = probe[..., :2] @ task % p
    tokens = np.arange(3 * s, 3 * s + 3)
    outputs, streams = decoder.heads(probe, tokens), decoder.residuals(probe, tokens)
    results, maps = heads(decoder, data, held, rng)
    numeric, features, circles = numbers(weights["embed.token"][:p], outputs, order)
    scores, similar, titles = similarities(streams, outputs, task)
    results |= numeric | scores

    counts = sorted(
        {min(max(1, k), data.shots - 1) for k in (1, 2, 5 * data.shots // 12, data.shots)}
    )
    needs = ("repeat", "multiple", "spanned", "unspanned")
    curves = {}
    for name, kind, tasks in (("id", "pre-training", data.id_tasks), ("ood", "held-out", held)):
        right, total, lines = by_class(
            decoder, data, tasks[: args.grid_tasks], counts, args.contexts, rng
        )
        with np.errstate(invalid="ignore"):  # no query of a class: nan
            share = right / total
            covered, uncovered = (
                right[:, rows].sum(axis=1) / total[:, rows].sum(axis=1) for rows in ([0, 1], [2, 3])
            )
        results |= {f"{name}_covered": covered[0], f"{name}_uncovered": uncovered[0]}
        results |= {f"{name}_covered_test": covered[1], f"{name}_uncovered_test": uncovered[1]}
        results |= {f"{name}_repeats": share[0, 0], f"{name}_multiples": share[0, 1]}
        results |= {f"{name}_line_failures": lines[0], f"{name}_line_failures_shuffled": lines[1]}
        curves[f"{kind} tasks, train inputs"] = dict(zip(needs, share[0], strict=True))
    results |= {"task": task.tolist(), "shots": counts} | wrong_labels(decoder, data, held, rng)

    tables, single, lens = {}, {}, {}
    for name, tasks in (("id", data.id_tasks), ("ood", held)):
        rows = triples(data, tasks[:32], data.train_pool, args.draws, rng)
        tables[f"{name} tasks, train inputs"] = table = shots.noise_random(
            decoder.logits, p, rows, rng
        )["accuracy"]
        results[f"{name}_by_wrong_labels"] = table[-1]
        for pool in ("train", "test"):
            key, rows = (
                f"{name}_{pool}",
                triples(data, tasks[:32], getattr(data, f"{pool}_pool"), args.draws, rng),
            )
            single[key] = tuple(a[0] for a in shots.noise_single(decoder.logits, p, rows[:1], rng))
            lens[key] = (decoder.lens(rows)[:, :, -1].argmax(axis=-1) == rows[:, None, -1, 2]).mean(
                axis=0
            )
            results[f"lens_{key}"] = lens[key]

    results = {
        k: np.round(v, 4).tolist() if isinstance(v, list | np.ndarray | np.floating) else v
        for k, v in results.items()
    }
    cli.write_run(out, args, dev, time.perf_counter() - began, results)
    if cli.plotting(args):
        from tinygrok.plots import in_context as plots

        grid = data.draw_pairs(data.train_pool, 1, rng)[0]
        square = lambda ask: np.array([ask(grid[:k]).reshape(p, p) for k in counts])  # noqa: E731
        correct = square(lambda context: shots.grid(decoder.logits, p, task, context)["correct"])
        ratio, span = (
            square(lambda context, f=f: f(p, context)) for f in (shots.covered, shots.spanned)
        )
        plots.attention(*maps, out / "attention.png")
        plots.numbers(features, out / "numbers.png")
        plots.circles(*circles, out / "circles.png")
        plots.cosine(similar["block"], titles["block"], out / "cosine_blocks.png")
        plots.cosine(similar["head"], titles["head"], out / "cosine_heads.png")
        plots.grids(counts, correct, ratio, span, f"task ({task[0]}, {task[1]})", out / "grids.png")
        plots.shots(counts, curves, lens, 1 / p, out / "shots.png")
        plots.noise(tables, single, out / "noise.png")
    for i, h in np.ndindex(decoder.model.depth, decoder.model.heads):
        looks = zip(
            "xyz", results["head_offset"][i][h], results["head_offset_score"][i][h], strict=True
        )
        circle = ", ".join(
            f"{n} {results[f'circle_{n}_share'][i][h]:.2f} (m = {results[f'circle_{n}_m'][i][h]})"
            for n in "xy"
        )
        print(
            f"block {i} head {h}: "
            + ", ".join(f"{n} looks back {o} ({a:.2f})" for n, o, a in looks)
            + f"; circle of {circle}"
        )
    cli.report(out, {name: value for name, value in results.items() if np.size(value) <= 5}, {}, "")


if __name__ == "__main__":
    cli.main(main)
