"""How many neurons a network needs to generalise, against its width and its modulus.

    python examples/width_scan.py --quick
    python examples/width_scan.py                   # p = 59, seven widths, 40 seeds
    python examples/width_scan.py --p 43 59 --seeds 10    # several moduli
    python examples/width_scan.py --workers 2       # processes of this machine
    python examples/width_scan.py --p 97 --widths 500 1000 2000 5000 10000 --corruption 0.35

Networks of every width are trained on corrupted labels; then their neurons are removed, those of
lowest IPR first, and the fewest that still answer 99% of the unseen pairs are counted: medians and
quartiles over seeds. Networks train in packs, as ensembles; every finished pack is a file in --out,
and --resume runs what is missing. Paper: Doshi, Das, He, Gromov, To grok or not to grok, arXiv
2310.13061 (Figure 32: widths 500 to 10000, learning rate 0.005, weight decay 1, 40 seeds)."""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _packs  # isort: skip
import _seeds  # isort: skip
import _figures_width_scan as plots  # isort: skip
import numpy as np  # isort: skip

from tinygrok.probes import neurons
from tinygrok.probes.fourier import mean_known, neuron_ipr
from tinygrok.tasks import TASKS
from tinygrok.tasks.corruption import RULES
from tinygrok.training import ensembles

LEVEL = 0.99
FLAT = 0.2  # an exponent below it: ten times the width takes less than 1.6 times the neurons
QUICK = {"p": [47], "widths": [60, 120, 240], "seeds": 3, "train_frac": 0.6}


def arguments(argv=None):
    p = cli.parser("width_scan", __doc__)
    add = p.add_argument
    count = cli.integer()
    widths = [100, 150, 200, 300, 400, 600, 800]
    add("--p", type=cli.integer(5, 1000), nargs="+", default=[59], help="moduli (paper: 97)")
    add("--widths", type=cli.integer(2, 10**6), nargs="+", default=widths, help="hidden neurons")
    add("--seeds", type=cli.integer(1, 1000), default=40, help="networks of every width")
    add("--corruption", type=cli.real(0, 1), default=0.2, help="share of the labels corrupted")
    add("--rule", default="uniform", choices=RULES, help="how labels are corrupted")
    add("--train-frac", type=cli.fraction(), default=0.7, help="share of the table to train on")
    add("--lr", type=cli.positive(), default=0.005, help="learning rate of AdamW")
    add("--weight-decay", type=cli.real(), default=1.0, help="decoupled weight decay")
    add("--steps", type=count, default=400, help="optimiser steps of every network")
    _packs.add_sweep(add)
    args = cli.parse(p, argv, QUICK)
    _packs.refuse_twice(args, "p", "widths")
    args.widths = sorted(args.widths)
    return args


def points(args):
    """One point per network, in the order p, width, seed."""
    common = {"alpha": args.train_frac, "xi": args.corruption, "log_every": args.steps}
    for flag in ("rule", "lr", "weight_decay", "steps", "dtype"):
        common[flag] = getattr(args, flag)
    found = []
    for p in args.p:
        for width in args.widths:
            cell = common | {"p": p, "width": width}
            found += [cell | {"seed": seed} for seed in _seeds.seeds_of(args)]
    return found


def pruned_pack(points, **where):
    """What became of the networks of a pack, and how many of their neurons are needed."""
    run = _packs.trained(points, **where)
    results = []
    for e, point in enumerate(points):
        history = ensembles.member_history(run.history, e)
        found = ensembles.outcome(history, ensembles.complete(point))
        weights = run.params.to_host(e)
        order = TASKS["addition"](run.model.p).wave_order
        mask, labels = ensembles.member_splits(run, e)["test"]
        a = ensembles.hidden_units(run, e, weights)[mask]
        by_ipr = np.argsort(neurons.scores(weights, "ipr", order=order), kind="stable")
        everything = np.ones(len(a), dtype=bool)
        needed = neurons.neurons_needed(a, weights["W"], by_ipr, everything, labels[mask], LEVEL)
        iprs = neuron_ipr(weights, order)
        names = ("train_accuracy", "test_accuracy", "corrupted_accuracy", "phase")
        found = {name: found[name] for name in names}
        found["ipr_mean"] = mean_known(iprs)
        found["low_ipr_share"] = float(np.mean(np.nan_to_num(iprs) < 0.5))
        results.append(found | {"needed": needed})
    return results


