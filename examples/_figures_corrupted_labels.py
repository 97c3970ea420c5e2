"""Figures of the corrupted-label experiments."""

from pathlib import Path

import numpy as np
from _figures_seeds import band

from tinygrok.plots.colors import GREEN, ORANGE, PURPLE, TEST, TRAIN, UNIT
from tinygrok.plots.style import FILLED, SHARE, figure, histograms, image, label, panels, save
from tinygrok.probes.fourier import mean_known
from tinygrok.probes.phases import PHASES

SPLITS = {
    "train": (TRAIN, "-", "train, as given"),
    "corrupted": (ORANGE, "--", "corrupted, as given"),
    "corrupted_true": (GREEN, ":", "corrupted, true label"),
    "uncorrupted": (PURPLE, "-.", "uncorrupted"),
    "test": (TEST, "-", "test"),
}
MATRICES = {"U1": (TRAIN, "-"), "U2": (ORANGE, "--"), "E": (TRAIN, "-"), "W": (TEST, "-.")}
COLORS = ("#e07a5f", "#f2cc8f", "#81b29a", "#3d5a80", "#6d6875", "#c9cbd0", "#000000")
PHASE_COLORS: dict[str, str] = dict(zip(PHASES, COLORS, strict=True))


def training(history: dict, phases: list[str], path: Path) -> None:
    """Accuracies and losses of every split, phase, IPR, gradient share and weight norms by step.

    history {"step": (T,), quantity: (T,) or (T, seeds)}: of several seeds medians and quartiles"""
    fig = figure(8, 6.4)
    (acc, loss), (ipr, norm) = fig.subplots(2, 2, sharex=True)
    steps = np.asarray(history["step"]) + 1
    for split, (color, ls, name) in SPLITS.items():
        band(acc, steps, history[f"{split}_accuracy"], color, ls=ls, label=name)
        band(loss, steps, history[f"{split}_loss"], color, ls=ls)
    strip = {"ymin": 1.0, "ymax": 1.03, "lw": 0, "clip_on": False}
    for i, phase in enumerate(phases[:-1]):
        acc.axvspan(steps[i], steps[i + 1], color=PHASE_COLORS[phase], **strip)
    label(acc, above=2, xscale="log", ylim=SHARE, ylabel="accuracy (strip: phase)")
    _phase_legend(fig, [name for name in PHASES if name in phases])
    loss.set_ylabel("loss")
    low, high = loss.get_ylim()
    if low <= 0 or high > 5 * low:  # less than that has no plain ticks on a log axis
        loss.set_yscale("log")
    for name in [name for name in MATRICES if f"ipr_{name}" in history]:
        color, ls = MATRICES[name]
        band(ipr, steps, history[f"ipr_{name}"], color, ls=ls, label=f"IPR {name}")
        band(norm, steps, history[f"norm_{name}"], color, ls=ls, label=f"|{name}|")
    band(ipr, steps, history["gradient_share"], "0.5", label="gradient: share of corrupted")
    if "filtered_test" in history:
        about = "test, one frequency a neuron"
        band(ipr, steps, history["filtered_test"], "k", ls=":", label=about)
    label(ipr, above=2, xlabel="step + 1", ylabel="mean IPR, shares", ylim=SHARE)
    label(norm, xlabel="step + 1", ylabel="weight norm")
    save(fig, path)


def rows(found: dict, path: Path) -> None:
    """Histograms of the IPR of rows at the start and at the end.

    found {"E" (embedding), "W" (read-out), ...: (IPR at the start (n,), at the end (n,))}"""
    fig, axes = panels(len(found), 2.9, 2.9, 3)
    names = {"E": "embedding E, a row a channel", "W": "read-out W"}
    for ax, (name, ends) in zip(axes, found.items(), strict=True):
        largest = max(0.4, *(np.nan_to_num(x).max() for x in ends))
        edges = np.linspace(0, min(1, 1.05 * largest), 51)
        samples = dict(zip(("at the start", "at the end"), ends, strict=True))
        histograms(ax, samples, edges, ("0.6", TEST), **FILLED)
        first, last = map(mean_known, ends)
        title = f"mean {first:.3f}, at the end {last:.3f}"
        about = f"IPR of rows, {names.get(name, name)}"
        label(ax, 8, above=2, xlabel=f"{about}\n{title}", ylabel="rows")
    save(fig, path)


