"""The figure of written weights: neurons, logits and their terms, a sweep over widths."""

from pathlib import Path

import numpy as np

from tinygrok.plots.colors import GREEN, ORANGE, PURPLE, TEST, TRAIN
from tinygrok.plots.modular_polynomials import GREYS
from tinygrok.plots.style import figure, image, label, save
from tinygrok.probes.fourier import spectrum


def analytic(weights, order, profile, terms, sweep, predicted: int | None, path: Path) -> None:
    """Written weights, their spectra, the logits of one input and their terms, a sweep over widths.

    weights    {"U": (S, p, N), "W": (N, p)}
    order      inputs and classes along which neurons are waves
    profile    (p,): logits, the right one first
    terms      analytic.verify.Term, the largest first
    sweep      {"width", "accuracy", "min_margin"}: one entry a network
    predicted  N*, or None"""
    fig = figure(9, 6.2)
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
    place = "log n or log q" if order[0] else "input n or class q"
    for ax, x, name in zip(axes, (U1, W), ("U1", "W"), strict=False):
        largest = np.abs(x).max()
        style = {"aspect": "auto", "cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
        title = f"{name}: {count} of {width} neurons"
        fig.colorbar(image(ax, x, style, title=title, xlabel=place), ax=ax)
    axes[0].set_ylabel("neuron, by frequency")
    image(axes[2], spectrum(U1), GREYS, title="spectra of U1, |rfft|", xlabel="frequency")


def _logits(ax, profile: np.ndarray) -> None:
    half = len(profile) // 2
    distance = np.arange(len(profile)) - half
    ax.vlines(distance, 0, np.roll(profile, half), color=TEST, lw=1.2)
    title = "logits, the smallest margin"
    ax.set(title=title, xlabel="class minus answer (mod p)", ylabel="logit")


def _terms(ax, terms) -> None:
    """Magnitudes of the largest terms; the one of m = (1, ..., 1) is the answer."""
    shown = terms[:14]
    names = [str(term.m) for term in shown]
    sizes = [max(term.rms, 1e-18) for term in shown]
    colors = [TEST if set(term.m) == {1} else TRAIN for term in shown]
    ax.barh(names, sizes, color=colors)
    ax.invert_yaxis()
    ax.set(title=f"{len(shown)} of {len(terms)} terms (blue: answer)", xlabel="rms", ylabel="m")
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
    label(ax, xscale="log", xlabel="width N", title=f"{len(width)} networks, by width")
    ax.set_xticks(sizes, sizes, rotation=60)
    ax.minorticks_off()


def by_terms(curves: dict, p: int, path: Path) -> None:
    """Accuracy against width for every number of terms.

    curves {S: {"predicted": N*, "widths", "accuracies": a list of draws a width, "exact":
    [{"width", "accuracy"}]}}"""
    fig = figure(7.5, 4.8)
    ax = fig.subplots()
    colors = (ORANGE, TEST, GREEN, TRAIN, PURPLE)
    for (terms, curve), color in zip(curves.items(), colors, strict=False):
        draws = np.array(curve["accuracies"])
        widths = curve["widths"]
        ax.plot(widths, np.median(draws, axis=1), color=color, marker=".", label=f"S = {terms}")
        ax.plot(widths, draws.max(axis=1), color=color, ls="--", lw=1)
        ax.axvline(curve["predicted"], ymin=0.955, color=color, lw=2)
        known = curve["exact"]
        exact = ([x["width"] for x in known], [x["accuracy"] for x in known])
        ax.plot(*exact, "*", color=color, ms=11, mec="k", mew=0.6, zorder=3, clip_on=False)
    ax.axhline(1 / p, color="0.5", lw=0.8, ls=":", label="chance")
    ax.plot([], [], "k--", lw=1, label="best draw (line: median)")
    ax.plot([], [], "k|", ms=10, mew=2, label="N*, predicted")
    ax.plot([], [], "*", color="w", mec="k", ms=11, label="exact phases")
    title = f"Written weights for n1 + ... + nS mod {p}: widths that random phases need"
    ax.set(xscale="log", ylim=(0, 1.05), xlabel="width N", ylabel="accuracy", title=title)
    fig.legend(loc="outside right upper", frameon=False)
    save(fig, path)
