"""Weights written down, not trained: they solve modular arithmetic exactly, on every input.

    python examples/analytic_weights.py                     # (n1 + n2) mod 97, one-hot exact
    python examples/analytic_weights.py --terms 4 --width 40         # all 88,529,281 inputs
    python examples/analytic_weights.py --phases random --width 500  # the paper's, with their noise
    python examples/analytic_weights.py --task multiplication --exponents 2 3
    python examples/analytic_weights.py --task polynomial --polynomial "n1^5*n2^3 + 4*n1^2*n2"
    python examples/analytic_weights.py --survey                     # figure 1: S = 1..5, p = 23
    python examples/analytic_weights.py --task polynomial --survey   # appendix B: six polynomials

The mathematics, with the proof of exactness, is in tinygrok/analytic/addition.py.
Paper: Doshi, He, Das, Gromov, arXiv 2406.03495.
"""

import time
from itertools import product

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _analytic_surveys as surveys  # isort: skip

import numpy as np
from _analytic_surveys import PAPER_MSE, PAPER_WIDTHS, POLYNOMIAL, mse_at_paper_scale
from _kept import kept, kept_map

from tinygrok.analytic.addition import (
    DESIGNS,
    AnalyticError,
    addition_weights,
    group_size,
    noise_constant,
    random_width,
)
from tinygrok.analytic.multiplication import multiplication_weights
from tinygrok.analytic.polynomial import PolynomialNetwork, parse
from tinygrok.analytic.verify import evaluator, verify
from tinygrok.engine.errors import InputError
from tinygrok.engine.rng import generator
from tinygrok.tasks.modular import addition, multiplication

QUICK = {"p": 23, "seeds": 4}
FLAGS = {  # that only one kind of task has
    "addition": ("terms", "coefficients"),
    "multiplication": ("terms", "exponents"),
    "polynomial": ("polynomial", "expert_width", "beta"),
}


def arguments(argv=None):
    p = cli.parser("analytic_weights", __doc__)
    p.set_defaults(dtype="float64")
    add = p.add_argument
    count = cli.integer(1, 10**6)
    seeds = cli.integer(1, 1000)
    phases = ["random", *DESIGNS]
    coefficients = {"nargs": "+", "metavar": "C", "help": "of the sum, one a term; 1 unless given"}
    exponents = {"nargs": "+", "metavar": "A", "help": "of the product, a factor; 1 unless given"}
    polynomial = f"{POLYNOMIAL!r} unless given; in n1, n2, ..., with + - * ^ ( )"
    width = "neurons; one-hot exact unless given, N* for random phases"
    modulus = "97 unless given; a survey: 23 for sums, 97 and 23 for polynomials"
    terms = "terms or factors S; 2 unless given; a survey: 1 to S, 5 unless given"
    survey = "all of the paper's figure 1 (sums) or appendix B (polynomials) instead"
    add("--task", default="addition", choices=list(FLAGS), help="what to compute")
    add("--p", type=cli.integer(2, 1000), help=modulus)
    add("--terms", type=cli.integer(1, 100), help=terms)
    add("--coefficients", type=cli.integer(-(10**9)), **coefficients)
    add("--exponents", type=count, **exponents)
    add("--polynomial", help=polynomial)
    add("--phases", default="exact", choices=phases, help="random as in the paper, or exact")
    add("--width", type=count, help=width)
    add("--expert-width", type=count, help="neurons of a polynomial's multiplication experts")
    beta = "sharpness of a polynomial's softmax; 100 unless given"
    add("--beta", type=cli.positive(), help=beta)
    add("--seeds", type=seeds, default=10, help="random phases: networks a width in the sweep")
    add("--survey", action="store_true", help=survey)
    add("--resume", action="store_true", help="keep what is verified in --out, and go on")
    args = cli.parse(p, argv, QUICK)
    for flag in dict.fromkeys(sum(FLAGS.values(), ())):
        if getattr(args, flag) is not None and flag not in FLAGS[args.task]:
            name = flag.replace("_", "-")
            raise InputError(f"--{name} means nothing with --task {args.task}")
    if args.survey:
        surveys.check(args)
    args.p = args.p or (None if args.survey else 97)
    args.polynomial = args.polynomial or POLYNOMIAL
    args.beta = args.beta or 100.0
    if args.task == "polynomial" and args.phases == "random":
        args.expert_width = args.expert_width or PAPER_WIDTHS[0]
        args.width = args.width or PAPER_WIDTHS[1]
    return args


def build(args, width, seed):
    """(network, task, weights of its last part, that part's task) for a width."""
    rng = generator(seed, "init")
    if args.task == "polynomial":
        widths = (args.expert_width, width)
        compiled = parse(args.polynomial)
        net = PolynomialNetwork(args.p, compiled, args.phases, widths, args.beta, rng)
        return net, net.task, net.top, net.top_task
    if args.task == "multiplication":
        task = multiplication(args.p, args.exponents, args.terms)
        weights = multiplication_weights(task, width, args.phases, rng)
    else:
        task = addition(args.p, args.coefficients, args.terms)
        weights = addition_weights(task, width, args.phases, rng)
    return weights, task, weights, task


