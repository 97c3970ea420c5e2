"""In-context learning of modular maps: a GPT reads x1 y1 z1 x2 y2 z2 ..., z = (a x + b y) mod p,
and answers for tasks (a, b) that it never saw.

    python examples/in_context.py --quick              # p = 5, half a minute: in-distribution learning only
    python examples/in_context.py --preset small       # p = 7, 36 tasks: o.o.d. ability rises and fades, two cores
    python examples/in_context.py --preset paper       # p = 29, width 512: for a GPU

The weights with the best o.o.d. accuracy are kept in best.npz beside the final ones in
checkpoint.npz. Paper: He, Doshi, Das, Gromov, Learning to grok, arXiv 2406.02550.
"""

import time

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import numpy as np  # isort: skip

from tinygrok.engine.optim import AdamW, cosine, linear_warmup
from tinygrok.engine.params import Arena
from tinygrok.engine.rng import generator
from tinygrok.models.gpt import GPT
from tinygrok.tasks import in_context as ic
from tinygrok.training.checkpoint import save_arrays
from tinygrok.training.sequences import SequenceTraining

PRESETS = {
    "small": {},  # the defaults
    "paper": {
        "p": 29,
        "shots": 32,
        "tasks": 512,
        "alpha": 0.6,
        "depth": 4,
        "width": 512,
        "heads": 4,
        "batch": 1024,
        "lr": 1.5e-4,
        "weight_decay": 2.0,
        "warmup": 10_000,
        "schedule": "cosine",
        "steps": 200_000,
        "init_std": 0.02,
        "vocab": 47,
        "measure_every": 1000,
        "repeats": True,
    },
}
QUICK = {
    "p": 5,
    "shots": 8,
    "tasks": 8,
    "alpha": 0.6,
    "depth": 2,
    "batch": 80,
    "steps": 700,
    "measure_every": 100,
}
QUESTIONS = 14  # rows of inputs, at least, in a measured set: all its tasks are asked the same ones
SETS = ("id_train", "id_test", "ood_train", "ood_test")


def arguments(argv=None):
    p = cli.parser(
        "in_context", "In-context learning of modular maps by a GPT with a handwritten backward."
    )
    p.add_argument(
        "--preset",
        default="small",
        choices=sorted(PRESETS),
        help="settings that the other flags may change",
    )
    p.add_argument("--p", type=cli.integer(3, 1000), default=7, help="modulus, a prime")
    p.add_argument(
        "--shots", type=cli.integer(2), default=12, help="triples (x, y, z) in a sequence"
    )
    p.add_argument("--tasks", type=cli.integer(), default=36, help="pre-training tasks (a, b)")
    p.add_argument(
        "--rule",
        default="rectangle",
        choices=["rectangle", "random"],
        help="how tasks are selected",
    )
    p.add_argument(
        "--alpha",
        type=cli.real(0, 1, True, True),
        default=0.7,
        help="share of the inputs (x, y) to train on",
    )
    p.add_argument(
        "--repeats",
        action="store_true",
        help="a sequence may hold the same input twice (the paper's does)",
    )
    p.add_argument("--depth", type=cli.integer(), default=4, help="blocks")
    p.add_argument("--width", type=cli.integer(), default=64, help="channels")
    p.add_argument("--heads", type=cli.integer(), default=2, help="attention heads")
    p.add_argument(
        "--vocab",
        type=cli.integer(),
        default=None,
        help="vocabulary (default p; the authors' code: p + 18)",
    )
    p.add_argument(
        "--batch", type=cli.integer(), default=144, help="sequences a step, a multiple of --tasks"
    )
    p.add_argument("--steps", type=cli.integer(), default=9500, help="optimiser steps")
    p.add_argument(
        "--lr", type=cli.real(0, None, True), default=1e-3, help="peak learning rate of AdamW"
    )
    p.add_argument(
        "--weight-decay",
        type=cli.real(),
        default=0.5,
        help="decoupled decay of matrices and embeddings",
    )
    p.add_argument("--warmup", type=cli.integer(0), default=200, help="steps of linear warm-up")
    p.add_argument(
        "--schedule",
        default="constant",
        choices=["constant", "cosine"],
        help="after the warm-up; cosine to a tenth",
    )
    p.add_argument(
        "--init-std",
        type=cli.real(0, None, True),
        default=None,
        help="default 0.02 sqrt(512 / width)",
    )
    p.add_argument(
        "--recompute",
        action="store_true",
        help="compute activations again in backward: less memory, same bits",
    )
    p.add_argument(
        "--measure-every", type=cli.integer(), default=250, help="steps between measurements"
    )
    p.add_argument(
        "--save-seconds", type=cli.real(), default=60.0, help="seconds between checkpoints"
    )
    p.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    chosen = p.parse_known_args(argv)[0]
    p.set_defaults(**PRESETS[chosen.preset])
    args = cli.parse(p, argv, QUICK)
    if args.quick and args.preset != "small":
        raise cli.InputError("--quick is a setting of its own: leave out --preset")
    if args.batch % args.tasks:
        raise cli.InputError(
            f"--batch {args.batch} must be a multiple of --tasks {args.tasks}: every task sees the same inputs"
        )
    return args


