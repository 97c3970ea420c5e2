"""analytic_weights.py --survey: figure 1 of arXiv 2406.03495, and its table of appendix B."""

import math

import numpy as np
from _kept import kept

from tinygrok.analytic.addition import addition_weights, group_size, random_width
from tinygrok.analytic.polynomial import PolynomialNetwork, parse
from tinygrok.analytic.verify import verify
from tinygrok.engine.errors import InputError
from tinygrok.engine.rng import generator
from tinygrok.tasks.modular import addition

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1, 3 / 2)  # widths, as parts of N*
INPUTS = 10_000  # that the paper draws; all of them where there are fewer
PAPER_WIDTHS = (500, 2000)  # of the experts, and of the addition that follows
POLYNOMIAL = "2*n1^4*n2 + n1^2*n2^2 + 3*n1*n2^3"
PAPER_MSE = {  # appendix B
    (POLYNOMIAL, 97): "0.007674",
    ("n1^5*n2^3 + 4*n1^2*n2 + 5*n1^2*n2^3", 97): "0.007660",
    ("7*n1^4*n2^4 + 2*n1^3*n2^2 + 4*n1^2*n2^5", 97): "0.007683",
    (POLYNOMIAL, 23): "0.009758",
    ("n1^5*n2^3 + 4*n1^2*n2 + 5*n1^2*n2^3", 23): "0.009757",
    ("7*n1^4*n2^4 + 2*n1^3*n2^2 + 4*n1^2*n2^5", 23): "0.010201",
}
# What a survey sets itself: of these a user gives none.
OWN = ("coefficients", "exponents", "polynomial", "width", "expert_width")
MOST_WEIGHTS = 30_000_000  # of a network: a quarter of a GB, and some seconds
MODULI = {"addition": range(5, 98), "polynomial": (97, 23)}


def check(args):
    """Refuse what a survey would ignore."""
    if args.task == "multiplication":
        raise InputError("--survey: of --task addition or polynomial")
    if args.phases != "exact":
        raise InputError("--phases means nothing with --survey, which has random and exact ones")
    for flag in OWN:
        if getattr(args, flag) is not None:
            raise InputError(f"--{flag.replace('_', '-')} means nothing with --survey")
    if args.p not in (None, *MODULI[args.task]):
        known = "5 to 97" if args.task == "addition" else "97, 23, or both unless given"
        raise InputError(f"--p {args.p}: with --task {args.task} --survey it is {known}")
    if args.task == "addition":
        args.p = args.p or 23
        args.terms = args.terms or (3 if args.quick else 5)
        if args.terms > 5:
            raise InputError(f"--terms {args.terms}: at most 5 with --survey")
        widest = max(widths_of(args.p, args.terms))
        weights = widest * args.p * (args.terms + 1)
        if weights > MOST_WEIGHTS:
            problem = f"--terms {args.terms} mod {args.p} needs networks of {widest:,} neurons"
            raise InputError(f"{problem}, too many for a survey: choose fewer --terms")


def mse_at_paper_scale(mse, terms, p):
    """The MSE of logits of 1/N, which fits the paper's table, where its formula gives 2^S/(N S!).

    With the mean right logit 1 and wrong logits 0, times c = S!/2^S: c^2 mse + (1 - c)^2/p."""
    scale = math.factorial(terms) / 2**terms
    return mse * scale**2 + (1 - scale) ** 2 / p


# -- figure 1: accuracy against width --------------------------------------------------------------


def accuracy(dev, p, terms, width, phases, seed):
    """Of n_1 + ... + n_S mod p with written weights, on INPUTS random inputs or on all."""
    task = addition(p, (1,) * terms)
    weights = addition_weights(task, width, phases, generator(seed, "init"))
    N = len(weights["W"])
    found = verify(weights, task, dev, limit=INPUTS * N * p, sample=INPUTS, seed=seed, terms=False)
    return {"width": N, "accuracy": found.accuracy, "inputs": found.inputs}


def widths_of(p, terms):
    """Widths around N* of all inputs, for random phases."""
    full = random_width(p, terms)
    return sorted({max(1, round(share * full)) for share in SHARES})


def by_width(args, dev, folder):
    """{S: {"predicted", "widths", "accuracies" (a list of draws a width), "exact"}}; predicted: for
    as many inputs as are run; exact: one frequency alone, then all of them."""
    curves = {}
    for terms in range(1, args.terms + 1):
        widths = widths_of(args.p, terms)
        accuracies = []
        for width in widths:
            print(f"S = {terms}: {width} neurons, {args.seeds} draws of phases", flush=True)
            draws = []
            for seed in range(args.seed, args.seed + args.seeds):
                what = (dev, args.p, terms, width, "random", seed)
                path = folder / f"random-{terms}-{width}-{seed}.json"
                draws.append(kept(path, accuracy, *what)["accuracy"])
            accuracies.append(draws)
        exact = []
        for width in (group_size(terms), None):
            path = folder / f"exact-{terms}-{width}.json"
            exact.append(kept(path, accuracy, dev, args.p, terms, width, "exact", args.seed))
        predicted = random_width(args.p, terms, min(INPUTS, args.p**terms))
        curves[terms] = {"predicted": predicted, "widths": widths, "accuracies": accuracies}
        curves[terms]["exact"] = exact
    return curves


def smallest(widths, accuracies):
    """The smallest width with an accuracy of 1, if there is one."""
    right = [width for width, x in zip(widths, accuracies, strict=True) if x == 1]
    return min(right, default=None)


