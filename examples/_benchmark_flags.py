"""Which flags of benchmark.py mean something with which, and the commands of its own processes."""

import sys

from _benchmark_steps import GROUPS

from tinygrok import cli

MODULAR = ("mlp", "mlp-batchnorm", "ensemble")  # workloads that --p and --width are of


def check(args):
    """Refuse what would have no effect."""
    if args.resume and (args.workload not in GROUPS or args.scaling):
        groups = " or ".join(GROUPS)
        raise cli.InputError(f"--resume needs --workload {groups}, which time one after another")
    if args.only is not None:
        alone = "means nothing with --only, which measures memory in a few steps"
        cli.refuse_idle(args, alone, "scaling", "repeats", "steps", "busy")
    if args.scaling:
        own = "means nothing with --scaling, which has workloads of its own"
        cli.refuse_idle(args, own, "workload")
        cli.refuse_idle(args, "means nothing with --scaling, which needs quiet", "busy")
    elif args.workload not in (*MODULAR, "all"):
        sizes = f"is a size of {', '.join(MODULAR)}, and means nothing with {args.workload}"
        cli.refuse_idle(args, sizes, "p", "width")


def own_flags(args, script, **changed):
    """The command line of a process with the same settings, but for those that are changed."""
    names = ["workload", "device", "dtype", "seed", "threads", "kernels"]
    if "only" not in changed:
        names += ["repeats", "steps", "busy"]
    if changed.get("workload", args.workload) in MODULAR:
        names += ["p", "width"]
    given = {name: getattr(args, name) for name in names} | changed
    flags = ["--tf32"] if args.tf32 else []
    for name, value in given.items():
        if value is not None:
            flags += [f"--{name}", str(value)]
    return [sys.executable, script, *flags]
