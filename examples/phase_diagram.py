"""Phase diagrams of learning from corrupted labels: training fraction against corrupted fraction,
by regularisation.

    python examples/phase_diagram.py --quick
    python examples/phase_diagram.py --grid 5 --p 59 --width 200 --steps 600         # minutes on two cores
    python examples/phase_diagram.py                                                 # the paper's 17 x 17 x 4: use a GPU
    python examples/phase_diagram.py --workers 4                                     # processes of this machine
    python examples/phase_diagram.py --scheduler tcp://host:8786                     # a Dask cluster

Networks train in packs, as ensembles; every finished pack is a file in --out, and --resume runs
what is missing. Paper: Doshi, Das, He, Gromov, To grok or not to grok, arXiv 2310.13061 (Figure 3).
"""

import time

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import functools  # isort: skip
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from tinygrok.engine.errors import InputError
from tinygrok.ops.activation import resolve
from tinygrok.ops.dropout import check_rate_host
from tinygrok.probes.phases import PHASES
from tinygrok.tasks.corruption import RULES
from tinygrok.training.checkpoint import check_config
from tinygrok.training.ensembles import complete, pack_size, packs, train_pack
from tinygrok.training.sweep import SweepError, exit_with_parent, sweep

STRENGTHS = {
    "weight_decay": (0.0, 5.0, 15.0, 20.0),
    "dropout": (0.0, 0.3, 0.6, 0.9),
    "batchnorm": (64.0,),
    "minibatch": (8.0, 64.0),
}
QUICK = {"grid": 3, "p": 47, "width": 150, "steps": 300}
QUICK_STRENGTHS = {
    "weight_decay": [0.0, 15.0],
    "dropout": [0.0, 0.3],
    "batchnorm": [64.0],
    "minibatch": [64.0],
}


def arguments(argv=None):
    p = cli.parser("phase_diagram", __doc__.splitlines()[0])
    p.add_argument(
        "--regularizer",
        default="weight_decay",
        choices=sorted(STRENGTHS),
        help="what the columns vary",
    )
    p.add_argument(
        "--strengths",
        type=cli.real(),
        nargs="+",
        default=None,
        help="decays, dropout rates or batch sizes",
    )
    p.add_argument(
        "--grid",
        type=cli.integer(1, 200),
        default=17,
        help="points along each axis, from 0.1 to 0.9",
    )
    p.add_argument(
        "--steps", type=cli.integer(), default=2000, help="optimiser steps of every network"
    )
    p.add_argument("--p", type=cli.integer(5, 1000), default=97, help="modulus")
    p.add_argument("--width", type=cli.integer(), default=500, help="hidden neurons")
    p.add_argument("--loss", default="mse", choices=["mse", "cross_entropy"], help="loss")
    p.add_argument(
        "--activation",
        default="square",
        help="square, power<k>, relu, leaky_relu, gelu, gelu_tanh, tanh, erf",
    )
    p.add_argument(
        "--rule",
        default="uniform",
        choices=RULES,
        help="how labels are corrupted (uniform: the paper's rule)",
    )
    p.add_argument(
        "--seeds",
        type=cli.integer(),
        default=1,
        help="networks a cell; a cell shows means and the commonest phase",
    )
    p.add_argument(
        "--pack",
        type=cli.integer(),
        default=None,
        help="networks a pack (default: 8, on a GPU what fits)",
    )
    p.add_argument("--log-every", type=cli.integer(), default=50, help="steps between measurements")
    p.add_argument(
        "--workers",
        type=cli.integer(0),
        default=0,
        help="worker processes (0: threads of this process)",
    )
    p.add_argument(
        "--scheduler", default=None, metavar="tcp://HOST:PORT", help="address of a Dask scheduler"
    )
    p.add_argument(
        "--resume", action="store_true", help="keep the finished packs in --out and run the others"
    )
    args = cli.parse(p, argv, QUICK)
    args.strengths = args.strengths or list(
        (QUICK_STRENGTHS if args.quick else STRENGTHS)[args.regularizer]
    )
    if len(set(args.strengths)) < len(args.strengths):
        raise InputError("--strengths: every value once")
    resolve(args.activation)
    if args.regularizer == "dropout":
        check_rate_host(args.strengths)
    smallest = int(
        (0.1 if args.grid > 1 else 0.5) * args.p**2
    )  # training inputs of the first column
    if args.regularizer in ("batchnorm", "minibatch") and any(
        not 2 <= s <= smallest or s % 1 for s in args.strengths
    ):
        raise InputError(
            f"--strengths: batch sizes are whole numbers from 2 to {smallest}, the smallest training set"
        )
    return args


