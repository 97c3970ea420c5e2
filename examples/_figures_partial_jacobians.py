"""Figures of signal propagation: phase diagrams, kernels and Jacobians against depth."""

from pathlib import Path

import numpy as np

from tinygrok.criticality.meanfield import MeanField
from tinygrok.plots.colors import TEST, TRAIN
from tinygrok.plots.style import figure, legend_below, save


def critical_init(
    case: MeanField, maps: dict, axes, line, profiles: dict, table: dict, zeta, path: Path
) -> None:
    """Above: chi_J over (sigma_w^2, sigma_b^2), by theory and as measured, with the critical line.

    Below: quantities of networks of the case, whose point is marked, against depth, theory as a
    line, networks as points with standard errors.

    maps      {title: (len(sb2), len(sw2))}, over axes (sw2, sb2)
    line      (sw2, sb2) or None
    profiles  {"K", "chi_J", "J": (layers, theory, mean, error)}
    table     comparison of theory and networks (_critical_networks.compare)
    zeta      exponent of J at infinite depth; None: J is no power of the depth"""
    panels = _panels(case, profiles, table, zeta)
    fig = figure(9.6, 8)
    top, bottom = fig.subfigures(2, 1, height_ratios=(1.15, 1))
    upper = top.subplots(1, 2)
    lower = bottom.subplots(1, len(panels))
    style = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1, "shading": "nearest"}
    star = {"color": "gold", "mec": "k", "ms": 13, "clip_on": False}
    for ax, (name, chi) in zip(upper, maps.items(), strict=True):
        ax.pcolormesh(*axes, np.log(chi), **style)
        ax.set(title=name, xlabel="$\\sigma_w^2$", ylabel="$\\sigma_b^2$")
        ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())  # the line does not widen them
        if line is not None:
            ax.plot(*line, "k--", lw=1.3, label="$\\chi_J^* = 1$")
        ax.plot(case.sw2, case.sb2, "*", label="the networks below", **star)
    upper[0].legend(fontsize=8, loc="upper left")
    scale = "$\\ln\\chi_J$   blue: ordered, red: chaotic"
    top.colorbar(upper[-1].collections[0], ax=upper, label=scale, extend="both")
    dots = {"fmt": ".", "ms": 5, "color": TEST, "lw": 1}
    for ax, (name, profile) in zip(lower, panels.items(), strict=True):
        layers, theory, mean, error = profile
        ax.errorbar(layers, mean, error, label="networks, standard error", **dots)
        ax.plot(layers, theory, color=TRAIN, lw=1.3, label="theory, infinite width")
        wide = np.max(theory) > 3 * np.min(theory)
        ax.set(xlabel="layer $l$", title=name, yscale="log" if wide else "linear")
    if zeta is not None:  # a power law is a line on two logarithmic axes
        lower[-1].set_xscale("log")
    legend_below(lower[0], 1)
    point = f"$\\sigma_w^2$ = {case.sw2:.4g}, $\\sigma_b^2$ = {case.sb2:.4g}"
    fig.suptitle(f"{case.activation}, norm: {case.norm}, $\\mu$ = {case.mu:g}, {point}")
    save(fig, path)


def _panels(case: MeanField, profiles: dict, table: dict, zeta: float | None) -> dict:
    """{title: profile} of K, chi_J and J, with J's exponent or its decay a layer.

    Without K for BatchNorm, where the theory's is the variance over the batch."""
    law = "decay a layer" if zeta is None else "exponent"
    limit = "" if zeta is None else f", at infinite depth {zeta:.3g}"
    at_depth, measured, error, _ = table["-d ln J/dl" if zeta is None else "-d ln J/d ln l"]
    last = len(profiles["J"][0])
    fit = f"{law} {measured:.3f} $\\pm$ {error:.3f}\ntheory {at_depth:.3f}{limit}"
    panels = {
        "kernel $K^l$": profiles["K"],
        "$\\chi_J^l = J^{l,l+1}$": profiles["chi_J"],
        f"$J^{{l,{last}}}$: {fit}": profiles["J"],
    }
    if case.norm == "batch":
        del panels["kernel $K^l$"]
    return panels
