"""Pruning in four phases: which neurons carry what a network memorised, and what it understood.

    python examples/pruning_phases.py --quick
    python examples/pruning_phases.py               # the paper's settings, one network a phase
    python examples/pruning_phases.py --seeds 5     # medians and quartiles of five
    python examples/pruning_phases.py --phases Forgetting    # the rule is learnt, and lost again

One network in each phase of corrupted labels: Coexistence (no decay), Partial Inversion (weight
decay 5), Full Inversion (15), Forgetting (20: it groks, unlearns, and then its weights decay to
nothing). Their neurons are removed from either end of the IPR, and accuracies and losses measured.
Networks train in packs; every finished pack is a file in --out, and --resume runs what is missing.
Paper: Doshi, Das, He, Gromov, To grok or not to grok, arXiv 2310.13061 (Figures 17, 18, appendix
E)."""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _figures_pruning_phases as plots  # isort: skip
import _packs  # isort: skip
import _seeds  # isort: skip
import numpy as np  # isort: skip
from _corrupted_anatomy import SHARES  # isort: skip

from tinygrok.probes import neurons
from tinygrok.probes.phases import first_step
from tinygrok.training import ensembles

# Phase -> what leads to it at p = 97, and at the small size of --quick.
SETTINGS = {
    "Coexistence": {"weight_decay": 0.0, "steps": 1000},
    "Partial Inversion": {"weight_decay": 5.0, "steps": 500},
    "Full Inversion": {"weight_decay": 15.0, "steps": 500},
    "Forgetting": {"weight_decay": 20.0, "steps": 2000},
}
QUICK_SETTINGS = {
    "Coexistence": {"weight_decay": 0.0, "steps": 600},
    "Partial Inversion": {"weight_decay": 0.0, "steps": 600, "alpha": 0.7, "xi": 0.3},
    "Full Inversion": {"weight_decay": 15.0, "steps": 600},
    "Forgetting": {"weight_decay": 20.0, "steps": 1200},
}
QUICK = {"p": 59, "width": 200, "corruption": 0.2}
SPLITS = ("train", "corrupted", "test")
ENDS = {"lowest": 1, "highest": -1}  # which neurons go first: the step through those sorted by IPR
CUTS = (0.0, 0.3, 0.5, 0.7)


def arguments(argv=None):
    p = cli.parser("pruning_phases", __doc__)
    add = p.add_argument
    phases = list(SETTINGS)
    add("--phases", nargs="+", default=phases, choices=phases, help="which networks to train")
    add("--p", type=cli.integer(5, 1000), default=97, help="modulus")
    add("--width", type=cli.integer(2, 10**6), default=500, help="hidden neurons")
    add("--corruption", type=cli.real(0, 1), default=0.35, help="share of the labels corrupted")
    add("--train-frac", type=cli.fraction(), default=0.5, help="share of the table to train on")
    add("--lr", type=cli.positive(), default=0.01, help="learning rate of AdamW")
    _seeds.add_seeds(add)
    add("--log-every", type=cli.integer(), default=10, help="steps between measurements")
    _packs.add_sweep(add)
    args = cli.parse(p, argv, QUICK)
    _packs.refuse_twice(args, "phases")
    return args


def points(args):
    """One point per network, phase by phase."""
    common = {"alpha": args.train_frac, "xi": args.corruption}
    for flag in ("p", "width", "lr", "log_every", "dtype"):
        common[flag] = getattr(args, flag)
    settings = QUICK_SETTINGS if args.quick else SETTINGS
    found = []
    for phase in args.phases:
        network = common | settings[phase]
        found += [network | {"seed": seed} for seed in _seeds.seeds_of(args)]
    return found


def pruned_pack(points, **where):
    """What became of the networks of a pack: their history, and accuracies and losses without some
    of their neurons."""
    run = _packs.trained(points, **where)
    results = []
    for e, point in enumerate(points):
        history = ensembles.member_history(run.history, e)
        found = ensembles.outcome(history, ensembles.complete(point))
        lost = np.logical_or.accumulate(history["test_accuracy"] >= 0.9)
        lost &= history["test_accuracy"] < 0.5
        found["step_lost"] = first_step(history["step"], lost)
        weights = run.params.to_host(e)
        squares = [np.square(w, dtype=float).sum() for w in weights.values()]
        found["weight_norm"] = float(np.sqrt(sum(squares)))
        names = ["step", *(f"{split}_accuracy" for split in SPLITS)]
        found["history"] = {name: np.asarray(history[name]).tolist() for name in names}
        a = ensembles.hidden_units(run, e, weights)
        splits = ensembles.member_splits(run, e)
        by_ipr = np.argsort(neurons.scores(weights, "ipr"), kind="stable")
        for end, step in ENDS.items():
            found[end] = curves(a, weights["W"], by_ipr[::step], splits)
        results.append(found)
    return results


