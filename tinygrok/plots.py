"""Figures. The only module that knows matplotlib, which is an optional extra and imported when a figure is drawn."""

from pathlib import Path

import numpy as np

from .checkpoint import atomic_write
from .probes.fourier import neuron_ipr, neuron_rows, spectrum

TRAIN, TEST, ORANGE, GREEN, PURPLE = "#c44e52", "#4c72b0", "#dd8452", "#55a868", "#8172b3"
SETS = {"id_train": TRAIN, "id_test": ORANGE, "ood_train": TEST, "ood_test": GREEN}
SHARE = (-0.02, 1.02)  # limits of an axis of accuracies
UNIT = {"vmin": 0, "vmax": 1}


def figure(*size: float):
    """An empty figure of a size in inches; it needs no display."""
    import matplotlib.figure

    matplotlib.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9, "font.size": 9})
    return matplotlib.figure.Figure(figsize=size, dpi=130, layout="constrained")


def save(fig, path: Path) -> None:
    """Write a PNG (to a temporary name, then renamed)."""
    atomic_write(Path(path), lambda file: fig.savefig(file, format="png"))


# -- parts that figures share ---------------------------------------------------------------------------------------------


def panels(count: int, width: float, height: float, columns: int = 4):
    """A figure and `count` axes, `columns` in a row, each of a size in inches."""
    rows, columns = -(-count // columns), min(columns, count)
    fig = figure(width * columns, height * rows)
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.remove()
    return fig, list(axes[:count])


def label(ax, size: float = 7, heading: str | None = None, **properties) -> None:
    """Set properties of axes; what is labelled gets a legend in letters of a size, under a heading."""
    ax.set(**properties)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=size, title=heading, title_fontsize=size)


def lines(ax, curves: dict, colors=None, x=None, **style) -> None:
    """Named curves, over 1, 2, ... unless x is given; no colors: matplotlib's cycle."""
    for (name, values), color in zip(curves.items(), colors or [None] * len(curves), strict=True):
        ax.plot(range(1, len(values) + 1) if x is None else x, values, color=color, label=name, **style)


def histograms(ax, samples: dict, edges: np.ndarray, colors=None, **style) -> None:
    """Histograms of named samples, nan left out: outlines, unless the style is another."""
    for (name, x), color in zip(samples.items(), colors or [None] * len(samples), strict=True):
        ax.hist(x[np.isfinite(x)], edges, color=color, label=name, **{"histtype": "step", "lw": 1.3} | style)


def image(ax, values, style: dict = UNIT, **labels):
    """An image in axes with all four spines and whole numbers; returned for a colour bar."""
    drawn = ax.imshow(values, **{"interpolation": "nearest"} | style)
    ax.spines[:].set_visible(True)
    ax.locator_params(integer=True)
    ax.set(**labels)
    return drawn


def attention_maps(patterns: np.ndarray):
    """A figure of every head's map (depth, H, T, T), zeros blank; the axes of the maps, and those under them, (depth, H)."""
    depth, H = patterns.shape[:2]
    fig = figure(2.9 * H + 0.8, 4.2 * depth)
    axes = fig.subplots(2 * depth, H, squeeze=False, height_ratios=[2.2, 1] * depth)
    for (i, h), ax in np.ndenumerate(axes[::2]):
        seen = np.where(patterns[i, h] > 0, patterns[i, h], np.nan)
        drawn = image(ax, seen, title=f"block {i} head {h}", xlabel="key", ylabel="query")
        axes[2 * i + 1, h].set(ylim=(0, 1), ylabel="attention")
    fig.colorbar(drawn, ax=axes[::2], shrink=0.5)
    return fig, axes[::2], axes[1::2]


def curves(ax, history: dict, quantity: str, ylabel: str) -> None:
    """Train and test curve of a quantity against 1 + step on a log axis (so that step 0 shows)."""
    both = {split: history[f"{split}_{quantity}"] for split in ("train", "test")}
    lines(ax, both, (TRAIN, TEST), np.asarray(history["step"]) + 1)
    label(ax, xscale="log", xlabel="step + 1", ylabel=ylabel)


# -- figures --------------------------------------------------------------------------------------------------------------


