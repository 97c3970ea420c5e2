"""Figures of Grokking modular polynomials.

Learned neurons, written weights, which polynomials grok."""

from itertools import cycle
from pathlib import Path

import numpy as np

from ..probes.fourier import ipr, mean_known, neuron_ipr, neuron_rows, spectrum
from ..probes.phases import step_of_99
from .colors import INPUTS, TEST, TRAIN, UNIT
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
    _clearest_neurons(middle, last, order)
    ends = {"at the start": first, f"after {history['step'][-1]} steps": last}
    _all_neurons(bottom, ends, order)
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


def _clearest(rows: list[np.ndarray], count: int) -> list[int]:
    """Neurons of the largest |W_k| IPR_k, each of another frequency; rows [U_1, ..., U_S, W]."""
    frequency = dominant(rows[-1])
    is_wave = spectrum(rows[-1]).argmax(axis=1) == frequency
    iprs = np.mean([ipr(x) for x in rows], axis=0)
    clear = is_wave * iprs * np.linalg.norm(rows[-1], axis=1)
    chosen: dict[int, int] = {}
    for k in np.argsort(-np.nan_to_num(clear)):
        chosen.setdefault(int(frequency[k]), int(k))
    return list(chosen.values())[:count]


def _clearest_neurons(fig, weights: dict, order: np.ndarray | None) -> None:
    rows = neuron_rows(weights, order)
    chosen = _clearest(rows, 3)
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
        ax.plot(n, x, "os^D"[s % 4], color=color, ms=2.5, mew=0, label=name)
    ax.locator_params(axis="x", integer=True)


def _all_neurons(fig, ends: dict[str, dict], order: np.ndarray | None) -> None:
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


def learnability(rows: dict, history, before, after, order, residuals: dict, path: Path) -> None:
    """Polynomials trained side by side: what generalised, and what multiplication learned.

    rows       {polynomial: {"test_accuracy", "chance", "quotient_coverage", "learnable"}}
    history    {"step", "test_accuracy" (E,), "explained" (E,), "ipr_product"}: members in the order
               of rows, nan where nothing is known; mean IPR of multiplication
    before     weights of multiplication at the start; after: at the end
    order      the powers of a primitive root
    residuals  {polynomial: psi_W - sum psi_s of every neuron}"""
    fig = figure(9, 9.4)
    parts = fig.subfigures(4, 1, height_ratios=(1.2, 1, 1, 1.1))
    looks = _looks(rows)
    steps, bars = parts[0].subplots(1, 2, width_ratios=(1.1, 1))
    _by_step(steps, history, "test_accuracy", looks)
    mean_ipr(steps, history["step"], history["ipr_product"])
    label(steps, 8, title="colours as on the right; IPR of n1*n2", ylim=SHARE)
    _accuracies(bars, rows, looks)
    waves, phases = parts[1].subplots(1, 2)
    _by_step(waves, history, "explained", looks)
    title = "by one wave a neuron, one frequency for its parts"
    label(waves, title=title, ylabel="share of W, U explained", ylim=SHARE)
    colors = [looks[text]["color"] for text in residuals]
    histograms(phases, residuals, np.linspace(-np.pi, np.pi, 61), colors)
    phases.set(xlabel="phase of W minus those of U1, U2 (radians)", ylabel="neurons")
    _clearest_neurons(parts[2], after, order)
    parts[2].supylabel("n1*n2")
    ends = {"n1*n2 at the start": before, f"after {history['step'][-1]} steps": after}
    _all_neurons(parts[3], ends, order)
    save(fig, path)


def _looks(rows: dict[str, dict]) -> dict[str, dict]:
    """{polynomial: the look of its line}: a colour each, grey dashes if it is not learnable."""
    colors = cycle((TEST, *INPUTS))
    grey = {"color": "0.6", "ls": "--"}
    return {x: {"color": next(colors)} if row["learnable"] else grey for x, row in rows.items()}


def _by_step(ax, history: dict, key: str, looks: dict[str, dict]) -> None:
    """A curve for every polynomial of which something is known."""
    for style, y in zip(looks.values(), np.array(history[key]).T, strict=True):
        ax.plot(history["step"], y, lw=1.4, **style)
    ax.set(xlabel="step", ylabel=key.replace("_", " "))


def _accuracies(ax, rows: dict[str, dict], looks: dict[str, dict]) -> None:
    names = list(rows)
    accuracy = [row["test_accuracy"] for row in rows.values()]
    chance = [row["chance"] for row in rows.values()]
    coverage = [row["quotient_coverage"] for row in rows.values()]
    ax.barh(names, accuracy, color=[look["color"] for look in looks.values()])
    ax.plot(chance, names, "k|", ms=10, label="chance (majority answer)")
    ax.plot(coverage, names, "kx", ms=5, label="test inputs with a sibling in training")
    ax.invert_yaxis()
    ax.set(title="test accuracy; grey: no h(g1 + g2), h(g1 g2)", xlim=(0, 1.02))
    ax.legend(frameon=False, fontsize=8, loc="upper right", bbox_to_anchor=(1, -0.1))
