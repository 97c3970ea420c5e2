"""The figure of polynomials trained side by side: which of them grok, and what neurons learned."""

from itertools import cycle
from pathlib import Path

import numpy as np
from _figures_seeds import band
from _seeds import quartiles

from tinygrok.plots.colors import INPUTS, ORANGE, TEST, TRAIN
from tinygrok.plots.modular_polynomials import all_neurons, clearest_neurons, mean_ipr
from tinygrok.plots.style import SHARE, figure, histograms, label, save


def learnability(rows: dict, history, before, after, order, residuals: dict, path: Path) -> None:
    """Polynomials trained side by side: what generalised, and what multiplication learned.

    rows       {polynomial: {"test_accuracy", "chance", "quotient_coverage", "learnable"}}
    history    {"step", "test_accuracy" (E,), "explained" (E,), "ipr_product"}: members in the order
               of rows, seed by seed, nan where nothing is known; mean IPR of multiplication, of
               several seeds (seeds,)
    before     weights of multiplication at the start; after: at the end
    order      the powers of a primitive root
    residuals  {polynomial: psi_W - sum psi_s of every neuron}"""
    fig = figure(9, 9.4)
    parts = fig.subfigures(4, 1, height_ratios=(1.2, 1, 1, 1.1))
    looks = _looks(rows)
    steps, bars = parts[0].subplots(1, 2, width_ratios=(1.1, 1))
    _by_step(steps, history, "test_accuracy", looks)
    iprs = np.array(history["ipr_product"])
    several = iprs.ndim > 1
    mean_ipr(steps, history["step"], quartiles(iprs, axis=1)[1] if several else iprs)
    title = "colours as on the right; IPR of n1*n2"
    if several:
        title += f"\n{iprs.shape[1]} seeds: medians, bands between quartiles"
    label(steps, 8, title=title, ylim=SHARE)
    _accuracies(bars, rows, looks)
    waves, phases = parts[1].subplots(1, 2)
    _by_step(waves, history, "explained", looks)
    title = "by one wave a neuron, one frequency for its parts"
    label(waves, title=title, ylabel="share of W, U explained", ylim=SHARE)
    colors = [looks[text]["color"] for text in residuals]
    histograms(phases, residuals, np.linspace(-np.pi, np.pi, 61), colors)
    phases.set(xlabel="phase of W minus those of U1, U2 (radians)", ylabel="neurons")
    clearest_neurons(parts[2], after, order)
    parts[2].supylabel("n1*n2")
    ends = {"n1*n2 at the start": before, f"after {history['step'][-1]} steps": after}
    all_neurons(parts[3], ends, order)
    save(fig, path)


def survey(rows: dict, path: Path) -> None:
    """The paper's table as a picture: a column a modulus, test accuracies above, losses below.

    rows {name: {"polynomial", "p", "test_accuracy", "chance", "train_loss", "test_loss", and the
    paper's numbers as texts, "paper_test_accuracy" in per cent}}"""
    moduli = list(dict.fromkeys(row["p"] for row in rows.values()))
    fig = figure(9, 5.4)
    axes = fig.subplots(2, len(moduli), sharey=True, squeeze=False)
    for (above, below), p in zip(axes.T, moduli, strict=True):
        of_p = [row for row in rows.values() if row["p"] == p]
        names = [row["polynomial"] for row in of_p]
        colors = ["0.6" if row["of_no_form"] else TEST for row in of_p]
        theirs = [float(row["paper_test_accuracy"]) / 100 for row in of_p]
        above.barh(names, [row["test_accuracy"] for row in of_p], color=colors)
        above.plot(theirs, names, "D", color=ORANGE, ms=5, mec="k", label="the paper")
        above.plot([row["chance"] for row in of_p], names, "k|", ms=12, label="chance")
        title = f"p = {p}, width {of_p[0]['width']} (paper: 5000)"
        above.set(title=title, xlim=(0, 1.04), xlabel="test accuracy")
        for split, color, mark in (("train", TRAIN, "s"), ("test", TEST, "o")):
            ours = [row[f"{split}_loss"] for row in of_p]
            theirs = [float(row[f"paper_{split}_loss"]) for row in of_p]
            below.plot(ours, names, mark, color=color, ms=6, label=split)
            hollow = {"mfc": "none", "mec": color, "ms": 10, "label": f"{split}, the paper"}
            below.plot(theirs, names, mark, **hollow)
        below.set(xscale="log", xlabel="loss (MSE)")
    axes[0, 0].invert_yaxis()  # of all, which share it
    for row in axes:
        row[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    fig.suptitle("grey: proved to be of no form h(g1 + g2), h(g1 g2)", fontsize=9)
    save(fig, path)


def _looks(rows: dict[str, dict]) -> dict[str, dict]:
    """{polynomial: the look of its line}: a colour each, grey dashes if it is not learnable."""
    colors = cycle((TEST, *INPUTS))
    grey = {"color": "0.6", "ls": "--"}
    return {x: {"color": next(colors)} if row["learnable"] else grey for x, row in rows.items()}


def _by_step(ax, history: dict, key: str, looks: dict[str, dict]) -> None:
    """A curve for every polynomial of which something is known; of several seeds a band."""
    members = np.array(history[key])
    seeds = members.reshape(len(members), -1, len(looks))
    for i, style in enumerate(looks.values()):
        curve = seeds[:, :, i]
        if np.isfinite(curve).any():
            band(ax, history["step"], curve, lw=1.4, **style)
    ax.set(xlabel="step", ylabel=key.replace("_", " "))


def _accuracies(ax, rows: dict[str, dict], looks: dict[str, dict]) -> None:
    names = list(rows)
    accuracy = [row["test_accuracy"] for row in rows.values()]
    chance = [row["chance"] for row in rows.values()]
    coverage = [row["quotient_coverage"] for row in rows.values()]
    ax.barh(names, accuracy, color=[look["color"] for look in looks.values()])
    if "test_accuracy_quartiles" in rows[names[0]]:
        low, middle, high = np.transpose([row["test_accuracy_quartiles"] for row in rows.values()])
        spread = {"fmt": "none", "ecolor": "k", "elinewidth": 1, "capsize": 2}
        ax.errorbar(middle, names, xerr=[middle - low, high - middle], **spread)
    ax.plot(chance, names, "k|", ms=10, label="chance (majority answer)")
    ax.plot(coverage, names, "kx", ms=5, label="test inputs with a sibling in training")
    ax.invert_yaxis()
    ax.set(title="test accuracy; grey: no h(g1 + g2), h(g1 g2)", xlim=(0, 1.02))
    ax.legend(frameon=False, fontsize=8, loc="upper right", bbox_to_anchor=(1, -0.1))
