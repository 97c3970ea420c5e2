"""A GPT reads the numbers of a linear congruential generator, x -> (a x + c) mod m, and predicts
the next ones, for multipliers and increments (and, with --mode unseen, moduli) that it never saw.

    python examples/predict_lcg.py --quick                     # m = 64, a minute on two cores: 99 % on unseen (a, c)
    python examples/predict_lcg.py                             # m = 256, a few minutes
    python examples/predict_lcg.py --mode unseen               # moduli that were never trained on
    python examples/predict_lcg.py --modulus 65536 --base 256 --width 128 --depth 2 --heads 4
    python examples/predict_lcg.py --preset paper-2^32         # base-256 digits, 26 M parameters: for a GPU

Paper: Tao, Doshi, Kalra, He, Barkeshli, (How) can transformers predict pseudo-random numbers?,
arXiv 2502.10390."""

import resource
import time

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import numpy as np  # isort: skip

from tinygrok.engine.optim import AdamW, cosine
from tinygrok.engine.params import Arena
from tinygrok.engine.rng import generator
from tinygrok.models.gpt import GPT
from tinygrok.probes import digits
from tinygrok.tasks import lcg
from tinygrok.training.sequences import SequenceTraining

PAPER = {"steps": 100_000, "batch": 256, "warmup": 2048, "weight_decay": 1.0, "measure_every": 1000}
QUICK = {
    "modulus": 64,
    "context": 32,
    "width": 64,
    "lr": 3e-3,
    "test_draws": 8,
    "steps": 1500,
    "train_moduli": 30,
    "pool": 40,
}
PRESETS = {
    "small": {},  # the defaults
    "quick": QUICK,
    "paper-2048": {"modulus": 2048, "context": 256, "width": 768, "lr": 3e-4, **PAPER},
    "paper-2048-unseen": {
        "mode": "unseen",
        "modulus": 2048,
        "context": 256,
        "width": 768,
        "depth": 4,
        "heads": 6,
        "lr": 1e-4,
        "train_moduli": 128,
        "pool": 128,
        **PAPER,
    },
    "paper-2^16": {
        "mode": "unseen",
        "modulus": 2**16,
        "base": 256,
        "context": 256,
        "width": 1024,
        "depth": 6,
        "heads": 8,
        "lr": 5e-4,
        "beta2": 0.999,
        "train_moduli": 2048,
        "pool": 8,
        **PAPER,
        "batch": 64,
    },
    "paper-2^32": {
        "modulus": 2**32,
        "base": 256,
        "context": 512,
        "width": 1024,
        "depth": 2,
        "heads": 8,
        "lr": 1e-4,
        "beta2": 0.98,
        "pool": 1024,
        **PAPER,
        "steps": 200_000,
        "batch": 512,
        "warmup": 5000,
    },
}


