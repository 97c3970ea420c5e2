"""Opens a GPT trained by examples/in_context.py: heads, circles, ratio matching, wrong labels.

    python examples/in_context_probe.py runs/in_context/best.npz       # the best o.o.d. accuracy
    python examples/in_context_probe.py CHECKPOINT --beside OTHER          # two networks
    python examples/in_context_probe.py CHECKPOINT --task 6 6 --shot 2 --device cuda
    python examples/in_context_probe.py MODEL.safetensors --p 29           # the authors' weights
    python examples/in_context_probe.py --quick            # trains a tiny one first, a few seconds

The analyses are in _in_context_analyses.py, and what they measure in tinygrok.probes.
Paper: He, Doshi, Das, Gromov, Learning to grok, arXiv 2406.02550.
"""

from pathlib import Path

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import numpy as np  # isort: skip

import _in_context_analyses as analyses
import _published as published
import in_context
from _trained import open_trained

from tinygrok.engine.rng import generator
from tinygrok.models.inspect import Decoder

CHECKPOINT = Path("runs/in_context/best.npz")
QUICK = {"grid_tasks": 4, "draws": 20}
TINY = "--p 5 --shots 8 --tasks 8 --alpha 0.6 --depth 2 --batch 80 --steps 250"


def arguments(argv=None):
    p = cli.parser("in_context_probe", __doc__)
    count = cli.integer(1, 1000)
    files = f"best.npz, checkpoint.npz (default {CHECKPOINT}) or the authors' weights"
    p.add_argument("checkpoint", nargs="?", type=Path, help=files)
    beside = "another network of in_context.py, opened by the same analyses"
    p.add_argument("--beside", type=Path, metavar="CHECKPOINT", help=beside)
    task = {"nargs": 2, "type": cli.integer(0), "metavar": ("A", "B")}
    p.add_argument("--task", help="default: the first held-out task, or a random one", **task)
    shot = "the triple that runs through all pairs (x, y); default 5, or the last"
    p.add_argument("--shot", type=cli.integer(0), help=shot)
    p.add_argument("--grid-tasks", type=count, default=8, help="tasks asked with all queries")
    p.add_argument("--contexts", type=count, default=4, help="contexts for each of these tasks")
    draws = "sequences a task with wrong labels, of up to 64 tasks"
    p.add_argument("--draws", type=count, default=60, help=draws)
    published.add_flags(p, published.IN_CONTEXT)
    return published.checked(cli.parse(p, argv, QUICK))


def build(args):
    """Data and model of a file that examples/in_context.py wrote."""
    return in_context.make_data(args), in_context.make_model(args)


def train_tiny(args, dev):
    """The same of a short run of examples/in_context.py."""
    tiny = in_context.arguments([*TINY.split(), "--seed", str(args.seed)])
    data, _, run = in_context.build(tiny, dev)
    print(f"no checkpoint: training {run.model!r} for {tiny.steps} steps")
    for _ in range(tiny.steps):
        run.step()
    return data, run.model, run.params.to_host()


def open_beside(args, data):
    """(data, model, weights) of --beside, which must read the same sequences."""
    _, other, model, weights = open_trained(args.beside, in_context, build)
    if (other.p, other.shots) != (data.p, data.shots):
        ours = f"{data.shots} triples mod {data.p}"
        raise cli.InputError(f"--beside: {other.shots} triples mod {other.p}, the other {ours}")
    return other, model, weights


def chosen(args, data):
    """The task (a, b) and the shot that are looked at closely."""
    task = np.array(args.task or data.ood_tasks[0])
    if task.max() >= data.p:
        raise cli.InputError(f"--task {task[0]} {task[1]}: the numbers are 0..{data.p - 1}")
    shot = min(5, data.shots - 1) if args.shot is None else args.shot
    if shot >= data.shots:
        raise cli.InputError(f"--shot {shot}: the triples of this model are 0..{data.shots - 1}")
    return task, shot


def task_name(data, task):
    """The task with its side of the split, where that is known."""
    held_out = (data.ood_tasks == task).all(axis=1).any()
    side = ", held out (o.o.d.)" if held_out else ", a pre-training task (i.d.)"
    return f"task ({task[0]}, {task[1]}){side if len(data.id_tasks) else ''}"


