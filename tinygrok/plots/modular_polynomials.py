"""Figures of Grokking modular polynomials.

Learned neurons, written weights, which polynomials grok."""

from pathlib import Path

import numpy as np

from ..probes.fourier import neuron_ipr, neuron_rows, spectrum
from .colors import ORANGE, TEST, TRAIN
from .style import SHARE, curves, figure, histograms, image, label, save


def grokking(history: dict, weights, order, marks: list, loss_name: str, path: Path) -> None:
    """Losses and accuracies with the delay marked, and three learned neurons with their spectra.

    weights  {"U": (S, p, N), "W": (N, p)}
    order    along which neurons are waves (neuron_ipr)
    marks    the steps at which training and test accuracy reached 99 %, or None"""
    fig = figure(11, 6.2)
    left, right = fig.subfigures(1, 2, width_ratios=(1, 1.25))
    loss, acc = left.subplots(2, 1, sharex=True)
    curves(loss, history, "loss", loss_name)
    loss.set(yscale="log", xlabel="")
    curves(acc, history, "accuracy", "accuracy")
    memorised, grokked = marks
    if memorised is not None and grokked is not None:
        acc.axvspan(memorised + 1, grokked + 1, color="0.9", zorder=0)
        trained = f"99 % of the training pairs at step {memorised}"
        acc.set_title(f"{trained}, of the unseen pairs at step {grokked}")
    rows = neuron_rows(weights, order)
    names = [*(f"U{s + 1}" for s in range(len(rows) - 1)), "W"]
    chosen = most_periodic(weights, order, 3)
    panels = right.subplots(3, 2, sharex="col")
    for pair, k in zip(panels, chosen, strict=False):  # a small p has fewer frequencies
        signal, power = pair
        for name, color, x in zip(names, (TRAIN, ORANGE, TEST), rows, strict=True):
            signal.plot(x[k], color=color, lw=1, label=name)
            power.plot(spectrum(x[k]), color=color, lw=1)
        signal.set_ylabel(f"neuron {k}")
    corner = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0}
    right.axes[0].legend(frameon=False, ncol=3, **corner)
    right.axes[1].set_title("|rfft|")
    place = "input n / output class q"
    right.axes[-2].set_xlabel(place if order is None else f"log of {place}")
    right.axes[-1].set_xlabel("frequency")
    save(fig, path)


def most_periodic(weights: dict, order: np.ndarray | None, count: int) -> list[int]:
    """Neurons of the highest IPR, each of another dominant frequency."""
    chosen: dict[int, int] = {}
    read_out = neuron_rows(weights, order)[-1]
    dominant = spectrum(read_out)[:, 1:].argmax(axis=1)
    for k in np.argsort(-np.nan_to_num(neuron_ipr(weights, order))):
        chosen.setdefault(int(dominant[k]), int(k))
    return list(chosen.values())[:count]


def analytic(weights, order, profile, terms, sweep, predicted: int | None, path: Path) -> None:
    """Written weights, their spectra, the logits of one input and their terms, a sweep over widths.

    weights    {"U": (S, p, N), "W": (N, p)}
    order      inputs and classes along which neurons are waves
    profile    (p,): logits, the right one first
    terms      analytic.verify.Term, the largest first
    sweep      {"width", "accuracy", "min_margin"}: one entry a network
    predicted  N*, or None"""
    fig = figure(12, 6.6)
    axes = fig.subplots(2, 3)
    _written(fig, axes[0], weights, order)
    _logits(axes[1, 0], profile)
    _terms(axes[1, 1], terms)
    _widths(axes[1, 2], sweep, predicted)
    save(fig, path)


