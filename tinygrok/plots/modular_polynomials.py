"""Figures of Grokking modular polynomials: learned neurons, written weights, which polynomials
grok."""

from pathlib import Path

import numpy as np

from ..probes.fourier import neuron_ipr, neuron_rows, spectrum
from .style import ORANGE, SHARE, TEST, TRAIN, curves, figure, histograms, image, label, save


def grokking(
    history: dict, weights, order, marks: list[int | None], loss_name: str, path: Path
) -> None:
    """Losses and accuracies with the delay marked, and three learned neurons beside their Fourier
    spectra.

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
        acc.set_title(
            f"99 % of the training pairs at step {memorised}, of the unseen pairs at step {grokked}"
        )
    pick, rows = most_periodic(weights, order, 3), neuron_rows(weights, order)
    names = [f"U{s + 1}" for s in range(len(rows) - 1)] + ["W"]
    for axes, k in zip(right.subplots(3, 2, sharex="col"), pick, strict=True):
        for name, color, x in zip(names, (TRAIN, ORANGE, TEST), rows, strict=True):
            axes[0].plot(x[k], color=color, lw=1, label=name)
            axes[1].plot(spectrum(x[k]), color=color, lw=1)
        axes[0].set_ylabel(f"neuron {k}")
    right.axes[0].legend(
        frameon=False, ncol=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0
    )
    right.axes[1].set_title("|rfft|")
    right.axes[-2].set_xlabel(
        "input n / output class q" if order is None else "log of input n / output class q"
    )
    right.axes[-1].set_xlabel("frequency")
    save(fig, path)


def most_periodic(
    weights: dict[str, np.ndarray], order: np.ndarray | None, count: int
) -> list[int]:
    """Neurons of the highest IPR, each of another dominant frequency."""
    chosen: dict[int, int] = {}
    dominant = spectrum(neuron_rows(weights, order)[-1])[:, 1:].argmax(axis=1)
    for k in np.argsort(-np.nan_to_num(neuron_ipr(weights, order))):
        chosen.setdefault(int(dominant[k]), int(k))
    return list(chosen.values())[:count]


def analytic(
    weights, order, profile, terms, sweep: dict, predicted: int | None, path: Path
) -> None:
    """Written weights as images, their spectra, the logits of one input, what they are made of, and
    accuracy and margin against width: every network a dot, the mean over seeds a line.

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
        style = {
            "aspect": "auto",
            "cmap": "RdBu_r",
            "vmin": -np.abs(x).max(),
            "vmax": np.abs(x).max(),
        }
        drawn = image(
            ax,
            x,
            style,
            title=f"{title}, {count} of {len(weights['W'])} neurons, by frequency",
            ylabel="neuron",
        )
        fig.colorbar(drawn, ax=ax)
    axes[0, 0].set_xlabel("input n" if order[0] == 0 else "lg n")
    axes[0, 1].set_xlabel("class q" if order[0] == 0 else "lg q")
    spectra, style = spectrum(U, axis=0).T, {"aspect": "auto", "cmap": "Greys"}
    image(
        axes[0, 2],
        spectra,
        style,
        title="spectra |rfft| of the rows of U1",
        xlabel="frequency",
        ylabel="neuron",
    )
    shift = len(profile) // 2
    axes[1, 0].vlines(
        np.arange(len(profile)) - shift, 0, np.roll(profile, shift), color=TEST, lw=1.2
    )
    axes[1, 0].set(
        title="logits of the input of the smallest margin",
        xlabel="class minus answer (mod p)",
        ylabel="logit",
    )
    shown = terms[:14]
    colors = [TEST if set(t.m) == {1} else TRAIN for t in shown]
    axes[1, 1].barh([str(t.m) for t in shown], [max(t.rms, 1e-18) for t in shown], color=colors)
    axes[1, 1].invert_yaxis()
    axes[1, 1].set(
        title=f"terms in the logits, {len(shown)} largest of {len(terms)}; blue: the answer",
        xlabel="rms",
        ylabel="m",
    )
    if shown and shown[-1].rms < 1e-6 * shown[0].rms:
        axes[1, 1].set_xscale("log")
    ax, width = axes[1, 2], np.asarray(sweep["width"])
    sizes = np.unique(width)
    for key, color in (("accuracy", TEST), ("min_margin", TRAIN)):
        x = np.asarray(sweep[key])
        ax.plot(width, x, ".", color=color, ms=3, alpha=0.5)
        ax.plot(
            sizes, [x[width == n].mean() for n in sizes], color=color, label=key.replace("_", " ")
        )
    if predicted:
        ax.axvline(predicted, color="0.5", ls="--", label=f"N* = {predicted}")
    label(
        ax,
        9,
        xscale="log",
        xlabel="width N",
        title=f"accuracy and smallest margin, {len(width)} networks",
    )
    ax.set_xticks(sizes, sizes, rotation=60)
    ax.minorticks_off()
    save(fig, path)


