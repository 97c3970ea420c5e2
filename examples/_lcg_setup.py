"""What predict_lcg.py trains: data, network and optimiser of its flags."""

import _optimizers as optimizers
from _lcg_families import FAMILIES, FAMILIES_OF_ONE, mixed_moduli, mixed_modulus
from _lcg_presets import FLOORS
from _shares import moving_shares, refused_by

from tinygrok import cli
from tinygrok.engine.optim import cosine
from tinygrok.engine.rng import generator
from tinygrok.models.gpt import GPT
from tinygrok.tasks import lcg
from tinygrok.tasks.pcg import hidden_state, outputs
from tinygrok.training.loop import equip


def refuse_idle(args):
    """Refuse flags that would do nothing beside the others."""
    optimizers.refuse_idle(args)
    if args.generator == "lcg":
        cli.refuse_idle(args, "needs a --generator that hides bits", "keep_bits")
    if args.base is not None:
        cli.refuse_idle(args, "means nothing with --base", "positions")
    unseen = args.mode == "unseen"
    if args.mixture and unseen:
        own = "means nothing with --mixture, which has moduli of its own"
        cli.refuse_idle(args, own, "modulus", "train_moduli", "pool", "test_draws")
        return
    cli.refuse_idle(args, "needs --mixture of unseen moduli", "moduli")
    if not args.mixture:
        cli.refuse_idle(args, "needs --mixture", "start", "ramp")
    if not unseen:
        cli.refuse_idle(args, "needs --mode unseen", "train_moduli")
        if args.base is None and args.generator == "lcg":
            cli.refuse_idle(args, "means nothing here: it trains on every a and c", "pool")


def make_data(args):
    """The data set that the flags describe, from the seed's stream of splits."""
    rng = generator(args.seed, "split")
    moduli = (args.train_moduli, args.pool, args.test_draws)
    length = args.context + 1
    if args.generator != "lcg":
        bits = (args.modulus.bit_length() - 1, args.keep_bits)
        refused_by("--keep-bits", outputs, [0], args.generator, *bits)
        return hidden_state(args.generator, *bits, length, rng, args.pool, args.test_draws)
    if args.mixture:
        families = FAMILIES if args.mode == "unseen" else FAMILIES_OF_ONE
        ends = (("--start", args.start), ("--mixture", args.mixture))
        mixture = moving_shares(families, *ends, args.ramp)
        if args.mode == "fixed":
            return mixed_modulus(args.modulus, length, rng, args.test_draws, mixture)
        low, high = args.moduli
        return mixed_moduli(low, high, length, rng, args.test_moduli, mixture)
    if args.base is None:
        if args.mode == "fixed":
            return lcg.fixed_modulus(args.modulus, length, rng, args.test_draws)
        return lcg.unseen_modulus(args.modulus, length, rng, *moduli, args.test_moduli)
    count = 1
    while args.base**count < args.modulus:
        count += 1
    numbers = (args.modulus, args.context, args.base, count)
    if args.mode == "fixed":
        return lcg.fixed_modulus_digits(*numbers, rng, args.pool, args.test_draws)
    return lcg.unseen_modulus_digits(*numbers, rng, *moduli)


def require_numbers(args):
    """Refuses a network that does not read the numbers of a generator themselves."""
    if args.base is not None:
        raise cli.InputError("this network reads digits, not numbers (--base)")
    if args.generator != "lcg":
        raise cli.InputError("this network reads outputs of a hidden state (--generator)")


def make_model(args, data):
    """The paper's two families of networks."""
    size = (args.width, args.depth, args.heads, args.context)
    if args.base is None:
        options = {"positions": args.positions, "recompute": args.recompute}
        return GPT.numbers(data.vocab, *size, **options)
    return GPT.base_b(args.base, *size, data.digits, recompute=args.recompute)


def make_optimizer(args, dev, net):
    schedule = cosine(args.warmup, args.steps, FLOORS.get(args.preset, 1 / 300))
    chosen = optimizers.options(args, net, schedule)
    chosen |= {"betas": (0.9, args.beta2), "no_decay": net.no_decay, "clip": args.clip}
    _, optimizer = equip(net, args.seed, device=dev, **chosen)
    return optimizer
