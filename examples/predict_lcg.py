"""A GPT predicts linear congruential generators in context, for parameters that it never saw.

    python examples/predict_lcg.py --quick           # m = 64, a minute on two cores
    python examples/predict_lcg.py                   # m = 256, a few minutes
    python examples/predict_lcg.py --preset 2048     # m = 2048, one layer
    python examples/predict_lcg.py --preset unseen   # moduli that were never trained on
    python examples/predict_lcg.py --mode unseen     # the same as the paper draws them
    python examples/predict_lcg.py --preset truncated     # the high bits of a hidden state
    python examples/predict_lcg.py --preset pcg      # a permuted congruential generator
    python examples/predict_lcg.py --modulus 65536 --base 256 --width 128 --depth 2 --heads 4
    python examples/predict_lcg.py --preset paper-2^32    # digits, 26 M parameters: for a GPU

It reads the numbers of x -> (a x + c) mod m and predicts the next ones, for multipliers and
increments (and, with --mode unseen, moduli) that were held out of training. Paper: Tao, Doshi,
Kalra, He, Barkeshli, (How) can transformers predict pseudo-random numbers?, arXiv 2502.10390; of
hidden states (--generator): Tao, Barkeshli, Learning pseudorandom numbers with transformers, arXiv
2510.26792."""

import resource

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _memory as memory  # isort: skip
import numpy as np  # isort: skip

import _figures_lcg as plots
import _optimizers as optimizers
from _lcg_answers import LAST, answers, digit_labels, solvers, summary
from _lcg_families import FAMILIES, FAMILIES_OF_ONE
from _lcg_presets import PRESETS, QUICK, QUICK_UNSEEN
from _lcg_setup import make_data, make_model, make_optimizer, refuse_idle
from _shares import shares

from tinygrok.engine.rng import generator
from tinygrok.tasks.modular import prime_factors
from tinygrok.tasks.pcg import OUTPUTS
from tinygrok.training.sequences import SequenceTraining


