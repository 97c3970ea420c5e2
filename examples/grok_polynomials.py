"""Which polynomials can be grokked: networks trained side by side on sums, products, h(g1(n1) +
g2(n2)), and others.

    python examples/grok_polynomials.py                     # p = 97, width 500, 600 steps: the paper's six, and two more
    python examples/grok_polynomials.py --quick             # p = 61: the same picture in seconds
    python examples/grok_polynomials.py --width 5000        # the paper's width
    python examples/grok_polynomials.py --p 23 --width 2000 --steps 1000

All networks are members of one ensemble with the same training inputs. Beside the test accuracy
stand chance (the share of the most frequent answer), the share of test inputs that the training set
contains up to equal rows and columns of the table ("siblings"), the certificate that a table is of
no separable form, and the fit to the weights that can be written down. Paper: Doshi, He, Das,
Gromov, arXiv 2406.03495, hypothesis 5.1 and appendix C."""

import time

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import numpy as np  # isort: skip

from tinygrok.analytic.polynomial import parse
from tinygrok.analytic.trained import excluded, fit_waves, idealise, majority_share, siblings
from tinygrok.analytic.verify import verify
from tinygrok.engine.optim import AdamW
from tinygrok.engine.params import Arena
from tinygrok.engine.rng import generator
from tinygrok.models.mlp import TwoLayerNet
from tinygrok.probes.fourier import neuron_ipr
from tinygrok.tasks.modular import addition, multiplication, polynomial, require_prime, separable
from tinygrok.training.tables import Evaluation, Training

QUICK = {"p": 61, "width": 300, "steps": 200}
SUM, PRODUCT = "n1 + n2", "n1*n2"
# polynomial: (its separable form, or None; test accuracy of appendix C in per cent at p = 97 and p
# = 23, width 5000)
POLYNOMIALS = {
    SUM: (lambda p, n: addition(p), "", ""),
    PRODUCT: (lambda p, n: multiplication(p), "100", ""),  # figure 3
    "(4*n1 + n2^2)^3": (lambda p, n: separable(p, [4 * n, n**2], n**3), "100", "100"),
    "(4*n1 + n2^2)^3 + n1*n2": (None, "2.27", "1.89"),
    "(2*n1 + 3*n2)^4": (lambda p, n: separable(p, [2 * n, 3 * n], n**4), "100", "100"),
    "(2*n1 + 3*n2)^4 - n1^2": (None, "3.93", "7.17"),
    "(5*n1^3 + 2*n2^4)^2": (lambda p, n: separable(p, [5 * n**3, 2 * n**4], n**2), "100", "100"),
    "(5*n1^3 + 2*n2^4)^2 - n2": (None, "72.32", "2.64"),
}


def arguments(argv=None):
    p = cli.parser("grok_polynomials", __doc__.splitlines()[0])
    p.add_argument("--p", type=cli.integer(5, 400), default=97, help="modulus, a prime")
    p.add_argument("--width", type=cli.integer(), default=500, help="hidden neurons (paper: 5000)")
    p.add_argument(
        "--train-frac",
        type=cli.real(0, 1, True, True),
        default=0.5,
        help="share of the table to train on",
    )
    p.add_argument("--steps", type=cli.integer(), default=600, help="optimiser steps")
    p.add_argument(
        "--lr", type=cli.real(0, None, True), default=0.005, help="learning rate of AdamW"
    )
    p.add_argument("--weight-decay", type=cli.real(), default=5.0, help="decoupled weight decay")
    p.add_argument("--log-every", type=cli.integer(), default=20, help="steps between measurements")
    p.add_argument(
        "--save-seconds", type=cli.real(), default=30.0, help="seconds between checkpoints"
    )
    p.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    return cli.parse(p, argv, QUICK)


def tasks_of(p):
    """{polynomial: task}: in its separable form where it has one, so that the coordinates of its
    waves are known."""
    require_prime(p, "this example")
    return {
        text: form(p, np.arange(p)) if form else polynomial(p, parse(text))
        for text, (form, *_) in POLYNOMIALS.items()
    }


def build(args, dev, tasks):
    """One ensemble, a member a polynomial: own targets, the same training inputs and first
    weights."""
    first = next(iter(tasks.values()))
    train, test = first.split(args.train_frac, generator(args.seed, "split"))
    everything = first.inputs(np.arange(first.size))
    labels = np.stack([task.labels(everything) for task in tasks.values()])
    masks = {
        name: np.isin(np.arange(first.size), numbers)
        for name, numbers in (("train", train), ("test", test))
    }
    evaluation = Evaluation(
        everything, {"true": labels}, {name: (mask, "true") for name, mask in masks.items()}
    )
    net = TwoLayerNet(args.p, args.width)
    params, grads = Arena(dev, net.shapes, len(tasks)), Arena(dev, net.shapes, len(tasks))
    for e in range(len(tasks)):
        params.load(net.init(generator(args.seed, "init")), e)
    optimizer = AdamW(
        dev, params, grads, lr=args.lr, betas=(0.9, 0.999), weight_decay=args.weight_decay
    )
    data = [(everything[:, train], y[train]) for y in labels]

    def explained(run):
        shares = [
            fit_waves(run.params.to_host(e), t.circle).total if t.circle else np.nan
            for e, t in enumerate(tasks.values())
        ]
        return {"explained": np.array(shares)}

    run = Training(dev, net, optimizer, data, evaluation, [args.seed] * len(tasks), extra=explained)
    return run, train, test


