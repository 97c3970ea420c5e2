"""Figures of signal propagation: phase diagrams, kernels and Jacobians against depth."""

from pathlib import Path

import numpy as np

from .style import TEST, TRAIN, figure, save


def critical_init(
    maps: dict, axes, line, point, profiles: dict, title: str, path: Path, power: bool
) -> None:
    """Above: chi_J over (sigma_w^2, sigma_b^2), by theory and as measured, with the critical line.

    Below: quantities of networks at the marked point against depth, theory as a line, networks as
    points with standard errors.

    maps      {title: (len(sb2), len(sw2))}, over axes (sw2, sb2)
    line      (sw2, sb2) or None
    point     (sw2, sb2)
    profiles  {title: (layers, theory, mean, error)}
    power     the last of them on a logarithmic depth axis: a power law is expected"""
    fig = figure(11, 7.8)
    top, bottom = fig.subfigures(2, 1, height_ratios=(1.15, 1))
    upper = top.subplots(1, 2)
    lower = bottom.subplots(1, len(profiles))
    style = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1, "shading": "nearest"}
    star = {"color": "gold", "mec": "k", "ms": 13, "clip_on": False}
    for ax, (name, chi) in zip(upper, maps.items(), strict=True):
        ax.pcolormesh(*axes, np.log(chi), **style)
        ax.set(title=name, xlabel="$\\sigma_w^2$", ylabel="$\\sigma_b^2$")
        ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())  # the line does not widen them
        if line is not None:
            ax.plot(*line, "k--", lw=1.3, label="$\\chi_J^* = 1$")
        ax.plot(*point, "*", label="the networks below", **star)
    upper[0].legend(fontsize=8, loc="upper left")
    scale = "$\\ln\\chi_J$   blue: ordered, red: chaotic"
    top.colorbar(upper[-1].collections[0], ax=upper, label=scale, extend="both")
    dots = {"fmt": ".", "ms": 5, "color": TEST, "lw": 1}
    for ax, name in zip(lower, profiles, strict=True):
        layers, theory, mean, error = profiles[name]
        ax.errorbar(layers, mean, error, label="networks, standard error", **dots)
        ax.plot(layers, theory, color=TRAIN, lw=1.3, label="theory, infinite width")
        wide = np.max(theory) > 3 * np.min(theory)
        ax.set(xlabel="layer $l$", title=name, yscale="log" if wide else "linear")
    if power:
        lower[-1].set_xscale("log")
    lower[0].legend(frameon=False, fontsize=8)
    fig.suptitle(title)
    save(fig, path)