def neurons(
    ipr: dict, curves: dict, shares: np.ndarray, filtration: dict, gain: tuple | None, path: Path
) -> None:
    """IPR histogram, pruning curves by order, frequency filtration with its controls, and gain.

    ipr         {"initial": (N,), "final": (N,)}
    curves      {order: {split: (seeds, n)}}: median and quartiles are shown, against shares (n,)
    filtration  {network: {"G test": (seeds, k), "R corrupted": (seeds, k)}}, or of one (1, k)
    gain        (IPR, |gain|, |gain| |W|) or None"""
    fig, (hist, first, second, filt, third, last) = panels(6, 2.8, 2.8, 3)
    histograms(hist, ipr, np.linspace(0, 1, 41), ("0.6", TEST), **FILLED, log=True)
    label(hist, xlabel="IPR of a neuron", ylabel="neurons")
    for order, ax in zip(curves, (first, second, third, last), strict=False):
        _pruning(ax, shares, curves[order])
        ax.set(title=f"prune by {order}", xlabel="share of neurons removed", ylim=SHARE)
    first.set_ylabel("accuracy")
    splits = first.get_legend_handles_labels()
    fig.legend(*splits, loc="outside lower center", ncol=4, frameon=False)
    looks = ((TEST, 1.5), ("0.75", 5), (TRAIN, 1.5))  # the two controls may coincide
    for (color, lw), (name, values) in zip(looks, filtration.items(), strict=True):
        kept = values["G test"]
        k = range(1, kept.shape[1] + 1)
        removed = values["R corrupted"]
        band(filt, k, kept.T, color, label=name, marker="o", ms=4, lw=lw)
        band(filt, k, removed.T, color, label="_", ls="--", marker="x", ms=4, lw=lw)
    title = "solid: test, k frequencies kept\ndashed: corrupted, k removed"
    label(filt, title=title, xlabel="k", ylabel="accuracy", ylim=SHARE)
    if gain is not None:
        neuron_ipr, scale, scale_times_readout = gain
        last.clear()
        last.scatter(neuron_ipr, scale, s=6, color=TEST, label="|gain|")
        last.scatter(neuron_ipr, scale_times_readout, s=6, color=ORANGE, label="|gain| |W|")
        label(last, 9, xlabel="IPR", ylabel="BatchNorm scale", yscale="log")
    save(fig, path)


def _pruning(ax, shares: np.ndarray, curves: dict) -> None:
    for split in ("train", "corrupted", "uncorrupted", "test"):
        color, ls, name = SPLITS[split]
        band(ax, shares, curves[split].T, color, ls=ls, label=name)


def examples(
    predicted, given: np.ndarray, true: np.ndarray, train: np.ndarray, margins: tuple, path: Path
) -> None:
    """The whole table coloured by the network's answers, and the margins of corrupted examples.

    predicted, given, true (p, p) labels; train (p, p) mask
    margins (from periodic neurons, from the others), of every corrupted example"""
    fig = figure(8, 3.7)
    table, scatter = fig.subplots(1, 2, width_ratios=(1.2, 1))
    right = predicted == true
    kinds = {  # an entry is of the first kind that holds
        "unseen, right": ~train & right,
        "unseen, wrong": ~train,
        "trained, true label": right,
        "trained, corrupted label": predicted == given,
        "trained, neither": np.full_like(train, True),
    }
    kind = np.select(list(kinds.values()), range(len(kinds)))
    look = _categories("#a8c5e8", "#1f2a44", "#e8e4da", ORANGE, TRAIN)
    drawn = image(table, kind, look, title="what the network answers", xlabel="n2", ylabel="n1")
    bar = fig.colorbar(drawn, ax=table, ticks=range(5), shrink=0.8)
    bar.ax.set_yticklabels(list(kinds), fontsize=8)
    scatter.axhline(0, color="0.8")
    scatter.axvline(0, color="0.8")
    scatter.scatter(*margins, s=5, color=ORANGE)
    scatter.set(xlabel="from neurons with IPR > 0.5", ylabel="from the others")
    scatter.set_title("corrupted: given logit minus mean logit")
    save(fig, path)