def points(args):
    """One point per network, in the order strength, alpha, xi, seed; and the axis of the grid."""
    axis = np.linspace(0.1, 0.9, args.grid).round(6).tolist() if args.grid > 1 else [0.5]
    names = ("p", "width", "steps", "loss", "activation", "rule", "log_every", "dtype")
    common = {k: getattr(args, k) for k in names}
    result = []
    for strength in args.strengths:
        own = {args.regularizer: strength}
        if args.regularizer in (
            "batchnorm",
            "minibatch",
        ):  # as the paper: the same epochs, lr = 0.01 sqrt(batch/256)
            batch = int(strength)
            steps = args.steps * 256 // batch if args.regularizer == "minibatch" else args.steps
            lr = 0.01 * (batch / 256) ** 0.5
            own = {
                "batch_size": batch,
                "lr": lr,
                "batchnorm": args.regularizer == "batchnorm",
                "steps": steps,
            }
        for alpha in axis:
            for xi in axis:
                cell = common | own | {"alpha": alpha, "xi": xi}
                result += [cell | {"seed": args.seed + s} for s in range(args.seeds)]
    return result, axis


def make_executor(args):
    """None, a maker of process pools, or a Dask executor."""
    if args.scheduler:
        try:
            from distributed import Client
        except ImportError as error:
            raise InputError("--scheduler needs Dask: pip install 'tinygrok[cluster]'") from error
        try:
            return Client(args.scheduler, timeout=10).get_executor(retries=5)
        except (OSError, ValueError, TimeoutError) as error:
            raise InputError(f"--scheduler {args.scheduler}: {error}") from error
    if args.workers:
        spawn = multiprocessing.get_context("spawn")
        return functools.partial(
            ProcessPoolExecutor, args.workers, mp_context=spawn, initializer=exit_with_parent
        )
    return None


def grids(args, axis, outcomes):
    """{title: {"phase", "train", "test"}} with arrays (alpha, xi): means over seeds, the number of
    the commonest phase."""
    shape = len(args.strengths), len(axis), len(axis), args.seeds
    codes = np.array([PHASES.index(o["phase"]) for o in outcomes]).reshape(shape)
    commonest = np.array([(codes == i).sum(axis=-1) for i in range(len(PHASES))]).argmax(axis=0)
    accuracies = [
        np.array([o[f"{split}_accuracy"] for o in outcomes], dtype=float)
        for split in ("train", "test")
    ]
    means = [a.reshape(shape).mean(axis=-1) for a in accuracies]  # nan for a network that diverged
    return {
        f"{args.regularizer.replace('_', ' ')} {strength:g}": {
            "phase": phase,
            "train": train,
            "test": test,
        }
        for strength, phase, train, test in zip(args.strengths, commonest, *means, strict=True)
    }


def main(argv=None):
    args = arguments(argv)
    dev = cli.device(args)
    executor = make_executor(args)
    everything, axis = points(args)
    size = args.pack or (
        8 if args.scheduler else pack_size(dev, complete(everything[0]), max(1, args.workers))
    )
    cut = packs(everything, size)
    out = cli.output_folder(args, args.resume, "config.json")
    settings = json.loads(json.dumps(cli.config(args) | {"pack": size}))
    if args.resume:
        check_config(out, json.loads((out / "config.json").read_text()), settings, free=())
    cli.write_json(out / "config.json", settings)
    print(f"{len(everything)} networks in {len(cut)} packs of up to {max(map(len, cut))}")
    began, progress = time.perf_counter(), cli.Progress(len(cut), every=10.0, unit="pack")
    started = []

    def show(done, total):
        started.append(done)
        progress(done, "packs finished")

    run = functools.partial(train_pack, device=args.device, threads=1 if executor else args.threads)
    try:
        results = sweep(cut, run, out / "packs", executor, show)
    except SweepError as error:
        print(f"stopped: {error}\nto run what is missing:\n  {cli.resume_hint()}")
        return 1
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; finished packs are in {out / 'packs'}. To go on:\n  {cli.resume_hint()}",
            flush=True,
        )
        os._exit(130)  # worker processes notice and end; waiting for them could take long
    progress.close()
    seconds = time.perf_counter() - began
    key = functools.partial(json.dumps, sort_keys=True)
    by_point = {
        key(point): r
        for pack, rs in zip(cut, results, strict=True)
        for point, r in zip(pack, rs, strict=True)
    }
    outcomes = [
        by_point[key(complete(point))] for point in everything
    ]  # packs group points, so look each up
    table = grids(args, axis, outcomes)
    trained = len(everything) * (len(cut) - started[0]) / len(cut)
    summary = {name: sum(o["phase"] == name for o in outcomes) for name in PHASES}
    for title, grid in table.items():
        counts = np.bincount(grid["phase"].ravel(), minlength=len(PHASES)).tolist()
        summary |= {
            f"{title}: {name}": count for name, count in zip(PHASES, counts, strict=True) if count
        }
    summary |= {
        "networks": len(everything),
        "seconds_per_network": seconds / trained if trained else None,
    }
    cells = {
        k: [complete(p)[k] for p in everything]
        for k in ("alpha", "xi", "weight_decay", "dropout", "batch_size", "seed")
    }
    cli.write_log(out, cells | {k: [o[k] for o in outcomes] for k in outcomes[0]})
    cli.write_run(out, args, dev, seconds, summary)
    if cli.plotting(args):
        from tinygrok.plots import corrupted_labels as plots

        plots.diagram(table, axis, axis, out / "phase_diagram.png")
    cli.report(out, summary, {}, "")


if __name__ == "__main__":
    cli.main(main)
