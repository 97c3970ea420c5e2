"""Neurons that memorise and neurons that generalise: when they arise, what becomes of them.

    python examples/neuron_dynamics.py --quick
    python examples/neuron_dynamics.py              # p = 59: decays 0, 5 and 15, five seeds each
    python examples/neuron_dynamics.py --p 97 --width 500 --corruption 0.35    # the paper's size

Networks are trained on corrupted labels with several weight decays. The first figure shows the IPR
of every neuron by step, how many neurons memorise and generalise, and what the memorising ones
become. The second asks why some neurons without a frequency stay under a large decay, and what the
small peaks in the spectra of periodic neurons are for: it takes them out, or gives them other
phases. (How many neurons can be spared, by width and modulus: width_scan.py.) Questions of the
reviewers of Doshi, Das, He, Gromov, To grok or not to grok, arXiv 2310.13061, and its appendix
I."""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _figures_neuron_dynamics as plots  # isort: skip
import _memory as memory  # isort: skip
import _neuron_classes as classes  # isort: skip
import _neuron_spectra as spectra  # isort: skip
import _packs  # isort: skip
import _seeds  # isort: skip
import numpy as np  # isort: skip

from tinygrok.tasks import TASKS
from tinygrok.tasks.corruption import RULES
from tinygrok.training import ensembles

SPLITS = ("uncorrupted", "test")
QUICK = {"p": 47, "width": 120, "steps": 400, "decays": [0.0, 15.0], "seeds": 2}


def arguments(argv=None):
    p = cli.parser("neuron_dynamics", __doc__)
    add = p.add_argument
    count = cli.integer()
    decays = [0.0, 5.0, 15.0]
    add("--decays", type=cli.real(), nargs="+", default=decays, help="weight decays, a column each")
    add("--seeds", type=cli.integer(1, 1000), default=5, help="networks of every decay")
    add("--p", type=cli.integer(5, 1000), default=59, help="modulus")
    add("--width", type=cli.integer(2, 10**6), default=200, help="hidden neurons")
    add("--corruption", type=cli.real(0, 1, open_low=True), default=0.2, help="share corrupted")
    add("--rule", default="uniform", choices=RULES, help="how labels are corrupted")
    add("--train-frac", type=cli.fraction(), default=0.5, help="share of the table to train on")
    add("--lr", type=cli.positive(), default=0.01, help="learning rate of AdamW")
    add("--steps", type=count, default=600, help="optimiser steps")
    add("--log-every", type=count, default=10, help="steps between measurements")
    cli.add_checkpoints(p, 30.0)
    args = cli.parse(p, argv, QUICK)
    _packs.refuse_twice(args, "decays")
    return args


def points(args):
    """One point per network, decay by decay."""
    common = {"alpha": args.train_frac, "xi": args.corruption}
    for flag in ("p", "width", "rule", "lr", "steps", "log_every"):
        common[flag] = getattr(args, flag)
    found = []
    for decay in args.decays:
        of_decay = common | {"weight_decay": decay}
        found += [of_decay | {"seed": seed} for seed in _seeds.seeds_of(args)]
    return found


def build(args, dev, order):
    members = len(args.decays) * args.seeds
    rows = args.steps // args.log_every + 2
    history = {"the_record": (memory.DRAWN + 2) * rows * members * args.width}
    memory.require(dev, **memory.table(dev, args.p, args.width, members), **history)
    return ensembles.build(dev, points(args), lambda run: classes.record(run, order))


