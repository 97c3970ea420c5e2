"""Several seeds at once: an ensemble whose members are the solo runs of these seeds, and what
became of them as medians and quartiles.

A quantile is the least value that at least so large a share of the networks does not exceed: it is
always the value of one of them. A step that was never reached counts as larger than all others (it
is censored: the run ended before), so that a median that lies among these is "more than the steps"
of the run, not a number."""

import math

import numpy as np

from tinygrok import cli
from tinygrok.engine.params import Arena
from tinygrok.probes.fourier import mean_known, neuron_ipr
from tinygrok.training.ensembles import member_history
from tinygrok.training.tables import Evaluation, Training

QUARTILES = (0.25, 0.5, 0.75)


def add_seeds(add):
    """The flag --seeds of a parser whose add_argument is given."""
    about = "networks, of --seed, --seed + 1, ...: the figure shows medians and quartiles"
    add("--seeds", type=cli.integer(1, 1000), default=1, help=about)


def seeds_of(args):
    return range(args.seed, args.seed + args.seeds)


# -- training --------------------------------------------------------------------------------------


def together(build, seeds):
    """One run of the networks build(seed), which have the same sizes and hyperparameters: a member
    is the solo run of its seed."""
    data = []
    masks = {}
    for e, seed in enumerate(seeds):
        solo = build(seed)
        if e == 0:
            first = solo
            params, grads = (Arena(solo.dev, solo.model.shapes, len(seeds)) for _ in range(2))
        params.load(solo.params.to_host(), e)
        data += solo.data
        for name, (mask, _) in solo.evaluation.splits.items():
            masks.setdefault(name, []).append(mask)
    measured = first.evaluation
    splits = {name: (np.stack(masks[name]), which) for name, (_, which) in measured.splits.items()}
    evaluation = Evaluation(measured.inputs, measured.labels, splits)
    rates = first.optimizer.hyperparameters()
    schedule = first.optimizer.schedule
    optimizer = type(first.optimizer)(first.dev, params, grads, schedule=schedule, **rates)
    settings = {"loss": first.objective.loss, "batch_size": first.batch_size}
    settings |= {"dropout": [first.dropout] * len(seeds), "extra": mean_iprs}
    run = Training(first.dev, first.model, optimizer, data, evaluation, list(seeds), **settings)
    run.order = first.order
    return run


def mean_iprs(run):
    """{"ipr_mean": (E,)}, mean_ipr of every member; nothing where no waves are known."""
    if run.order is None:
        return {}
    members = range(run.params.members)
    iprs = [neuron_ipr(run.params.to_host(e), run.order) for e in members]
    return {"ipr_mean": np.array([mean_known(x) for x in iprs])}


# -- what became of them ---------------------------------------------------------------------------


def quartiles(values, axis=0):
    """(3, ...) the first quartile, the median and the third of values along an axis; nan left out,
    infinite ones count."""
    table = np.asarray(values, dtype=float)
    with np.errstate(invalid="ignore"):
        return np.nanquantile(table, QUARTILES, axis=axis, method="inverted_cdf")


def quartiles_of_steps(steps):
    """Quartiles of steps, None for never; None where they lie among these."""
    known = [math.inf if step is None else step for step in steps]
    return [None if math.isinf(step) else int(step) for step in quartiles(known)]


def histories(run):
    """The history of every member, as that of a solo run."""
    return [member_history(run.history, e) for e in range(run.params.members)]


def summary(outcomes):
    """Results {name_by_seed, name_quartiles} of what was measured of every network, {name: value}
    with the same names; for steps, integers or None, also name_never: how many."""
    outcomes = list(outcomes)
    columns = {name: [found[name] for found in outcomes] for name in outcomes[0]}
    reached = zip(columns["step_train_99"], columns["step_test_99"], strict=True)
    columns["delay"] = [None if None in pair else pair[1] - pair[0] for pair in reached]
    results = {}
    for name, values in columns.items():
        if are_steps(name):
            results[f"{name}_quartiles"] = quartiles_of_steps(values)
            results[f"{name}_never"] = values.count(None)
        elif None not in values:
            results[f"{name}_quartiles"] = quartiles(values).tolist()
        results[f"{name}_by_seed"] = values
    return results


def are_steps(name):
    return name == "delay" or name.startswith("step_")


def shown(results, steps):
    """What is printed of a summary: {name: "median (first to third quartile), never: how many"}."""
    texts = {}
    for key, three in results.items():
        name = key.removesuffix("_quartiles")
        if name == key:
            continue
        never = "never" if name == "delay" else f"> {steps}"
        low, middle, high = (in_words(value, never) for value in three)
        texts[name] = f"{middle} ({low} to {high})"
        if are_steps(name):
            texts[name] += f", never: {results[f'{name}_never']}"
    return texts


def in_words(value, never):
    if value is None:
        return never
    return str(value) if isinstance(value, int) else f"{value:.4f}"