def learnability(
    rows: dict[str, dict],
    history: dict,
    before: dict,
    after: dict,
    order,
    residuals: dict,
    path: Path,
) -> None:
    """Polynomials trained side by side: what generalised, and what multiplication learned.

    rows {polynomial: {"test_accuracy", "chance", "quotient_coverage", "learnable"}}
    history {"step", "test_accuracy" (E,), "explained" (E,)}: members in the order of rows, nan
    where nothing is known
    before, after   weights of multiplication at the start and at the end; order: the powers of a primitive root
    residuals {polynomial: psi_W - sum psi_s of every neuron}
    """
    fig = figure(13, 7)
    axes = fig.subplots(2, 3)
    quantities = {"test_accuracy": "test accuracy", "explained": "share of squared weights"}
    for ax, (key, ylabel) in zip(axes[:, 0], quantities.items(), strict=True):
        for (text, row), y in zip(rows.items(), np.array(history[key]).T, strict=True):
            if not np.isnan(y).all():
                ax.plot(
                    history["step"],
                    y,
                    lw=1.2,
                    label=text,
                    **{} if row["learnable"] else {"color": "0.6", "ls": "--"},
                )
        label(ax, 6.5, xlabel="step", ylabel=ylabel, ylim=SHARE)
    axes[1, 0].set_title("explained by one wave a neuron, one frequency for all its parts")
    bars = axes[0, 1]
    accuracy, chance, coverage = (
        [r[key] for r in rows.values()] for key in ("test_accuracy", "chance", "quotient_coverage")
    )
    bars.barh(
        list(rows), accuracy, color=[TEST if r["learnable"] else TRAIN for r in rows.values()]
    )
    bars.plot(chance, list(rows), "k|", ms=12, label="chance (majority answer)")
    bars.plot(coverage, list(rows), "kx", ms=5, label="test inputs with a sibling in training")
    bars.tick_params(axis="y", labelsize=7)
    bars.invert_yaxis()
    bars.set(title="test accuracy; blue: of the form h(g1 + g2) or h(g1 g2)", xlim=(0, 1.02))
    bars.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.4, -0.06), ncol=2)
    networks = {
        "start": (before, order),
        "end, order g^t": (after, order),
        "end, order n": (after, None),
    }
    iprs = {name: neuron_ipr(*network) for name, network in networks.items()}
    histograms(axes[0, 2], iprs, np.linspace(0, 1, 41), ("0.6", TEST, TRAIN))
    label(
        axes[0, 2],
        title="multiplication: IPR of the neurons",
        xlabel="inverse participation ratio",
        ylabel="neurons",
    )
    histograms(axes[1, 1], residuals, np.linspace(-np.pi, np.pi, 61))
    label(
        axes[1, 1], title="phase relation: psi_W - sum of psi_s", xlabel="radians", ylabel="neurons"
    )
    slow = np.isin(
        spectrum(after["U"][0][order], axis=0).argmax(axis=0), range(1, 7)
    )  # few periods, easy to see
    k = int(np.where(slow, np.nan_to_num(neuron_ipr(after, order)), -1).argmax())
    x = after["U"][0][:, k]
    axes[1, 2].plot(x, color=TRAIN, lw=0.8, label="order n")
    axes[1, 2].plot(
        x[order] + 3 * np.abs(x).max(), color=TEST, lw=1, label="order g^t (shifted up)"
    )
    label(axes[1, 2], title=f"multiplication: neuron {k} of U1", xlabel="place", yticks=[])
    save(fig, path)
