"""In-context learning of modular maps by a GPT, which answers for tasks that it never saw.

    python examples/in_context.py --quick           # p = 5, a minute: o.o.d. by ratio matching
    python examples/in_context.py --preset small    # p = 7: o.o.d. ability rises and fades
    python examples/in_context.py --preset sums     # p = 7: beyond ratio matching, by a curriculum
    python examples/in_context.py --preset free --weights runs/in_context/checkpoint.npz --out F
                                                    # goes on from sums, with more free rows
    python examples/in_context.py --preset lines-11 --out A     # the same at p = 11, in three runs
    python examples/in_context.py --preset sums-11 --weights A/checkpoint.npz --out B
    python examples/in_context.py --preset free-11 --weights B/checkpoint.npz --out C
    python examples/in_context.py --preset paper    # p = 29, width 512: for a GPU

It reads x1 y1 z1 x2 y2 z2 ..., z = (a x + b y) mod p; a task is a pair (a, b). The weights with the
best o.o.d. accuracy are kept in best.npz beside the final ones in checkpoint.npz. Paper: He, Doshi,
Das, Gromov, Learning to grok, arXiv 2406.02550.
"""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import os  # isort: skip

import numpy as np  # isort: skip

import _figures_in_context as plots
import _in_context_setup as setup
import _optimizers as optimizers
from _in_context_presets import PRESETS, QUICK
from _in_context_rows import RULES
from _in_context_setup import ROWS, SETS, make_data, make_model
from _in_context_weights import first_weights

from tinygrok.engine.optim import cosine, linear_warmup
from tinygrok.engine.rng import generator
from tinygrok.training.checkpoint import save_arrays
from tinygrok.training.sequences import SequenceTraining


def arguments(argv=None):
    p = cli.parser("in_context", __doc__)
    add = p.add_argument
    count = cli.integer()
    size = cli.integer(1, 10**5)
    many = cli.integer(1, 10**6)
    presets = sorted(PRESETS)
    rules = ["rectangle", "random"]
    after = ["constant", "cosine"]
    share = cli.fraction()
    rows = f"shares of the rules of rows, {', '.join(RULES)}"
    fade = "training steps while the sums of the rule steps lose their steps"
    some = "draw so many for each batch (default: all, or --batch of them)"
    repeats = "rows drawn freely may hold an input twice (the paper's may); of other rules many do"
    add("--preset", default="small", choices=presets, help="settings that other flags may change")
    add("--p", type=cli.integer(3, 400), default=7, help="modulus, a prime")
    add("--shots", type=cli.integer(2, 1000), default=12, help="triples (x, y, z) in a sequence")
    add("--tasks", type=cli.integer(1, 4096), default=36, help="pre-training tasks (a, b)")
    add("--rule", default="rectangle", choices=rules, help="how tasks are selected")
    add("--alpha", type=share, default=0.7, help="share of the inputs (x, y) to train on")
    add("--repeats", action="store_true", help=repeats)
    add("--depth", type=cli.integer(1, 1000), default=4, help="blocks")
    add("--width", type=size, default=64, help="channels")
    add("--heads", type=size, default=2, help="attention heads")
    add("--vocab", type=many, help="vocabulary (default p; the authors' code: p + 18)")
    add("--rows", nargs="+", metavar="RULE=SHARE", default=["plain=1"], help=rows)
    add("--start", nargs="+", metavar="RULE=SHARE", help="shares at first (default: --rows)")
    add("--ramp", type=cli.integer(0), nargs=2, default=[0, 2000], help="steps of their move")
    add("--fade", type=cli.integer(0), nargs=2, default=[2000, 6000], help=fade)
    add("--batch", type=many, default=144, help="sequences a step, a multiple of its tasks")
    add("--tasks-per-step", type=cli.integer(1, 4096), help=some)
    add("--steps", type=count, default=9500, help="optimiser steps")
    add("--lr", type=cli.positive(), default=1e-3, help="peak learning rate of AdamW")
    add("--weight-decay", type=cli.real(), default=0.5, help="of matrices and embeddings")
    add("--warmup", type=cli.integer(0), default=200, help="steps of linear warm-up")
    add("--schedule", default="constant", choices=after, help="then; cosine to a tenth")
    optimizers.add_flags(p)
    first = "start from the weights of a checkpoint of this example"
    add("--weights", type=os.path.abspath, metavar="FILE", help=first)
    add("--init-std", type=cli.positive(), help="default 0.02 sqrt(512 / width)")
    add("--recompute", action="store_true", help="less memory for activations, same bits, slower")
    add("--measure-every", type=count, default=250, help="steps between measurements")
    cli.add_checkpoints(p, 60.0)
    p.set_defaults(**PRESETS[cli.chosen(p, argv).preset])
    args = cli.parse(p, argv, QUICK)
    if args.quick and args.preset != "small":
        raise cli.InputError("--quick is a setting of its own: leave out --preset")
    setup.check_batch(args)
    refuse_idle(args, setup.shares_of_rows(args))
    return args


