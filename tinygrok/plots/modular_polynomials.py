"""Figures of Grokking modular polynomials.

Learned neurons, written weights, which polynomials grok."""

from pathlib import Path

import numpy as np

from ..probes.fourier import mean_known, neuron_ipr, neuron_rows, spectrum
from ..probes.phases import step_of_99
from .colors import GREEN, INPUTS, TEST, TRAIN, UNIT
from .style import SHARE, curves, figure, histograms, image, label, save


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
    axes = middle.subplots(1, 3, sharey=True)
    rows = neuron_rows(last, order)
    chosen = _clearest(last, order, 3)
    for ax, k in zip(axes, chosen, strict=False):  # a small p has fewer frequencies
        _neuron(ax, [x[k] for x in rows], order)
        ax.set_title(f"neuron {k}{ax.get_title()}")
    for ax in axes[len(chosen) :]:
        ax.remove()
    axes[0].set_ylabel("weight")
    names = axes[0].get_legend_handles_labels()
    title = "the clearest neurons, each unwound to one period of its wave"
    if order is None:
        title = "the largest neurons, as they stand (no waves are known)"
    middle.legend(*names, loc="outside upper center", ncol=len(rows), frameon=False, title=title)
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
        ax.plot(steps, values, color=GREEN, ls="-.", label="mean IPR")
        ax.secondary_yaxis("right").set_ylabel("mean IPR of the neurons", color=GREEN)


def dominant(x: np.ndarray) -> np.ndarray:
    """The largest frequency (not 0, not half of the places) of waves (..., places), places > 2."""
    power = spectrum(x)
    return 1 + power[..., 1 : (x.shape[-1] + 1) // 2].argmax(axis=-1)


def _clearest(weights: dict, order: np.ndarray | None, count: int) -> list[int]:
    """Neurons of the largest |W_k| IPR_k, each of another frequency; of the largest |W_k| where no
    waves are known."""
    W = neuron_rows(weights, order)[-1]
    norm = np.linalg.norm(W, axis=1)
    if order is None:
        return np.argsort(-norm)[:count].tolist()
    chosen: dict[int, int] = {}
    frequency = dominant(W)
    is_wave = spectrum(W).argmax(axis=1) == frequency
    clear = is_wave * norm * np.nan_to_num(neuron_ipr(weights, order))
    for k in np.argsort(-clear):
        chosen.setdefault(int(frequency[k]), int(k))
    return list(chosen.values())[:count]


def _neuron(ax, rows: list[np.ndarray], order: np.ndarray | None) -> None:
    """The rows [u_1, ..., u_S, w] of a neuron as dots. Where it is known to be a wave, each stands
    over (f n) mod p, f its frequency: so unwound, it is one period of a cosine (the lines)."""
    S = len(rows) - 1
    looks = [(f"U{s + 1}[n]", INPUTS[s % len(INPUTS)], "os"[s % 2]) for s in range(S)]
    looks.append(("W[q]", TEST, "^"))
    for x, (name, color, marker) in zip(rows, looks, strict=True):
        n = np.arange(len(x))
        ax.set_xlabel("element n or q")
        if order is not None:
            f = dominant(x)
            at = np.linspace(0, len(x), 200)
            wave = np.fft.rfft(x)[f] * np.exp(2j * np.pi * at / len(x))
            ax.plot(at, x.mean() + 2 / len(x) * wave.real, color=color, lw=1)
            n = f * n % len(x)
            place = "log n" if order[0] else "n"  # products: 1, g, g^2, ...
            ax.set(title=f": frequency {f}", xlabel=f"({f} {place}) mod {len(x)}")
        ax.plot(n, x, marker, color=color, ms=2.5, mew=0, label=name)
    ax.locator_params(axis="x", integer=True)


def _all_neurons(fig, ends: dict[str, dict], order: np.ndarray | None) -> None:
    """The read-out of all neurons at the start and at the end, and the histogram of their IPR.

    A row is the spectrum of a neuron, divided by its norm; rows are sorted by the frequency at the
    end. Where no waves are known, rows are |W|, and norms stand in for the IPR."""
    axes = fig.subplots(1, 3, width_ratios=(1, 1, 1.2))
    W = {name: neuron_rows(weights, order)[-1] for name, weights in ends.items()}
    if order is None:
        shown = {name: np.abs(x) for name, x in W.items()}
        values = {name: np.linalg.norm(x, axis=1) for name, x in W.items()}
        names = ("element q", "norm of a neuron's W")
    else:
        shown = {name: spectrum(x) for name, x in W.items()}
        values = {name: neuron_ipr(weights, order) for name, weights in ends.items()}
        names = ("frequency", "IPR of a neuron (1: one wave)")
    last = list(shown.values())[-1]
    sort = np.argsort(last.argmax(axis=1), kind="stable")
    shown_rows = sort[:: -(-len(sort) // 100)]  # at most 100, evenly
    for ax, (name, x) in zip(axes, shown.items(), strict=False):
        norm = np.linalg.norm(x, axis=1, keepdims=True)
        share = x / np.where(norm > 0, norm, 1)
        largest = (share.max(axis=1) ** 2).mean()
        title = f"{name}: {largest:.0%} of the\npower in one {names[0]}"
        style = UNIT | {"aspect": "auto", "cmap": "Greys"}
        drawn = image(ax, share[shown_rows], style, title=title, xlabel=names[0])
    axes[0].set_ylabel(f"{len(shown_rows)} of {len(sort)} neurons, sorted")
    fig.colorbar(drawn, ax=axes[1], label="share of the norm")
    means = {f"{name}, mean {mean_known(x):.2f}": x for name, x in values.items()}
    top = 1 if order is not None else max(x.max() for x in values.values())
    style = {"histtype": "stepfilled", "alpha": 0.8, "log": True}
    histograms(axes[2], means, np.linspace(0, top, 41), ("0.6", TEST), **style)
    axes[2].set(xlabel=names[1], ylabel="neurons")
    axes[2].legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)


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
