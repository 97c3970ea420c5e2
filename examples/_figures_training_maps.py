"""The figure of training maps: accuracies over (sigma_w^2, sigma_b^2), with the critical line."""

from pathlib import Path

import numpy as np
from _training_maps import theory_in_words

from tinygrok.plots.colors import TRAIN, UNIT
from tinygrok.plots.style import figure, save

MAP = UNIT | {"cmap": "cividis", "shading": "nearest"}
NORMS = {"none": "no norm", "pre": "LayerNorm, then $\\phi$", "act": "$\\phi$, then LayerNorm"}
NORMS |= {"post": "LayerNorm of every layer", "batch": "BatchNorm, then $\\phi$"}


def training_maps(args, maps: dict, axes, lines: dict, results: dict, path: Path) -> None:
    """A column for every map; above the accuracy in training, below in test.

    maps    {(norm, mu): {"train_accuracy", "test_accuracy", "log10_J": (sb2, sw2)}} over axes
    lines   {(norm, mu): (sw2, sb2) where chi_J* = 1, or None}"""
    from matplotlib import patheffects

    halo = [patheffects.withStroke(linewidth=4, foreground="w")]
    fig = figure(2.9 * len(maps) + 1.6, 6.4)
    critical: list = []
    grid = fig.subplots(2, len(maps), sharex=True, sharey=True, squeeze=False)
    for column, (panel, found) in zip(grid.T, maps.items(), strict=True):
        norm, mu = panel
        for ax, split in zip(column, ("train", "test"), strict=True):
            ax.set_facecolor("w")  # where every rate diverged
            drawn = ax.pcolormesh(*axes, found[f"{split}_accuracy"], **MAP)
            # The line does not widen the axes, and no variance is negative.
            ax.set(xlim=np.maximum(ax.get_xlim(), 0), ylim=np.maximum(ax.get_ylim(), 0))
            if lines[panel] is not None:
                style = {"color": TRAIN, "lw": 2, "path_effects": halo}
                critical += ax.plot(*lines[panel], **style)
        place = ""
        if lines[panel] is None:
            place = f"\ntheory: {theory_in_words(args.activation, norm, mu)}"
        column[0].set_title(f"{NORMS[norm]}, $\\mu$ = {mu:g}{place}")
        column[1].set_xlabel("$\\sigma_w^2$")
    for ax, split in zip(grid[:, 0], ("training", "test"), strict=True):
        ax.set_ylabel(f"accuracy in {split}\n\n$\\sigma_b^2$")
    bar = fig.colorbar(drawn, ax=grid, aspect=40, label="accuracy (white: every rate diverged)")
    chance = results["chance"]
    bar.set_ticks([0, chance, 0.5, 1], labels=["0", f"chance {chance:.2g}", "0.5", "1"])
    bar.ax.axhline(chance, color="w")
    if critical:
        names = ["critical by theory, $\\chi_J^* = 1$"]
        fig.legend(critical[:1], names, loc="outside lower center", frameon=False)
    network = f"{args.activation}, {args.depth} layers of {args.width}"
    rates = "one learning rate" if len(args.lr) == 1 else f"the best of {len(args.lr)} rates a cell"
    fig.suptitle(f"{network}, {args.steps} steps of SGD, {rates}")
    save(fig, path)
