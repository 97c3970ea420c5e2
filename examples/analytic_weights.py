"""Weights written down, not trained: networks that solve modular arithmetic exactly, verified over
every input.

    python examples/analytic_weights.py                                         # (n1 + n2) mod 97, one-hot exact, 289 neurons
    python examples/analytic_weights.py --terms 4 --width 40                    # 40 neurons, all 88,529,281 inputs
    python examples/analytic_weights.py --phases random --width 500             # the paper's weights, and their noise
    python examples/analytic_weights.py --task multiplication --exponents 2 3
    python examples/analytic_weights.py --task polynomial --polynomial "n1^5*n2^3 + 4*n1^2*n2 +
    5*n1^2*n2^3"

The mathematics, with the proof of exactness, is in tinygrok/analytic/addition.py.
Paper: Doshi, He, Das, Gromov, arXiv 2406.03495.
"""

import time

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import math  # isort: skip

import numpy as np

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
POLYNOMIAL = "2*n1^4*n2 + n1^2*n2^2 + 3*n1*n2^3"
PAPER_WIDTHS = 500, 2000  # of the experts, and of the addition that follows
PAPER_MSE = {  # appendix B
    (POLYNOMIAL, 97): "0.007674",
    ("n1^5*n2^3 + 4*n1^2*n2 + 5*n1^2*n2^3", 97): "0.007660",
    ("7*n1^4*n2^4 + 2*n1^3*n2^2 + 4*n1^2*n2^5", 97): "0.007683",
    (POLYNOMIAL, 23): "0.009758",
    ("n1^5*n2^3 + 4*n1^2*n2 + 5*n1^2*n2^3", 23): "0.009757",
    ("7*n1^4*n2^4 + 2*n1^3*n2^2 + 4*n1^2*n2^5", 23): "0.010201",
}


def arguments(argv=None):
    p = cli.parser("analytic_weights", __doc__.splitlines()[0])
    p.set_defaults(dtype="float64")
    p.add_argument(
        "--task",
        default="addition",
        choices=["addition", "multiplication", "polynomial"],
        help="what to compute",
    )
    p.add_argument("--p", type=cli.integer(2, 1000), default=97, help="modulus")
    p.add_argument(
        "--terms", type=cli.integer(1, 100), default=None, help="terms or factors S; 2 unless given"
    )
    p.add_argument(
        "--coefficients",
        type=cli.checked(int),
        nargs="+",
        metavar="C",
        help="of the sum, one a term; 1 unless given",
    )
    p.add_argument(
        "--exponents",
        type=cli.integer(1),
        nargs="+",
        metavar="A",
        help="of the product, one a factor; 1 unless given",
    )
    p.add_argument(
        "--polynomial",
        default=None,
        help=f"{POLYNOMIAL!r} unless given; in n1, n2, ..., with + - * ^ ( )",
    )
    p.add_argument(
        "--phases",
        default="exact",
        choices=["random", *DESIGNS],
        help="random as in the paper, or exact",
    )
    p.add_argument(
        "--width",
        type=cli.integer(),
        default=None,
        help="neurons; one-hot exact unless given, N* for random phases",
    )
    p.add_argument(
        "--expert-width",
        type=cli.integer(),
        default=None,
        help="neurons of a polynomial's multiplication experts",
    )
    p.add_argument(
        "--beta",
        type=cli.real(0, None, True),
        default=None,
        help="sharpness of a polynomial's softmax; 100 unless given",
    )
    p.add_argument(
        "--seeds",
        type=cli.integer(),
        default=10,
        help="networks a width in the sweep over widths (random phases)",
    )
    args = cli.parse(p, argv, QUICK)
    used = {"addition": ("terms", "coefficients"), "multiplication": ("terms", "exponents")}
    for flag in ("terms", "coefficients", "exponents", "polynomial", "expert_width", "beta"):
        if getattr(args, flag) is not None and flag not in used.get(
            args.task, ("polynomial", "expert_width", "beta")
        ):
            raise InputError(f"--{flag.replace('_', '-')} means nothing with --task {args.task}")
    args.polynomial, args.beta = args.polynomial or POLYNOMIAL, args.beta or 100.0
    if args.task == "polynomial" and args.phases == "random":  # the paper's widths
        args.expert_width, args.width = (
            args.expert_width or PAPER_WIDTHS[0],
            args.width or PAPER_WIDTHS[1],
        )
    return args


def numbers(args, given, what):
    """The coefficients or exponents, all 1 unless given."""
    if given is not None and args.terms not in (None, len(given)):
        raise InputError(f"--terms {args.terms} does not fit {len(given)} {what}")
    return tuple(given or [1] * (args.terms or 2))


def build(args, width, seed):
    """(network, task, weights of its last part, that part's task) for a width."""
    rng = generator(seed, "init")
    if args.task == "polynomial":
        net = PolynomialNetwork(
            args.p, parse(args.polynomial), args.phases, (args.expert_width, width), args.beta, rng
        )
        return net, net.task, net.top, net.top_task
    if args.task == "multiplication":
        task = multiplication(args.p, numbers(args, args.exponents, "exponents"))
        weights = multiplication_weights(task, width, args.phases, rng)
    else:
        task = addition(args.p, numbers(args, args.coefficients, "coefficients"))
        weights = addition_weights(task, width, args.phases, rng)
    return weights, task, weights, task