def releases(steps: np.ndarray, memorised: np.ndarray, released: np.ndarray, path: Path) -> None:
    """Histograms of when corrupted examples were memorised, and when let go (nan: never)."""
    fig, (ax,) = panels(1, 6, 3)
    counted = {}
    for name, times in (("memorised", memorised), ("released", released)):
        happened = np.isfinite(times).sum()
        counted[f"{name} ({happened} of {len(times)})"] = times + 1
    edges = np.unique([0, *(np.asarray(steps) + 1)])
    histograms(ax, counted, edges, (ORANGE, TEST), **FILLED)
    title = "when corrupted examples were memorised, and when let go"
    label(ax, 9, xscale="log", xlabel="step + 1", ylabel="corrupted examples", title=title)
    save(fig, path)


def diagram(grids: dict[str, dict[str, np.ndarray]], alphas, xis, path: Path, title="") -> None:
    """Phase diagrams: a column per regularisation; rows phase, train accuracy, test accuracy.

    The black line is the contour of 90 % test accuracy; fewer than five points have none. alpha is
    horizontal, xi vertical.
    grids {title: {"phase": (A, X) numbers in PHASES, "train": (A, X), "test": (A, X)}}"""
    fig = figure(max(4.2, 1.8 * len(grids) + 1.2), 6.6)
    fig.suptitle(title, fontsize=9)
    axes = fig.subplots(3, len(grids), sharex=True, sharey=True, squeeze=False)
    extent = (*_edges(alphas), *_edges(xis))
    limits = np.clip(extent, 0, 1)
    options = {"origin": "lower", "extent": extent, "aspect": "auto", "interpolation": "nearest"}
    for column, (name, grid) in zip(axes.T, grids.items(), strict=True):
        column[0].imshow(grid["phase"].T, **_categories(*COLORS), **options)
        column[0].set_title(name)
        for ax, key in zip(column[1:], ("train", "test"), strict=True):
            ax.imshow(grid[key].T, **UNIT, **options)
        column[0].set(xlim=limits[:2], ylim=limits[2:])  # shared by all
        test = grid["test"]
        if min(test.shape) > 4 and np.nanmin(test) < 0.9 < np.nanmax(test):
            for ax in column:
                ax.contour(alphas, xis, test.T, levels=[0.9], colors="k", linewidths=0.8)
        column[-1].set_xlabel("training fraction")
    for ax, shown in zip(axes[:, 0], ("phase", "train accuracy", "test accuracy"), strict=True):
        ax.set_ylabel(f"{shown}\ncorrupted fraction")
    fig.colorbar(axes[-1, -1].images[0], ax=axes[1:, -1])
    _phase_legend(fig, PHASES)
    save(fig, path)


def _edges(values) -> tuple[float, float]:
    """The outer edges of a row of pixels that are centred on evenly spaced values."""
    half = (values[1] - values[0]) / 2 if len(values) > 1 else 0.05
    return values[0] - half, values[-1] + half


def _categories(*colors: str) -> dict:
    """How to draw an image of the numbers 0, 1, ... in these colors."""
    from matplotlib.colors import ListedColormap

    return {"cmap": ListedColormap(colors), "vmin": -0.5, "vmax": len(colors) - 0.5}


def _phase_legend(fig, names) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=PHASE_COLORS[name], label=name) for name in names]
    fig.legend(handles=patches, loc="outside lower center", ncol=3, frameon=False, fontsize=8)
