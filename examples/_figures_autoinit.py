"""The figure of AutoInit: Jacobian norms of the blocks, the tuning, and training from every
initialisation."""

from pathlib import Path

import numpy as np
from _figures_seeds import band

from tinygrok.plots.colors import GREEN, ORANGE, TEST, TRAIN
from tinygrok.plots.style import SHARE, chance, figure, legend_below, log2, panels, save

# Marker and dashes, colour.
INITS = {"off": ("x:", TRAIN), "kaiming": ("^--", ORANGE), "xavier": ("s-.", GREEN)}
INITS["autoinit"] = ("o-", TEST)


def autoinit(
    norms: dict, tunings: list, predicted: list | None, tests: dict, names: tuple, path: Path
) -> None:
    """J of every block at the start, the Jacobian loss while tuning, and test accuracies.

    norms      {initialisation: (Jacobian loss, J (blocks,))}
    tunings    losses from every seed; predicted: the same without the noise of the probes
    tests      {initialisation: history of the training from every seed, None: it diverged}
    names      title, of the Jacobian loss and of what its floor comes from; number of classes"""
    fig, (left, middle, right) = panels(3, 3.2, 4.6)
    for init, (_, J) in norms.items():
        style, color = INITS[init]
        left.plot(J, style[0], color=color, ms=4, label=init)
    left.axhline(1, color="0.6", zorder=0, label="critical, J = 1")
    log2(left, "y")
    legend_below(left, title="Jacobian norm of every block", xlabel="block", ylabel="$J$")
    title, loss, noise, classes = names
    fig.suptitle(title)
    for losses in tunings:
        middle.semilogy(losses, color=TEST, lw=1)
    floor = np.mean([losses[-len(losses) // 4 :] for losses in tunings])
    middle.axhline(floor, color="0.6", ls="--", label=f"noise floor: {noise}")
    if predicted is not None:
        middle.semilogy(predicted, "k:", label="predicted, without noise")
        middle.set_ylim(floor / 10)
    legend_below(middle, 1, title="tuning of autoinit", xlabel="step of the tuning", ylabel=loss)
    for init, histories in tests.items():
        trained = [h for h in histories if h]
        lost = len(histories) - len(trained)
        name = f"{init}: {lost} of {len(histories)} not finite" if lost else init
        style, color = INITS[init]
        right.plot([], [], style, color=color, label=name)
        for history in trained:
            right.plot(history["step"], history["test_accuracy"], style, color=color, ms=3, lw=1)
    chance(right, classes)
    legend_below(right, title="training", xlabel="step", ylabel="test accuracy", ylim=SHARE)
    save(fig, path)


def several(outcomes: dict, titles: dict, steps: int, path: Path) -> None:
    """Of every network J of its blocks, above, and test accuracies in training, below: medians and
    quartiles of the seeds.

    outcomes   {name: _autoinit_training.Compared}; titles {name: title}
    steps      of the training"""
    fig = figure(2.05 * len(outcomes), 5.4)
    upper, lower = fig.subplots(2, len(outcomes), squeeze=False, sharey="row")
    for above, below, (name, found) in zip(upper, lower, outcomes.items(), strict=True):
        for init, (_, J) in found.norms.items():
            style, color = INITS[init]
            above.plot(J, style[0], color=color, ms=3, label=init)
        above.axhline(1, color="0.6", zorder=0)
        above.set(title=titles[name], xlabel="block")
        for init in found.rates:
            _trained(below, found.runs(init), init, found.classes, steps)
        chance(below, found.classes)
        below.set(xlabel="step", ylim=SHARE)
    log2(upper[0], "y")
    upper[0].set(ylabel="$J$ (critical: 1)")
    lower[0].set(ylabel="test accuracy")
    named = {}
    for ax in (upper[0], lower[0]):
        handles, labels = ax.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    place = {"loc": "outside lower center", "ncols": len(named), "frameon": False}
    fig.legend(named.values(), named, **place)
    seeds = len(found.starts)
    fig.suptitle(
        f"above J (first seed); below test accuracy, median and quartiles of {seeds} seeds"
    )
    save(fig, path)


def _trained(ax, histories: list, init: str, classes: int, steps: int) -> None:
    """Median and quartiles over seeds; a network that diverged counts as one that guesses."""
    known = [history for history in histories if history]
    measured = known[0]["step"] if known else [0, steps]
    guess = np.full(len(measured), 1 / classes)
    curves = [np.array(x["test_accuracy"]) if x else guess for x in histories]
    style, color = INITS[init]
    look = {"color": color, "marker": style[0], "ls": style[1:], "ms": 3, "lw": 1.2}
    band(ax, measured, np.transpose(curves), label=init, **look)