def grokking(history: dict, weights, order, marks: list[int | None], loss_name: str, path: Path) -> None:
    """Losses and accuracies with the delay marked, and three learned neurons beside their Fourier spectra.

    weights {"U": (S, p, N), "W": (N, p)}; order: along which neurons are waves (neuron_ipr);
    marks: the steps at which training and test accuracy reached 99 %.
    """
    fig = figure(11, 6.2)
    left, right = fig.subfigures(1, 2, width_ratios=(1, 1.25))
    loss, acc = left.subplots(2, 1, sharex=True)
    curves(loss, history, "loss", loss_name)
    loss.set(yscale="log", xlabel="")
    curves(acc, history, "accuracy", "accuracy")
    if None not in marks:
        memorised, grokked = marks
        acc.axvspan(memorised + 1, grokked + 1, color="0.9", zorder=0)
        acc.set_title(f"99 % of the training pairs at step {memorised}, of the unseen pairs at step {grokked}")
    pick, rows = most_periodic(weights, order, 3), neuron_rows(weights, order)
    names = [f"U{s + 1}" for s in range(len(rows) - 1)] + ["W"]
    for axes, k in zip(right.subplots(3, 2, sharex="col"), pick, strict=True):
        for name, color, x in zip(names, (TRAIN, ORANGE, TEST), rows, strict=True):
            axes[0].plot(x[k], color=color, lw=1, label=name)
            axes[1].plot(spectrum(x[k]), color=color, lw=1)
        axes[0].set_ylabel(f"neuron {k}")
    right.axes[0].legend(frameon=False, ncol=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
    right.axes[1].set_title("|rfft|")
    right.axes[-2].set_xlabel("input n / output class q" if order is None else "log of input n / output class q")
    right.axes[-1].set_xlabel("frequency")
    save(fig, path)


def most_periodic(weights: dict[str, np.ndarray], order: np.ndarray | None, count: int) -> list[int]:
    """Neurons of the highest IPR, each of another dominant frequency."""
    chosen: dict[int, int] = {}
    dominant = spectrum(neuron_rows(weights, order)[-1])[:, 1:].argmax(axis=1)
    for k in np.argsort(-np.nan_to_num(neuron_ipr(weights, order))):
        chosen.setdefault(int(dominant[k]), int(k))
    return list(chosen.values())[:count]


def analytic(weights, order, profile, terms, sweep: dict, predicted: int | None, path: Path) -> None:
    """Written weights as images, their spectra, the logits of one input, what they are made of, and accuracy and margin
    against width: every network a dot, the mean over seeds a line.

    weights {"U": (S, p, N), "W": (N, p)}   order: inputs and classes along which neurons are waves
    profile (p,): logits, the right one first   terms: analytic.verify.Term, the largest first
    sweep   {"width", "accuracy", "min_margin"}: one entry a network   predicted: N*, or None
    """
    fig = figure(12, 6.6)
    axes = fig.subplots(2, 3)
    count = min(60, len(weights["W"]))
    by_frequency = np.argsort(spectrum(weights["W"][:, order]).argmax(axis=1), kind="stable")
    pick = by_frequency[np.linspace(0, len(by_frequency) - 1, count).astype(int)]
    U, W = weights["U"][0][np.ix_(order, pick)], weights["W"][np.ix_(pick, order)]
    for ax, x, title in ((axes[0, 0], U.T, "first layer U1"), (axes[0, 1], W, "read-out W")):
        style = {"aspect": "auto", "cmap": "RdBu_r", "vmin": -np.abs(x).max(), "vmax": np.abs(x).max()}
        drawn = image(ax, x, style, title=f"{title}, {count} of {len(weights['W'])} neurons, by frequency", ylabel="neuron")
        fig.colorbar(drawn, ax=ax)
    axes[0, 0].set_xlabel("input n" if order[0] == 0 else "lg n")
    axes[0, 1].set_xlabel("class q" if order[0] == 0 else "lg q")
    spectra, style = spectrum(U, axis=0).T, {"aspect": "auto", "cmap": "Greys"}
    image(axes[0, 2], spectra, style, title="spectra |rfft| of the rows of U1", xlabel="frequency", ylabel="neuron")
    shift = len(profile) // 2
    axes[1, 0].vlines(np.arange(len(profile)) - shift, 0, np.roll(profile, shift), color=TEST, lw=1.2)
    axes[1, 0].set(title="logits of the input of the smallest margin", xlabel="class minus answer (mod p)", ylabel="logit")
    shown = terms[:14]
    colors = [TEST if set(t.m) == {1} else TRAIN for t in shown]
    axes[1, 1].barh([str(t.m) for t in shown], [max(t.rms, 1e-18) for t in shown], color=colors)
    axes[1, 1].invert_yaxis()
    axes[1, 1].set(title=f"terms in the logits, {len(shown)} largest of {len(terms)}; blue: the answer", xlabel="rms", ylabel="m")
    if shown and shown[-1].rms < 1e-6 * shown[0].rms:
        axes[1, 1].set_xscale("log")
    ax, width = axes[1, 2], np.asarray(sweep["width"])
    sizes = np.unique(width)
    for key, color in (("accuracy", TEST), ("min_margin", TRAIN)):
        x = np.asarray(sweep[key])
        ax.plot(width, x, ".", color=color, ms=3, alpha=0.5)
        ax.plot(sizes, [x[width == n].mean() for n in sizes], color=color, label=key.replace("_", " "))
    if predicted:
        ax.axvline(predicted, color="0.5", ls="--", label=f"N* = {predicted}")
    label(ax, 9, xscale="log", xlabel="width N", title=f"accuracy and smallest margin, {len(width)} networks")
    ax.set_xticks(sizes, sizes, rotation=60)
    ax.minorticks_off()
    save(fig, path)


def learnability(rows: dict[str, dict], history: dict, before: dict, after: dict, order, residuals: dict, path: Path) -> None:
    """Polynomials trained side by side: what generalised, and what multiplication learned.

    rows {polynomial: {"test_accuracy", "chance", "quotient_coverage", "learnable"}}
    history {"step", "test_accuracy" (E,), "explained" (E,)}: members in the order of rows, nan where nothing is known
    before, after   weights of multiplication at the start and at the end; order: the powers of a primitive root
    residuals {polynomial: psi_W - sum psi_s of every neuron}
    """
    fig = figure(13, 7)
    axes = fig.subplots(2, 3)
    quantities = {"test_accuracy": "test accuracy", "explained": "share of squared weights"}
    for ax, (key, ylabel) in zip(axes[:, 0], quantities.items(), strict=True):
        for (text, row), y in zip(rows.items(), np.array(history[key]).T, strict=True):
            if not np.isnan(y).all():
                ax.plot(history["step"], y, lw=1.2, label=text, **{} if row["learnable"] else {"color": "0.6", "ls": "--"})
        label(ax, 6.5, xlabel="step", ylabel=ylabel, ylim=SHARE)
    axes[1, 0].set_title("explained by one wave a neuron, one frequency for all its parts")
    bars = axes[0, 1]
    accuracy, chance, coverage = ([r[key] for r in rows.values()] for key in ("test_accuracy", "chance", "quotient_coverage"))
    bars.barh(list(rows), accuracy, color=[TEST if r["learnable"] else TRAIN for r in rows.values()])
    bars.plot(chance, list(rows), "k|", ms=12, label="chance (majority answer)")
    bars.plot(coverage, list(rows), "kx", ms=5, label="test inputs with a sibling in training")
    bars.tick_params(axis="y", labelsize=7)
    bars.invert_yaxis()
    bars.set(title="test accuracy; blue: of the form h(g1 + g2) or h(g1 g2)", xlim=(0, 1.02))
    bars.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.4, -0.06), ncol=2)
    networks = {"start": (before, order), "end, order g^t": (after, order), "end, order n": (after, None)}
    iprs = {name: neuron_ipr(*network) for name, network in networks.items()}
    histograms(axes[0, 2], iprs, np.linspace(0, 1, 41), ("0.6", TEST, TRAIN))
    label(axes[0, 2], title="multiplication: IPR of the neurons", xlabel="inverse participation ratio", ylabel="neurons")
    histograms(axes[1, 1], residuals, np.linspace(-np.pi, np.pi, 61))
    label(axes[1, 1], title="phase relation: psi_W - sum of psi_s", xlabel="radians", ylabel="neurons")
    slow = np.isin(spectrum(after["U"][0][order], axis=0).argmax(axis=0), range(1, 7))  # few periods, easy to see
    k = int(np.where(slow, np.nan_to_num(neuron_ipr(after, order)), -1).argmax())
    x = after["U"][0][:, k]
    axes[1, 2].plot(x, color=TRAIN, lw=0.8, label="order n")
    axes[1, 2].plot(x[order] + 3 * np.abs(x).max(), color=TEST, lw=1, label="order g^t (shifted up)")
    label(axes[1, 2], title=f"multiplication: neuron {k} of U1", xlabel="place", yticks=[])
    save(fig, path)


