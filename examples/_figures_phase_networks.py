"""Phase diagrams of many kinds of networks, a panel a kind and a residual strength."""

from pathlib import Path

import numpy as np

from tinygrok.plots.style import figure, save

LEVELS = (-0.7, -0.35, 0.0, 0.35, 0.7)  # of ln chi: chi about 1/2, 0.7, 1, 1.4, 2
COLOURS = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1, "shading": "nearest"}


def phase_networks(maps: dict, theories: dict, axes, title: str, path: Path) -> None:
    """ln chi over (sigma_w^2, sigma_b^2), as measured in colours, by theory in lines.

    maps      {(name, mu): chi (len(sb2), len(sw2))}, over axes (sw2, sb2)
    theories  the same of the theory over axes of its own: {(name, mu): (sw2, sb2, chi)}"""
    names = list(dict.fromkeys(name for name, _ in maps))
    strengths = list(dict.fromkeys(mu for _, mu in maps))
    fig = figure(0.7 + 2.4 * len(strengths), 1.4 + 1.75 * len(names))
    panels = fig.subplots(len(names), len(strengths), squeeze=False, sharex=True, sharey=True)
    for (i, j), ax in np.ndenumerate(panels):
        key = names[i], strengths[j]
        drawn = ax.pcolormesh(*axes, np.log(maps[key]), **COLOURS)
        ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())  # the lines do not widen them
        if key in theories:
            theory_lines(ax, *theories[key])
        ax.set_title(f"{names[i]}, $\\mu$ = {strengths[j]:g}", fontsize=8)
    for ax in panels[-1]:
        ax.set_xlabel("$\\sigma_w^2$")
    for ax in panels[:, 0]:
        ax.set_ylabel("$\\sigma_b^2$")
    scale = "measured $\\ln\\chi$ a block   blue: ordered, white: critical, red: chaotic"
    bar = {"location": "bottom", "extend": "both", "shrink": 0.8, "aspect": 50, "pad": 0.01}
    fig.colorbar(drawn, ax=panels, label=scale, **bar)
    fig.suptitle(title, fontsize=9)
    save(fig, path)


def theory_lines(ax, sw2, sb2, chi) -> None:
    """Lines of equal ln chi; where it is 0 the thick one."""
    logs = np.log(chi)
    inside = [level for level in LEVELS if logs.min() < level < logs.max()]
    if not inside:
        return
    widths = [1.8 if level == 0 else 0.7 for level in inside]
    drawn = ax.contour(sw2, sb2, logs, inside, colors="k", linewidths=widths, linestyles="solid")
    ax.clabel(drawn, fontsize=6, fmt="%g")