def sweep_widths(args, dev, full, part, seen):
    """Accuracy and smallest margin against width: over seeds for random phases, over numbers of
    frequencies otherwise. `seen`, the network that was verified, is the first row; full is the
    width of the default network."""
    table = {key: [value] for key, value in seen.items()}
    terms, top = part.terms, part.circle.period // 2
    if args.phases == "random":
        runs = [
            (round(full * x), s)
            for x in (0.125, 0.25, 0.5, 0.75, 1, 1.5, 2)
            for s in range(args.seeds)
        ]
    else:
        J = len(DESIGNS[args.phases](terms))
        extra = (full - 1) % J if part.circle.zero is None else full - J * (top + 1)
        runs = [(J * f + extra, 0) for f in (1, 2, 3, 5, 8, 13, 21, 34, 55) if f <= top] + [
            (full, 0)
        ]
    for width, seed in runs:
        network, whole, *_ = build(args, width, args.seed + seed)
        few = max(
            1000,
            min(20_000, int(1e9 / (width * args.p * (terms if args.task == "polynomial" else 1)))),
        )
        v = verify(
            network, whole, dev, limit=few * width * args.p, sample=few, seed=seed, terms=False
        )
        row = width, args.seed + seed, v.inputs, v.accuracy, v.min_margin, v.mse * width
        for column, value in zip(table.values(), row, strict=True):
            column.append(value)
    return table


def main(argv=None):
    args = arguments(argv)
    dev = cli.device(args)
    network, task, weights, part = build(args, args.width, args.seed)
    width, terms = len(weights["W"]), part.terms
    out = cli.output_folder(args)
    print(
        f"{args.task} mod {args.p}: {width} neurons, activation x^{terms}, {args.phases} phases; {task.size:,} inputs"
    )
    if args.task == "polynomial":
        widths = sorted({len(w["W"]) for _, w in network.experts})
        size = " to ".join(map(str, widths[:: max(1, len(widths) - 1)]))
        print(
            f"{terms} monomials, multiplication experts of {size} neurons, softmax at beta = {args.beta:g}"
        )
    print(
        f"random phases would need N* = {random_width(args.p, terms)} neurons; exact phases {group_size(terms)} a frequency"
    )

    began = time.perf_counter()
    progress = cli.Progress(task.size, every=5.0, unit="input")
    v = verify(
        network, task, dev, seed=args.seed, on_chunk=lambda done, total: progress(done, "verified")
    )
    progress.close()
    seconds = time.perf_counter() - began
    print(f"{v}\nverified in {seconds:.1f} s, {v.inputs / seconds:,.0f} inputs a second")
    for t in v.terms[:6]:
        print(f"term {t.m} in the logits: {t.words} words, rms {t.rms:.3g}")

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
    paper = {}
    if args.phases == "random":
        results |= {
            "mse_times_width": v.mse * width,
            "predicted_mse_times_width": noise_constant(terms),
        }
        results |= {"predicted_signal_to_noise": (width / noise_constant(terms)) ** 0.5}
        if (
            args.task == "polynomial"
        ):  # the paper's table has logits of 1/N where its formula gives 2^S/(N S!): 3/4 at S = 3
            scale = math.factorial(terms) / 2**terms
            results["mse_at_paper_scale"] = v.mse * scale**2 + (1 - scale) ** 2 / args.p
            if (args.expert_width, width) == PAPER_WIDTHS:
                paper = {"mse_at_paper_scale": PAPER_MSE.get((args.polynomial, args.p), "")}
    cli.write_run(out, args, dev, seconds, results)
    seen = {
        "width": width,
        "seed": args.seed,
        "inputs": v.inputs,
        "accuracy": v.accuracy,
        "min_margin": v.min_margin,
    }
    seen["mse_times_width"] = v.mse * width
    try:
        full = len(build(args, None, args.seed)[2]["W"])
        sweep = sweep_widths(args, dev, full, part, seen)
    except AnalyticError as error:
        print(f"no sweep over widths: {error}")
        sweep = {key: [value] for key, value in seen.items()}
    cli.write_log(out, sweep)
    if cli.plotting(args):
        from tinygrok.plots import modular_polynomials as plots

        logits = dev.to_host(evaluator(dev, network)(np.array(v.at)[:, None]))[0]
        profile = np.roll(logits, -int(task.labels(np.array(v.at)[:, None])[0]))
        order = np.arange(args.p) if part.circle.zero is None else part.circle.answers
        predicted = random_width(args.p, terms) if args.phases == "random" else None
        plots.analytic(
            weights, order, profile, v.terms, sweep, predicted, out / "analytic_weights.png"
        )
    cli.report(out, results, paper, "paper")


if __name__ == "__main__":
    cli.main(main)
