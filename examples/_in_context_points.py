"""A point of in_context_phases.py: a network that in_context.py would train.

In a file of its own, which the workers and the scheduler of a cluster can import."""

import in_context  # first: it sets up BLAS threads before NumPy loads

from tinygrok import cli
from tinygrok.engine.device import get_device
from tinygrok.training.checkpoint import fit_in_pack

SETS = in_context.SETS
SOLVERS = ("retrieval", "ratio_matching")  # accuracy at the last shot, held-out tasks


def options_of(flags):
    """The options of in_context.py for a point."""
    return in_context.arguments(cli.words(flags))


def train_one(flags, folder, device, **settings):
    """Accuracies of a point at the last shot of every measurement, by set; at the last shot also
    those of two reference solvers on the held-out tasks and train inputs."""
    options = options_of(flags)
    dev = get_device(device, flags["dtype"], **settings)
    _, solved, run = in_context.build(options, dev)
    fit_in_pack(run, [flags], folder, options.steps, options.measure_every)
    result = {"step": [int(step) for step in run.history["step"]]}
    for name in SETS:
        result[name] = [float(row[-1]) for row in run.history[f"{name}_accuracy"]]
    for solver in SOLVERS:
        result[solver] = float(solved[solver][-1])
    return result
