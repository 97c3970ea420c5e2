"""The figure of AutoInit: Jacobian norms of the blocks, the tuning, and training from every
initialisation."""

from pathlib import Path

import numpy as np

from tinygrok.plots.colors import GREEN, ORANGE, TEST, TRAIN
from tinygrok.plots.style import SHARE, chance, legend_below, log2, panels, save

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