def cells(everything, outcomes):
    """{(p, width): {quantity: a value a seed}}; where 99% was never reached needed is None, and the
    prunable share -inf, below all others: in quartiles both count."""
    table = {}
    for point, outcome in zip(everything, outcomes, strict=True):
        width = point["width"]
        columns = table.setdefault((point["p"], width), {})
        needed = outcome["needed"]
        prunable = -np.inf if needed is None else 1 - needed / width
        for name, value in (outcome | {"prunable": prunable}).items():
            columns.setdefault(name, []).append(value)
    return table


def complete(table, p, widths):
    """[what is needed at every width, a seed], of the seeds for which every width was enough."""
    needed = [table[p, width]["needed"] for width in widths]
    return [of_seed for of_seed in zip(*needed, strict=True) if None not in of_seed]


def exponent(table, p, widths):
    """Quartiles over the seeds of the exponent b in needed ~ width^b: the slope of a straight line
    through the logarithms; of the complete seeds. None for fewer than two."""
    slopes = []
    for of_seed in complete(table, p, widths) if len(widths) > 1 else []:
        slopes.append(float(np.polyfit(np.log(widths), np.log(of_seed), 1)[0]))
    return _seeds.quartiles(slopes).tolist() if len(slopes) > 1 else None


def summary(args, table):
    """Results of every modulus, lists over the widths, quartiles as [first, median, third]."""
    results = {}
    for p in args.p:
        name = f"p = {p}: "
        columns = [table[p, width] for width in args.widths]
        needed = [column["needed"] for column in columns]
        results[f"{name}needed"] = [_seeds.quartiles_of_steps(x) for x in needed]
        results[f"{name}never"] = [x.count(None) for x in needed]
        for quantity in ("prunable", "test_accuracy", "corrupted_accuracy", "low_ipr_share"):
            shares = [_seeds.listed(_seeds.quartiles(column[quantity])) for column in columns]
            results[f"{name}{quantity}"] = shares
        results[f"{name}exponent"] = exponent(table, p, args.widths)
        results[f"{name}exponent_seeds"] = len(complete(table, p, args.widths))
    return results | {"widths": args.widths}


def show(args, results):
    """The table of widths."""
    print(
        f"\nmedian (first to third quartile) of {args.seeds} seeds, neurons of lowest IPR removed"
    )
    words = _seeds.three_in_words
    columns = f"{'needed for 99%':<28}{'share prunable':<24}{'test accuracy':<24}never"
    print(f"{'p':>5}{'width':>8}   {columns}")
    for p in args.p:
        for i, width in enumerate(args.widths):
            needed = words(results[f"p = {p}: needed"][i], "", "> all")
            shares = words(results[f"p = {p}: prunable"][i], ".2f", "-")
            test = words(results[f"p = {p}: test_accuracy"][i], ".3f", "-")
            never = results[f"p = {p}: never"][i]
            print(f"{p:>5}{width:>8}   {needed:<28}{shares:<24}{test:<24}{never}")
        if results[f"p = {p}: exponent"] is not None:
            print(law_in_words(p, args.widths, results))
    print("the paper (Figure 32): the number needed grows more slowly than the width, b < 1")


def law_in_words(p, widths, results):
    """The fitted exponent, and what it comes to from the smallest width to the largest."""
    law = results[f"p = {p}: exponent"]
    known = results[f"p = {p}: exponent_seeds"]
    times = widths[-1] / widths[0]
    grown = times ** law[1]
    flat = "nearly flat: " if abs(law[1]) < FLAT else ""
    return (
        f"p = {p}: needed ~ width^b, b = {_seeds.three_in_words(law, '.2f', '-')}, of the {known} "
        f"seeds for which every width was enough;\n"
        f"       {flat}{times:.3g} times the width takes {grown:.2g} times the neurons"
    )


def main(argv=None):
    args = arguments(argv)
    everything = points(args)
    experiment, outcomes = _packs.swept(args, everything, pruned_pack)
    if outcomes is None:
        return 1
    table = cells(everything, outcomes)
    results = summary(args, table)

    def figures(out):
        plots.widths(args, table, results, out / "width_scan.png")

    settings = {name: [point[name] for point in everything] for name in ("p", "width", "seed")}
    log = {name: [outcome[name] for outcome in outcomes] for name in outcomes[0]}
    experiment.write(results, settings | log, figures)
    show(args, results)
    experiment.list_files()
    return None


if __name__ == "__main__":
    cli.main(main)