def root_mean_square(x):
    """Over the entries that are known; nan when none is."""
    known = x[~np.isnan(x)]
    return float(np.sqrt((known**2).mean())) if known.size else np.nan


def describe(run, tasks, train, test, paper_column, first):
    """A row of the table for every polynomial."""
    run.evaluation(run.objective, run.table)
    rows, history = {}, run.history
    for e, (text, task) in enumerate(tasks.items()):
        table, weights = task.table(), run.params.to_host(e)
        hits = run.evaluation.predicted[e][test] == table.ravel()[test]
        known = siblings(table, train, test) > 0
        rows[text] = {
            "test_accuracy": float(hits.mean()),
            "train_accuracy": float(history["train_accuracy"][-1][e]),
            "train_loss": float(history["train_loss"][-1][e]),
            "test_loss": float(history["test_loss"][-1][e]),
            "paper": POLYNOMIALS[text][paper_column] if paper_column else "",
            "chance": majority_share(table.ravel()),
            "quotient_coverage": float(known.mean()),
            "accuracy_with_siblings": float(hits[known].mean()) if known.any() else None,
            "accuracy_without": float(hits[~known].mean()) if (~known).any() else None,
            "learnable": task.circle is not None,
            "excluded_sum": excluded(table, "add"),
            "excluded_product": excluded(table, "multiply"),
        }
        if task.circle:
            wave = fit_waves(weights, task.circle)
            rows[text] |= {
                "explained_before": float(history["explained"][0][e]),
                "explained_after": wave.total,
                "common_frequency": float(wave.common.mean()),
                "phase_residual_rms": root_mean_square(wave.residual),
                "waves_accuracy_before": verify(
                    idealise(first, task.circle), task, terms=False
                ).accuracy,
                "waves_accuracy": verify(
                    idealise(weights, task.circle), task, terms=False
                ).accuracy,
            }
            iprs = neuron_ipr(weights, None if text != PRODUCT else task.circle.answers)
            rows[text] |= {
                "ipr": float(iprs[~np.isnan(iprs)].mean())
                if text in (SUM, PRODUCT)
                else None,  # others: not waves in n
            }
    return rows


def show(rows):
    def percent(x):
        return f"{100 * x:.2f}" if x is not None else "-"

    print(
        f"\n{'accuracy in per cent':<26}{'train':>7}{'test':>8}{'paper':>8}{'chance':>8}   siblings: test / with / without   not"
    )
    for text, r in rows.items():
        split = f"{percent(r['quotient_coverage'])} / {percent(r['accuracy_with_siblings'])} / {percent(r['accuracy_without'])}"
        no = " ".join(name for name in ("sum", "product") if r[f"excluded_{name}"])
        print(
            f"{text:<26}{percent(r['train_accuracy']):>7}{percent(r['test_accuracy']):>8}{r['paper']:>8}{percent(r['chance']):>8}"
            f"   {split:<33}{no}"
        )
    print(
        "siblings: share of the test inputs that have an equal row and column in training, accuracy with and without them"
    )
    print("not: proved to be of no form h(g1(n1) + g2(n2)) (sum), h(g1(n1) g2(n2)) (product)")
    print(
        f"\n{'waves, before -> after':<26}{'weights explained':>20}{'accuracy as waves':>22}   common freq.   phase rms    IPR"
    )
    for text, r in rows.items():
        if r["learnable"]:
            print(
                f"{text:<26}{r['explained_before']:>11.3f} -> {r['explained_after']:.3f}"
                f"{percent(r['waves_accuracy_before']):>12} -> {percent(r['waves_accuracy']):>6}{r['common_frequency']:>15.3f}"
                f"{r['phase_residual_rms']:>12.3f}{'-' if r['ipr'] is None else format(r['ipr'], '.2f'):>7}"
            )


def main(argv=None):
    args = arguments(argv)
    dev = cli.device(args)
    tasks = tasks_of(args.p)
    run, train, test = build(args, dev, tasks)
    before = run.params.to_host(list(tasks).index(PRODUCT))
    out = cli.start(args, run)
    print(
        f"{len(tasks)} polynomials mod {args.p}: {len(train)} training pairs, {len(test)} held out; network {run.model!r}"
    )

    began = time.perf_counter()

    def text(row):
        return f"test accuracy {np.array2string(row['test_accuracy'], precision=2)}"

    code = cli.train(args, run, out, args.log_every, text)
    if code is not None:
        return code

    rows = describe(run, tasks, train, test, {97: 1, 23: 2}.get(args.p), before)
    cli.write_log(out, run.history)
    cli.write_run(out, args, dev, time.perf_counter() - began, rows)
    if cli.plotting(args):
        from tinygrok.plots import modular_polynomials as plots

        members = [run.params.to_host(e) for e in range(len(tasks))]
        residuals = {
            text: fit_waves(w, task.circle).residual
            for (text, task), w in zip(tasks.items(), members, strict=True)
            if task.circle
        }
        after, order = members[list(tasks).index(PRODUCT)], tasks[PRODUCT].circle.answers
        plots.learnability(
            rows, run.history, before, after, order, residuals, out / "grok_polynomials.png"
        )
    show(rows)
    print(
        f"\nfiles in {out}: {', '.join(sorted(f.name for f in out.iterdir() if not f.name.startswith('.')))}"
    )


if __name__ == "__main__":
    cli.main(main)