def curves(a, w, order, splits):
    """{split_accuracy, split_loss: a value a share}: the loss is the mean of (z - y)^2 over
    examples and classes, y one-hot."""
    found = {f"{x}_{y}": np.full(len(SHARES), np.nan) for x in SPLITS for y in ("accuracy", "loss")}
    for i, z in neurons.pruned_logits(a, w, order, SHARES):
        predicted = z.argmax(axis=1)
        squares = np.square(z, dtype=float).sum(axis=1)
        for split in SPLITS:
            mask, labels = splits[split]
            if mask.any():
                given = np.take_along_axis(z, labels[:, None], axis=1)[:, 0]
                errors = (squares - 2 * given + 1) / z.shape[1]
                found[f"{split}_accuracy"][i] = (predicted == labels)[mask].mean()
                found[f"{split}_loss"][i] = errors[mask].mean()
    return {name: values.tolist() for name, values in found.items()}


def by_phase(args, outcomes):
    """{phase: outcomes of its seeds}"""
    found = {}
    for i, phase in enumerate(args.phases):
        found[phase] = outcomes[i * args.seeds : (i + 1) * args.seeds]
    return found


def summary(groups):
    """Results of every phase: medians and quartiles, and the phase that Table 2 gives each network.

    at_<cut>: the share of neurons that is gone."""
    results = {}
    for phase, group in groups.items():
        found = {"phases": [outcome["phase"] for outcome in group]}
        names = [f"{split}_accuracy" for split in SPLITS] + ["best_test_accuracy", "weight_norm"]
        for name in names:
            found[name] = _seeds.listed(_seeds.quartiles([outcome[name] for outcome in group]))
        for name in ("step_grok", "step_unlearn", "step_lost"):
            found[name] = _seeds.quartiles_of_steps([outcome[name] for outcome in group])
        for end in ENDS:
            for name in group[0][end]:
                table = [outcome[end][name] for outcome in group]
                medians = _seeds.quartiles(np.array(table, dtype=float))[1]
                at = [int(np.abs(SHARES - cut).argmin()) for cut in CUTS]
                found[f"{end} first: {name}"] = _seeds.listed(medians[at])
        results[phase] = found
    return results


def show(args, results):
    """The tables: what became of the networks, and what is left of them without some neurons."""
    print(f"\nmedians of {args.seeds} seed(s); '-': never, or more than the steps")
    columns = "train  corrupted   test   best test   step grok  unlearn   lost   |weights|   phases"
    print(f"{'':<20}{columns}")
    for phase, found in results.items():
        train, corrupted, test, best = (
            f"{100 * found[name][1]:.1f}"
            for name in (*(f"{split}_accuracy" for split in SPLITS), "best_test_accuracy")
        )
        steps = [found[f"step_{name}"][1] for name in ("grok", "unlearn", "lost")]
        grok, unlearn, lost = ("-" if step is None else str(step) for step in steps)
        accuracies = f"{train:>5}{corrupted:>11}{test:>7}{best:>12}"
        names = ", ".join(sorted(set(found["phases"])))
        rest = f"{grok:>12}{unlearn:>9}{lost:>7}{found['weight_norm'][1]:>12.3g}   {names}"
        print(f"{phase:<20}{accuracies}{rest}")
    print("\nwithout 0, 30, 50, 70% of the neurons: accuracy in per cent (loss in thousandths)")
    for phase, found in results.items():
        for end in ENDS:
            for split in SPLITS:
                pairs = zip(
                    found[f"{end} first: {split}_accuracy"],
                    found[f"{end} first: {split}_loss"],
                    strict=True,
                )
                text = "".join(f"{100 * x:>8.1f} ({1000 * y:.2f})" for x, y in pairs)
                print(f"{phase:<20}{end + ' IPR first':<20}{split:<12}{text}")


def main(argv=None):
    args = arguments(argv)
    experiment, outcomes = _packs.swept(args, points(args), pruned_pack)
    if outcomes is None:
        return 1
    groups = by_phase(args, outcomes)
    results = summary(groups)

    def figures(out):
        plots.phases(groups, SHARES, args.p, out / "pruning_phases.png")

    experiment.write(results, figures=figures)
    show(args, results)
    experiment.list_files()
    return None


if __name__ == "__main__":
    cli.main(main)
