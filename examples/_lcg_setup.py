"""What predict_lcg.py trains: data, network and optimiser of its flags."""

from _lcg_presets import FLOORS

from tinygrok import cli
from tinygrok.engine.optim import AdamW, Muon, constant_then_linear, cosine
from tinygrok.engine.params import Arena
from tinygrok.engine.rng import generator
from tinygrok.models.gpt import GPT
from tinygrok.tasks import lcg
from tinygrok.tasks.lcg_families import FAMILIES, mixed_moduli
from tinygrok.tasks.shares import MovingShares


def shares(words):
    """["wrap=0.2", ...] -> {"wrap": 0.2, ...}"""
    found = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise cli.InputError(f"{word!r} is not of the form FAMILY=SHARE") from None
    return found


def make_data(args):
    """The data set that the flags describe, from the seed's stream of splits."""
    rng = generator(args.seed, "split")
    moduli = (args.train_moduli, args.pool, args.test_draws)
    if args.base is None:
        length = args.context + 1
        if args.mode == "fixed":
            return lcg.fixed_modulus(args.modulus, length, rng, args.test_draws)
        if args.mixture:
            ends = (shares(args.start), shares(args.mixture))
            mixture = MovingShares(FAMILIES, *ends, args.ramp)
            return mixed_moduli(*args.moduli, length, rng, args.test_moduli, mixture)
        return lcg.unseen_modulus(args.modulus, length, rng, *moduli, args.test_moduli)
    count = 1
    while args.base**count < args.modulus:
        count += 1
    numbers = (args.modulus, args.context, args.base, count)
    if args.mode == "fixed":
        return lcg.fixed_modulus_digits(*numbers, rng, args.pool, args.test_draws)
    return lcg.unseen_modulus_digits(*numbers, rng, *moduli)


def make_model(args, data):
    """The paper's two families of networks."""
    size = (args.width, args.depth, args.heads, args.context)
    if args.base is None:
        options = {"positions": args.positions, "recompute": args.recompute}
        return GPT.numbers(data.vocab, *size, **options)
    return GPT.base_b(args.base, *size, data.digits, recompute=args.recompute)


def make_optimizer(args, dev, net):
    params = Arena(dev, net.shapes)
    params.load(net.init(generator(args.seed, "init")))
    schedule = cosine(args.warmup, args.steps, FLOORS.get(args.preset, 1 / 300))
    if args.hold:
        schedule = constant_then_linear(args.warmup, round(args.hold * args.steps), args.steps)
    options = {
        "lr": args.lr,
        "betas": (0.9, args.beta2),
        "weight_decay": args.weight_decay,
        "schedule": schedule,
        "no_decay": net.no_decay,
        "clip": args.clip,
    }
    if args.optimizer == "adamw":
        return AdamW(dev, params, Arena(dev, net.shapes), **options)
    inside = [name for name in net.shapes if name.startswith("blocks.")]
    options["matrices"] = [name for name in inside if len(net.shapes[name]) == 2]
    return Muon(dev, params, Arena(dev, net.shapes), matrix_lr=args.matrix_lr, **options)