def refuse_idle(args, shares):
    """Refuse flags that would do nothing beside the others."""
    optimizers.refuse_idle(args)
    if args.weights:
        cli.refuse_idle(args, "does not go with --weights, which take its place", "init_std")
    if not args.start:
        cli.refuse_idle(args, "needs --start", "ramp")
    if "steps" not in shares.used:
        cli.refuse_idle(args, "needs a share of the rule steps", "fade")


def build(args, dev):
    """Data, accuracies of the solvers and the training run; every random draw comes from a named
    stream of the seed."""
    net = make_model(args)
    setup.require_memory(args, dev, net)
    data = make_data(args)
    # The authors' warm-up starts at a hundredth of the peak and counts from 0; ours starts at
    # 1/warmup.
    schedule = linear_warmup(args.warmup)
    if args.schedule == "cosine":
        schedule = cosine(args.warmup, args.steps, 0.1)
    run = SequenceTraining.on_task(
        net,
        data,
        args.batch,
        args.seed,
        weights=first_weights(args, net),
        device=dev,
        betas=(0.9, 0.98),
        **optimizers.options(args, net, schedule),
    )
    asked = data.sets(generator(args.seed, "probes"))  # what the run measures
    solved = setup.solvers(args.p, asked["ood_train"], data.id_tasks)
    solved |= setup.rows_by_rule(args.p, asked)
    setup.watch(run, solved, len(asked["ood_train"]) // len(data.ood_tasks))
    return data, solved, run


def progress(row):
    """The text of a row, in percent, as `legend` says."""
    last = [row[f"{name}_accuracy"][-1] for name in SETS]
    late = [row["uncovered"], *(row[f"{name}_late"] for name in by_rule(row))]
    id_train, id_test, ood_train, ood_test = (f"{100 * x:.0f}" for x in last)
    unmatched = "/".join(f"{100 * x:.0f}" for x in late)
    return f"id {id_train}/{id_test} ood {ood_train}/{ood_test} late {unmatched}"


def by_rule(measured):
    """Names of the sets of rows by rule of which something is measured."""
    return [name for name in ROWS.values() if f"{name}_late" in measured]


def legend(late):
    """What the progress line shows, of the measured sets of rows by rule."""
    rules = [rule for rule, name in ROWS.items() if name in late]
    rows = f", rows {'/'.join(rules)}" if rules else ""
    return f"%: last shot, train/test inputs; late unmatched{rows}"


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    data, solved, run = build(args, experiment.dev)
    experiment.open(run)
    setup.fill_history(run)
    held = len(data.ood_tasks)
    tasks = f"{len(data.id_tasks)} pre-training and {held} held-out tasks mod {args.p}"
    print(f"{tasks}\n{run.model!r}\n{legend(solved['late'])}")

    def keep_best(row):
        accuracies = [a[-1] for a in run.history["ood_train_accuracy"]]
        if np.argmax(accuracies) == len(accuracies) - 1:  # better than ever
            meta = {"step": row["step"], "config": cli.config(args)}
            save_arrays(experiment.out / "best.npz", meta, run.params.to_host())

    code = experiment.train(run, args.measure_every, progress, keep_best, every=10.0)
    if code is not None:
        return code

    history = {name: np.asarray(values) for name, values in run.history.items()}
    results, log, best = setup.measured(history, solved)
    results |= setup.on_fresh_rows(run, data, args.seed)
    trained = experiment.trained
    results["seconds_per_step"] = experiment.seconds / trained if trained else None

    def figures(out):
        plots.training(history, best, solved, args.p, out / "in_context.png")
        if data.shares.used != ["plain"]:
            plots.by_rule(history, solved["floors"], args.p, out / "rows_by_rule.png")

    experiment.finish(results, log, figures)
    return None


if __name__ == "__main__":
    cli.main(main)
