"""The figure of written weights: neurons, logits and their terms, a sweep over widths."""

from pathlib import Path

import numpy as np

from tinygrok.plots.colors import TEST, TRAIN
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
