"""The figure of a two-layer network in training: losses, accuracies, what its neurons learned."""

from pathlib import Path

import numpy as np

from ..probes.fourier import ipr, mean_known, neuron_ipr, neuron_rows, spectrum
from ..probes.phases import step_of_99
from .colors import INPUTS, TEST, UNIT
from .style import FILLED, SHARE, curves, figure, histograms, image, label, save

GREYS = {"aspect": "auto", "cmap": "Greys"}


def grokking(history: dict, first: dict, last: dict, order, loss_name: str, path: Path) -> None:
    """Losses; accuracies, the delay between them and the mean IPR; the clearest neurons; all
    neurons at the start and at the end.

    first, last  weights {"U": (S, p, N), "W": (N, p)} at the start and at the end
    order        along which neurons are waves; None where it is not known: then they are drawn as
                 they stand"""
    if order is not None and len(order) < 3:  # two points are no wave
        order = None
    fig = figure(8, 7.6)
    top, middle, bottom = fig.subfigures(3, 1, height_ratios=(1.2, 1, 1))
    loss, acc = top.subplots(1, 2, width_ratios=(1, 1.5))
    curves(loss, history, "loss", loss_name)
    loss.set_yscale("log")
    _delay(acc, history, len(last["W"].T))
    clearest_neurons(middle, last, order)
    ends = {"at the start": first, f"after {history['step'][-1]} steps": last}
    all_neurons(bottom, ends, order)
    save(fig, path)


def _delay(ax, history: dict, p: int) -> None:
    """Accuracies and the time between their 99 %; on the right axis the mean IPR, if measured."""
    curves(ax, history, "accuracy", "accuracy")
    verbs = {"train": "memorised", "test": "understood"}
    reached = {verb: step_of_99(history, split) for split, verb in verbs.items()}
    said = [f"not {x}" if t is None else f"{x} at step {t}" for x, t in reached.items()]
    ax.set_title(", ".join(said))
    memorised, understood = reached.values()
    if memorised is not None and understood is not None and memorised < understood:
        delay = f"delay: {understood - memorised} steps"
        ax.axvspan(memorised, understood, color="0.88", lw=0, zorder=0, label=delay)
    ax.axhline(1 / p, color="0.4", lw=1, ls=":", label=f"chance, 1/{p}")
    mean_ipr(ax, history["step"], history.get("ipr_mean"))
    label(ax, 9, ylim=SHARE)


def mean_ipr(ax, steps, values) -> None:
    """The mean IPR on an axis of its own on the right, of the same scale; no axis for None."""
    if values is not None:
        ax.plot(steps, values, color="k", ls="-.", label="mean IPR")
        ax.secondary_yaxis("right").set_ylabel("mean IPR of the neurons")


def dominant(x: np.ndarray) -> np.ndarray:
    """The largest frequency of waves (..., places > 1); not 0, nor half of more than two places."""
    below_half = spectrum(x)[..., 1 : max(2, (x.shape[-1] + 1) // 2)]
    return 1 + below_half.argmax(axis=-1)


def clearest(rows: list[np.ndarray], count: int) -> list[int]:
    """Neurons of the largest |W_k| IPR_k, each of another frequency; rows [U_1, ..., U_S, W]."""
    frequency = dominant(rows[-1])
    is_wave = spectrum(rows[-1]).argmax(axis=1) == frequency
    iprs = np.mean([ipr(x) for x in rows], axis=0)
    clear = is_wave * iprs * np.linalg.norm(rows[-1], axis=1)
    chosen: dict[int, int] = {}
    for k in np.argsort(-np.nan_to_num(clear)):
        chosen.setdefault(int(frequency[k]), int(k))
    return list(chosen.values())[:count]


def clearest_neurons(fig, weights: dict, order: np.ndarray | None) -> None:
    """Up to three clear neurons, each of another frequency, side by side."""
    rows = neuron_rows(weights, order)
    chosen = clearest(rows, 3)
    axes = fig.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
    for ax, k in zip(axes, chosen, strict=True):
        _neuron(ax, k, [x[k] for x in rows], order)
    axes[0].set_ylabel("weight")
    names = axes[0].get_legend_handles_labels()
    title = "neurons, unwound: one period each" if order is not None else "neurons as they stand"
    fig.legend(*names, loc="outside upper center", ncol=len(rows), title=title, frameon=False)


def _neuron(ax, k: int, rows: list[np.ndarray], order: np.ndarray | None) -> None:
    """The rows [u_1, ..., u_S, w] of neuron k as dots. Where it is known to be a wave, each stands
    over (f n) mod p, f its frequency: so unwound, it is one period of a cosine (the lines)."""
    ax.set(title=f"neuron {k}", xlabel="element n or q")
    for s, x in enumerate(rows):
        read_out = s == len(rows) - 1
        name = "W[q]" if read_out else f"U{s + 1}[n]"
        color = TEST if read_out else INPUTS[s % len(INPUTS)]
        n = np.arange(len(x))
        if order is not None:
            f = dominant(x)
            at = np.linspace(0, len(x), 200)
            wave = np.fft.rfft(x)[f] * np.exp(2j * np.pi * at / len(x))
            ax.plot(at, x.mean() + 2 / len(x) * wave.real, color=color, lw=1)
            n = f * n % len(x)
            place = "log n" if order[0] else "n"  # products: 1, g, g^2, ...
            ax.set(title=f"neuron {k}: frequency {f}", xlabel=f"({f} {place}) mod {len(x)}")
        ax.plot(n, x, "os^Dv"[s % 5], color=color, ms=2.5, mew=0, label=name)
    ax.locator_params(axis="x", integer=True)


def all_neurons(fig, ends: dict[str, dict], order: np.ndarray | None) -> None:
    """The read-out of all neurons at the start and at the end, and the histogram of their IPR.

    A row is the spectrum of a neuron, divided by its norm; rows are sorted by the frequency at the
    end. Where no waves are known, rows are |W|, and there is no histogram."""
    waves = order is not None
    axes = fig.subplots(1, 2 + waves)
    place = "frequency" if waves else "element q"
    W = {name: neuron_rows(weights, order)[-1] for name, weights in ends.items()}
    shown = {name: spectrum(x) if waves else np.abs(x) for name, x in W.items()}
    sort = np.argsort(list(shown.values())[-1].argmax(axis=1), kind="stable")
    some = sort[:: -(-len(sort) // 100)]  # at most 100, evenly
    for ax, (name, x) in zip(axes, shown.items(), strict=False):
        share = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
        largest = (share.max(axis=1) ** 2).mean()
        title = f"{name}: {largest:.0%} of the\npower in one {place}"
        drawn = image(ax, share[some], UNIT | GREYS, title=title, xlabel=place)
    axes[0].set_ylabel(f"{len(some)} of {len(sort)} neurons, sorted")
    fig.colorbar(drawn, ax=axes[1], label="share of the norm")
    if waves:
        iprs = {name: neuron_ipr(weights, order) for name, weights in ends.items()}
        means = {f"{name}, mean {mean_known(x):.2f}": x for name, x in iprs.items()}
        histograms(axes[2], means, np.linspace(0, 1, 41), ("0.6", TEST), **FILLED, log=True)
        label(axes[2], 9, above=1, xlabel="IPR of a neuron (1: one wave)", ylabel="neurons")