def analysed(args, data, decoder, embedding, task, shot):
    """All results, and {file name: (figure function, its arguments)}."""
    rng = generator(args.seed, "probes")
    p = data.p
    probe = analyses.all_pairs_at(shot, data, task, rng)
    tokens = np.arange(3 * shot, 3 * shot + 3)
    outputs = decoder.heads(probe, tokens)
    streams = decoder.residuals(probe, tokens)
    results, maps = analyses.heads(decoder, data, rng)
    permutations = rng.spawn(1)[0]  # which takes no draw from the others
    found, features, circles = analyses.numbers(embedding, outputs, permutations)
    results |= found
    found, cosines, titles = analyses.similarities(streams, outputs, task)
    results |= found

    steps = (1, 2, 5 * data.shots // 12, data.shots)
    counts = sorted({min(max(1, k), data.shots - 1) for k in steps})
    curves = {}
    for name, tasks in analyses.task_sets(data).items():
        asked = tasks[: args.grid_tasks]
        found, curve = analyses.by_need(decoder, data, asked, counts, args.contexts, rng)
        results |= {f"{name}_{key}": value for key, value in found.items()}
        curves[analyses.TITLES[name]] = curve
    results |= {"task": task.tolist(), "shots": counts}
    results |= analyses.wrong_label(decoder, data, rng)
    found, lens, tables, single = analyses.wrong_labels(decoder, data, args.draws, rng)
    results |= found
    grids = analyses.grids(decoder, data, task, counts, rng)
    shown = {
        "attention": ("attention", maps),
        "numbers": ("numbers", (features,)),
        "circles": ("circles", circles),
        "cosine_blocks": ("cosine", (cosines["block"], titles["block"], 3)),
        "cosine_heads": ("cosine", (cosines["head"], titles["head"], decoder.model.heads)),
        "grids": ("grids", (counts, *grids, task_name(data, task))),
        "shots": ("shots", (counts, curves, lens, p)),
        "noise": ("noise", (tables, single)),
    }
    return {name: rounded(value) for name, value in results.items()}, shown


def rounded(value):
    """Four decimals of arrays, lists and NumPy's numbers; others as they are."""
    if isinstance(value, list | np.ndarray | np.floating):
        return np.round(value, 4).tolist()
    return value


def description(results, i, h):
    """What a head looks at, and the circles in its output."""
    backs = results["head_offset"][i][h]
    scores = results["head_offset_score"][i][h]
    looks = []
    for token, back, score in zip("xyz", backs, scores, strict=True):
        looks.append(f"{token} looks back {back} ({score:.2f})")
    circles = []
    for token in "xy":
        share = results[f"circle_{token}_share"][i][h]
        m = results[f"circle_{token}_m"][i][h]
        circles.append(f"{token} {share:.2f} (m = {m})")
    return f"block {i} head {h}: {', '.join(looks)}; circle of {', '.join(circles)}"


def heading(name, data, model, task):
    """What is opened, and what of it is looked at closely."""
    count = len(data.id_tasks)
    tasks = f"{count} pre-training" if count else f"{len(data.ood_tasks)} random"
    return f"{name}: {model!r}; {tasks} tasks mod {data.p}; closely: {task_name(data, task)}"


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    if args.quick and args.checkpoint is None:
        data, model, weights = train_tiny(args, experiment.dev)
    else:
        files = (args, CHECKPOINT, in_context, build, published.in_context)
        _, data, model, weights = published.open_network(*files)
    p = data.p
    task, shot = chosen(args, data)
    networks = {"network": (data, model, weights)}
    if args.beside:
        networks["beside"] = open_beside(args, data)
    experiment.open()
    opened = {}
    for name, (its_data, its_model, its_weights) in networks.items():
        print(heading(name, its_data, its_model, task))
        its_decoder = Decoder(experiment.dev, its_model, its_weights, p)
        embedding = its_weights["embed.token"][:p]
        opened[name] = analysed(args, its_data, its_decoder, embedding, task, shot)
        for i, h in np.ndindex(its_model.depth, its_model.heads):
            print(description(opened[name][0], i, h))

    def figures(out):
        import _figures_in_context as plots
        from _figures_in_context_beside import beside

        for name, (_, shown) in opened.items():
            end = "" if name == "network" else f"_{name}"
            for kind, (function, values) in shown.items():
                getattr(plots, function)(*values, out / f"{kind}{end}.png")
        if args.beside:
            beside(opened, out / "beside.png")

    results, _ = opened["network"]
    if args.beside:
        others, _ = opened["beside"]
        results |= {f"beside: {name}": value for name, value in others.items()}
    short = {name: value for name, value in results.items() if np.size(value) <= 5}
    experiment.finish(results, None, figures, shown=short)


if __name__ == "__main__":
    cli.main(main)
