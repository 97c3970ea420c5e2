"""Figures of the neurons that memorise and generalise, by weight decay."""

from pathlib import Path

import numpy as np
from _figures_seeds import band
from _neuron_classes import CLASSES, counts
from _neuron_spectra import MULTIPLES
from _seeds import quartiles

from tinygrok.plots.colors import GREEN, ORANGE, PURPLE, TEST, TRAIN, UNIT
from tinygrok.plots.style import SHARE, figure, label, save

COLORS = {"idle": "0.6", "memorising": ORANGE, "generalising": TEST}
PART_COLORS = ("k", TRAIN, PURPLE, GREEN, ORANGE)


def dynamics(found: dict, path: Path) -> None:
    """A column for every decay: IPR of the neurons of its first network by step, how many of each
    class, what became of the memorising ones.

    found {decay: {"histories": [...], "kinds": [...], "flows": [...]}}"""
    fig = figure(max(2.9 * len(found), 4.5) + 0.8, 8.4)
    axes = fig.subplots(3, len(found), sharey="row", squeeze=False, height_ratios=(1.3, 1, 0.9))
    for column, (decay, table) in zip(axes.T, found.items(), strict=True):
        history = table["histories"][0]
        drawn = _heat_map(column[0], history)
        column[0].set(title=f"weight decay {decay:g}", xlabel="step")
        numbers = np.stack([counts(kinds) for kinds in table["kinds"]], axis=1)  # (T, seeds, 3)
        for i, name in enumerate(CLASSES):
            several = numbers[:, :, i]
            curve = several if several.shape[1] > 1 else several[:, 0]
            band(column[1], history["step"], curve, COLORS[name], label=name)
        column[1].set(xlabel="step")
        _flows(column[2], table["flows"])
    axes[0, 0].set_ylabel("neurons, sorted by last IPR")
    label(axes[1, 0], 8, ylabel="neurons")
    axes[2, 0].set_ylabel("share of them")
    fig.colorbar(drawn, ax=axes[0], label="IPR")
    save(fig, path)


def _heat_map(ax, history: dict):
    """IPR of all neurons (rows, those of highest last IPR on top) by step."""
    iprs = history["neuron_ipr"]
    order = np.argsort(iprs[-1], kind="stable")
    steps = np.asarray(history["step"])
    rows = np.arange(iprs.shape[1])
    return ax.pcolormesh(steps, rows, iprs[:, order].T, cmap="viridis", shading="nearest", **UNIT)


def _flows(ax, flows: list[dict]) -> None:
    """Stacked: medians of what became of memorising, and what were generalising neurons."""
    names = ("memorising_become", "generalising_were")
    medians = np.array([quartiles([flow[name] for flow in flows])[1] for name in names])
    bottom = np.zeros(2)
    for i, kind in enumerate(CLASSES):
        height = np.nan_to_num(medians[:, i])
        ax.bar((0, 1), height, 0.6, bottom, color=COLORS[kind])
        bottom = bottom + height
    ends = ("memorising at their peak:\nat the end", "generalising at the end:\nat the peak")
    ax.set_xticks((0, 1), ends, fontsize=7)
    ax.set(ylim=SHARE)


def spectra(found: dict, p: int, path: Path) -> None:
    """The test loss of networks of which something was taken out, and the mean spectra of periodic
    neurons in multiples of their main frequency.

    found {decay: {"losses": [{part: loss}], "spectra": [{"U", "W": shares of the power}]}}"""
    fig = figure(max(2.9 * len(found), 4.5) + 0.8, 6.2)
    axes = fig.subplots(2, len(found), sharey="row", squeeze=False)
    for column, (decay, table) in zip(axes.T, found.items(), strict=True):
        parts = list(table["losses"][0])
        for i, part in enumerate(parts):
            three = quartiles([losses[part] for losses in table["losses"]]) * 1000
            spread = [[three[1] - three[0]], [three[2] - three[1]]]
            column[0].bar(i, three[1], color=PART_COLORS[i], yerr=spread, capsize=3)
        column[0].set_xticks(range(len(parts)), parts, rotation=35, ha="right", fontsize=7)
        column[0].set_title(f"weight decay {decay:g}")
        multiples = np.arange(MULTIPLES + 1)
        for name, color, marker in (("U", TRAIN, "o"), ("W", TEST, "s")):
            seeds = np.array([found[name] for found in table["spectra"]]).T
            curve = seeds if seeds.shape[1] > 1 else seeds[:, 0]
            band(column[1], multiples, curve, color, label=name, marker=marker, ms=4)
        even = 1 / (p // 2 + 1)
        column[1].axhline(even, color="0.6", lw=1, ls=":", label=f"even, 1/{p // 2 + 1}")
        column[1].set(xlabel="multiple of the main frequency", yscale="log")
    axes[0, 0].set_ylabel("test loss, thousandths")
    label(axes[1, 0], 8, ylabel="share of the power,\nperiodic neurons")
    save(fig, path)
