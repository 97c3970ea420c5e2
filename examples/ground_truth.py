"""Networks whose algorithm is proven, with planted faults, to check interpretability tools on.

    python examples/ground_truth.py                              # n1 + n2 mod 113, one-hot exact
    python examples/ground_truth.py --circuit equal --width 15 --faults 3    # five frequencies
    python examples/ground_truth.py --circuit random --faults 6 --seed 1     # the paper's phases
    python examples/ground_truth.py --check claim.json           # a tool's claim against the truth

In --out: network.safetensors (the state dict of the PyTorch module below), network.npz (U (2, p, N)
and W (N, p): tinygrok.training.checkpoint.load_weights), truth.json (role, frequency, amplitudes
and phases of every neuron; the faults and what each changed over all p^2 inputs; the formulas).
Give a tool the weights alone. A claim is a JSON file with "neurons" and "faults" as in truth.json.

    import torch
    from safetensors.torch import load_file

    class TwoLayer(torch.nn.Module):
        def __init__(self, p, width):
            super().__init__()
            self.p = p
            self.fc1 = torch.nn.Linear(2 * p, width, bias=False)
            self.fc2 = torch.nn.Linear(width, p, bias=False)

        def forward(self, pairs):  # (B, 2) integers -> logits (B, p)
            x = torch.nn.functional.one_hot(pairs, self.p).flatten(1)
            return self.fc2(self.fc1(x.to(self.fc1.weight.dtype)) ** 2)

    state = load_file("runs/ground_truth/network.safetensors")
    p, width = state["fc2.weight"].shape
    net = TwoLayer(p, width).to(state["fc1.weight"].dtype)
    net.load_state_dict(state)

Everything is checked before it is written: the clean circuit answers all p^2 inputs, its logits are
those of the formula that is proven in tinygrok/analytic/addition.py, every fault does what it
should, and a least-squares fit of the weights alone finds every neuron as truth.json describes it.
"""

from pathlib import Path

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _ground_truth as circuits  # isort: skip
import _ground_truth_faults as damage  # isort: skip
import _ground_truth_files as files  # isort: skip

from tinygrok.analytic.verify import two_layer
from tinygrok.disk.writer import write_json
from tinygrok.engine.errors import InputError
from tinygrok.engine.rng import generator
from tinygrok.tasks.modular import addition
from tinygrok.training.checkpoint import save_arrays

QUICK = {"p": 23, "faults": 3}
CIRCUITS = (
    "phases of the inputs, t = 0, 1, 2, ... exact: 6 neurons a frequency, psi_1 = pi t/3, psi_2 = "
    "psi_1 or psi_1 + pi: all but the answer cancels. lattice: 6, psi_1 = pi t/3, psi_2 = 4 psi_1: "
    "it does so too. equal: 3, psi_1 = psi_2 = pi t/3: margins depend on n1 - n2. In these each "
    "frequency's psi_1 and psi_2 are turned by angles drawn by the seed (equal: the same one). "
    "random: the paper's, psi uniform, every frequency about as often: right but for noise"
)
WIDTH = (
    "neurons, without those that memorise. exact, lattice: 6 F, and equal: 3 F, for F frequencies "
    "drawn by the seed; all frequencies and a constant unless given. random: any; N* unless given"
)
FAULTS = (
    "how many to plant, by turns: a dead frequency (none of its neurons is read out), a flipped "
    "phase (a neuron read out with the opposite sign), a memorised pair (two more neurons)"
)
MODULUS = "modulus: any integer, odd for --circuit equal; 599 takes half a minute, 113 two seconds"
NEAR = "with --check: radians by which a phase may differ"


def arguments(argv=None):
    p = cli.parser("ground_truth", __doc__)
    p.set_defaults(dtype="float64")
    add = p.add_argument
    add("--circuit", default="exact", choices=list(files.LOGITS), help=CIRCUITS)
    add("--p", type=cli.integer(3, 600), default=113, help=MODULUS)
    add("--width", type=cli.integer(1, 10**6), help=WIDTH)
    add("--faults", type=cli.integer(0, 100), default=0, help=FAULTS)
    add("--check", type=Path, metavar="CLAIM.json", help="compare with the truth.json in --out")
    add("--near", type=cli.positive(), default=0.1, help=NEAR)
    args = cli.parse(p, argv, QUICK)
    if args.check:
        read = "means nothing with --check, which reads what is in --out"
        cli.refuse_idle(args, read, "circuit", "p", "width", "faults", "seed", "dtype")
    else:
        cli.refuse_idle(args, "needs --check", "near")
    return args


