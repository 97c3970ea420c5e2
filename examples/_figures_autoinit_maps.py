"""The figure of AutoInit's dynamics: maps of convergence, curves of both losses, and what the
tuning finds with norms and residual connections."""

from pathlib import Path

import numpy as np
from _autoinit_maps import KAPPA, LOSSES, RESIDUAL
from _autoinit_theory import (
    BATCHNORM_RATIO,
    relu_dynamics,
    relu_monotone,
    residual_dynamics,
    residual_sigma,
)

from tinygrok.plots.colors import GREEN, ORANGE, PURPLE, TEST, TRAIN
from tinygrok.plots.style import legend_below, log2, panels, save

NAMES = {"none": "no norm", "pre": "LayerNorm", "batch": "BatchNorm"}
STYLES = {"none": ("o", TEST), "pre": ("s", GREEN), "batch": ("^", TRAIN)}
UNSETTLED = "0.8"
DIVERGED = "0.2"


def maps(maps: dict, curves: list, networks: dict, law: list, path: Path) -> None:
    """Above: the maps of both losses with the theory's lines, and tunings of both. Below: sigma_w
    by block, sigma_w by strength of residual connections, and J - 1 for mu = 1.

    maps      {loss: [(point, outcome in theory, measured outcome)]}
    curves    [(point, measured outcome)]
    networks  {(norm, mu): what was found}
    law       J before every step and at the end, mu = 1"""
    fig, axes = panels(6, 3.2, 4.4, 3)
    for ax, (loss, rows) in zip(axes, maps.items(), strict=False):
        _map(fig, ax, loss, rows)
    _curves(axes[2], curves)
    _by_block(axes[3], networks)
    _by_strength(axes[4], networks)
    _without_end(axes[5], law)
    save(fig, path)


def _edges(axis):
    """Borders of the cells of a logarithmic axis."""
    half = (axis[1] / axis[0]) ** 0.5
    return [axis[0] / half, *(x * half for x in axis)]


def _map(fig, ax, loss: str, rows: list) -> None:
    """Steps until J = 1 over (sigma_w, learning rate); dots where J crossed it."""
    from matplotlib.colors import ListedColormap

    sigmas = sorted({point["sigma_w"] for point, _, _ in rows})
    rates = sorted({point["lr"] for point, _, _ in rows})
    steps = np.full((len(rates), len(sigmas)), np.nan)
    unsettled = np.full(steps.shape, np.nan)
    dots = []
    for point, _, found in rows:
        cell = rates.index(point["lr"]), sigmas.index(point["sigma_w"])
        if found["settled"] is not None:
            steps[cell] = found["settled"]
        else:
            unsettled[cell] = found["finite"]
        if found["crossed"]:
            dots.append((point["sigma_w"], point["lr"]))
    borders = (_edges(sigmas), _edges(rates))
    colors = ListedColormap([DIVERGED, UNSETTLED])
    ax.pcolormesh(*borders, unsettled, cmap=colors, vmin=0, vmax=1)
    last = rows[0][0]["steps"]
    drawn = ax.pcolormesh(*borders, steps, cmap="viridis", vmin=0, vmax=last)
    fig.colorbar(drawn, ax=ax, location="top", label=f"{loss} loss: steps until J = 1")
    style = {"ls": "", "marker": "o", "color": "w", "mec": "k", "mew": 0.5, "ms": 2.5}
    crossed = np.array(dots).reshape(-1, 2)
    ax.plot(crossed[:, 0], crossed[:, 1], **style, label="J crossed 1 on the way")
    horizontal, vertical = ([axis[0], axis[-1]] for axis in borders)
    ax.set(xlim=horizontal, ylim=vertical)
    _lines(ax, loss, *horizontal)
    for color, name in ((UNSETTLED, f"not at 1 in {last} steps"), (DIVERGED, "not finite")):
        ax.plot([], [], "s", color=color, label=name)
    log2(ax, "x")
    ax.set_yscale("log")
    legend_below(ax, 1, xlabel="$\\sigma_w$ of the start", ylabel="learning rate")


