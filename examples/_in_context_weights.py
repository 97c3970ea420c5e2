"""The weights from which a run of in_context.py starts: drawn, or those of an earlier run."""

from tinygrok import cli
from tinygrok.engine.rng import generator
from tinygrok.training.checkpoint import load_weights

SPLIT = ("tasks", "rule", "alpha", "seed")  # flags that say what is held out


def first_weights(args, net):
    """Weights that training starts from: drawn, or those of --weights. With --resume those of the
    checkpoint take their place, and the file is not needed.

    Refuses a checkpoint of other tasks and inputs of the same modulus: what this run holds out it
    may have seen."""
    if not args.weights or args.resume:
        std = args.init_std or 0.02 * (512 / args.width) ** 0.5
        return net.init(generator(args.seed, "init"), std)

    def shapes(settings, headers):
        for name in SPLIT if settings.get("p") == args.p else ():
            found = settings.get(name)
            if found != getattr(args, name):
                other = f"trained with {cli.flag(name)} {found}, not {getattr(args, name)}"
                raise cli.InputError(f"{args.weights}: {other}: what is held out must be the same")
        return net.shapes

    return load_weights(args.weights, shapes)[1]
