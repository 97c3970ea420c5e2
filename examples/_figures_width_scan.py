"""The figure of a width scan: how many neurons are needed, and how many can go."""

from pathlib import Path

import numpy as np
from _seeds import quartiles, quartiles_of_steps

from tinygrok.plots.colors import INPUTS, TEST
from tinygrok.plots.style import SHARE, label, log2, panels, save


def widths(args, table: dict, results: dict, path: Path) -> None:
    """Neurons needed, the share that can be pruned, and the accuracy, against width.

    table    {(p, width): {"needed": [...], "prunable": [...], "test_accuracy": [...]}}
    results  {"p = P: exponent": quartiles or None}"""
    fig, (needed, prunable, accuracy) = panels(3, 3.5, 3.5)
    x = args.widths
    colors = [TEST, *INPUTS]
    for i, p in enumerate(args.p):
        color = colors[i % len(colors)]
        columns = [table[p, width] for width in x]
        law = results[f"p = {p}: exponent"]
        power = "" if law is None else f", width^{law[1]:.2f}"
        counts = np.array([quartiles_of_steps(c["needed"]) for c in columns], dtype=float)
        _curve(needed, x, counts.T, color, f"p = {p}{power}")
        shares = [quartiles(c["prunable"]) for c in columns]
        _curve(prunable, x, np.transpose(shares), color, f"p = {p}")
        for split, ls in (("test", "-"), ("corrupted", ":")):
            rates = [quartiles(c[f"{split}_accuracy"]) for c in columns]
            name = split if i == 0 else None
            _curve(accuracy, x, np.transpose(rates), color, name, ls=ls)
    needed.plot(x, x, color="0.6", lw=1, ls="--", label="all of them")
    needed.set_ylim(4, 2 * max(x))  # where no width was enough there is no curve
    for ax in (needed, prunable, accuracy):
        log2(ax, *("xy" if ax is needed else "x"))
    title = f"neurons that must stay for 99%\n{args.seeds} seeds: medians, quartiles"
    label(needed, 8, title=title, xlabel="width", ylabel="neurons needed")
    label(prunable, 8, title="share that can go,\nlowest IPR first", xlabel="width", ylim=SHARE)
    label(accuracy, 8, title="accuracy of the whole network", xlabel="width", ylim=SHARE)
    save(fig, path)


def _curve(ax, x, three, color, name, **style) -> None:
    """Medians with a band between the quartiles (3, n); nan where a quartile is not known."""
    low, middle, high = three
    ax.plot(x, middle, color=color, label=name, marker="o", ms=3, **style)
    ax.fill_between(x, low, high, color=color, alpha=0.25, lw=0)
