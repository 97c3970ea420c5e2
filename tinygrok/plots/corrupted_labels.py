"""Figures of the corrupted-label experiments."""

from pathlib import Path

import numpy as np

from ..probes.phases import PHASES
from .style import (
    GREEN,
    ORANGE,
    PURPLE,
    SHARE,
    TEST,
    TRAIN,
    UNIT,
    figure,
    histograms,
    image,
    label,
    lines,
    panels,
    save,
)

SPLITS = {
    "train": (TRAIN, "train, as given"),
    "corrupted": (ORANGE, "corrupted, as given"),
    "corrupted_true": (GREEN, "corrupted, true label"),
    "uncorrupted": (PURPLE, "uncorrupted"),
    "test": (TEST, "test"),
}
PHASE_COLORS = dict(
    zip(
        PHASES,
        ("#e07a5f", "#f2cc8f", "#81b29a", "#3d5a80", "#6d6875", "#c9cbd0", "#000000"),
        strict=True,
    )
)


def training(history: dict, phases: list[str], path: Path) -> None:
    """Accuracies and losses of every split, the phase over time, IPR, gradient share and weight
    norms against steps."""
    fig = figure(11, 6.5)
    (acc, loss), (ipr, norm) = fig.subplots(2, 2, sharex=True)
    steps = np.asarray(history["step"]) + 1
    for split, (color, name) in SPLITS.items():
        acc.plot(steps, history[f"{split}_accuracy"], color=color, label=name)
        loss.plot(steps, history[f"{split}_loss"], color=color)
    for i, name in enumerate(phases[:-1]):
        acc.axvspan(
            steps[i], steps[i + 1], 1.0, 1.03, color=PHASE_COLORS[name], lw=0, clip_on=False
        )
    label(acc, xscale="log", ylim=SHARE, ylabel="accuracy (strip: phase)")
    _phase_legend(fig, [name for name in PHASES if name in phases])
    loss.set(yscale="log", ylabel="loss")
    for ax, quantity in ((ipr, "ipr"), (norm, "norm")):
        lines(ax, {name: history[f"{quantity}_{name}"] for name in ("U1", "U2", "W")}, x=steps)
    ipr.plot(
        steps,
        history["gradient_share"],
        color="0.5",
        ls=":",
        label="gradient share of corrupted labels",
    )
    ipr.plot(
        steps,
        history["filtered_test"],
        color="k",
        ls="--",
        label="test accuracy, one frequency a neuron",
    )
    label(ipr, xlabel="step + 1", ylabel="mean IPR, shares", ylim=SHARE)
    label(norm, xlabel="step + 1", ylabel="weight norm")
    save(fig, path)


def neurons(
    ipr: dict, curves: dict, shares: np.ndarray, filtration: dict, gain: tuple | None, path: Path
) -> None:
    """IPR histogram (initial, final), pruning curves by order, frequency filtration with its
    controls, and gain.

    ipr {"initial": (N,), "final": (N,)}; curves {order: {split: (seeds, n)}}, mean and range shown;
    filtration {network: {"G test": (k,), ...}};
    gain (IPR, |gain|, |gain| |W|) or None.
    """
    fig, (hist, first, second, filt, third, last) = panels(6, 3.7, 3.3, 3)
    histograms(hist, ipr, np.linspace(0, 1, 41), ("0.7", TEST), histtype="stepfilled", alpha=0.8)
    label(hist, 9, xlabel="IPR of a neuron", ylabel="neurons")
    for order, ax in zip(curves, (first, second, third, last), strict=False):
        for split in ("train", "corrupted", "uncorrupted", "test"):
            seeds, color = curves[order][split], SPLITS[split][0]
            ax.plot(shares, seeds.mean(axis=0), color=color, label=SPLITS[split][1])
            ax.fill_between(
                shares, seeds.min(axis=0), seeds.max(axis=0), color=color, alpha=0.25, lw=0
            )
        ax.set(title=f"prune by {order}", xlabel="share of neurons removed", ylim=SHARE)
    label(first, ylabel="accuracy")
    for (name, values), style in zip(filtration.items(), ("-", ":", "--"), strict=True):
        for part, color in (("G test", TEST), ("R corrupted", ORANGE)):
            lines(filt, {f"{part}, {name}": values[part]}, [color], ls=style, marker=".")
    label(filt, 6, xlabel="frequencies kept (G), removed (R)", ylabel="accuracy", ylim=SHARE)
    if gain is not None:
        last.clear()
        last.scatter(gain[0], gain[1], s=6, color=TEST, label="|gain|")
        last.scatter(gain[0], gain[2], s=6, color=ORANGE, label="|gain| |W|")
        label(last, 9, xlabel="IPR", ylabel="BatchNorm scale", yscale="log")
    save(fig, path)


