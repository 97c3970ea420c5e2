"""The style of all figures, and the parts that they share.

matplotlib is an optional extra: it is imported when a figure is drawn."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from ..disk.writer import atomic_write
from .colors import TEST, TRAIN, UNIT

SHARE = (-0.02, 1.02)  # limits of an axis of accuracies
FILLED: dict[str, Any] = {"histtype": "stepfilled", "alpha": 0.8}  # a style of histograms
LOOK: dict[Any, Any] = {"axes.titlesize": 9, "font.size": 9}
LOOK |= {"axes.spines.top": False, "axes.spines.right": False}


def figure(width: float, height: float) -> Any:
    """An empty figure of a size in inches; it needs no display."""
    import matplotlib.figure

    matplotlib.rcParams.update(LOOK)
    return matplotlib.figure.Figure(figsize=(width, height), dpi=130, layout="constrained")


def save(fig, path: Path) -> None:
    """Write a PNG (to a temporary name, then renamed).

    A palette of 256 colours makes it a third of the size; no level is off by more than a tenth."""
    from PIL import Image

    drawn = io.BytesIO()
    fig.savefig(drawn, format="png")
    pixels = Image.open(drawn).convert("RGB")
    palette = pixels.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1)
    atomic_write(Path(path), lambda file: palette.save(file, "PNG"))


# -- parts that figures share ----------------------------------------------------------------------


def panels(count: int, width: float, height: float, columns: int = 4):
    """A figure and `count` axes, `columns` in a row, each of a size in inches."""
    rows = -(-count // columns)
    columns = min(columns, count)
    fig = figure(width * columns, height * rows)
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.remove()
    return fig, list(axes[:count])


def label(ax, size: float = 8, above: int = 0, **properties) -> None:
    """Set properties of axes; what is labelled gets a legend in a letter size.

    above    columns of a legend that stands above the axes, where it covers no curve; 0: inside"""
    ax.set(**properties)
    handles, _ = ax.get_legend_handles_labels()
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1.04), "ncol": above} if above else {}
    if handles:
        ax.legend(frameon=False, fontsize=size, **place)


def legend_below(ax, columns: int = 2, **properties) -> None:
    """Set properties of axes; the legend stands under them, where it covers nothing."""
    ax.set(**properties)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns, frameon=False)


def log2(ax, *names: str) -> None:
    """Logarithmic axes "x", "y" whose ticks are powers of two, as plain numbers."""
    for name in names:
        getattr(ax, f"set_{name}scale")("log", base=2)
        getattr(ax, f"{name}axis").set_major_formatter("{x:g}")


def write_at_means(ax, points: np.ndarray, groups: np.ndarray) -> None:
    """The number of every group of points (n, 2) at the mean of its points."""
    frame = {"boxstyle": "circle,pad=0.1", "fc": "w", "ec": "0.4", "lw": 0.5, "alpha": 0.8}
    style = {"bbox": frame, "ha": "center", "va": "center", "fontsize": 8}
    for group in np.unique(groups):
        ax.text(*points[groups == group].mean(axis=0), str(group), **style)


def chance(ax, classes: int) -> None:
    """The accuracy of guessing among so many classes, as a line that the legend names."""
    ax.axhline(1 / classes, color="0.6", lw=1, zorder=0, label=f"chance, 1/{classes}")


def lines(ax, curves: dict, colors=None, x=None, **style) -> None:
    """Named curves, over 1, 2, ... unless x is given; no colors: matplotlib's cycle."""
    colors = colors or [None] * len(curves)
    for (name, values), color in zip(curves.items(), colors, strict=True):
        places = range(1, len(values) + 1) if x is None else x
        ax.plot(places, values, color=color, label=name, **style)


def histograms(ax, samples: dict, edges: np.ndarray, colors=None, **style) -> None:
    """Histograms of named samples, nan left out: outlines, unless the style is another."""
    style = {"histtype": "step", "lw": 1.3} | style
    colors = colors or [None] * len(samples)
    for (name, x), color in zip(samples.items(), colors, strict=True):
        known = x[np.isfinite(x)]
        ax.hist(known, edges, color=color, label=name, **style)


def image(ax, values, style: dict = UNIT, **labels):
    """An image in axes with all four spines and whole numbers; returned for a colour bar."""
    style = {"interpolation": "nearest"} | style
    drawn = ax.imshow(values, **style)
    ax.spines[:].set_visible(True)
    ax.locator_params(integer=True)
    ax.set(**labels)
    return drawn


def attention_maps(patterns: np.ndarray):
    """Every head's map (depth, H, T, T), zeros blank, with empty axes under each.

    -> (figure, axes of the maps, axes under them), axes (depth, H)"""
    depth, H = patterns.shape[:2]
    fig = figure(2.9 * H + 0.8, 4.2 * depth)
    axes = fig.subplots(2 * depth, H, squeeze=False, height_ratios=[2.2, 1] * depth)
    maps = axes[::2]
    below = axes[1::2]
    for i, h in np.ndindex(depth, H):
        pattern = patterns[i, h]
        seen = np.where(pattern > 0, pattern, np.nan)
        image(maps[i, h], seen, title=f"block {i} head {h}", xlabel="key", ylabel="query")
        below[i, h].set(ylim=(0, 1), ylabel="attention")
    fig.colorbar(maps[-1, -1].images[0], ax=maps, shrink=0.5)
    return fig, maps, below


def curves(ax, history: dict, quantity: str, ylabel: str) -> None:
    """Train and test curve of a quantity against steps, on a log axis that begins with step 0."""
    steps = history["step"]
    for split, color, ls in (("train", TRAIN, "--"), ("test", TEST, "-")):
        ax.plot(steps, history[f"{split}_{quantity}"], color=color, ls=ls, label=split)
    log_steps(ax, steps)
    label(ax, 9, xlabel="step", ylabel=ylabel)


def log_steps(ax, steps) -> None:
    """A log axis of steps that begins with step 0."""
    decades = 10 ** np.arange(1, 9)
    ticks = [0, *decades[decades <= steps[-1]]]
    ax.set_xscale("symlog", linthresh=max(1, *steps[:2]), linscale=0.5)
    ax.set_xticks(ticks, ticks)


def sets(history: dict, names: list[str], path: Path) -> None:
    """Accuracy and loss of measured sets against steps, and the last accuracies by position.

    history {"step": (n,), "<set>_accuracy": (n,) or (n, positions), "<set>_loss": the same}"""
    accuracy = {name: np.asarray(history[f"{name}_accuracy"]) for name in names}
    loss = {name: np.asarray(history[f"{name}_loss"]) for name in names}
    last = {name: values[-1] for name, values in accuracy.items() if values.ndim > 1}
    fig, axes = panels(3 if last else 2, 5, 4)
    for ax, measured in zip(axes, (accuracy, loss), strict=False):
        means = {name: x.reshape(len(x), -1).mean(axis=1) for name, x in measured.items()}
        lines(ax, means, x=history["step"])
    label(axes[0], 8, xlabel="step", ylabel="accuracy", ylim=SHARE)
    label(axes[1], xlabel="step", ylabel="loss")
    if last:
        lines(axes[2], last, marker=".", lw=1)
        label(axes[2], xlabel="position", ylabel="last accuracy", ylim=SHARE)
    save(fig, path)