def clean(args, dev, task, kinds):
    """(weights, Truth, Answers) of the circuit without faults, proven right on every input."""
    pairs = kinds.count("memorises")
    weights, truth = circuits.build(task, args.circuit, args.width, args.seed, pairs)
    damage.check_room(truth, kinds, args.p)
    weights = {name: x.astype(dev.dtype) for name, x in weights.items()}

    def expected(n):
        return circuits.formula(args.circuit, truth, n, args.p)

    found = circuits.answers(dev, weights, task, expected)
    wrong = found.row()["wrong"]
    if wrong:
        raise InputError(
            f"{wrong} of {task.size} answers are wrong: take another --seed or --width"
        )
    if found.distance > tolerance(dev):
        raise InputError(f"the logits are {found.distance:.2g} away from their formula")
    return weights, truth, found


def tolerance(dev):
    """Of logits, phases and relative amplitudes."""
    return 1e-9 if dev.dtype == "float64" else 1e-4


def planted(args, dev, task, weights, truth, found, kinds):
    """(faults, Answers, log) after planting all of them, one after the other."""
    rng = generator(args.seed, "corruption")
    log = {"fault": [0], "kind": ["clean"]}
    log |= {name: [value] for name, value in found.row().items()}
    faults = []
    for number, kind in enumerate(kinds, 1):
        fault = damage.plant(kind, dev, weights, truth, task, found, rng)
        after = circuits.answers(dev, weights, task)
        fault["effect"] = damage.effect(found, after, fault)
        found = after
        faults.append(fault)
        for name, value in {"fault": number, "kind": kind, **after.row()}.items():
            log[name].append(value)
        print(describe(number, fault))
    return faults, found, log


def describe(number, fault):
    effect = fault["effect"]
    what = f"pair {tuple(fault['pair'])}" if "pair" in fault else f"frequency {fault['frequency']}"
    changed = f"{effect['answers_changed']} answers changed"
    moved = f"largest change of a margin {effect['largest_margin_change']:.3g}"
    return f"fault {number}: {fault['kind']}, {what}, {changed}, {moved}"


def record(args, truth, faults, results):
    """truth.json"""
    return {
        "task": f"(n1 + n2) mod {args.p}",
        "circuit": args.circuit,
        "p": args.p,
        "width": len(truth.role),
        "seed": args.seed,
        "logits_of_the_clean_circuit": files.LOGITS[args.circuit],
        "frequencies": circuits.read_out(truth),
        "verified": results,
        "faults": faults,
        "convention": files.CONVENTION,
        "neurons": files.neuron_rows(truth),
    }


def main(argv=None):
    args = arguments(argv)
    if args.check:
        cli.print_table(files.score(args.check, args.out / "truth.json", args.near), {}, "")
        return
    task = addition(args.p)
    experiment = cli.Experiment(args)
    dev = experiment.dev
    kinds = damage.planned(args.faults)
    weights, truth, found = clean(args, dev, task, kinds)
    print(f"{args.circuit} circuit mod {args.p}: all {task.size:,} answers right")
    faults, found, log = planted(args, dev, task, weights, truth, found, kinds)
    fitted = circuits.decoded(weights, task.circle)
    same = circuits.recovered(truth, fitted, tolerance(dev))
    if not same.all():
        raise InputError(f"a fit finds {(~same).sum()} neurons otherwise: take --dtype float64")
    results = {
        **found.row(),
        "inputs": task.size,
        "clean_min_margin": log["min_margin"][0],
        "width": len(truth.role),
        "frequencies": len(circuits.read_out(truth)),
        "faults": len(faults),
        "neurons_recovered": int(same.sum()),
    }
    out = experiment.open()
    save_arrays(out / "network.npz", {"config": {"p": args.p}}, weights)
    files.save_safetensors(out / "network.safetensors", two_layer(weights), weights)
    write_json(out / "truth.json", record(args, truth, faults, results))

    def figures(folder):
        path = folder / "ground_truth.png"
        files.draw(path, args.p, weights, truth, fitted, faults, found.margin)

    experiment.finish(results, log, figures)


if __name__ == "__main__":
    cli.main(main)