def arguments(argv=None):
    p = cli.parser("predict_lcg", "A GPT predicts linear congruential generators in context.")
    p.add_argument(
        "--preset",
        default="small",
        choices=list(PRESETS),
        help="settings that the other flags may change",
    )
    p.add_argument(
        "--mode",
        default="fixed",
        choices=["fixed", "unseen"],
        help="one modulus, or moduli held out of training",
    )
    p.add_argument(
        "--modulus",
        type=cli.integer(2),
        default=256,
        help="m; with --mode unseen that of the test, or with --base the largest",
    )
    p.add_argument(
        "--base",
        type=cli.integer(2, 65536),
        help="cut numbers into digits of this base (default: a token a number)",
    )
    p.add_argument(
        "--context", type=cli.integer(4), default=64, help="numbers that the network reads"
    )
    p.add_argument("--depth", type=cli.integer(), default=1, help="blocks")
    p.add_argument("--width", type=cli.integer(), default=128, help="channels")
    p.add_argument("--heads", type=cli.integer(), default=1, help="attention heads")
    p.add_argument("--batch", type=cli.integer(), default=64, help="sequences a step, all fresh")
    p.add_argument("--steps", type=cli.integer(), default=3000, help="optimiser steps")
    p.add_argument(
        "--lr", type=cli.real(0, None, True), default=2e-3, help="peak learning rate of AdamW"
    )
    p.add_argument(
        "--weight-decay",
        type=cli.real(),
        default=0.1,
        help="decoupled decay of matrices and embeddings",
    )
    p.add_argument(
        "--beta2",
        type=cli.real(0, 1, False, True),
        default=0.99,
        help="decay of AdamW's squared gradients",
    )
    p.add_argument(
        "--warmup",
        type=cli.integer(0),
        default=100,
        help="steps of linear warm-up, before the cosine to lr / 300",
    )
    p.add_argument(
        "--clip",
        type=cli.real(0, None, True),
        default=1.0,
        help="largest global norm of the gradient",
    )
    p.add_argument(
        "--test-draws",
        type=cli.integer(),
        default=64,
        help="multipliers and increments drawn for the tests",
    )
    p.add_argument(
        "--test-rows", type=cli.integer(), default=512, help="sequences measured in each test set"
    )
    p.add_argument(
        "--train-moduli", type=cli.integer(), default=128, help="--mode unseen: moduli to train on"
    )
    p.add_argument(
        "--test-moduli",
        type=cli.integer(2),
        nargs="*",
        help="--mode unseen without --base: further held-out moduli",
    )
    p.add_argument(
        "--pool",
        type=cli.integer(),
        default=128,
        help="multipliers, and increments, to train on; not used by fixed "
        "moduli without --base, which train on all others",
    )
    p.add_argument(
        "--recompute",
        action="store_true",
        help="compute activations again in backward: less memory, same bits",
    )
    p.add_argument(
        "--measure-every", type=cli.integer(), default=100, help="steps between measurements"
    )
    p.add_argument(
        "--save-seconds", type=cli.real(), default=60.0, help="seconds between checkpoints"
    )
    p.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    p.set_defaults(**PRESETS[p.parse_known_args(argv)[0].preset])
    args = cli.parse(p, argv, QUICK)
    if args.quick and args.preset != "small":
        raise cli.InputError("--quick is a setting of its own: leave out --preset")
    if args.test_moduli is not None and (args.mode == "fixed" or args.base):
        raise cli.InputError("--test-moduli needs --mode unseen without --base")
    return args


def make_data(args):
    """The data set that the flags describe, from the seed's stream of splits."""
    rng, length = generator(args.seed, "split"), args.context + (args.base is None)
    if args.base is None and args.mode == "fixed":
        return lcg.fixed_modulus(args.modulus, length, rng, args.test_draws)
    if args.base is None:
        held_out = args.test_moduli
        return lcg.unseen_modulus(
            args.modulus, length, rng, args.train_moduli, args.pool, args.test_draws, held_out
        )
    count = next(n for n in range(1, 65) if args.base**n >= args.modulus)
    if args.mode == "fixed":
        return lcg.fixed_modulus_digits(
            args.modulus, length, args.base, count, rng, args.pool, args.test_draws
        )
    moduli = args.train_moduli, args.pool, args.test_draws
    return lcg.unseen_modulus_digits(args.modulus, length, args.base, count, rng, *moduli)


def make_model(args, data):
    """The paper's two families of networks."""
    if args.base is None:
        return GPT.numbers(
            data.vocab, args.width, args.depth, args.heads, args.context, recompute=args.recompute
        )
    return GPT.base_b(
        args.base,
        args.width,
        args.depth,
        args.heads,
        args.context,
        data.digits,
        recompute=args.recompute,
    )


def build(args, dev):
    """Data, test sequences {name: (numbers, multipliers)} and the training run; draws come from
    named streams of the seed."""
    data = make_data(args)
    net = make_model(args, data)
    params, grads = Arena(dev, net.shapes), Arena(dev, net.shapes)
    params.load(net.init(generator(args.seed, "init")))
    optimizer = AdamW(
        dev,
        params,
        grads,
        lr=args.lr,
        betas=(0.9, args.beta2),
        weight_decay=args.weight_decay,
        schedule=cosine(args.warmup, args.steps, 1 / 300),
        no_decay=net.no_decay,
        clip=args.clip,
    )
    probes = generator(args.seed, "probes")
    tests = {name: data.test(name, args.test_rows, probes) for name in data.tests}
    train = data.batch(args.test_rows, probes)
    sets = {"train": train} | {name: data.tokens(x) for name, (x, _) in tests.items()}

    def numbers_right(run, predicted):
        """Whole numbers, all digits right, by numbers in context."""
        right = {
            k: data.numbers(predicted[k]) == data.numbers(run.sets[k].targets) for k in predicted
        }
        run.predicted = {
            k: data.numbers(p) for k, p in predicted.items()
        }  # of the last measurement
        return {f"{name}_numbers": r.mean(axis=0) for name, r in right.items()}

    draw = lambda rng: data.batch(args.batch, rng)  # noqa: E731
    positions = np.arange(train.shape[1] - 1)
    return (
        data,
        tests,
        SequenceTraining(dev, net, optimizer, draw, positions, sets, args.seed, numbers_right),
    )