def width_rows(curves):
    """{"S = 1": row of the table, ...}"""
    rows = {}
    for terms, curve in curves.items():
        widths = curve["widths"]
        draws = np.array(curve["accuracies"])
        rows[f"S = {terms}"] = {
            "predicted_width": curve["predicted"],
            "best_right_from": smallest(widths, draws.max(axis=1)),
            "median_right_from": smallest(widths, np.median(draws, axis=1)),
            "all_right_from": smallest(widths, draws.min(axis=1)),
            "exact_widths": [x["width"] for x in curve["exact"]],
            "exact_accuracies": [x["accuracy"] for x in curve["exact"]],
            "widths": widths,
            "median_accuracy": np.median(draws, axis=1).tolist(),
            "best_accuracy": draws.max(axis=1).tolist(),
        }
    return rows


def width_log(curves):
    """Columns of the log: a row for every network."""
    log = {"terms": [], "width": [], "draw": [], "accuracy": []}
    for terms, curve in curves.items():
        for width, draws in zip(curve["widths"], curve["accuracies"], strict=True):
            for draw, value in enumerate(draws):
                for name, x in zip(log, (terms, width, draw, value), strict=True):
                    log[name].append(x)
    return log


def show_widths(args, rows):
    print(f"\nwidths without an error, p = {args.p}, on up to {INPUTS:,} random inputs")
    columns = f"{'best draw':>12}{'median':>10}{f'all {args.seeds}':>10}{'N*':>9}"
    print(f"{'':<8}{columns}   exact phases: width, accuracy")
    for name, row in rows.items():
        found = [row[f"{which}_right_from"] for which in ("best", "median", "all")]
        best, median, every = ("-" if x is None else str(x) for x in found)
        pairs = zip(row["exact_widths"], row["exact_accuracies"], strict=True)
        exact = "   ".join(f"{width}: {100 * share:g} %" for width, share in pairs)
        print(f"{name:<8}{best:>12}{median:>10}{every:>10}{row['predicted_width']:>9}   {exact}")


# -- appendix B: polynomials -----------------------------------------------------------------------


def polynomial_error(dev, text, p, phases, beta, seed):
    """Accuracy and MSE on all inputs of a network of written experts, at the paper's widths where
    phases are random."""
    widths = PAPER_WIDTHS if phases == "random" else (None, None)
    net = PolynomialNetwork(p, parse(text), phases, widths, beta, generator(seed, "init"))
    found = verify(net, net.task, dev, seed=seed, terms=False)
    terms = len(net.top["U"])
    paper_scale = mse_at_paper_scale(found.mse, terms, p)
    return {"accuracy": found.accuracy, "mse": found.mse, "mse_at_paper_scale": paper_scale}


def polynomial_rows(args, dev, folder):
    """{"POLYNOMIAL mod p": row of the table}: means and standard deviations over draws."""
    rows = {}
    for i, ((text, p), paper) in enumerate(PAPER_MSE.items()):
        if args.p not in (None, p):
            continue
        print(f"{text} mod {p}: {args.seeds} draws of phases", flush=True)
        draws = []
        for seed in range(args.seed, args.seed + args.seeds):
            what = (dev, text, p, "random", args.beta, seed)
            draws.append(kept(folder / f"polynomial-{i}-{seed}.json", polynomial_error, *what))
        what = (dev, text, p, "exact", args.beta, args.seed)
        exact = kept(folder / f"polynomial-{i}-exact.json", polynomial_error, *what)
        row = {"paper_mse": paper}
        for name in draws[0]:
            values = [x[name] for x in draws]
            row[name] = float(np.mean(values))
            row[f"{name}_deviation"] = float(np.std(values))
        row |= {"exact_accuracy": exact["accuracy"], "exact_mse": exact["mse"]}
        rows[f"{text} mod {p}"] = row
    return rows


def show_polynomials(args, rows):
    print(f"\nexperts of {PAPER_WIDTHS[0]}, sum of {PAPER_WIDTHS[1]} neurons; {args.seeds} draws")
    columns = f"{'accuracy %':>11}{'MSE, formula':>14}{'MSE, logits 3/4':>20}{'paper':>10}"
    print(f"{'':<49}{columns}   exact phases")
    for name, row in rows.items():
        scaled = f"{row['mse_at_paper_scale']:.6f} +- {row['mse_at_paper_scale_deviation']:.6f}"
        exact = f"{100 * row['exact_accuracy']:g} %, MSE {row['exact_mse']:.1e}"
        numbers = f"{100 * row['accuracy']:>11.3f}{row['mse']:>14.5f}{scaled:>22}"
        print(f"{name:<49}{numbers}{row['paper_mse']:>10}   {exact}")
    print("the paper's values fit logits of 1/N, 3/4 of what its formula 2^S/(N S!) gives at S = 3")


# -- both ------------------------------------------------------------------------------------------


def run(args, experiment):
    """The survey of a task, to its files and table."""
    folder = experiment.open_sweep() / "packs"
    if args.task == "polynomial":
        rows = polynomial_rows(args, experiment.dev, folder)
        experiment.write(rows)
        show_polynomials(args, rows)
    else:
        curves = by_width(args, experiment.dev, folder)
        rows = width_rows(curves)

        def figures(out):
            import _figures_analytic_weights as plots

            plots.by_terms(curves, args.p, out / "accuracy_by_width.png")

        experiment.write(rows, width_log(curves), figures)
        show_widths(args, rows)
    experiment.list_files()
