"""The figure of deep_mixer.py: how J grows through the blocks, and what plain SGD makes of it."""

from pathlib import Path

import numpy as np

from tinygrok.plots.colors import INPUTS, TEST
from tinygrok.plots.style import SHARE, chance, legend_below, panels, save

STYLES = ("-", "--", ":", "-.")


def deep_mixer(args, curves: dict, results: dict, theory: dict, J: dict, classes, path: Path):
    """Left log10 J^{l,L} against l, theory as lines, a network as points; training loss and test
    accuracy against steps.

    curves   {mu: history, "diverged"}
    theory   {mu: (correlation length, log10 J)}; J {mu: log10 J as measured}"""
    fig, (left, middle, right) = panels(3, 3.6, 4.6)
    colors = [TEST, *INPUTS]
    for i, (mu, history) in enumerate(curves.items()):
        look = {"color": colors[i % len(colors)], "ls": STYLES[i % len(STYLES)]}
        xi, expected = theory[mu]
        depths = np.arange(len(expected))
        length = "a power law" if xi is None else f"$\\xi$ = {xi:.3g} blocks"
        left.plot(depths, expected, label=f"$\\mu$ = {mu:g}: {length}", **look)
        left.plot(depths, J[mu], ".", ms=4, color=look["color"])
        rate = f"$\\mu$ = {mu:g}, rate {results[f'mu {mu:g}']['lr']:g}"
        if history["diverged"] is not None:
            rate += f", diverged at step {history['diverged']}"
        middle.plot(history["step"], history["train_loss"], label=rate, **look)
        right.plot(history["step"], history["test_accuracy"], label=rate, **look)
    blocks = f"$l$ of {args.depth} blocks"
    title = "squared Jacobian, last block by\nblock $l$ (lines: theory, points: a network)"
    legend_below(left, 1, title=title, xlabel=blocks, ylabel="$\\log_{10} J^{l,L}$")
    middle.axhline(np.log(classes), color="0.6", lw=1, zorder=0, label=f"guessing, ln {classes}")
    middle.set_ylim(0, 2 * np.log(classes))  # one that diverges leaves
    legend_below(middle, 1, title="training", xlabel="step of SGD", ylabel="training loss (nats)")
    chance(right, classes)
    legend_below(right, 1, title="test", xlabel="step of SGD", ylabel="test accuracy", ylim=SHARE)
    fig.suptitle(f"Mixer of {args.depth} blocks, {args.activation}, $\\sigma_w^2$ = {args.sw2:g}")
    save(fig, path)
