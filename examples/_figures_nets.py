"""Figures of the networks behind --net other than the two-layer one."""

from pathlib import Path

import _nets
import numpy as np

from tinygrok.plots.colors import GREEN, TEST
from tinygrok.plots.style import FILLED, SHARE, chance, curves, figure, histograms, label, save
from tinygrok.probes.fourier import ipr
from tinygrok.probes.phases import step_of_99

KEY_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
NAMES = {"U1": "first layer, U1", "W": "read-out, W", "E": "embedding, E"}


def grokking(run, path: Path) -> None:
    """Losses and accuracies; where waves are known, the progress measures of the grokking
    literature and the IPR of rows at the start and at the end."""
    history = run.history
    waves = "answer_means" in history
    fig = figure(8, 7.6 if waves else 3)
    parts = fig.subfigures(3 if waves else 1, 1, squeeze=False)[:, 0]
    loss, acc = parts[0].subplots(1, 2)
    curves(loss, history, "loss", f"{run.objective.loss.replace('_', '-')} loss")
    loss.set_yscale("log")
    _accuracies(acc, history, run.model.classes)
    if waves:
        key = _nets.key_frequencies(history["answer_means"][-1])
        measure, alone = parts[1].subplots(1, 2, width_ratios=(1, 1.15))
        _progress(measure, run, key)
        _excluded(alone, history, key)
        _spectra_and_rows(parts[2], run, key)
    save(fig, path)


def _accuracies(ax, history: dict, classes: int) -> None:
    curves(ax, history, "accuracy", "accuracy")
    steps = [step_of_99(history, split) for split in ("train", "test")]
    said = ["never" if step is None else f"at step {step}" for step in steps]
    if "ipr_mean" in history:
        ax.plot(history["step"], history["ipr_mean"], color="k", ls="-.", label="mean IPR")
        ax.set_ylabel("accuracy, mean IPR")
    chance(ax, classes)
    ax.set_title(f"99%: train {said[0]}, test {said[1]}")
    label(ax, 8, ylim=SHARE)


def _progress(ax, run, key: list[int]) -> None:
    """Restricted loss of all pairs and excluded loss of training pairs, beside the usual ones."""
    history = run.history
    curves(ax, history, "loss", "loss")
    steps = history["step"]
    restricted = [_nets.restricted(run, means, key) for means in history["answer_means"]]
    ax.plot(steps, restricted, color=GREEN, ls="-.", label="restricted, all pairs")
    strongest = key[: len(KEY_COLORS)]
    said = ", ".join(map(str, strongest)) or "none"
    if len(key) > len(strongest):
        said += ", ..."
    label(ax, 8, yscale="log", title=f"key frequencies of the logits: {said}")


def _excluded(ax, history: dict, key: list[int]) -> None:
    """The loss of training pairs without one key frequency."""
    alone = np.array(history["excluded_alone"])
    for k, color in zip(key, KEY_COLORS, strict=False):
        ax.plot(history["step"], alone[:, k], color=color, label=f"k = {k}")
    ax.plot(history["step"], history["train_loss"], "k--", label="with all")
    about = "train loss without frequency k"
    label(ax, 8, above=4, yscale="log", xlabel="step", ylabel=about)


def _spectra_and_rows(fig, run, key: list[int]) -> None:
    """Power of the logits by frequency of the answer, and the IPR of rows."""
    rows = [_nets.rows_of(weights, run.order) for weights in (run.first, run.params.to_host())]
    chosen = [name for name in NAMES if name in rows[0]]
    power, *axes = fig.subplots(1, 1 + len(chosen))
    means = run.history["answer_means"]
    ends = {"at the start": means[0], "at the end": means[-1]}
    for (name, x), color in zip(ends.items(), ("0.6", TEST), strict=True):
        found = _nets.shares(x)
        power.bar(np.arange(len(found)), found, color=color, alpha=0.8, label=name)
    power.set(xlabel="frequency of the answer", ylabel="share of the logits' power")
    label(power, 8, above=1)
    for ax, name in zip(axes, chosen, strict=True):
        before, after = (ipr(found[name]) for found in rows)
        means = {"start": before, "end": after}
        samples = {f"{when}, mean {np.nanmean(x):.2f}": x for when, x in means.items()}
        histograms(ax, samples, np.linspace(0, 1, 41), ("0.6", TEST), **FILLED)
        label(ax, 8, above=1, xlabel=f"IPR, {NAMES[name]}", ylabel="rows")
