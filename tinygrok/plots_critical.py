"""Figures of signal propagation: phase diagrams, kernels and Jacobians against depth."""

from pathlib import Path

import numpy as np

from .plots import TEST, TRAIN, figure, save


def critical_init(maps: dict, axes, line, point, profiles: dict, labels: dict, title: str, path: Path) -> None:
    """chi_J over (sigma_w^2, sigma_b^2), by theory and as measured, with the critical line and the point that the lower
    row was measured at: quantities against depth, theory as a line, networks as points with standard errors.

    maps {title: (len(sb2), len(sw2))}   axes (sw2, sb2)   line (sw2, sb2) or None
    profiles {quantity: (layers, theory, mean, error)}; labels {quantity: (x label, title)}
    """
    fig = figure(10, 7.6)
    upper, lower = fig.subplots(2, 2)
    bound = min(max(np.nanmax(abs(np.log(m))) for m in maps.values()), 1.5)
    for ax, (name, chi) in zip(upper, maps.items(), strict=True):
        image = ax.pcolormesh(*axes, np.log(chi), cmap="RdBu_r", vmin=-bound, vmax=bound, shading="nearest")
        ax.set(title=name, xlabel="$\\sigma_w^2$", ylabel="$\\sigma_b^2$", xlim=ax.get_xlim(), ylim=ax.get_ylim())
        if line is not None:
            ax.plot(*line, "k--", lw=1.2, label="critical line")
        ax.plot(*point, "k*", ms=9, label="measured below", clip_on=False)
    upper[0].legend(frameon=False, fontsize=8, loc="upper left")
    fig.colorbar(image, ax=upper, label="$\\ln \\chi_J$: ordered (blue), chaotic (red)")
    for ax, (name, (layers, theory, mean, error)) in zip(lower, profiles.items(), strict=True):
        ax.plot(layers, theory, color=TRAIN, lw=1.2, label="theory, infinite width")
        ax.errorbar(layers, mean, error, fmt=".", ms=4, color=TEST, lw=1, label="networks, standard error")
        ax.set(xlabel=labels[name][0], title=labels[name][1], ylabel=name, yscale="log")
        ax.legend(frameon=False, fontsize=8)
    fig.suptitle(title)
    save(fig, path)
