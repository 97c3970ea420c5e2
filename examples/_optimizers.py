"""The optimiser of the examples that train a GPT: its flags, and what they come to."""

from tinygrok import cli
from tinygrok.engine.optim import constant_then_linear


def add_flags(p):
    """--optimizer, --matrix-lr and --hold, for a parser that has --lr, --warmup and --steps."""
    add = p.add_argument
    hold = "in place of the schedule: share of the steps at the full rate, then linear to 0"
    add("--optimizer", default="adamw", choices=["adamw", "muon"], help="muon: of block matrices")
    add("--matrix-lr", type=cli.positive(), default=0.02, help="learning rate of muon")
    add("--hold", type=cli.fraction(), help=hold)


def refuse_idle(args):
    """Refuse --matrix-lr where no matrix has it, and a --schedule that --hold replaces."""
    if args.optimizer != "muon":
        cli.refuse_idle(args, "needs --optimizer muon", "matrix_lr")
    if args.hold and hasattr(args, "schedule"):
        cli.refuse_idle(args, "does not go with --hold, which takes its place", "schedule")


def options(args, net, schedule):
    """What loop.equip and SequenceTraining.on_task take: {"optimizer": its name, "lr": ..., ...}.

    schedule: the one without --hold"""
    if args.hold:
        schedule = constant_then_linear(args.warmup, round(args.hold * args.steps), args.steps)
    chosen = {"optimizer": args.optimizer, "lr": args.lr, "weight_decay": args.weight_decay}
    chosen["schedule"] = schedule
    if args.optimizer == "muon":
        inside = [name for name in net.shapes if name.startswith("blocks.")]
        chosen["matrices"] = [name for name in inside if len(net.shapes[name]) == 2]
        chosen["matrix_lr"] = args.matrix_lr
    return chosen
