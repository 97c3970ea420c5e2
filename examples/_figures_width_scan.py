"""The figure of a width scan: how many neurons are needed, and how many can go."""

from pathlib import Path

import numpy as np
from _figures_seeds import band

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
        dots = {"color": color, "marker": "o", "ms": 3}
        counts = np.array([column["needed"] for column in columns], dtype=float)  # nan: never
        counts[np.isnan(counts)] = np.inf
        band(needed, x, counts, label=f"p = {p}{power}", **dots)
        band(prunable, x, [column["prunable"] for column in columns], label=f"p = {p}", **dots)
        for split, ls in (("test", "-"), ("corrupted", ":")):
            rates = [column[f"{split}_accuracy"] for column in columns]
            band(accuracy, x, rates, label=split if i == 0 else None, ls=ls, **dots)
    needed.plot(x, x, color="0.6", lw=1, ls="--", label="all of them")
    for ax in (needed, prunable, accuracy):
        log2(ax, *("xy" if ax is needed else "x"))
        ax.set_xlim(min(x) / 1.2, 1.2 * max(x))  # also where no width was enough: no curve
    needed.set_ylim(4, 2 * max(x))
    title = f"neurons that must stay for 99%\n{args.seeds} seeds: medians, quartiles"
    label(needed, 8, title=title, xlabel="width", ylabel="neurons needed")
    label(prunable, 8, title="share that can go,\nlowest IPR first", xlabel="width", ylim=SHARE)
    label(accuracy, 8, title="accuracy of the whole network", xlabel="width", ylim=SHARE)
    save(fig, path)
