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
from tinygrok.probes.phases import first_step
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
    """One run of the networks, or ensembles, build(seed), which have the same sizes and rates:
    those of the first seed, then those of the second, ... A member is what it is without the
    others."""
    data = []
    masks = {}
    labels = {}
    for e, seed in enumerate(seeds):
        solo = build(seed)
        own = solo.params.members or 1
        if e == 0:
            first = solo
            size = own * len(seeds)
            params, grads = (Arena(solo.dev, solo.model.shapes, size) for _ in range(2))
        for member in range(own):
            which = None if solo.params.members is None else member
            params.load(solo.params.to_host(which), e * own + member)
        data += solo.data
        rows = (own, solo.evaluation.inputs.shape[1])
        for name, (mask, _) in solo.evaluation.splits.items():
            masks.setdefault(name, []).extend(np.broadcast_to(mask, rows))
        for name, x in solo.evaluation.labels.items():
            labels.setdefault(name, []).extend(np.broadcast_to(x, rows))
    splits = {}
    for name, (_, which) in first.evaluation.splits.items():
        splits[name] = (np.stack(masks[name]), which)
    labels = {name: np.stack(rows) for name, rows in labels.items()}
    evaluation = Evaluation(first.evaluation.inputs, labels, splits)
    rates = first.optimizer.hyperparameters() | {"schedule": first.optimizer.schedule}
    rates |= {name: np.tile(rates[name], len(seeds)) for name in ("lr", "weight_decay")}
    optimizer = type(first.optimizer)(first.dev, params, grads, **rates)
    settings = {"loss": first.objective.loss, "batch_size": first.batch_size}
    settings["dropout"] = np.resize(first.dropout, size)
    streams = np.repeat(seeds, own).tolist()  # of dropout and of the order of minibatches
    run = Training(first.dev, first.model, optimizer, data, evaluation, streams, **settings)
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
    ordered = np.sort(np.asarray(values, dtype=float), axis=axis)  # nan comes last
    count = (~np.isnan(ordered)).sum(axis=axis, keepdims=True)
    places = [np.maximum(np.ceil(share * count).astype(int) - 1, 0) for share in QUARTILES]
    found = np.take_along_axis(ordered, np.concatenate(places, axis=axis), axis=axis)
    return np.moveaxis(found, axis, 0)


def listed(values):
    """An array as nested lists of numbers of five digits, as tables of results are kept."""
    if np.ndim(values):
        return [listed(value) for value in values]
    return float(f"{values:.5g}")


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
    outcomes = with_delay(outcomes)
    results: dict = {}
    for name in outcomes[0]:
        values = [found[name] for found in outcomes]
        results |= spread(name, values)
        results[f"{name}_by_seed"] = values
    return results


def median_row(rows):
    """One row of a table for those of several networks: the medians of its numbers, with
    name_quartiles and name_never as in a summary; texts and truths are those of the first."""
    rows = with_delay(rows)
    result = dict(rows[0])
    for name in result:
        values = [row[name] for row in rows]
        if censored(name) or any(isinstance(value, float) for value in values):
            found = spread(name, values)
            median = {name: found[f"{name}_quartiles"][1]} if found else {}
            result = result | found | median
    return result


def with_delay(outcomes):
    """The outcomes, in each the delay too."""
    found = []
    for outcome in outcomes:
        steps = outcome["step_train_99"], outcome["step_test_99"]
        found.append(outcome | {"delay": delay(*steps)})
    return found


def delay(memorised, grokked):
    """Steps from memorising to grokking. None, never, for a network that memorised and did not
    grok: it counts as later than all others. nan, which is left out, for one that never memorised:
    it had nothing to wait from."""
    if memorised is None:
        return math.nan
    return None if grokked is None else grokked - memorised


def spread(name, values):
    """{name_quartiles, name_never} of steps, {name_quartiles} of floats; None is never, or left
    out, nan left out. Nothing of what is no number, or where nothing is left."""
    if censored(name):
        known = [value for value in values if value is None or not math.isnan(value)]
        never = {f"{name}_never": known.count(None)}
        return {f"{name}_quartiles": quartiles_of_steps(known)} | never if known else {}
    known = [value for value in values if isinstance(value, float)]
    return {f"{name}_quartiles": quartiles(known).tolist()} if known else {}


def steps_of_99(run, e):
    """{"step_train_99", "step_test_99"} of a member: of memorising and of grokking."""
    found = {}
    for split in ("train", "test"):
        accuracies = np.asarray(run.history[f"{split}_accuracy"])
        found[f"step_{split}_99"] = first_step(run.history["step"], accuracies[:, e] >= 0.99)
    return found


def censored(name):
    """Whether a result is an integer that None stands for where it is more than was looked at."""
    return name == "delay" or name.startswith(("step_", "neurons_needed"))


def shown(results, steps):
    """What is printed of a summary: {name: "median (first to third quartile), never: how many"}."""
    names = [key.removesuffix("_quartiles") for key in results if key.endswith("_quartiles")]
    return {name: in_words(results, name, steps) for name in names}


def in_words(row, name, steps):
    """A number of a summary, or of a row of medians, in words."""
    three = row[f"{name}_quartiles"]
    if not censored(name):
        return three_in_words(three, ".4f", "-")
    never = f"> {steps}" if name.startswith("step_") else "never"
    return f"{three_in_words(three, '', never)}, never: {row[f'{name}_never']}"


def three_in_words(three, form, never):
    """Quartiles [first, median, third] as "median (first to third)", in a format.

    never: what stands for None, and for what is not finite"""
    texts = [format(x, form) if x is not None and np.isfinite(x) else never for x in three]
    return f"{texts[1]} ({texts[0]} to {texts[2]})"


def show_steps(rows, args):
    """The table of steps of {what was trained: row of medians}."""
    print(f"\nsteps of {args.seeds} seeds: median (first to third quartile), never: how many")
    width = max(map(len, rows)) + 2
    print(f"{'':<{width}}{'memorised (99% train)':<34}grokked (99% test)")
    for name, row in rows.items():
        memorised, grokked = (in_words(row, f"step_{x}_99", args.steps) for x in ("train", "test"))
        print(f"{name:<{width}}{memorised:<34}{grokked}")