def build(args, dev):
    """Data, model, optimiser and the training run; every random draw comes from a named stream of
    the seed."""
    data = ic.InContextData.make(
        args.p,
        args.shots,
        args.tasks,
        args.alpha,
        generator(args.seed, "split"),
        args.rule,
        args.repeats,
    )
    vocab = args.vocab or args.p
    if vocab < args.p:
        raise cli.InputError(f"--vocab {vocab} does not hold the numbers 0..{args.p - 1}")
    net = GPT.in_context(
        vocab, args.width, args.depth, args.heads, 3 * args.shots, recompute=args.recompute
    )
    params, grads = Arena(dev, net.shapes), Arena(dev, net.shapes)
    params.load(
        net.init(generator(args.seed, "init"), args.init_std or 0.02 * (512 / args.width) ** 0.5)
    )
    # The authors' warm-up starts at a hundredth of the peak and counts from 0; ours starts at
    # 1/warmup.
    schedule = (
        linear_warmup(args.warmup)
        if args.schedule == "constant"
        else cosine(args.warmup, args.steps, 0.1)
    )
    optimizer = AdamW(
        dev,
        params,
        grads,
        lr=args.lr,
        betas=(0.9, 0.98),
        weight_decay=args.weight_decay,
        schedule=schedule,
        no_decay=net.no_decay,
    )
    probes, sets = generator(args.seed, "probes"), {}
    for which, tasks in (("id", data.id_tasks), ("ood", data.ood_tasks)):
        for pool in ("train", "test"):
            pairs = data.draw_pairs(
                getattr(data, f"{pool}_pool"), max(QUESTIONS, -(-500 // len(tasks))), probes
            )
            sets[f"{which}_{pool}"] = data.sequences(tasks, pairs)
    solved = solvers(args.p, sets["ood_train"], data.id_tasks)

    def covered(run, predicted):
        """O.o.d. accuracy at the last shot where ratio matching has an answer, and where it has
        none."""
        right = predicted["ood_train"][:, -1] == run.sets["ood_train"].targets[:, -1]
        known = solved["known"][:, -1]
        mean = lambda mask: right[mask].mean() if mask.any() else np.nan  # noqa: E731
        return {"ood_covered": mean(known), "ood_uncovered": mean(~known)}

    positions = np.arange(1, 3 * args.shots, 3)  # at every y, for the z that follows
    draw = lambda rng: data.batch(args.batch, rng)  # noqa: E731
    return (
        data,
        solved,
        SequenceTraining(dev, net, optimizer, draw, positions, sets, args.seed, covered),
    )


def solvers(p, tokens, id_tasks):
    """k-shot accuracy of the three reference solvers on the very sequences that the network is
    measured on."""
    triples = tokens.reshape(len(tokens), -1, 3)
    xy, z = triples[..., :2], triples[..., 2]
    result = {"ratio_matching": [], "modular_regression": [], "retrieval": [], "known": []}
    for k in range(z.shape[1]):
        context = p, xy[:, :k], z[:, :k], xy[:, k]
        for name, answer in (
            ("ratio_matching", ic.ratio_matching(*context)),
            ("modular_regression", ic.modular_regression(*context)),
            ("retrieval", ic.retrieval(*context, id_tasks)),
        ):
            result[name].append(ic.solver_accuracy(p, *answer, z[:, k]))
            if name == "ratio_matching":
                result["known"].append(answer[1])
    return result | {"known": np.stack(result["known"], axis=1)}


def main(argv=None):
    args = arguments(argv)
    dev = cli.device(args)
    data, solved, run = build(args, dev)
    out = cli.start(args, run)
    print(
        f"{len(data.id_tasks)} pre-training and {len(data.ood_tasks)} held-out tasks mod {args.p}; {run.model!r}"
    )
    began, first = time.perf_counter(), run.t

    def text(row):
        return "  ".join(f"{name} {row[f'{name}_accuracy'][-1]:.3f}" for name in SETS)

    def keep_best(row):
        if (
            np.argmax([a[-1] for a in run.history["ood_train_accuracy"]])
            == len(run.history["step"]) - 1
        ):  # better than ever
            save_arrays(
                out / "best.npz",
                {"step": row["step"], "config": cli.config(args)},
                run.params.to_host(),
            )

    code = cli.train(args, run, out, args.measure_every, text, keep_best, every=10.0)
    if code is not None:
        return code

    history = {k: np.asarray(v) for k, v in run.history.items()}
    last = {name: history[f"{name}_accuracy"][:, -1] for name in SETS}
    at = int(last["ood_train"].argmax())
    results = {name: float(values[-1]) for name, values in last.items()} | {
        "ood_best": float(last["ood_train"][at]),
        "ood_best_step": int(history["step"][at]),
        "ood_best_covered": float(history["ood_covered"][at]),
        "ood_best_uncovered": float(history["ood_uncovered"][at]),
        "phase": ic.phase(*(float(last[name][-1]) for name in SETS)),
        "phase_at_best": ic.phase(*(float(last[name][at]) for name in SETS)),
        "k_shot": history["ood_train_accuracy"][at].round(4).tolist(),
        **{
            name: np.round(solved[name], 4).tolist()
            for name in ("ratio_matching", "modular_regression", "retrieval")
        },
        "seconds_per_step": (time.perf_counter() - began) / (run.t - first)
        if run.t > first
        else None,
    }
    losses = {f"{name}_loss": history[f"{name}_loss"][:, -1] for name in SETS}
    cli.write_log(
        out,
        {
            "step": history["step"],
            **last,
            **losses,
            **{k: history[k] for k in ("ood_covered", "ood_uncovered")},
        },
    )
    cli.write_run(out, args, dev, time.perf_counter() - began, results)
    if cli.plotting(args):
        from tinygrok.plots import in_context as plots

        plots.training(history, at, solved, out / "in_context.png")
    cli.report(out, results, {}, "")


if __name__ == "__main__":
    cli.main(main)