def in_context(history: dict, best: int, solved: dict, path: Path) -> None:
    """Accuracy at the last shot on the four sets against steps, and by shot at the best step beside the reference solvers.

    history {"step": (n,), "<set>_accuracy": (n, shots)}; solved {"ratio_matching": (shots,), ...}
    """
    fig, (left, right) = panels(2, 5.5, 4)
    accuracy = {name.replace("_", ", ") + " inputs": history[f"{name}_accuracy"] for name in SETS}
    lines(left, {name: x[:, -1] for name, x in accuracy.items()}, SETS.values(), history["step"])
    left.axvline(history["step"][best], color="0.8", zorder=0)
    label(left, 8, xlabel="step", ylabel="accuracy at the last shot", ylim=SHARE)
    for name, style in (("ratio_matching", "k--"), ("modular_regression", "k:"), ("retrieval", "k-.")):
        right.plot(solved[name], style, lw=1, label=name.replace("_", " "))
    label(right, 8, xlabel="shots", ylabel=f"accuracy at step {history['step'][best]}", ylim=SHARE)
    by_shot = {name: x[best] for name, x in accuracy.items()}  # the colours are named on the left
    lines(right, by_shot, SETS.values(), range(len(solved["retrieval"])), marker=".", lw=1)
    save(fig, path)
