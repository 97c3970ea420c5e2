"""The figure of pruning in four phases: a column each."""

from pathlib import Path

import numpy as np
from _figures_seeds import band

from tinygrok.plots.colors import ORANGE, TEST, TRAIN
from tinygrok.plots.style import SHARE, chance, figure, save

LOOKS = {
    "train": (TRAIN, "--", "train, as given"),
    "corrupted": (ORANGE, ":", "corrupted, as given"),
    "test": (TEST, "-", "test"),
}
ROWS = ("lowest", "highest")


def phases(groups: dict, shares: np.ndarray, p: int, path: Path) -> None:
    """Accuracy by step; accuracies and losses against the share of neurons removed.

    groups {phase: [{"history", "lowest", "highest", "phase" that the network is in} of every
    seed]}: medians and quartiles"""
    fig = figure(max(2.3 * len(groups), 4.5) + 0.6, 9.6)
    axes = fig.subplots(5, len(groups), sharey="row", squeeze=False)
    for column, (phase, group) in zip(axes.T, groups.items(), strict=True):
        histories = [outcome["history"] for outcome in group]
        steps = np.array(histories[0]["step"]) + 1
        _curves(column[0], steps, histories, "accuracy")
        title = reached([outcome["phase"] for outcome in group], phase)
        column[0].set(title=title, xscale="log", ylim=SHARE, xlabel="step + 1")
        for i, end in enumerate(ROWS):
            curves = [outcome[end] for outcome in group]
            _curves(column[1 + i], shares, curves, "accuracy")
            column[1 + i].set(ylim=SHARE, xlabel=f"share removed, {end} IPR first")
            _curves(column[3 + i], shares, curves, "loss")
            column[3 + i].set(yscale="log", xlabel=f"share removed, {end} IPR first")
        for ax in column[:3]:
            chance(ax, p)
    for ax, name in zip(axes[:, 0], ("accuracy",) * 3 + ("loss (MSE)",) * 2, strict=True):
        ax.set_ylabel(name)
    names = axes[0, 0].get_legend_handles_labels()
    in_a_row = 4 if len(groups) > 2 else 2
    fig.legend(*names, loc="outside lower center", ncol=in_a_row, frameon=False)
    save(fig, path)


def reached(found: list[str], phase: str) -> str:
    """The phase that the settings are for, and of how many networks it is, unless of all."""
    count = found.count(phase)
    return phase if count == len(found) else f"{phase}\n({count} of {len(found)} networks)"


def _curves(ax, x, tables: list[dict], quantity: str) -> None:
    """A curve for every split: of one network, or the medians and quartiles of several."""
    for split, (color, ls, name) in LOOKS.items():
        seeds = np.array([table[f"{split}_{quantity}"] for table in tables], dtype=float).T
        band(ax, x, seeds, color, ls=ls, label=name)
