"""Figures of the neurons that memorise and generalise, by weight decay."""

from pathlib import Path

import numpy as np
from _figures_seeds import band
from _neuron_classes import CLASSES, FLOWS, counts
from _neuron_spectra import MULTIPLES, PARTS
from _seeds import quartiles

from tinygrok.plots.colors import ORANGE, TEST, TRAIN, UNIT
from tinygrok.plots.style import SHARE, figure, label, save

COLORS = {"idle": "0.6", "memorising": ORANGE, "generalising": TEST}


def dynamics(found: dict, path: Path) -> None:
    """A column for every decay: IPR of the neurons of its first network by step, how many of each
    class, what became of the memorising ones and of all.

    found {decay: {"histories": [...], "kinds": [...], "flows": [...]}}"""
    fig = figure(max(2.9 * len(found), 4.5) + 0.8, 8.4)
    axes = fig.subplots(3, len(found), sharey="row", squeeze=False, height_ratios=(1.3, 1, 0.9))
    for column, (decay, table) in zip(axes.T, found.items(), strict=True):
        history = table["histories"][0]
        drawn = _heat_map(column[0], history)
        column[0].set(title=f"weight decay {decay:g}", xlabel="step")
        numbers = np.stack([counts(kinds) for kinds in table["kinds"]], axis=1)  # (T, seeds, 3)
        for i, name in enumerate(CLASSES):
            band(column[1], history["step"], numbers[:, :, i], COLORS[name], label=name)
        column[1].set(xlabel="step")
        _flows(column[2], table["flows"])
    axes[0, 0].set_ylabel("neurons, sorted by last IPR")
    label(axes[1, 0], 8, ylabel="neurons")
    axes[2, 0].set_ylabel("share of them")
    fig.colorbar(drawn, ax=axes[0], label="IPR")
    title = f"IPR of the first network's neurons; classes, {_seeds(found)}: medians, bars: means"
    fig.suptitle(title, fontsize=9)
    save(fig, path)


def _heat_map(ax, history: dict):
    """IPR of all neurons (rows, those of highest last IPR on top) by step."""
    iprs = history["neuron_ipr"]
    order = np.argsort(iprs[-1], kind="stable")
    steps = np.asarray(history["step"])
    rows = np.arange(iprs.shape[1])
    return ax.pcolormesh(steps, rows, iprs[:, order].T, cmap="viridis", shading="nearest", **UNIT)


def _flows(ax, flows: list[dict]) -> None:
    """Stacked: what became of memorising, and what were generalising neurons; all beside them."""
    means = mean_flows(flows)
    x = (0, 0.8, 2, 2.8)
    bottom = np.zeros(len(x))
    for i, kind in enumerate(CLASSES):
        ax.bar(x, means[:, i], 0.7, bottom, color=COLORS[kind])
        bottom = bottom + means[:, i]
    ax.set_xticks(x, ("memorising\nat the peak", "all", "generalising\nat the end", "all"))
    ax.tick_params(axis="x", labelsize=7)
    about = "are, at the end             were, at the peak"
    ax.set(ylim=SHARE, xlabel=about)


def mean_flows(flows: list[dict]) -> np.ndarray:
    """(4, 3) shares of the classes, means over the seeds that have such neurons; 0 where none
    has."""
    shares = np.array([[flow[name] for name in FLOWS] for flow in flows])  # (seeds, 4, 3)
    known = (~np.isnan(shares)).sum(axis=0)
    return np.nan_to_num(shares).sum(axis=0) / np.maximum(known, 1)


def spectra(found: dict, p: int, path: Path) -> None:
    """How much of the logits is not the answer in networks of which something was taken out, and
    the mean spectra of periodic neurons in multiples of their main frequency.

    found {decay: {"unwanted": [{(part, split): share}], "spectra": [{"U", "W": shares}], "flows":
    one a seed}}"""
    fig = figure(max(2.9 * len(found), 4.5) + 0.8, 6.4)
    axes = fig.subplots(2, len(found), sharey="row", squeeze=False)
    for column, (decay, table) in zip(axes.T, found.items(), strict=True):
        _unwanted(column[0], table["unwanted"])
        column[0].set_title(f"weight decay {decay:g}")
        for name, color, marker in (("U", TRAIN, "o"), ("W", TEST, "s")):
            seeds = np.array([one[name] for one in table["spectra"]]).T
            band(column[1], range(MULTIPLES + 1), seeds, color, label=name, marker=marker, ms=4)
        even = 1 / (p // 2 + 1)
        column[1].axhline(even, color="0.6", lw=1, ls=":", label=f"even, 1/{p // 2 + 1}")
        column[1].set(xlabel="multiple of the main frequency", yscale="log")
    label(axes[0, 0], 8, above=1, ylabel="share of the logits' power\nthat is not the answer")
    label(axes[1, 0], 8, ylabel="share of the power,\nperiodic neurons")
    title = "how much of the logits is not the answer when a part is changed; spectra"
    fig.suptitle(f"{title}, {_seeds(found)}", fontsize=9)
    save(fig, path)


def _unwanted(ax, networks: list[dict]) -> None:
    """Bars for every part: medians, and quartiles as lines, on trained and on unseen pairs."""
    looks = (("uncorrupted", TRAIN, "trained, true label"), ("test", TEST, "unseen"))
    for i, (split, color, name) in enumerate(looks):
        shares = [[network[part, split] for part in PARTS] for network in networks]
        low, middle, high = quartiles(shares)
        x = np.arange(len(PARTS)) + 0.4 * i - 0.2
        ax.bar(x, middle, 0.4, color=color, yerr=[middle - low, high - middle], label=name)
    ax.set_xticks(range(len(PARTS)), PARTS, rotation=35, ha="right", fontsize=7)
    ax.set_ylim(0, 1)


def _seeds(found: dict) -> str:
    """How many networks the medians and quartiles are of."""
    return f"{len(next(iter(found.values()))['flows'])} seeds"
