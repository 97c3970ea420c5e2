"""Which polynomials can be grokked: networks trained side by side on sums, products and others.

    python examples/grok_polynomials.py                 # the paper's six at p = 97, and two more
    python examples/grok_polynomials.py --quick         # p = 61: the same picture in seconds
    python examples/grok_polynomials.py --width 5000    # the paper's width
    python examples/grok_polynomials.py --p 23 --width 2000 --steps 1000

All networks are members of one ensemble with the same training inputs. Beside the test accuracy
stand chance (the share of the most frequent answer), the share of test inputs that the training set
contains up to equal rows and columns of the table ("siblings"), the certificate that a table is of
no separable form, and the fit to the weights that can be written down. Paper: Doshi, He, Das,
Gromov, arXiv 2406.03495, hypothesis 5.1 and appendix C."""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _figures_grok_polynomials as plots  # isort: skip
import _memory as memory  # isort: skip
import numpy as np  # isort: skip

from tinygrok.analytic.polynomial import parse
from tinygrok.analytic.trained import excluded, fit_waves, idealise, majority_share, siblings
from tinygrok.analytic.verify import verify
from tinygrok.engine.optim import AdamW
from tinygrok.engine.params import Arena
from tinygrok.engine.rng import generator
from tinygrok.models.mlp import TwoLayerNet
from tinygrok.probes.fourier import mean_known, neuron_ipr
from tinygrok.tasks.modular import addition, multiplication, polynomial, require_prime, separable
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
# Polynomial -> test accuracy of appendix C (the product: figure 3) in per cent at p = 97 and
# p = 23, width 5000.
PAPER = {
    SUM: ("", ""),
    PRODUCT: ("100", ""),
    "(4*n1 + n2^2)^3": ("100", "100"),
    "(4*n1 + n2^2)^3 + n1*n2": ("2.27", "1.89"),
    "(2*n1 + 3*n2)^4": ("100", "100"),
    "(2*n1 + 3*n2)^4 - n1^2": ("3.93", "7.17"),
    "(5*n1^3 + 2*n2^4)^2": ("100", "100"),
    "(5*n1^3 + 2*n2^4)^2 - n2": ("72.32", "2.64"),
}


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
    add("--log-every", type=count, default=20, help="steps between measurements")
    cli.add_checkpoints(p, 30.0)
    return cli.parse(p, argv, QUICK)


def tasks_of(p):
    """{polynomial: task}: in its separable form where it has one, so that the coordinates of its
    waves are known."""
    require_prime(p, "this example")
    tasks = {}
    for text in PAPER:
        if text in FORMS:
            tasks[text] = FORMS[text](p, np.arange(p))
        else:
            tasks[text] = polynomial(p, parse(text))
    return tasks


def build(args, dev, tasks):
    """(run, training numbers, test numbers): one ensemble, a member a polynomial, with own targets,
    the same training inputs and first weights."""
    memory.require(dev, **memory.table(dev, args.p, args.width, len(tasks)))
    first = tasks[SUM]
    train, test = first.split(args.train_frac, generator(args.seed, "split"))
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
        params.load(net.init(generator(args.seed, "init")), e)
    decay = args.weight_decay
    optimizer = AdamW(dev, params, grads, lr=args.lr, betas=(0.9, 0.999), weight_decay=decay)
    data = [(everything[:, train], y[train]) for y in labels]

    product = list(tasks).index(PRODUCT)

    def waves(run):
        shares = np.full(len(tasks), np.nan)
        for e, task in enumerate(tasks.values()):
            if task.circle:
                shares[e] = fit_waves(run.params.to_host(e), task.circle).total
        iprs = neuron_ipr(run.params.to_host(product), tasks[PRODUCT].wave_order)
        return {"explained": shares, "ipr_product": mean_known(iprs)}

    seeds = [args.seed] * len(tasks)
    run = Training(dev, net, optimizer, data, evaluation, seeds, extra=waves)
    return run, train, test