def examples(
    predicted: np.ndarray,
    given: np.ndarray,
    true: np.ndarray,
    train: np.ndarray,
    margins: tuple,
    path: Path,
) -> None:
    """The whole table coloured by what the network answers, and the margin of corrupted examples by
    kind of neuron.

    predicted, given, true (p, p) labels, train (p, p) mask; margins (periodic, other) of the
    corrupted examples."""
    fig = figure(10, 4.6)
    table, scatter = fig.subplots(1, 2, width_ratios=(1.2, 1))
    right = predicted == true
    kind = np.select([~train & right, ~train, right, predicted == given], range(4), default=4)
    names = (
        "unseen, right",
        "unseen, wrong",
        "trained, true label",
        "trained, corrupted label",
        "trained, neither",
    )
    style = _categories("#a8c5e8", "#1f2a44", "#e8e4da", ORANGE, TRAIN)
    drawn = image(table, kind, style, xlabel="n2", ylabel="n1", title="what the network answers")
    bar = fig.colorbar(drawn, ax=table, ticks=range(5), shrink=0.8)
    bar.ax.set_yticklabels(names, fontsize=7)
    scatter.axhline(0, color="0.8")
    scatter.axvline(0, color="0.8")
    scatter.scatter(*margins, s=5, color=ORANGE)
    scatter.set(xlabel="from neurons with IPR > 0.5", ylabel="from the others")
    scatter.set_title("corrupted examples: given logit minus mean logit")
    save(fig, path)


def releases(steps: np.ndarray, memorised: np.ndarray, released: np.ndarray, path: Path) -> None:
    """When each corrupted example was memorised and when let go: two histograms over steps (nan:
    never)."""
    fig, (ax,) = panels(1, 6, 3)
    events = {"memorised": memorised + 1, "released": released + 1}
    counted = {f"{name} ({np.isfinite(x).sum()} of {len(x)})": x for name, x in events.items()}
    histograms(
        ax,
        counted,
        np.unique([0, *(np.asarray(steps) + 1)]),
        (ORANGE, GREEN),
        histtype="stepfilled",
        alpha=0.7,
    )
    label(ax, 9, xscale="log", xlabel="step + 1", ylabel="corrupted examples")
    save(fig, path)


def diagram(grids: dict[str, dict[str, np.ndarray]], alphas, xis, path: Path) -> None:
    """Phase diagrams: a column per regularisation, rows phase, train accuracy and test accuracy; 90
    % contour of test.

    grids {title: {"phase": (A, X) numbers in PHASES, "train": (A, X), "test": (A, X)}}, alpha
    horizontal, xi vertical."""
    fig = figure(2.6 * len(grids) + 1.2, 7.6)
    axes = fig.subplots(3, len(grids), sharex=True, sharey=True, squeeze=False)
    half = [(v[1] - v[0]) / 2 if len(v) > 1 else 0.05 for v in (alphas, xis)]
    extent = (alphas[0] - half[0], alphas[-1] + half[0], xis[0] - half[1], xis[-1] + half[1])
    options = {"origin": "lower", "extent": extent, "aspect": "auto", "interpolation": "nearest"}
    for column, (title, grid) in zip(axes.T, grids.items(), strict=True):
        column[0].imshow(grid["phase"].T, **_categories(*PHASE_COLORS.values()), **options)
        column[0].set_title(title)
        for ax, key in zip(column[1:], ("train", "test"), strict=True):
            drawn = ax.imshow(grid[key].T, **UNIT, **options)
        if min(grid["test"].shape) > 1 and np.nanmin(grid["test"]) < 0.9 < np.nanmax(grid["test"]):
            for ax in column:
                ax.contour(alphas, xis, grid["test"].T, levels=[0.9], colors="k", linewidths=0.8)
        column[-1].set_xlabel("training fraction")
    for ax, shown in zip(axes[:, 0], ("phase", "train accuracy", "test accuracy"), strict=True):
        ax.set_ylabel(f"{shown}\ncorrupted fraction")
    fig.colorbar(drawn, ax=axes[1:, -1])
    _phase_legend(fig, PHASES)
    save(fig, path)


def _categories(*colors: str) -> dict:
    """How to draw an image of the numbers 0, 1, ... in these colors."""
    from matplotlib.colors import ListedColormap

    return {"cmap": ListedColormap(colors), "vmin": -0.5, "vmax": len(colors) - 0.5}


def _phase_legend(fig, names) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=PHASE_COLORS[name], label=name) for name in names]
    fig.legend(handles=patches, loc="outside lower center", ncol=3, frameon=False, fontsize=8)
