"""Which polynomials can be grokked: networks trained side by side on sums, products and others.

    python examples/grok_polynomials.py                 # the paper's six at p = 97, and two more
    python examples/grok_polynomials.py --quick         # p = 61: the same picture in seconds
    python examples/grok_polynomials.py --survey        # the paper's twelve rows, p = 97 and 23
    python examples/grok_polynomials.py --width 5000    # the paper's width
    python examples/grok_polynomials.py --quick --seeds 9    # medians and quartiles of 9 networks

All networks are members of one ensemble with the same training inputs. Beside the test accuracy
stand chance (the share of the most frequent answer), the share of test inputs that the training set
contains up to equal rows and columns of the table ("siblings"), the certificate that a table is of
no separable form, and the fit to the weights that can be written down. Paper: Doshi, He, Das,
Gromov, arXiv 2406.03495, hypothesis 5.1 and appendix C."""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _figures_grok_polynomials as plots  # isort: skip
import _memory as memory  # isort: skip
import _polynomials_survey as survey  # isort: skip
import _polynomials_table  # isort: skip
import _seeds  # isort: skip
import argparse  # isort: skip

import numpy as np

from tinygrok.analytic.polynomial import parse
from tinygrok.analytic.trained import fit_waves, idealise
from tinygrok.analytic.verify import verify
from tinygrok.engine.optim import AdamW
from tinygrok.engine.params import Arena
from tinygrok.engine.rng import generator
from tinygrok.models.mlp import TwoLayerNet
from tinygrok.probes.fourier import mean_known, neuron_ipr
from tinygrok.tasks.modular import addition, multiplication, polynomial, require_prime, separable
from tinygrok.training.checkpoint import fit_in_pack
from tinygrok.training.tables import Evaluation, Training

QUICK = {"p": 61, "width": 300, "steps": 200}
SUM, PRODUCT = "n1 + n2", "n1*n2"
# The separable ones: polynomial -> its task from p and all n mod p.
FORMS = {
    SUM: lambda p, n: addition(p),
    PRODUCT: lambda p, n: multiplication(p),
    "(4*n1 + n2^2)^3": lambda p, n: separable(p, [4 * n, n**2], n**3),
    "(2*n1 + 3*n2)^4": lambda p, n: separable(p, [2 * n, 3 * n], n**4),
    "(5*n1^3 + 2*n2^4)^2": lambda p, n: separable(p, [5 * n**3, 2 * n**4], n**2),
}
POLYNOMIALS = (SUM, PRODUCT, *survey.POLYNOMIALS)


def arguments(argv=None):
    p = cli.parser("grok_polynomials", __doc__)
    add = p.add_argument
    count = cli.integer()
    add("--p", type=cli.integer(5, 400), default=97, help="modulus, a prime")
    add("--width", type=cli.integer(1, 10**6), default=500, help="hidden neurons (paper: 5000)")
    add("--train-frac", type=cli.fraction(), default=0.5, help="share of the table to train on")
    add("--steps", type=count, default=600, help="optimiser steps")
    add("--lr", type=cli.positive(), default=0.005, help="learning rate of AdamW")
    add("--weight-decay", type=cli.real(), default=5.0, help="decoupled weight decay")
    _seeds.add_seeds(add)
    add("--log-every", type=count, default=20, help="steps between measurements")
    twelve = "the paper's table instead: its six polynomials at p = 97 and 23"
    add("--survey", action="store_true", help=twelve)
    cli.add_checkpoints(p, 30.0)
    args = cli.parse(p, argv, QUICK)
    survey.check(args)
    return args


def tasks_of(p):
    """{polynomial: task}: in its separable form where it has one, so that the coordinates of its
    waves are known."""
    require_prime(p, "this example")
    tasks = {}
    for text in POLYNOMIALS:
        if text in FORMS:
            tasks[text] = FORMS[text](p, np.arange(p))
        else:
            tasks[text] = polynomial(p, parse(text))
    return tasks


def split(args, tasks, seed):
    """(training numbers, test numbers) of a seed, for all polynomials."""
    first = next(iter(tasks.values()))
    return first.split(args.train_frac, generator(seed, "split"))


def first_weights(args, seed):
    return TwoLayerNet(args.p, args.width).init(generator(seed, "init"))


def build(args, dev, tasks):
    """The run: an ensemble of the polynomials, for every seed."""
    memory.require(dev, **memory.table(dev, args.p, args.width, len(tasks) * args.seeds))
    run = ensemble(args, dev, tasks, args.seed)
    if args.seeds > 1:
        run = _seeds.together(lambda s: ensemble(args, dev, tasks, s), _seeds.seeds_of(args))
    run.extra = lambda run: waves_now(run, tasks)
    return run


def ensemble(args, dev, tasks, seed):
    """The run of a seed: a member a polynomial, with own targets, the same training inputs and
    first weights."""
    first = next(iter(tasks.values()))
    train, test = split(args, tasks, seed)
    everything = first.inputs(np.arange(first.size))
    labels = np.stack([task.labels(everything) for task in tasks.values()])
    splits = {}
    for name, numbers in (("train", train), ("test", test)):
        splits[name] = (np.isin(np.arange(first.size), numbers), "true")
    evaluation = Evaluation(everything, {"true": labels}, splits)
    net = TwoLayerNet(args.p, args.width)
    params = Arena(dev, net.shapes, len(tasks))
    grads = Arena(dev, net.shapes, len(tasks))
    for e in range(len(tasks)):
        params.load(first_weights(args, seed), e)
    decay = args.weight_decay
    optimizer = AdamW(dev, params, grads, lr=args.lr, betas=(0.9, 0.999), weight_decay=decay)
    data = [(everything[:, train], y[train]) for y in labels]
    return Training(dev, net, optimizer, data, evaluation, [seed] * len(tasks))


