"""Faults planted in the circuits of ground_truth.py, and what each changes over all inputs."""

import numpy as np
from _ground_truth import Answers, is_mirror, wrapped

from tinygrok.analytic.verify import evaluator
from tinygrok.engine.errors import InputError

KINDS = ("dead", "flipped", "memorises")
LISTED = 1000  # answers that a fault changes, in truth.json


def planned(count):
    """The kinds of `count` faults: by turns, waves first, so that pairs are memorised last."""
    kinds = [KINDS[i % len(KINDS)] for i in range(count)]
    return sorted(kinds, key=KINDS.index)


def check_room(truth, kinds, p):
    """InputError where no frequency would be left without a fault."""
    present = np.unique(truth.frequency[truth.role == "wave"])
    usable = int((~is_mirror(present, p)).sum())
    damaged = sum(kind != "memorises" for kind in kinds)
    if damaged >= usable:
        needed = f"{len(kinds)} faults damage {damaged} frequencies and must leave one"
        raise InputError(f"{needed}: this circuit has {usable} to choose from")


def plant(kind, dev, weights, truth, task, before: Answers, rng):
    """Plant one fault in the weights and in the truth; what it is, for truth.json."""
    if kind == "memorises":
        return _memorise(dev, weights, truth, task, before, rng)
    p = task.p
    faulty = np.unique(truth.frequency[np.isin(truth.role, ("dead", "flipped"))])
    present = np.unique(truth.frequency[truth.role == "wave"])
    free = present[~is_mirror(present, p) & ~np.isin(present, faulty)]
    frequency = int(rng.choice(free))
    neurons = np.flatnonzero((truth.frequency == frequency) & (truth.role == "wave"))
    if kind == "dead":
        weights["W"][neurons] = 0
        truth.amplitude[2, neurons] = 0
        truth.phase[2, neurons] = np.nan
    else:
        neurons = rng.choice(neurons, 1)
        weights["W"][neurons] *= -1
        truth.phase[2, neurons] = wrapped(truth.phase[2, neurons] + np.pi)
    truth.role[neurons] = kind
    return {"kind": kind, "frequency": frequency, "neurons": neurons.tolist()}


def _memorise(dev, weights, truth, task, before, rng):
    """One pair (a, b) answered by a wrong class, all other logits as before.

    With x = [n1 = a], y = [n2 = b] two neurons make [n1 = a][n2 = b] = ((x + y)^2 - (x - y)^2)/4.
    Their read-out moves h = z_right - z_wrong from the right to the wrong logit: the two change
    places, so the pair is as sure of its answer as before."""
    right = np.argwhere(before.margin > 0)
    if not len(right):
        raise InputError("no answer is right any more: fewer faults, or a wider network")
    a, b = (int(x) for x in rng.choice(right))
    label = int(before.predicted[a, b])
    wrong = int((label + rng.integers(1, task.p)) % task.p)
    z = dev.to_host(evaluator(dev, weights)(np.array([[a], [b]])))[0]
    size = float(z[label] - z[wrong]) / 4
    c = size ** (1 / 3)
    first, second = np.flatnonzero(truth.role == "spare")[:2]
    weights["U"][0, a, [first, second]] = c
    weights["U"][1, b, [first, second]] = c, -c
    weights["W"][[first, second], wrong] = c, -c
    weights["W"][[first, second], label] = -c, c
    truth.role[[first, second]] = "memorises"
    neurons = [int(first), int(second)]
    return {"kind": "memorises", "pair": [a, b], "answer": wrong, "neurons": neurons}


def effect(before: Answers, after: Answers, fault):
    """What a fault changed, over all inputs; InputError where it is not what was meant."""
    changed = np.argwhere(before.predicted != after.predicted)
    at = tuple(changed.T)
    rows = np.column_stack([changed, before.predicted[at], after.predicted[at]]).tolist()
    moved = float(np.abs(after.margin - before.margin).max())
    if fault["kind"] == "memorises":
        a, b = fault["pair"]
        if [row[:2] for row in rows] != [[a, b]] or rows[0][3] != fault["answer"]:
            raise InputError(f"the pair ({a}, {b}) was not memorised alone: take --dtype float64")
    elif not moved > 0:
        raise InputError(f"the {fault['kind']} frequency {fault['frequency']} changed nothing")
    return {
        **{name: after.row()[name] for name in ("accuracy", "wrong", "min_margin")},
        "largest_margin_change": moved,
        "answers_changed": len(rows),
        "changed": rows[:LISTED],  # n1, n2, answer before, answer after
    }
