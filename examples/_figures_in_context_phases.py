"""Figure of in_context_phases.py: the phases by number of tasks and share of inputs."""

from pathlib import Path

import numpy as np

from tinygrok.plots.colors import GREEN, ORANGE, PURPLE, TEST
from tinygrok.plots.style import figure, image, save

# What phase() may say, in the order of ability, and the letters of a cell.
PHASES = {
    "untrained": "-",
    "i.d. memorization": "iM",
    "i.d. generalization": "iG",
    "o.o.d. memorization": "oM",
    "o.o.d. generalization": "oG",
}
COLORS = ("0.9", ORANGE, TEST, PURPLE, GREEN)
MOMENTS = {"end": "at the last step", "best": "at the best step\nfor held-out tasks"}
SETS = {
    "id_train": "training tasks,\ntrain inputs",
    "id_test": "training tasks,\ntest inputs",
    "ood_train": "held-out tasks,\ntrain inputs",
    "ood_test": "held-out tasks,\ntest inputs",
}
ACCURACY = {"cmap": "cividis", "vmin": 0, "vmax": 1}


def diagrams(grids: dict[str, dict], settings: dict, path: Path) -> None:
    """A row for each moment: phases in colours and letters, then the accuracies of the four sets.

    grids     {moment: {"phase": numbers in PHASES (alpha, tasks), set: accuracies (alpha, tasks)}}
    settings  "p", "shots", "repeats", "tasks", "alpha", "high", "seeds", "steps", "depth"
    """
    columns = len(settings["tasks"])
    rows = len(settings["alpha"])
    width = max(1.5, 0.36 * columns)
    fig = figure(5 * width + 1.6, 2 * max(1.4, 0.36 * rows) + 2.4)
    axes = fig.subplots(2, 5, sharex=True, sharey=True)
    for line, (moment, grid) in zip(axes, grids.items(), strict=True):
        _phases(line[0], grid["phase"])
        for ax, (name, title) in zip(line[1:], SETS.items(), strict=True):
            drawn = _accuracies(ax, grid[name], title)
        line[0].set(title=f"phase {MOMENTS[moment]}", ylabel="alpha")
    for ax in axes[-1]:
        ax.set_xlabel("training tasks")
    axes[0, 0].set_xticks(range(columns), settings["tasks"])
    axes[0, 0].set_yticks(range(rows), [f"{alpha:g}" for alpha in settings["alpha"]])
    bar = fig.colorbar(drawn, ax=axes, aspect=40, label="accuracy at the last shot")
    p = settings["p"]
    bar.set_ticks([0, 1 / p, 0.5, 1], labels=["0", f"1/{p}", "0.5", "1"])
    bar.ax.axhline(1 / p, color="w")
    fig.suptitle(_what(settings), fontsize=9)
    _legend(fig, settings["high"])
    save(fig, path)


def _what(settings: dict) -> str:
    p = settings["p"]
    inputs = p * p
    ends = {round(alpha * inputs) for alpha in (settings["alpha"][0], settings["alpha"][-1])}
    train = " to ".join(map(str, sorted(ends)))
    drawn = "with" if settings["repeats"] else "without"
    network = f"{settings['depth']} blocks, {settings['steps']} steps, none ends early"
    seeds = settings["seeds"]
    shown = f"{seeds} seed" if seeds == 1 else f"{seeds} seeds: means, and the commonest phase"
    pools = f"{train} of {inputs} inputs (x, y) are trained on"
    rows = f"{settings['shots']} a sequence, drawn {drawn} repetition"
    solvers = f"retrieval of training tasks {settings['retrieval']}"
    solvers += f", ratio matching {settings['ratio_matching']}"
    return (
        f"p = {p} (chance 1/{p}), {network}, {shown}\n{pools}, {rows}\n"
        f"held-out tasks, train inputs: {solvers}"
    )


def _phases(ax, codes: np.ndarray) -> None:
    from matplotlib.colors import ListedColormap

    style = {"cmap": ListedColormap(COLORS), "vmin": -0.5, "vmax": len(COLORS) - 0.5}
    _cells(ax, codes, style)
    for (i, j), code in np.ndenumerate(codes):
        letters = list(PHASES.values())[code]
        ax.text(j, i, letters, ha="center", va="center", fontsize=8, weight="bold")


def _accuracies(ax, values: np.ndarray, title: str):
    """With the per cent in every cell."""
    drawn = _cells(ax, values, ACCURACY, title=title)
    for (i, j), value in np.ndenumerate(values):
        color = "k" if value > 0.5 else "w"
        text = f"{100 * value:.0f}"
        ax.text(j, i, text, ha="center", va="center", fontsize=7, color=color)
    return drawn


def _cells(ax, values: np.ndarray, style: dict, **labels):
    return image(ax, values, style | {"origin": "lower", "aspect": "auto"}, **labels)


def _legend(fig, high: float) -> None:
    from matplotlib.patches import Patch

    patches = []
    for (name, letters), color in zip(PHASES.items(), COLORS, strict=True):
        patches.append(Patch(color=color, label=f"{letters}  {name}"))
    title = f"an accuracy from {high:g} on is high"
    place = {"loc": "outside lower center", "ncol": 5, "frameon": False}
    fig.legend(handles=patches, title=title, fontsize=8, **place)