def waves_now(run, tasks):
    """{"explained": of every member, "ipr_product": of every seed, or of the only one; empty where
    the product is not among them}"""
    shares = []
    iprs = []
    for e in range(run.params.members):
        text = list(tasks)[e % len(tasks)]
        weights = run.params.to_host(e)
        circle = tasks[text].circle
        shares.append(fit_waves(weights, circle).total if circle else np.nan)
        if text == PRODUCT:
            iprs.append(mean_known(neuron_ipr(weights, tasks[text].wave_order)))
    return {"explained": np.array(shares), "ipr_product": np.squeeze(iprs)}


def waves(run, e, text, task, first):
    """A row of the table: how much of the weights are waves, before and after the training."""
    weights = run.params.to_host(e)
    wave = fit_waves(weights, task.circle)
    before = verify(idealise(first, task.circle), task, terms=False)
    after = verify(idealise(weights, task.circle), task, terms=False)
    ipr = None  # in general no waves in n
    if text in (SUM, PRODUCT):
        ipr = mean_known(neuron_ipr(weights, task.wave_order))
    return {
        "explained_before": float(run.history["explained"][0][e]),
        "explained_after": wave.total,
        "common_frequency": float(wave.common.mean()),
        "phase_residual_rms": float(np.sqrt(mean_known(wave.residual**2))),
        "waves_accuracy_before": before.accuracy,
        "waves_accuracy": after.accuracy,
        "ipr": ipr,
    }


def measured(run, tasks, args):
    """{polynomial: row of the table}, medians where there are several seeds."""
    run.evaluation(run.objective, run.table)
    rows = {text: [] for text in tasks}
    for e in range(run.params.members):
        text = list(tasks)[e % len(tasks)]
        seed = args.seed + e // len(tasks)
        task = tasks[text]
        row = _polynomials_table.answers(run, e, task, *split(args, tasks, seed))
        _, _, row["paper"] = survey.PAPER.get((text, run.model.p), ("", "", ""))
        if task.circle:
            row |= waves(run, e, text, task, first_weights(args, seed))
        if args.seeds > 1:
            row |= _seeds.steps_of_99(run, e)
        rows[text].append(row)
    if args.seeds == 1:
        return {text: found for text, (found,) in rows.items()}
    return {text: _seeds.median_row(found) for text, found in rows.items()}


def of_modulus(args, experiment, pack):
    """The rows of the polynomials of a pack of the survey, which have a modulus in common."""
    args = argparse.Namespace(**vars(args) | pack[0])
    every = tasks_of(args.p)
    tasks = {point["polynomial"]: every[point["polynomial"]] for point in pack}
    run = build(args, experiment.dev, tasks)
    print(f"{len(tasks)} polynomials mod {args.p}; network {run.model!r}, {args.steps} steps")
    shown = cli.Progress(args.steps, run.t)
    options = {
        "on_log": lambda row: shown(row["step"], progress(row, len(tasks))),
        "save_seconds": args.save_seconds,
    }
    folder = experiment.out / cli.PACKS
    fit_in_pack(run, pack, folder, args.steps, args.log_every, **options)
    shown.close()
    return list(measured(run, tasks, args).values())


def progress(row, polynomials):
    """Of several seeds: the medians."""
    by_seed = row["test_accuracy"].reshape(-1, polynomials)
    return f"test accuracy {np.array2string(np.median(by_seed, axis=0), precision=2)}"


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    if args.survey:
        return survey.run(args, experiment, of_modulus)
    tasks = tasks_of(args.p)
    run = build(args, experiment.dev, tasks)
    product = list(tasks).index(PRODUCT)
    before = run.params.to_host(product)
    experiment.open(run)
    train, test = split(args, tasks, args.seed)
    pairs = f"{len(train)} training pairs, {len(test)} held out"
    seeds = f"{args.seeds} seeds; " if args.seeds > 1 else ""
    print(f"{len(tasks)} polynomials mod {args.p}: {pairs}; {seeds}network {run.model!r}")
    code = experiment.train(run, args.log_every, lambda row: progress(row, len(tasks)))
    if code is not None:
        return code

    rows = measured(run, tasks, args)

    def figures(out):
        residuals = {}
        for e, (text, task) in enumerate(tasks.items()):
            if task.circle:
                residuals[text] = fit_waves(run.params.to_host(e), task.circle).residual
        weights = (before, run.params.to_host(product))
        order = tasks[PRODUCT].circle.answers
        path = out / "grok_polynomials.png"
        plots.learnability(rows, run.history, *weights, order, residuals, path)

    experiment.write(rows, run.history, figures)
    _polynomials_table.show(rows)
    if args.seeds > 1:
        _seeds.show_steps(rows, args)
    experiment.list_files()
    return None


if __name__ == "__main__":
    cli.main(main)