class Networks:
    """What is measured of the finished networks, decay by decay.

    found {decay: {"histories", "kinds", "flows", "unwanted", "spectra", "others": one a seed}}"""

    def __init__(self, run, args, order):
        self.args = args
        self.found = {}
        for e, point in enumerate(points(args)):
            table = self.found.setdefault(point["weight_decay"], {})
            for name, value in self.of_member(run, e, point["seed"], order).items():
                table.setdefault(name, []).append(value)

    @staticmethod
    def of_member(run, e, seed, order):
        history = ensembles.member_history(run.history, e)
        kinds = classes.classes(history)
        last = run.params.to_host(e)
        ends = (classes.first_weights(run, seed), last)
        splits = ensembles.member_splits(run, e)
        unwanted = {}
        for part, network in spectra.parts(last, seed, order).items():
            z = ensembles.hidden_units(run, e, network) @ network["W"]
            for split in SPLITS:
                mask, labels = splits[split]
                known = mask.any()
                share = spectra.unwanted(z[mask], labels[mask]) if known else np.nan
                unwanted[part, split] = share
        return {
            "histories": history,
            "kinds": kinds,
            "flows": classes.flows(history["step"], kinds, *ends, order),
            "unwanted": unwanted,
            "spectra": spectra.unwound(last, order),
            "others": spectra.power_of_others(last, order),
        }

    def results(self):
        """{"decay D": quartiles over the seeds}"""
        results = {}
        for decay, table in self.found.items():
            row = classes.summary(table["flows"])
            for name in ("test_accuracy", "corrupted_accuracy"):
                last = [history[name][-1] for history in table["histories"]]
                row[name] = _seeds.listed(_seeds.quartiles(last))
            for part, split in table["unwanted"][0]:
                values = [shares[part, split] for shares in table["unwanted"]]
                row[f"unwanted, {split}: {part}"] = _seeds.listed(_seeds.quartiles(values))
            row["weights_of_others"] = _seeds.listed(_seeds.quartiles(table["others"]))
            for name in ("U", "W"):
                values = np.array([found[name] for found in table["spectra"]])
                row[f"power {name}"] = _seeds.listed(_seeds.quartiles(values)[1])
            results[f"decay {decay:g}"] = row
        return results

    def figures(self, out):
        plots.dynamics(self.found, out / "dynamics.png")
        plots.spectra(self.found, self.args.p, out / "spectra.png")


def show(args, results):
    """The tables, medians over the seeds."""
    print(f"\nmedians of {args.seeds} seed(s), counts of {args.width} neurons")
    columns = ("at the peak", "step", "at the end: idle", "memorising", "generalising")
    print(f"{'':<14}" + "".join(f"{name:>18}" for name in columns))
    for name, row in results.items():
        cells = [row["memorising_at_peak"][1], row["step_peak"][1]]
        cells += [kind[1] for kind in row["at_end"]]
        print(f"{name:<14}" + "".join(f"{cell:>18.0f}" for cell in cells))
    print("\nidle / memorising / generalising, medians one by one: at the end, of the neurons that")
    print(
        "memorise at the peak and of all; at the peak, of those that generalise at the end and of"
    )
    print("all (what is alike in both says nothing); their frequency is the strongest one of their")
    print(f"first weights (by chance {2 / (args.p - 1):.0%})")
    for name, row in results.items():
        flows = (" / ".join(percent(x[1]) for x in row[flow]) for flow in classes.FLOWS)
        same = row["same_frequency_as_at_start"]
        columns = "".join(f"{text:<19}" for text in flows)
        print(f"{name:<14}{columns}{'-' if same is None else percent(same[1])}")
    print("\nshare of the logits' power that is not the answer, on pairs trained with their true")
    print("label, and on unseen ones")
    for name, row in results.items():
        others = percent(row["weights_of_others"][1])
        print(f"{name}: {others} of the weights in neurons that are not periodic")
        for part in spectra.PARTS:
            shares = [row[f"unwanted, {split}: {part}"][1] for split in SPLITS]
            print(f"    {part:<22}{shares[0]:>8.3f}{shares[1]:>8.3f}")


def percent(x):
    return "-" if np.isnan(x) else f"{x:.0%}"


def progress(row):
    """The medians over all networks."""
    return "  ".join(f"{x} {np.median(row[f'{x}_accuracy']):.3f}" for x in ("corrupted", "test"))


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    order = TASKS["addition"](args.p).wave_order
    run = build(args, experiment.dev, order)
    experiment.open(run)
    decays = ", ".join(f"{decay:g}" for decay in args.decays)
    print(f"p = {args.p}: {args.seeds} seeds of each decay {decays}; network {run.model!r}")
    code = experiment.train(run, args.log_every, progress)
    if code is not None:
        return code
    networks = Networks(run, args, order)
    results = networks.results()
    small = {name: x for name, x in run.history.items() if np.ndim(x) < 3}
    experiment.write(results, small, networks.figures)
    show(args, results)
    experiment.list_files()
    return None


if __name__ == "__main__":
    cli.main(main)