def swept(args, part, full):
    """[(width, seed)] around the default width, full: seeds for random phases, or frequencies."""
    if args.phases == "random":
        widths = [round(full * share) for share in (0.125, 0.25, 0.5, 0.75, 1, 1.5, 2)]
        return list(product(widths, range(args.seeds)))
    top = part.circle.period // 2
    group = len(DESIGNS[args.phases](part.terms))
    extra = (full - 1) % group if part.circle.zero is None else full - group * (top + 1)
    frequencies = [f for f in (1, 2, 3, 5, 8, 13, 21, 34, 55) if f <= top]
    return [*((group * f + extra, 0) for f in frequencies), (full, 0)]


def sweep(args, dev, part, seen, folder):
    """Accuracy and smallest margin against width; the first row, seen, is the verified network."""
    table = {name: [value] for name, value in seen.items()}
    try:
        full = len(build(args, None, args.seed)[2]["W"])
        for width, seed in swept(args, part, full):
            found = kept(folder / f"{width}-{seed}.json", of_width, args, dev, part, width, seed)
            for name, value in found.items():
                table[name].append(value)
    except AnalyticError as error:
        print(f"no sweep over widths: {error}")
        return {name: [value] for name, value in seen.items()}
    return table


def of_width(args, dev, part, width, seed):
    """The row of a network of the sweep."""
    network, task, _, _ = build(args, width, args.seed + seed)
    experts = part.terms if args.task == "polynomial" else 1
    few = max(1000, min(20_000, int(1e9 / (width * args.p * experts))))
    limit = few * width * args.p
    v = verify(network, task, dev, limit=limit, sample=few, seed=seed, terms=False)
    return row(v, width, args.seed + seed)


def row(v, width, seed):
    """A row of log.csv of what verify found."""
    return {
        "width": width,
        "seed": seed,
        "inputs": v.inputs,
        "accuracy": v.accuracy,
        "min_margin": v.min_margin,
        "mse_times_width": v.mse * width,
    }


def describe(args, network, task, width, terms):
    phases = f"activation x^{terms}, {args.phases} phases"
    print(f"{args.task} mod {args.p}: {width} neurons, {phases}; {task.size:,} inputs")
    if args.task == "polynomial":
        widths = sorted({len(w["W"]) for _, w in network.experts})
        size = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
        experts = f"{terms} monomials, multiplication experts of {size} neurons"
        print(f"{experts}, softmax at beta = {args.beta:g}")
    needed = f"random phases would need N* = {random_width(args.p, terms)} neurons"
    print(f"{needed}; exact phases {group_size(terms)} a frequency")


def verified(args, network, task, dev, folder):
    """verify over all inputs, with a line of progress and what it found."""
    began = time.perf_counter()
    progress = cli.Progress(task.size, every=5.0, unit="input")
    over = kept_map(folder, dev, lambda done: progress(done, "verified"))
    v = verify(network, task, dev, seed=args.seed, over=over)
    progress.close()
    seconds = time.perf_counter() - began
    print(f"{v}\nverified in {seconds:.1f} s, {v.inputs / seconds:,.0f} inputs a second")
    for term in v.terms[:6]:
        print(f"term {term.m} in the logits: {term.words} words, rms {term.rms:.3g}")
    return v


def measured(args, v, weights, terms):
    """(results, the paper's numbers)"""
    width = len(weights["W"])
    results = {
        "accuracy": v.accuracy,
        "inputs": v.inputs,
        "exhaustive": v.whole,
        "min_margin": v.min_margin,
        "mse": v.mse,
        "width": width,
        "signal_to_noise": v.signal / v.noise if v.noise else None,
        "weight_norm": float(np.sqrt(sum((x**2).sum() for x in weights.values()))),
    }
    if args.phases != "random":
        return results, {}
    noise = noise_constant(terms)
    results["mse_times_width"] = v.mse * width
    results["predicted_mse_times_width"] = noise
    results["predicted_signal_to_noise"] = (width / noise) ** 0.5
    if args.task != "polynomial":
        return results, {}
    results["mse_at_paper_scale"] = mse_at_paper_scale(v.mse, terms, args.p)
    if (args.expert_width, width) != PAPER_WIDTHS:
        return results, {}
    return results, {"mse_at_paper_scale": PAPER_MSE.get((args.polynomial, args.p), "")}


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    if args.survey:
        surveys.run(args, experiment)
        return
    dev = experiment.dev
    network, task, weights, part = build(args, args.width, args.seed)
    width = len(weights["W"])
    folder = experiment.open_sweep() / cli.PACKS
    describe(args, network, task, width, part.terms)
    v = verified(args, network, task, dev, folder)
    results, paper = measured(args, v, weights, part.terms)
    log = sweep(args, dev, part, row(v, width, args.seed), folder)

    def figures(out):
        import _figures_analytic_weights as plots

        worst = np.array(v.at)[:, None]  # the input of the smallest margin
        logits = dev.to_host(evaluator(dev, network)(worst))[0]
        profile = np.roll(logits, -int(task.labels(worst)[0]))
        order = np.arange(args.p) if part.circle.zero is None else part.circle.answers
        predicted = random_width(args.p, part.terms) if args.phases == "random" else None
        path = out / "analytic_weights.png"
        plots.analytic(weights, order, profile, v.terms, log, predicted, path)

    experiment.finish(results, log, figures, paper, "paper")


if __name__ == "__main__":
    cli.main(main)