def arguments(argv=None):
    p = cli.parser("predict_lcg", __doc__)
    add = p.add_argument
    count = cli.integer()
    context = cli.integer(4, 10**5)
    few = cli.integer(1, 1000)
    several = cli.integer(1, 10**4)
    rows = cli.integer(1, 10**5)
    modulus = cli.integer(2, 2**64)
    beta = cli.real(0, 1, open_high=True)
    families = f"{', '.join(FAMILIES_OF_ONE)}; --mode unseen: {', '.join(FAMILIES)}"
    mixture = f"shares of {families} (default: the paper's draw)"
    add("--preset", default="small", choices=list(PRESETS), help="settings that flags may change")
    add("--mode", default="fixed", choices=["fixed", "unseen"], help="one modulus, or unseen ones")
    add("--modulus", type=modulus, default=256, help="m (if unseen: the test's, or largest)")
    add("--generator", default="lcg", choices=["lcg", *OUTPUTS], help="lcg shows its state")
    add("--keep-bits", type=cli.integer(1, 26), default=4, help="of the state, in an output")
    add("--base", type=cli.integer(2, 65536), help="cut numbers into digits (default: whole ones)")
    add("--context", type=context, default=64, help="numbers that the network reads")
    add("--depth", type=cli.integer(1, 1000), default=1, help="blocks")
    add("--width", type=cli.integer(1, 10**5), default=128, help="channels")
    add("--heads", type=cli.integer(1, 10**5), default=1, help="attention heads")
    add("--batch", type=cli.integer(1, 10**6), default=64, help="sequences a step, all fresh")
    add("--steps", type=count, default=3000, help="optimiser steps")
    add("--lr", type=cli.positive(), default=2e-3, help="peak learning rate of AdamW")
    add("--weight-decay", type=cli.real(), default=0.1, help="decay of matrices and embeddings")
    add("--beta2", type=beta, default=0.99, help="decay of AdamW's squared gradients")
    add("--warmup", type=cli.integer(0), default=100, help="linear, before the cosine of --lr")
    add("--clip", type=cli.positive(), default=1.0, help="largest global norm of the gradient")
    add("--test-draws", type=few, default=64, help="multipliers, and increments, of the tests")
    add("--test-rows", type=rows, default=512, help="sequences measured in each test set")
    add("--train-moduli", type=several, default=128, help="--mode unseen: moduli to train on")
    add("--test-moduli", type=modulus, nargs="*", help="--mode unseen: further moduli")
    add("--pool", type=several, default=128, help="a, and c, to train on (numbers: if unseen)")
    add("--mixture", nargs="+", metavar="FAMILY=SHARE", help=mixture)
    start = "shares at first (one modulus: any=1)"
    add("--start", nargs="+", metavar="FAMILY=SHARE", default=["wrap=1"], help=start)
    add(
        "--ramp",
        type=cli.integer(0),
        nargs=2,
        default=[300, 1000],
        help="steps while the shares move",
    )
    add(
        "--moduli",
        type=cli.integer(4, 2**12),
        nargs=2,
        default=[65, 256],
        help="--mode unseen --mixture: smallest, largest",
    )
    add("--positions", default="learned", choices=["learned", "rotary"], help="without --base")
    optimizers.add_flags(p)
    add("--recompute", action="store_true", help="less memory for activations, same bits, slower")
    add("--measure-every", type=count, default=100, help="steps between measurements")
    cli.add_checkpoints(p, 60.0)
    p.set_defaults(**PRESETS[cli.chosen(p, argv).preset])
    chosen = cli.chosen(p, argv)
    if chosen.mixture and chosen.mode == "fixed":
        p.set_defaults(start=["any=1"])
    args = cli.parse(p, argv, QUICK_UNSEEN if chosen.mode == "unseen" else QUICK)
    if args.quick and args.preset != "small":
        raise cli.InputError("--quick is a setting of its own: leave out --preset")
    if args.test_moduli is not None and (args.mode == "fixed" or args.base):
        raise cli.InputError("--test-moduli needs --mode unseen without --base")
    hidden = args.generator != "lcg"
    if hidden and (args.mode == "unseen" or args.base):
        raise cli.InputError(f"--generator {args.generator} is for --mode fixed without --base")
    if hidden and args.modulus & (args.modulus - 1):
        raise cli.InputError("a state has whole bits: --modulus must be a power of 2")
    if args.mixture and (hidden or args.base):
        raise cli.InputError("--mixture is for --generator lcg without --base")
    if args.mixture and args.mode == "unseen" and not args.test_moduli:
        raise cli.InputError("--mixture of unseen moduli needs --test-moduli, which it leaves out")
    refuse_idle(args)
    return args


def build(args, dev):
    """Data, test sequences {name: (numbers, multipliers)} and the training run; draws come from
    named streams of the seed."""
    memory.require(dev, **memory.numbers(dev, args))
    data = make_data(args)
    net = make_model(args, data)
    optimizer = make_optimizer(args, dev, net)
    rng = generator(args.seed, "probes")
    tests = {name: data.test(name, args.test_rows, rng) for name in data.tests}
    train = data.batch(args.test_rows, rng)
    sets = {"train": train} | {name: data.tokens(x) for name, (x, _) in tests.items()}

    def numbers_right(run, predicted):
        """Share of whole numbers, all digits right, by numbers in context."""
        shares = {}
        for name, tokens in predicted.items():
            right = data.numbers(tokens) == data.numbers(run.sets[name].targets)
            shares[f"{name}_numbers"] = right.mean(axis=0)
        return shares

    def draw(rng, t):
        return data.batch(args.batch, rng, t)

    run = SequenceTraining(dev, net, optimizer, draw, data.positions, sets, args.seed)
    run.extra = numbers_right
    return data, tests, run


def tests_of_interest(args, tests):
    """Names of the tests that the progress line and the figure are about, the main one first."""
    if args.mixture and args.mode == "unseen":
        kind = ", a = 1" if set(shares(args.mixture, "--mixture")) == {"wrap"} else ""
        return [f"{m}{kind}" for m in args.test_moduli]
    largest = args.base and args.mode == "unseen"
    return [max(tests, key=int) if largest else str(args.modulus)]