def _written(fig, axes, weights: dict[str, np.ndarray], order: np.ndarray) -> None:
    """Sixty neurons of U1 and W as images, by frequency, and the spectra of those of U1."""
    width = len(weights["W"])
    count = min(60, width)
    frequency = spectrum(weights["W"][:, order]).argmax(axis=1)
    by_frequency = np.argsort(frequency, kind="stable")
    pick = by_frequency[np.linspace(0, width - 1, count).astype(int)]
    U1 = weights["U"][0][np.ix_(order, pick)].T
    W = weights["W"][np.ix_(pick, order)]
    for ax, x, name in zip(axes, (U1, W), ("first layer U1", "read-out W"), strict=False):
        largest = np.abs(x).max()
        style = {"aspect": "auto", "cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
        title = f"{name}, {count} of {width} neurons, by frequency"
        fig.colorbar(image(ax, x, style, title=title, ylabel="neuron"), ax=ax)
    logarithms = order[0] != 0
    axes[0].set_xlabel("lg n" if logarithms else "input n")
    axes[1].set_xlabel("lg q" if logarithms else "class q")
    image(axes[2], spectrum(U1), {"aspect": "auto", "cmap": "Greys"})
    title = "spectra |rfft| of the rows of U1"
    axes[2].set(title=title, xlabel="frequency", ylabel="neuron")


def _logits(ax, profile: np.ndarray) -> None:
    half = len(profile) // 2
    distance = np.arange(len(profile)) - half
    ax.vlines(distance, 0, np.roll(profile, half), color=TEST, lw=1.2)
    ax.set_title("logits of the input of the smallest margin")
    ax.set(xlabel="class minus answer (mod p)", ylabel="logit")


def _terms(ax, terms) -> None:
    """Magnitudes of the largest terms; the one of m = (1, ..., 1) is the answer."""
    shown = terms[:14]
    names = [str(term.m) for term in shown]
    sizes = [max(term.rms, 1e-18) for term in shown]
    colors = [TEST if set(term.m) == {1} else TRAIN for term in shown]
    ax.barh(names, sizes, color=colors)
    ax.invert_yaxis()
    ax.set_title(f"terms in the logits, {len(shown)} largest of {len(terms)}; blue: the answer")
    ax.set(xlabel="rms", ylabel="m")
    if shown and shown[-1].rms < 1e-6 * shown[0].rms:
        ax.set_xscale("log")


def _widths(ax, sweep: dict, predicted: int | None) -> None:
    """Every network a dot, the mean over seeds a line."""
    width = np.asarray(sweep["width"])
    sizes = np.unique(width)
    for key, color in (("accuracy", TEST), ("min_margin", TRAIN)):
        x = np.asarray(sweep[key])
        ax.plot(width, x, ".", color=color, ms=3, alpha=0.5)
        means = [x[width == size].mean() for size in sizes]
        ax.plot(sizes, means, color=color, label=key.replace("_", " "))
    if predicted:
        ax.axvline(predicted, color="0.5", ls="--", label=f"N* = {predicted}")
    title = f"accuracy and smallest margin, {len(width)} networks"
    label(ax, 9, xscale="log", xlabel="width N", title=title)
    ax.set_xticks(sizes, sizes, rotation=60)
    ax.minorticks_off()


def learnability(
    rows: dict, history: dict, before: dict, after: dict, order, residuals: dict, path: Path
) -> None:
    """Polynomials trained side by side: what generalised, and what multiplication learned.

    rows       {polynomial: {"test_accuracy", "chance", "quotient_coverage", "learnable"}}
    history    {"step", "test_accuracy" (E,), "explained" (E,)}: members in the order of rows,
               nan where nothing is known
    before     weights of multiplication at the start; after: at the end
    order      the powers of a primitive root
    residuals  {polynomial: psi_W - sum psi_s of every neuron}"""
    fig = figure(13, 7)
    axes = fig.subplots(2, 3)
    _by_step(axes[0, 0], rows, history, "test_accuracy", "test accuracy")
    _by_step(axes[1, 0], rows, history, "explained", "share of squared weights")
    axes[1, 0].set_title("explained by one wave a neuron, one frequency for all its parts")
    _accuracies(axes[0, 1], rows)
    iprs = {
        "start": neuron_ipr(before, order),
        "end, order g^t": neuron_ipr(after, order),
        "end, order n": neuron_ipr(after, None),
    }
    unit = np.linspace(0, 1, 41)
    histograms(axes[0, 2], iprs, unit, ("0.6", TEST, TRAIN))
    title = "multiplication: IPR of the neurons"
    label(axes[0, 2], title=title, xlabel="inverse participation ratio", ylabel="neurons")
    circle = np.linspace(-np.pi, np.pi, 61)
    histograms(axes[1, 1], residuals, circle)
    title = "phase relation: psi_W - sum of psi_s"
    label(axes[1, 1], title=title, xlabel="radians", ylabel="neurons")
    _slow_neuron(axes[1, 2], after["U"][0], order, neuron_ipr(after, order))
    save(fig, path)


def _by_step(ax, rows: dict[str, dict], history: dict, key: str, ylabel: str) -> None:
    """A curve for every polynomial of which something is known, grey if it is not learnable."""
    members = np.array(history[key]).T
    for (text, row), y in zip(rows.items(), members, strict=True):
        if not np.isnan(y).all():
            style = {} if row["learnable"] else {"color": "0.6", "ls": "--"}
            ax.plot(history["step"], y, lw=1.2, label=text, **style)
    label(ax, 6.5, xlabel="step", ylabel=ylabel, ylim=SHARE)


def _accuracies(ax, rows: dict[str, dict]) -> None:
    names = list(rows)
    accuracy = [row["test_accuracy"] for row in rows.values()]
    chance = [row["chance"] for row in rows.values()]
    coverage = [row["quotient_coverage"] for row in rows.values()]
    colors = [TEST if row["learnable"] else TRAIN for row in rows.values()]
    ax.barh(names, accuracy, color=colors)
    ax.plot(chance, names, "k|", ms=12, label="chance (majority answer)")
    ax.plot(coverage, names, "kx", ms=5, label="test inputs with a sibling in training")
    ax.tick_params(axis="y", labelsize=7)
    ax.invert_yaxis()
    ax.set(title="test accuracy; blue: of the form h(g1 + g2) or h(g1 g2)", xlim=(0, 1.02))
    below = {"loc": "upper center", "bbox_to_anchor": (0.4, -0.06)}
    ax.legend(frameon=False, fontsize=7, ncol=2, **below)


def _slow_neuron(ax, U1: np.ndarray, order: np.ndarray, ipr: np.ndarray) -> None:
    """The purest neuron of one to six periods, which are easy to see, in both orders."""
    frequency = spectrum(U1[order], axis=0).argmax(axis=0)
    slow = np.isin(frequency, range(1, 7))
    k = int(np.where(slow, np.nan_to_num(ipr), -1).argmax())
    x = U1[:, k]
    above = 3 * np.abs(x).max()
    ax.plot(x, color=TRAIN, lw=0.8, label="order n")
    ax.plot(x[order] + above, color=TEST, lw=1, label="order g^t (shifted up)")
    label(ax, title=f"multiplication: neuron {k} of U1", xlabel="place", yticks=[])