def summary(curve):
    """What a curve (T,) of accuracy by numbers in context comes to."""
    return {
        "accuracy_last": float(curve[-8:].mean()),
        "accuracy_by_context": np.round(curve, 4).tolist(),
        "numbers_to_60": lcg.elements_needed(curve, 0.6),
        "numbers_to_90": lcg.elements_needed(curve, 0.9),
    }


def main(argv=None):
    args = arguments(argv)
    dev = cli.device(args)
    data, tests, run = build(args, dev)
    out = cli.start(args, run)
    main_set = max(tests, key=int) if args.base and args.mode == "unseen" else str(args.modulus)
    print(f"{run.model!r}\n{len(data.moduli)} moduli to train on; tests mod {', '.join(tests)}")
    began, first = time.perf_counter(), run.t

    def text(row):
        last = {name: row[f"{name}_numbers"][-8:].mean() for name in ("train", main_set)}
        return f"train loss {row['train_loss'].mean():.3f}  last 8 numbers: train {last['train']:.3f}  test {last[main_set]:.3f}"

    code = cli.train(args, run, out, args.measure_every, text, every=10.0)
    if code is not None:
        return code

    seconds = time.perf_counter() - began
    history = {k: np.asarray(v) for k, v in run.history.items()}
    if not hasattr(run, "predicted"):  # a finished run was resumed
        run.extra(run, {name: run.predict(batch)[0] for name, batch in run.sets.items()})
    results, curves = {}, {}
    for name, (x, a) in tests.items():
        target, m = x[:, 1:], data.tests[name][0]
        right = run.predicted[name] == target
        rows = {"transformer": right.mean(axis=0)}
        rows |= {
            solver: (f(x[:, :-1], m) == target).mean(axis=0) for solver, f in lcg.SOLVERS.items()
        }
        by_s = (
            digits.by_valuation(right, a) if m % 4 == 0 else {}
        )  # the power 2^s in a - 1 decides how hard a is
        row = summary(rows["transformer"]) | {
            "accuracy_by_s": {s: float(c[-8:].mean()) for s, c in by_s.items()}
        }
        if name == main_set:
            curves, by_digit = (
                rows,
                digits.digit_accuracy(run.predicted[name], target, lcg.prime_factors(m)),
            )
            results |= row
            results |= {
                f"{k}: {key}": v for k in lcg.SOLVERS for key, v in summary(rows[k]).items()
            }
            results["digit_accuracy"] = {q: np.round(v, 4).tolist() for q, v in by_digit.items()}
        else:
            results[f"m = {name}"] = row
    results |= {
        "parameters": run.model.size,
        "loss_first": float(history["train_loss"][0].mean()),
        "loss_last": float(history["train_loss"][-1].mean()),
        "tokens_per_second": (run.t - first)
        * args.batch
        * len(run.positions)
        / seconds,  # measurements included
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    last = {name: history[f"{name}_numbers"][:, -8:].mean(axis=1) for name in run.sets}
    losses = {f"{name}_loss": history[f"{name}_loss"].mean(axis=1) for name in run.sets}
    cli.write_log(
        out, {"step": history["step"], **{f"{k}_accuracy": v for k, v in last.items()}, **losses}
    )
    cli.write_run(out, args, dev, seconds, results)
    if cli.plotting(args):
        from tinygrok.plots import lcg as plots

        shown = {
            "training stream, of any period": last["train"],
            f"m = {main_set}, full period": last[main_set],
        }
        plots.prediction(history["step"], shown, curves, by_digit, out / "predict_lcg.png")
    shown = {
        k: v
        for k, v in results.items()
        if not k.endswith(("by_context", "digit_accuracy")) and not k.startswith("m = ")
    }
    shown |= {
        name: f"{row['accuracy_last']:.4f}"
        for name, row in results.items()
        if name.startswith("m = ")
    }
    cli.report(out, shown, {}, "")


if __name__ == "__main__":
    cli.main(main)
