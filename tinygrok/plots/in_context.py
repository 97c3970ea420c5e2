"""Figures of Learning to grok: training, attention, circles, similarities, grids over all queries,
wrong labels."""

from pathlib import Path

import numpy as np

from .style import (
    ORANGE,
    PURPLE,
    SETS,
    SHARE,
    TEST,
    TRAIN,
    UNIT,
    attention_maps,
    figure,
    image,
    label,
    lines,
    panels,
    save,
)

CLASSES = {"repeat": PURPLE, "multiple": TEST, "spanned": ORANGE, "unspanned": "0.6"}
DIFFERENCE = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}
RIGHT_WRONG = {"cmap": "gray"} | UNIT


def attention(patterns: np.ndarray, offsets: np.ndarray, sink: np.ndarray, path: Path) -> None:
    """Maps of every head, zeros blank, under them the mean attention at relative offsets by type of
    query token.

    patterns (depth, H, T, T), offsets (depth, H, 3, n), sink (depth, H, 3): mass on tokens 0 and 1
    """
    fig, maps, below = attention_maps(patterns)
    for at, ax in np.ndenumerate(below):
        maps[at].set_title(f"{maps[at].get_title()}, sink {sink[at].mean():.2f}")
        ax.plot(offsets[at].T, marker=".", lw=1, label=["x token", "y token", "z token"])
        ax.set_xlabel("offset")
    label(below[0, 0])
    save(fig, path)


def numbers(features: dict[str, dict], path: Path) -> None:
    """Features of a single number: two components with (number, logarithm), parity of the
    logarithm, power by character.

    features {name: {"scores" (p, >= 2), "log" (p,), "base", "legendre":
    probes.representation.legendre, "power" ((p-1)/2,)}}"""
    fig = figure(11, 3.5 * len(features))
    for row, (name, f) in zip(
        fig.subplots(len(features), 3, squeeze=False), features.items(), strict=True
    ):
        plane, parity, power = row
        log, legendre = f["log"], f["legendre"]
        colors = np.where(log < 0, "0.5", np.where(log % 2 == 0, TEST, TRAIN))
        plane.scatter(*f["scores"][:, :2].T, c=colors, s=12)
        for n, (at, k) in enumerate(zip(f["scores"], log, strict=True)):
            plane.annotate(
                f"{n}, {k}" if k >= 0 else "0",
                at[:2],
                fontsize=7,
                xytext=(3, 3),
                textcoords="offset points",
            )
        plane.set(
            title=f"{name}: number, log to base {f['base']}",
            xlabel="component 1",
            ylabel="component 2",
        )
        c = legendre["component"]
        parity.scatter(
            legendre["scores"][:, 1 if c == 0 else 0], legendre["scores"][:, c], c=colors, s=18
        )
        parity.set(title=f"even log blue, odd red; correlation {legendre['correlation'][c]:.2f}")
        parity.set(xlabel=f"component {2 if c == 0 else 1}", ylabel=f"component {c + 1}")
        power.bar(np.arange(1, len(f["power"]) + 1), f["power"], color=TEST)
        power.locator_params(axis="x", integer=True)
        power.set(xlabel="character m (with -m)", ylabel="share of the power", ylim=(0, 1))
    save(fig, path)


def circles(
    scores: np.ndarray, log: np.ndarray, x: list[list[dict]], y: list[list[dict]], path: Path
) -> None:
    """Four principal components of every head's output over all (x, y), coloured by the logarithm
    (zero grey).

    scores (depth, H, p^2, 4), log (p,); x, y [block][head]: the circle tests of the averages over y
    and over x"""
    depth, H, p = *scores.shape[:2], len(log)
    fig, axes = panels(2 * depth * H, 2.6, 2.7, 2 * H)
    for ax, (i, h, pair) in zip(axes, np.ndindex(depth, H, 2), strict=True):
        at, colour = (
            scores[i, h, :, 2 * pair : 2 * pair + 2],
            np.tile(log, p) if pair else np.repeat(log, p),
        )
        zero, test = colour < 0, (y if pair else x)[i][h]
        ax.scatter(*at[zero].T, c="0.7", s=5)
        ax.scatter(*at[~zero].T, c=colour[~zero], cmap="hsv", vmin=0, vmax=p - 1, s=5)
        ax.set(
            xticks=[],
            yticks=[],
            xlabel=f"component {2 * pair + 1}",
            ylabel=f"component {2 * pair + 2}",
        )
        ax.set_title(
            f"block {i} head {h}, colour log {'xy'[pair]}\nm = {test['m']}, share {test['share']:.2f}",
            fontsize=8,
        )
    save(fig, path)


def cosine(maps: list[list[np.ndarray]], titles: list[list[str]], path: Path) -> None:
    """Cosine-similarity maps, a row per block: (p, p), or (p^2, p^2) in the order x p + y, drawn as
    p x p blocks."""
    fig, axes = panels(sum(map(len, maps)), 3.3, 3.2, len(maps[0]))
    for ax, values, title in zip(axes, sum(maps, []), sum(titles, []), strict=True):
        drawn = image(ax, values, DIFFERENCE, title=title, xticks=[], yticks=[])
    fig.colorbar(drawn, ax=axes, shrink=0.5)
    save(fig, path)