def _lines(ax, loss: str, low: float, high: float) -> None:
    """The theory's lines: stability, the largest monotone step, divergence of the square loss."""
    sigmas = np.geomspace(low, high, 200)
    J = sigmas**2 / 2
    ax.plot(sigmas, 1 / sigmas**2, color=TRAIN, lw=1.6, label="stable below $1/\\sigma_w^2$")
    monotone = np.array([relu_monotone(x, loss) for x in J])
    ax.plot(sigmas, monotone / sigmas**2, "--", color=ORANGE, lw=1.6, label="largest monotone step")
    if loss == "square":
        above = J > 1
        limit = 2 / (sigmas[above] ** 2 * (J[above] - 1))
        ax.plot(sigmas[above], limit, ":", color=PURPLE, lw=2, label="$J = 1 + 2/\\kappa$")


def _curves(ax, curves: list) -> None:
    """J by step from several J, measured as points and in theory as lines."""
    styles = dict(zip(LOSSES, (("o", "-", TEST), ("x", "--", TRAIN)), strict=True))
    for loss, (marker, dashes, color) in styles.items():
        ax.plot([], [], marker + dashes, color=color, ms=4, label=f"{loss} loss")
    for point, found in curves:
        marker, dashes, color = styles[point["loss"]]
        J = point["sigma_w"] ** 2 / 2
        if found["means"] is not None:
            ax.plot(np.exp(found["means"]), marker, color=color, ms=3.5)
        ax.plot(relu_dynamics(J, KAPPA, point["steps"], point["loss"]), dashes, color=color, lw=1)
    threshold = 1 + 2 / KAPPA
    ax.axhline(threshold, color=PURPLE, ls=":", label="$J = 1 + 2/\\kappa$")
    ax.axhline(1, color="0.6", lw=1, zorder=0)
    log2(ax, "y")
    ax.set(ylim=(0.03, 64), xlim=(-0.5, 20.5))
    title = f"networks and theory, $\\kappa$ = {KAPPA:g}"
    legend_below(ax, 1, title=title, xlabel="step of the tuning", ylabel="$J$")


def _by_block(ax, networks: dict) -> None:
    """sigma_w of every hidden block without residual connections."""
    for norm, (marker, color) in STYLES.items():
        found = networks[norm, 0.0]["sigma_w"]
        blocks = np.arange(1, len(found) + 1)
        ax.plot(blocks, found, marker, color=color, ms=4, label=NAMES[norm])
    theory = found[0] * BATCHNORM_RATIO ** (blocks - 1)
    ax.plot(blocks, theory, color=TRAIN, lw=1, label="theory: 0.826 a block")
    ax.axhline(2**0.5, color=TEST, lw=1, label="theory, no norm: $\\sqrt{2}$")
    title = "weights found, $\\mu$ = 0"
    legend_below(ax, 1, title=title, xlabel="block", ylabel="$\\sigma_w$")


def _by_strength(ax, networks: dict) -> None:
    """sigma_w of the hidden blocks without norms by the strength of residual connections."""
    strengths = [mu for norm, mu in networks if norm == "none" and mu < 1]
    found = [networks["none", mu]["sigma_w"] for mu in strengths]
    means = np.mean(found, axis=1)
    bars = np.abs([np.min(found, axis=1) - means, np.max(found, axis=1) - means])
    style = {"fmt": "o", "color": TEST, "ms": 4, "label": "no norm, all blocks"}
    ax.errorbar(strengths, means, bars, **style)
    mu = np.linspace(0, 1, 200)
    theory = [residual_sigma(x) for x in mu]
    ax.plot(mu, theory, color=TRAIN, lw=1, label="theory: $\\sqrt{2 (1 - \\mu^2)}$")
    title = "weights found, by $\\mu$"
    legend_below(ax, 1, title=title, xlabel="strength $\\mu$", ylabel="$\\sigma_w$")


def _without_end(ax, law: list) -> None:
    """J - 1 with mu = 1 falls as 1/step."""
    steps = np.arange(1, len(law) + 1)
    theory = residual_dynamics(law[0], RESIDUAL["lr"], len(law) - 1)
    ax.loglog(steps, np.array(law) - 1, ".", color=TEST, label="mean of the blocks")
    ax.loglog(steps, np.array(theory) - 1, color=TRAIN, lw=1, label="theory: $\\sim$ 1/step")
    title = "$\\mu$ = 1: no step is the last"
    legend_below(ax, 1, title=title, xlabel="step + 1", ylabel="$J - 1$")