def answers(run, e, task, train, test):
    """A row of the table: what the network answers."""
    history = run.history
    table = task.table()
    hits = run.evaluation.predicted[e][test] == table.ravel()[test]
    known = siblings(table, train, test) > 0
    return {
        "test_accuracy": float(hits.mean()),
        "train_accuracy": float(history["train_accuracy"][-1][e]),
        "train_loss": float(history["train_loss"][-1][e]),
        "test_loss": float(history["test_loss"][-1][e]),
        "paper": "",
        "chance": majority_share(table.ravel()),
        "quotient_coverage": float(known.mean()),
        "accuracy_with_siblings": float(hits[known].mean()) if known.any() else None,
        "accuracy_without": float(hits[~known].mean()) if not known.all() else None,
        "learnable": task.circle is not None,
        "excluded_sum": excluded(table, "add"),
        "excluded_product": excluded(table, "multiply"),
    }


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


def measured(run, tasks, train, test, first):
    """{polynomial: row of the table}; first: the first weights of every network."""
    run.evaluation(run.objective, run.table)
    columns = {97: 0, 23: 1}
    rows = {}
    for e, (text, task) in enumerate(tasks.items()):
        rows[text] = answers(run, e, task, train, test)
        if run.model.p in columns:
            rows[text]["paper"] = PAPER[text][columns[run.model.p]]
        if task.circle:
            rows[text] |= waves(run, e, text, task, first)
    return rows


def percent(x):
    return "-" if x is None else f"{100 * x:.2f}"


def show(rows):
    columns = f"{'train':>7}{'test':>8}{'paper':>8}{'chance':>8}"
    print(f"\n{'accuracy in per cent':<26}{columns}   siblings: test / with / without   not")
    for text, row in rows.items():
        train = percent(row["train_accuracy"])
        test = percent(row["test_accuracy"])
        chance = percent(row["chance"])
        parts = ("quotient_coverage", "accuracy_with_siblings", "accuracy_without")
        split = " / ".join(percent(row[name]) for name in parts)
        forms = " ".join(name for name in ("sum", "product") if row[f"excluded_{name}"])
        accuracies = f"{train:>7}{test:>8}{row['paper']:>8}{chance:>8}"
        print(f"{text:<26}{accuracies}   {split:<33}{forms}")
    print(
        "siblings: share of the test inputs that have an equal row and column in training, "
        "accuracy with and without them"
    )
    print("not: proved to be of no form h(g1(n1) + g2(n2)) (sum), h(g1(n1) g2(n2)) (product)")
    columns = f"{'weights explained':>20}{'accuracy as waves':>22}"
    print(f"\n{'waves, before -> after':<26}{columns}   common freq.   phase rms    IPR")
    for text, row in rows.items():
        if row["learnable"]:
            explained = f"{row['explained_before']:>11.3f} -> {row['explained_after']:.3f}"
            before = percent(row["waves_accuracy_before"])
            after = percent(row["waves_accuracy"])
            ipr = "-" if row["ipr"] is None else f"{row['ipr']:.2f}"
            rest = f"{row['common_frequency']:>15.3f}{row['phase_residual_rms']:>12.3f}{ipr:>7}"
            print(f"{text:<26}{explained}{before:>12} -> {after:>6}{rest}")


def progress(row):
    return f"test accuracy {np.array2string(row['test_accuracy'], precision=2)}"


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    tasks = tasks_of(args.p)
    run, train, test = build(args, experiment.dev, tasks)
    product = list(tasks).index(PRODUCT)
    before = run.params.to_host(product)
    experiment.open(run)
    pairs = f"{len(train)} training pairs, {len(test)} held out"
    print(f"{len(tasks)} polynomials mod {args.p}: {pairs}; network {run.model!r}")
    code = experiment.train(run, args.log_every, progress)
    if code is not None:
        return code

    rows = measured(run, tasks, train, test, before)

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
    show(rows)
    experiment.list_files()
    return None


if __name__ == "__main__":
    cli.main(main)