def grids(
    shots: list[int],
    correct: np.ndarray,
    ratio: np.ndarray,
    span: np.ndarray,
    title: str,
    path: Path,
) -> None:
    """All queries, x down and y across, a row per number of shots: model, ratio matching, their
    difference, the span.

    correct, ratio, span (len(shots), p, p) of bool
    """
    fig = figure(10, 2.5 * len(shots))
    for row, k, right, match, known in zip(
        fig.subplots(len(shots), 4, squeeze=False), shots, correct, ratio, span, strict=True
    ):
        shown = {
            "model correct": right,
            "ratio matching": match,
            "model - ratio matching": right * 1 - match,
            "span": known,
        }
        for ax, (name, values) in zip(row, shown.items(), strict=True):
            difference = values.dtype != bool
            count = f"+{(values > 0).sum()}, -{(values < 0).sum()}" if difference else values.sum()
            image(
                ax,
                values,
                DIFFERENCE if difference else RIGHT_WRONG,
                title=f"{name} ({count})",
                xticks=[],
                yticks=[],
            )
        row[0].set_ylabel(f"{k} shot{'s' * (k > 1)}\nx")
        row[0].set_xlabel("y")
    fig.suptitle(
        f"{title}; white: yes, black: no; red: the model only, blue: ratio matching only",
        fontsize=9,
    )
    save(fig, path)


def shots(
    counts: list[int],
    accuracy: dict[str, dict[str, list]],
    lens: dict[str, np.ndarray],
    chance: float,
    path: Path,
) -> None:
    """Accuracy against shots by what a query needs, and by block through the logit lens.

    accuracy {"i.d. ...": {class: per count}, ...}; lens {set: (depth + 1,)}
    """
    fig, (*axes, last) = panels(len(accuracy) + 1, 4, 3.6)
    for ax, (name, curves) in zip(axes, accuracy.items(), strict=True):
        lines(ax, curves, [CLASSES[kind] for kind in curves], counts, marker=".")
        ax.set(title=name, xlabel="shots", ylabel="accuracy", ylim=SHARE)
    label(axes[0], 8, "the query is")
    named = {name.replace("_", ", ") + " inputs": values for name, values in lens.items()}
    lines(last, named, [SETS[name] for name in lens], range(len(lens["id_train"])), marker=".")
    label(
        last,
        8,
        title="logit lens, last shot",
        xlabel="blocks passed",
        ylabel="accuracy",
        ylim=SHARE,
    )
    for ax in (*axes, last):
        ax.axhline(chance, color="0.8", zorder=0)
        ax.locator_params(axis="x", integer=True)
    save(fig, path)


def noise(
    tables: dict[str, np.ndarray], single: dict[str, tuple[np.ndarray, np.ndarray]], path: Path
) -> None:
    """Accuracy with m wrong labels among k examples, and one sequence of every set with one wrong
    label (black: wrong).

    tables {name: (n, n)}; single {set: (right (n, n), clean (n,))}, the clean answers drawn as the
    first row"""
    fig = figure(11, 6.6)
    upper, lower = fig.subfigures(2, 1)
    axes = upper.subplots(1, len(tables))
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        style = UNIT | {"origin": "lower", "aspect": "auto"}
        drawn = image(
            ax,
            table.T,
            style,
            title=f"accuracy, {name}",
            xlabel="examples",
            ylabel="with a wrong label",
        )
    upper.colorbar(drawn, ax=axes)
    for ax, (name, (right, clean)) in zip(
        lower.subplots(1, len(single)), single.items(), strict=True
    ):
        style = RIGHT_WRONG | {
            "aspect": "auto",
            "extent": (-0.5, len(clean) - 0.5, len(clean) - 0.5, -1.5),
        }
        image(
            ax,
            np.vstack([clean, right]),
            style,
            title=f"one wrong label: {name.replace('_', ', ')} inputs",
        )
        ax.axhline(-0.5, color=TRAIN, lw=1)
        ax.set(xlabel="examples before the query", ylabel="wrong example (top row: none)")
    save(fig, path)


def training(history: dict, best: int, solved: dict, path: Path) -> None:
    """Accuracy at the last shot on the four sets against steps, and by shot at the best step beside
    the reference solvers.

    history {"step": (n,), "<set>_accuracy": (n, shots)}; solved {"ratio_matching": (shots,), ...}
    """
    fig, (left, right) = panels(2, 5.5, 4)
    accuracy = {name.replace("_", ", ") + " inputs": history[f"{name}_accuracy"] for name in SETS}
    lines(left, {name: x[:, -1] for name, x in accuracy.items()}, SETS.values(), history["step"])
    left.axvline(history["step"][best], color="0.8", zorder=0)
    label(left, 8, xlabel="step", ylabel="accuracy at the last shot", ylim=SHARE)
    for name, style in (
        ("ratio_matching", "k--"),
        ("modular_regression", "k:"),
        ("retrieval", "k-."),
    ):
        right.plot(solved[name], style, lw=1, label=name.replace("_", " "))
    label(right, 8, xlabel="shots", ylabel=f"accuracy at step {history['step'][best]}", ylim=SHARE)
    by_shot = {name: x[best] for name, x in accuracy.items()}  # the colours are named on the left
    lines(right, by_shot, SETS.values(), range(len(solved["retrieval"])), marker=".", lw=1)
    save(fig, path)
