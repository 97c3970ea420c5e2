"""Figures of signal propagation: phase diagrams, kernels and Jacobians against depth."""

from pathlib import Path

import numpy as np

from .style import TEST, TRAIN, figure, save


def critical_init(
    maps: dict, axes, line, point, profiles: dict, title: str, path: Path, power: bool
) -> None:
    """chi_J over (sigma_w^2, sigma_b^2), by theory and as measured, with the critical line and the
    point that the lower row was measured at: quantities against depth, theory as a line, networks
    as points with standard errors.

    maps {title: (len(sb2), len(sw2))}   axes (sw2, sb2)   line (sw2, sb2) or None
    profiles {title: (layers, theory, mean, error)}, the last on a logarithmic depth axis if a power
    law is expected"""
    fig = figure(11, 7.8)
    top, bottom = fig.subfigures(2, 1, height_ratios=(1.15, 1))
    upper, lower = top.subplots(1, 2), bottom.subplots(1, len(profiles))
    for ax, (name, chi) in zip(upper, maps.items(), strict=True):
        image = ax.pcolormesh(*axes, np.log(chi), cmap="RdBu_r", vmin=-1, vmax=1, shading="nearest")
        ax.set(
            title=name,
            xlabel="$\\sigma_w^2$",
            ylabel="$\\sigma_b^2$",
            xlim=ax.get_xlim(),
            ylim=ax.get_ylim(),
        )
        if line is not None:
            ax.plot(*line, "k--", lw=1.3, label="$\\chi_J^* = 1$")
        ax.plot(
            *point, "*", color="gold", mec="k", ms=13, label="the networks below", clip_on=False
        )
    upper[0].legend(fontsize=8, loc="upper left")
    top.colorbar(
        image, ax=upper, label="$\\ln\\chi_J$   blue: ordered, red: chaotic", extend="both"
    )
    for ax, (name, (layers, theory, mean, error)) in zip(lower, profiles.items(), strict=True):
        ax.errorbar(
            layers, mean, error, fmt=".", ms=5, color=TEST, lw=1, label="networks, standard error"
        )
        ax.plot(layers, theory, color=TRAIN, lw=1.3, label="theory, infinite width")
        scale = "log" if np.max(theory) > 3 * np.min(theory) else "linear"
        ax.set(xlabel="layer $l$", title=name, yscale=scale)
    if power:
        lower[-1].set_xscale("log")
    lower[0].legend(frameon=False, fontsize=8)
    fig.suptitle(title)
    save(fig, path)
