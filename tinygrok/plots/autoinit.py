"""The figure of AutoInit: Jacobian norms of the blocks, the tuning, and training from every
initialisation."""

from pathlib import Path

from .colors import GREEN, ORANGE, TEST, TRAIN
from .style import SHARE, label, panels, save

INITS = {"off": TRAIN, "kaiming": ORANGE, "xavier": GREEN, "autoinit": TEST}


def autoinit(
    norms: dict, tunings: list, predicted: list | None, tests: dict, titles: tuple, path: Path
) -> None:
    """J of every block before and after, the Jacobian loss while tuning, and test accuracies.

    norms      {"before", "after", as they shall be named: J (blocks,)}
    tunings    losses from every seed; predicted: the same without the noise of the probes
    tests      {initialisation: history of the training from every seed, None: it diverged}
    titles     of the network, and of the Jacobian loss"""
    fig, (left, middle, right) = panels(3, 4.3, 3.8)
    for (name, J), color in zip(norms.items(), (TRAIN, TEST), strict=True):
        left.semilogy(J, ".", color=color, label=name)
    left.axhline(1, color="0.6", lw=0.8, zorder=0)
    title = f"Jacobian norm of the blocks, {titles[0]}"
    label(left, 8, xlabel="block", ylabel="$J$", title=title)
    for losses in tunings:
        middle.semilogy(losses, color=TEST, alpha=0.8)
    if predicted is not None:
        name = "predicted, without the noise of the probes"
        middle.semilogy(predicted, "--", color="0.3", label=name)
        middle.set_ylim(min(tunings[0]) / 3)
    label(middle, 8, xlabel="step of the tuning", ylabel=titles[1], title="tuning")
    for seed in range(len(tunings)):
        for init, histories in tests.items():
            history = histories[seed]
            name = init if history else f"{init}: not finite"
            shown = history or {"step": [], "test_accuracy": []}
            style = {"color": INITS[init], "label": None if seed else name}
            right.plot(shown["step"], shown["test_accuracy"], **style)
    properties = {"xlabel": "step of the training", "ylabel": "test accuracy", "ylim": SHARE}
    label(right, 8, title="training", **properties)
    save(fig, path)
