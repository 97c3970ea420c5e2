"""Curves of several seeds: a line for the median, a band between the quartiles."""

from pathlib import Path

import numpy as np
from _seeds import histories, quartiles

from tinygrok.plots.colors import TEST, TRAIN
from tinygrok.plots.style import SHARE, chance, label, log_steps, panels, save
from tinygrok.probes.phases import step_of_99

SPLITS = (("train", TRAIN, "--"), ("test", TEST, "-"))


def band(ax, x, values, color=None, alpha=0.25, **style) -> None:
    """A curve of values (T,), or (T, 1), over x; the median and quartiles of (T, E), where known:
    infinite ones are left out."""
    table = np.asarray(values, dtype=float)
    table = table.reshape(len(table), -1)
    if table.shape[1] == 1:
        ax.plot(x, table, color=color, **style)
        return
    low, middle, high = quartiles(table, axis=1)
    (line,) = ax.plot(x, middle, color=color, **style)
    ax.fill_between(x, low, high, color=line.get_color(), alpha=alpha, lw=0)


def reached(ax, steps: list[int | None], last: int, **style) -> None:
    """The share of the networks that had reached something by every step up to the last."""
    known = sorted(step for step in steps if step is not None)
    shares = np.arange(len(known) + 1) / len(steps)
    ax.step([0, *known, last], [*shares, shares[-1]], where="post", **style)


def grokking(run, path: Path) -> None:
    """Losses, accuracies and mean IPR of an ensemble by step, and when its networks memorised and
    grokked."""
    fig, (loss, acc, when) = panels(3, 3.6, 3.4)
    history = run.history
    steps = history["step"]
    verbs = {"train": "memorised (99% train)", "test": "grokked (99% test)"}
    for split, color, ls in SPLITS:
        for ax, quantity in ((loss, "loss"), (acc, "accuracy")):
            band(ax, steps, history[f"{split}_{quantity}"], color, ls=ls, label=split)
        at = [step_of_99(member, split) for member in histories(run)]
        reached(when, at, steps[-1], color=color, ls=ls, label=verbs[split])
    if "ipr_mean" in history:
        band(acc, steps, history["ipr_mean"], "k", 0.15, ls="-.", label="mean IPR")
    for ax in (loss, acc, when):
        log_steps(ax, steps)
        ax.set_xlabel("step")
    chance(acc, run.model.classes)
    loss_name = run.objective.loss.replace("_", "-")
    label(loss, 9, yscale="log", ylabel=f"{loss_name} loss")
    title = f"{run.params.members} seeds: medians, bands between quartiles"
    label(acc, 8, title=title, ylabel="accuracy, mean IPR", ylim=SHARE)
    label(when, 8, title="networks that got there", ylabel="share of the networks", ylim=SHARE)
    save(fig, path)
