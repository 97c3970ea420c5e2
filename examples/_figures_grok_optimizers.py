"""The figure of grok_optimizers.py: test accuracy by step, steps of grokking, learning rates."""

from pathlib import Path

import numpy as np
from _figures_seeds import band

from tinygrok.plots.colors import GREEN, ORANGE, PURPLE, TEST, TRAIN
from tinygrok.plots.style import SHARE, figure, save

SKY = "#56b4e9"  # the seventh colour of Okabe and Ito
COLORS = (TEST, GREEN, TRAIN, ORANGE, PURPLE, SKY, "0.5")
MARKS = "os^DvPX"


def race(rows: dict, reported: dict, args, path: Path) -> None:
    """Optimisers against each other.

    rows      {method: {"lr", "median", "quartiles", "grokked", "networks", "median_by_factor"}}
    reported  {method: outcome of every network: {"step_grok", "test_accuracy": its curve}}
    args      steps, log_every, p, factors"""
    fig = figure(9, 7)
    top, below = fig.subfigures(2, 1, height_ratios=(1, 1))
    curves, legend = top.subplots(1, 2, width_ratios=(3, 1))
    dots, rates = below.subplots(1, 2, width_ratios=(3, 2))
    looks = dict(zip(rows, zip(COLORS, MARKS, strict=True), strict=False))
    for method, (color, mark) in looks.items():
        name = f"{method}, lr {rows[method]['lr']:g}"
        _curve(curves, reported[method], args, color, name)
        _by_rate(rates, rows[method]["median_by_factor"], args.steps, color, mark)
    legend.axis("off")
    legend.legend(*curves.get_legend_handles_labels(), loc="center left", frameon=False)
    curves.axhline(1 / args.p, color="0.3", lw=0.8, ls=":")
    title = "Test accuracy: median of the networks, quartiles shaded (dotted: chance)"
    curves.set(xscale="log", xlabel="step", ylabel="test accuracy", ylim=SHARE, title=title)
    _dots(dots, rows, reported, args.steps, looks)
    rates.axhline(args.steps, color="0.3", lw=0.8, ls=":")
    limits = (0, 1.2 * args.steps)
    title = f"Median by learning rate, other seeds\n(above the line: > {args.steps})"
    rates.set(xscale="log", ylabel="step", title=title, ylim=limits)
    rates.set_xlabel("learning rate / the rate of the method")
    rates.set_xticks(args.factors, [f"{factor:g}" for factor in args.factors])
    rates.minorticks_off()
    for ax in (curves, dots):
        _plain_ticks(ax)
    save(fig, path)


def _plain_ticks(ax) -> None:
    """1, 2, 5, 10, ... on a log axis of steps."""
    low, high = ax.get_xlim()
    decades = 10 ** np.arange(9)
    ticks = np.sort(np.concatenate([decades, 2 * decades, 5 * decades]))
    shown = ticks[(ticks >= low) & (ticks <= high)]
    ax.set_xticks(shown, shown)
    ax.minorticks_off()


def _curve(ax, outcomes: list[dict], args, color: str, name: str) -> None:
    """Networks of a pack stop together, once all have grokked; a curve of one that diverged is held
    at its last value."""
    length = max(len(x["test_accuracy"]) for x in outcomes)
    held = []
    for found in outcomes:
        curve = found["test_accuracy"]
        held.append(curve + [curve[-1]] * (length - len(curve)))
    steps = np.minimum(np.arange(length) * args.log_every, args.steps)
    after = slice(1, None)  # step 0 has no place on a log axis
    band(ax, steps[after], np.transpose(held)[after], color, label=name)


def _dots(ax, rows: dict, reported: dict, last: int, looks: dict) -> None:
    """Every network a dot, median and quartiles a bar; those that never grokked in the margin."""
    for y, (method, (color, _)) in enumerate(looks.items()):
        known = [x["step_grok"] for x in reported[method] if x["step_grok"] is not None]
        spread = np.linspace(-0.25, 0.25, len(known))
        ax.plot(sorted(known), y + spread, ".", color=color, ms=4, alpha=0.7)
        quartiles = [last if x is None else x for x in rows[method]["quartiles"]]
        ax.plot(quartiles, [y, y], color="k", lw=1.2)
        if rows[method]["median"] is not None:
            ax.plot(rows[method]["median"], y, "k|", ms=14, mew=2)
        never = rows[method]["networks"] - len(known)
        if never:
            ax.text(1.06 * last, y, f"{never} never", va="center", fontsize=8)
    ax.axvline(last, color="0.3", lw=0.8, ls=":")
    ax.set_yticks(range(len(looks)), list(looks))
    ax.invert_yaxis()
    title = "Step of grokking of every network; median and quartiles"
    ax.set(xscale="log", xlim=(None, 1.45 * last), xlabel="step to 99 % test accuracy", title=title)


def _by_rate(ax, medians: dict, last: int, color: str, mark: str) -> None:
    """A median that is not known is drawn above the last step."""
    factors = [float(factor) for factor in medians]
    steps = [1.1 * last if step is None else step for step in medians.values()]
    ax.plot(factors, steps, color=color, marker=mark, ms=5, lw=1.2, alpha=0.8)