def measured(data, tests, run, main_sets):
    """(results, curves and digits of the main test set)"""
    main_set = main_sets[0]
    results = {}
    found = {name: answers(data, name, test, run) for name, test in tests.items()}
    _, curves, by_digit = found[main_set]
    for name, (row, *_) in found.items():
        if name != main_set:
            results[f"m = {name}"] = row
            continue
        results |= row
        for solver in solvers(data):
            for key, value in summary(curves[solver]).items():
                results[f"{solver}: {key}"] = value
        results["digit_accuracy"] = {q: np.round(c, 4).tolist() for q, c in by_digit.items()}
    if len(main_sets) > 1:
        last = [found[name][0]["accuracy_last"] for name in main_sets]
        results["accuracy_last_each"] = dict(zip(main_sets, last, strict=True))
        results["accuracy_last_mean"] = float(np.mean(last))
        moduli = [int(name.split(",")[0]) for name in main_sets]
        several = [x for m, x in zip(moduli, last, strict=True) if len(prime_factors(m)) > 1]
        results["accuracy_last_mean_of_several_primes"] = float(np.mean(several or [np.nan]))
        results["accuracy_last_least"] = min(last)
    results["parameters"] = run.model.size
    results["loss_first"] = float(run.history["train_loss"][0].mean())
    results["loss_last"] = float(run.history["train_loss"][-1].mean())
    return results, curves, by_digit


def log_of(run):
    """Columns of the log: of every set the accuracy on the LAST numbers, and the loss."""
    history = {name: np.asarray(values) for name, values in run.history.items()}
    log = {"step": history["step"]}
    for name in run.sets:
        log[f"{name}_accuracy"] = history[f"{name}_numbers"][:, -LAST:].mean(axis=1)
    for name in run.sets:
        log[f"{name}_loss"] = history[f"{name}_loss"].mean(axis=1)
    return log


def shown(results):
    """The results without curves, a number a line; of a further modulus its accuracy."""
    table = {}
    further = {}
    for name, value in results.items():
        if name.startswith("m = "):
            further[name] = f"{value['accuracy_last']:.4f}"
        elif name == "accuracy_by_s":
            table |= {f"accuracy, 2^{s} in a - 1": right for s, right in value.items()}
        elif not name.endswith(("by_context", "digit_accuracy", "each")):
            table[name] = value
    return table | further


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    data, tests, run = build(args, experiment.dev)
    experiment.open(run)
    main_sets = tests_of_interest(args, tests)
    main_set = main_sets[0]
    several = "modulus" if len(data.moduli) == 1 else "moduli"
    print(run.model)
    print(f"{len(data.moduli)} {several} to train on; tests mod {', '.join(tests)}")

    def describe(row):
        train = row["train_numbers"][-LAST:].mean()
        test = np.mean([row[f"{name}_numbers"][-LAST:].mean() for name in main_sets])
        loss = row["train_loss"].mean()
        return f"train loss {loss:.3f}  last {LAST} numbers: train {train:.3f}  test {test:.3f}"

    code = experiment.train(run, args.measure_every, describe, every=10.0)
    if code is not None:
        return code

    results, curves, by_digit = measured(data, tests, run, main_sets)
    tokens = experiment.trained * args.batch * len(run.positions)
    results["tokens_per_second"] = tokens / experiment.seconds  # measurements included
    results["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    log = log_of(run)

    def figures(out):
        stream = "of any period" if args.generator == "lcg" else "of full period"
        if args.mixture:
            stream = "of its last mixture"
        progress = {f"training stream, {stream}": log["train_accuracy"]}
        progress[f"m = {main_set}, full period"] = log[f"{main_set}_accuracy"]
        bits = digit_labels(data, by_digit)
        plots.prediction(log["step"], progress, curves, bits, out / "predict_lcg.png")

    experiment.finish(results, log, figures, shown=shown(results))
    return None


if __name__ == "__main__":
    cli.main(main)
