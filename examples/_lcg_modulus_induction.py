"""Induction on differences: x_{t+1} - x_t repeats mod m with the order of a, and so can be copied.

Parts of lcg_probe.py; every measure stands beside a control of the same kind. r is the order of a
mod m, n the numbers in context."""

import numpy as np
from _lcg_modulus import reach

from tinygrok.tasks import lcg

# The numbers beyond the order that an induction head needs: x_{t-r} and x_{t+1-r}, whose difference
# repeats, and x_{t-r-1} before them, to find them by the difference that it sees last.
BEYOND = 2


def weighted(values, weights):
    """[sum w v / sum w, its standard error over sequences]; values and weights (B, T)."""
    total = weights.sum()
    if not total:
        return [np.nan, np.nan]
    mean = (weights * values).sum() / total
    off = (weights * (values - mean)).sum(axis=1)
    return [mean, np.sqrt((off**2).sum()) / total]


def matched(values, chosen, others, cells):
    """Mean of the chosen values and of others, weighted so that both fill the cells alike.

    values, the masks and the numbers of the cells (B, T). Cells without one of both are left out.
    -> [mean, standard error] of the chosen, and of the others"""
    label = np.unique(cells, return_inverse=True)[1].reshape(cells.shape)
    count = label.max() + 1
    of_chosen = np.bincount(label[chosen], minlength=count)
    of_others = np.bincount(label[others], minlength=count)
    both = (of_chosen > 0) & (of_others > 0)
    ratio = np.where(both, of_chosen / np.maximum(of_others, 1), 0)
    return weighted(values, chosen * both[label]), weighted(values, others * ratio[label])


def cells_of(*parts):
    """One number for every combination of integers, arrays that broadcast."""
    cells = 0
    for part in parts:
        cells = cells * (np.max(part) + 1) + part
    return cells


def seen_before(x, order):
    """(B, T): whether x_{t+1} - x_t, as it is, was there r, 2 r, ... steps before."""
    step = np.diff(x)
    t = np.arange(step.shape[1])
    seen = np.zeros(step.shape, dtype=bool)
    for k in range(1, step.shape[1]):
        back = t - k * order[:, None]
        same = np.take_along_axis(step, np.maximum(back, 0), axis=1) == step
        seen |= same & (back >= 0)
    return seen


def accuracy(decoder, sequences):
    """When the network answers rightly, by what stands in the context.

    past the order     n >= r + 2; against n < r + 2, the same m and n
    difference seen    x_{t+1} - x_t was there r, 2 r, ... steps before; against: only the other
                       one, m away, so that the network must wrap itself; the same m, r and n
    solver, seen       the same of the classical solver that is not told m
    -> ({name: (found, control)}, {r: accuracy (T,) after 1, 2, ... numbers})"""
    x, m, _, order = sequences
    right = decoder.predict(x[:, :-1]) == x[:, 1:]
    solved = lcg.unknown_modulus(x[:, :-1]) == x[:, 1:]
    n = np.arange(1, x.shape[1]) + np.zeros_like(x[:, 1:])
    past = n >= order[:, None] + BEYOND
    seen = seen_before(x, order)
    cells = cells_of(m[:, None], n)
    finer = cells_of(cells, order[:, None])
    found = {
        "past the order": matched(right, past, ~past, cells),
        "difference seen": matched(right, past & seen, past & ~seen, finer),
        "solver, seen": matched(solved, past & seen, past & ~seen, finer),
    }
    by_order = {int(r): right[order == r].mean(axis=0) for r in np.unique(order)}
    return found, by_order


def left_out(sequences):
    """Moduli that "past the order" cannot tell of: no n is past the order of some of their
    sequences and not of others, as where all multipliers have one order."""
    past = np.arange(1, sequences.x.shape[1]) >= sequences.order[:, None] + BEYOND
    moduli = []
    for m in np.unique(sequences.m).tolist():
        own = past[sequences.m == m]
        if (own.any(axis=0) == own.all(axis=0)).all():
            moduli.append(m)
    return moduli


def look_backs(decoder, sequences):
    """Attention of the last query x_t on a number, and on matched ones, by head.

    previous   x_{t-1}; against the mean of all earlier ones
    phase      x_{t-kr}, k = 1, 2, ...; against the same look-backs where r does not divide them
    following  x_{t+1-kr}, what came after these; the same
    -> {name: (depth, H, 2, 2)}: of these and the control, mean and error"""
    tokens = sequences.x[:, :-1]
    last = decoder.patterns(tokens)[..., -1, ::-1].astype(float)  # by look-back 0, 1, ...
    back = np.arange(tokens.shape[1]) + np.zeros_like(tokens)
    order = sequences.order[:, None]
    earlier = back >= 2
    chosen = {
        "previous": back == 1,
        "phase": earlier & (back % order == 0),
        "following": earlier & (back % order == order - 1),
    }
    table = {}
    for name, these in chosen.items():
        cells = np.zeros_like(back) if name == "previous" else back
        found = np.empty((*last.shape[1:3], 2, 2))
        for i, h in np.ndindex(last.shape[1:3]):
            found[i, h] = matched(last[:, i, h], these, earlier & ~these, cells)
        table[name] = found
    return table


def together(*edits):
    """One edit that does them all."""

    def edit(name, x, rows):
        for each in edits:
            each(name, x, rows)

    return edit


def without(decoder, means, heads):
    """An edit: the heads (block, head) at their means (depth, H, D)."""
    return together(*(decoder.set_head(i, h, means[i, h]) for i, h in heads))


def wrapping(decoder, sequences, edit=None):
    """Accuracy (3, 2), with errors, of answers after n >= r + 2 numbers, by what they ask for.

    no wrap       the difference has been seen, and x_t plus the last one is below m
    seen wrap     the difference has been seen, but the last one, r steps before, was the other
    unseen        the difference has not been seen"""
    x, m, _, order = sequences
    right = decoder.predict(x[:, :-1], edit) == x[:, 1:]
    past = np.arange(1, x.shape[1]) >= order[:, None] + BEYOND
    reached = reach(x[:, :-1], order)
    inside = (reached >= 0) & (reached < m[:, None])
    seen = seen_before(x, order)
    asked = (seen & inside, seen & ~inside, ~seen)
    return np.array([weighted(right, past & kind) for kind in asked])


def named(heads):
    """ "1.1 and 1.2" """
    return " and ".join(f"{i}.{h}" for i, h in heads) or "no other head"


def pruned(decoder, sequences, means, heads):
    """wrapping() of the network, without each head, without these heads, and a control.

    The control of these heads: all others of the same blocks.
    -> {"none", "0.0", "0.1", ..., "1.1 and 1.2", "1.0 and 1.3": (3, 2)}"""
    found = {"none": wrapping(decoder, sequences)}
    every = list(np.ndindex(means.shape[:2]))
    blocks = {i for i, _ in heads}
    removed = {f"{i}.{h}": [(i, h)] for i, h in every}
    others = [head for head in every if head[0] in blocks and head not in heads]
    removed |= {named(gone): gone for gone in (heads, others)}
    for name, gone in removed.items():
        found[name] = wrapping(decoder, sequences, without(decoder, means, gone))
    return found
