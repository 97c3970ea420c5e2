"""Figures of Learning to grok.

Training, attention, circles, similarities, grids over all queries, wrong labels."""

from pathlib import Path

import numpy as np

from .colors import ORANGE, PURPLE, SETS, TEST, TRAIN, UNIT
from .style import SHARE, attention_maps, figure, image, label, lines, panels, save

CLASSES = {"repeat": PURPLE, "multiple": TEST, "spanned": ORANGE, "unspanned": "0.6"}
DIFFERENCE = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}
RIGHT_WRONG = {"cmap": "gray"} | UNIT


def attention(patterns: np.ndarray, offsets: np.ndarray, sink: np.ndarray, path: Path) -> None:
    """Maps of every head, zeros blank; under them the mean attention by offset and type of query.

    patterns (depth, H, T, T), offsets (depth, H, 3, n), sink (depth, H, 3): mass on tokens 0 and 1
    """
    fig, maps, below = attention_maps(patterns)
    tokens = ["x token", "y token", "z token"]
    for at in np.ndindex(below.shape):
        head = maps[at].get_title()
        maps[at].set_title(f"{head}, sink {sink[at].mean():.2f}")
        below[at].plot(offsets[at].T, marker=".", lw=1, label=tokens)
        below[at].set_xlabel("offset")
    label(below[0, 0])
    save(fig, path)


def numbers(features: dict[str, dict], path: Path) -> None:
    """Features of a single number: two components, parity of the logarithm, power by character.

    features {name: {"scores" (p, >= 2), "log" (p,), "base", "power" ((p-1)/2,),
                     "legendre": probes.representation.legendre}}"""
    fig = figure(11, 3.5 * len(features))
    rows = fig.subplots(len(features), 3, squeeze=False)
    for row, (name, f) in zip(rows, features.items(), strict=True):
        plane, parity, power = row
        log = f["log"]
        by_parity = np.where(log % 2 == 0, TEST, TRAIN)
        colors = np.where(log < 0, "0.5", by_parity)
        _plane(plane, f["scores"], log, colors)
        plane.set_title(f"{name}: number, log to base {f['base']}")
        _parity(parity, f["legendre"], colors)
        shares = f["power"]
        power.bar(np.arange(1, len(shares) + 1), shares, color=TEST)
        power.locator_params(axis="x", integer=True)
        power.set(xlabel="character m (with -m)", ylabel="share of the power", ylim=(0, 1))
    save(fig, path)


def _plane(ax, scores: np.ndarray, log: np.ndarray, colors: np.ndarray) -> None:
    """Two components of every number, written beside it with its logarithm (0 has none)."""
    ax.scatter(*scores[:, :2].T, c=colors, s=12)
    beside = {"fontsize": 7, "xytext": (3, 3), "textcoords": "offset points"}
    for n, (at, power) in enumerate(zip(scores, log, strict=True)):
        text = f"{n}, {power}" if power >= 0 else "0"
        ax.annotate(text, at[:2], **beside)
    ax.set(xlabel="component 1", ylabel="component 2")


def _parity(ax, legendre: dict, colors: np.ndarray) -> None:
    """The component that tells even from odd logarithms, against the first of the others."""
    up = legendre["component"]
    across = 1 if up == 0 else 0
    pair = legendre["scores"][:, [across, up]]
    ax.scatter(*pair.T, c=colors, s=18)
    correlation = legendre["correlation"][up]
    ax.set_title(f"even log blue, odd red; correlation {correlation:.2f}")
    ax.set(xlabel=f"component {across + 1}", ylabel=f"component {up + 1}")


def circles(scores: np.ndarray, log: np.ndarray, x: list, y: list, path: Path) -> None:
    """Four components of every head's output over all (x, y), by the logarithm (zero grey).

    scores  (depth, H, p^2, 4); log (p,)
    x, y    [block][head]: the circle tests of the averages over y and over x"""
    depth, H = scores.shape[:2]
    p = len(log)
    logs = {"x": np.repeat(log, p), "y": np.tile(log, p)}
    tests = {"x": x, "y": y}
    hue = {"cmap": "hsv", "vmin": 0, "vmax": p - 1}
    fig, axes = panels(2 * depth * H, 2.6, 2.7, 2 * H)
    for ax, place in zip(axes, np.ndindex(depth, H, 2), strict=True):
        i, h, pair = place
        token = "xy"[pair]
        first = 2 * pair
        at = scores[i, h, :, first : first + 2]
        colour = logs[token]
        zero = colour < 0
        ax.scatter(*at[zero].T, c="0.7", s=5)
        ax.scatter(*at[~zero].T, c=colour[~zero], s=5, **hue)
        ax.set(xlabel=f"component {first + 1}", ylabel=f"component {first + 2}")
        ax.set(xticks=[], yticks=[])
        test = tests[token][i][h]
        where = f"block {i} head {h}, colour log {token}"
        ax.set_title(f"{where}\nm = {test['m']}, share {test['share']:.2f}", fontsize=8)
    save(fig, path)


def cosine(maps: list[np.ndarray], titles: list[str], columns: int, path: Path) -> None:
    """Cosine-similarity maps, a row of so many columns per block.

    A map is (p, p), or (p^2, p^2) in the order x p + y, drawn as p x p blocks."""
    fig, axes = panels(len(maps), 3.3, 3.2, columns)
    for ax, values, title in zip(axes, maps, titles, strict=True):
        image(ax, values, DIFFERENCE, title=title, xticks=[], yticks=[])
    fig.colorbar(axes[-1].images[0], ax=axes, shrink=0.5)
    save(fig, path)


def grids(
    shots: list, correct: np.ndarray, ratio: np.ndarray, span: np.ndarray, title: str, path: Path
) -> None:
    """All queries, x down and y across, a row per number of shots.

    Columns: what the model answers, ratio matching, their difference, the span.
    correct, ratio, span (len(shots), p, p) of bool
    """
    fig = figure(10, 2.5 * len(shots))
    rows = fig.subplots(len(shots), 4, squeeze=False)
    for row, k, right, match, known in zip(rows, shots, correct, ratio, span, strict=True):
        yes_no = {"model correct": right, "ratio matching": match, "span": known}
        for column, (name, values) in zip((0, 1, 3), yes_no.items(), strict=True):
            image(row[column], values, RIGHT_WRONG, title=f"{name} ({values.sum()})")
        difference = right.astype(int) - match
        count = f"+{(difference > 0).sum()}, -{(difference < 0).sum()}"
        image(row[2], difference, DIFFERENCE, title=f"model - ratio matching ({count})")
        for ax in row:
            ax.set(xticks=[], yticks=[])
        row[0].set(ylabel="1 shot\nx" if k == 1 else f"{k} shots\nx", xlabel="y")
    key = "white: yes, black: no; red: the model only, blue: ratio matching only"
    fig.suptitle(f"{title}; {key}", fontsize=9)
    save(fig, path)


def shots(counts: list[int], accuracy: dict, lens: dict, chance: float, path: Path) -> None:
    """Accuracy against shots by what a query needs, and by block through the logit lens.

    accuracy {"i.d. ...": {class: one for each of the counts of shots}, ...}
    lens     {set: (depth + 1,)}
    """
    fig, (*axes, last) = panels(len(accuracy) + 1, 4, 3.6)
    for ax, (name, curves) in zip(axes, accuracy.items(), strict=True):
        lines(ax, curves, [CLASSES[kind] for kind in curves], counts, marker=".")
        ax.set(title=name, xlabel="shots", ylabel="accuracy", ylim=SHARE)
    label(axes[0], 8, "the query is")
    passed = range(len(lens["id_train"]))
    lines(last, _named(lens), [SETS[name] for name in lens], passed, marker=".")
    label(last, 8, title="logit lens, last shot")
    last.set(xlabel="blocks passed", ylabel="accuracy", ylim=SHARE)
    for ax in (*axes, last):
        ax.axhline(chance, color="0.8", zorder=0)
        ax.locator_params(axis="x", integer=True)
    save(fig, path)


def noise(tables: dict[str, np.ndarray], single: dict[str, tuple], path: Path) -> None:
    """Accuracy with m wrong labels among k examples, and a sequence of every set with one of them.

    tables  {name: (n, n)}
    single  {set: (right (n, n), clean (n,))}, black: wrong; the first row are the clean answers"""
    fig = figure(11, 6.6)
    upper, lower = fig.subfigures(2, 1)
    style = UNIT | {"origin": "lower", "aspect": "auto"}
    axes = upper.subplots(1, len(tables))
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        image(ax, table.T, style, title=f"accuracy, {name}")
        ax.set(xlabel="examples", ylabel="with a wrong label")
    upper.colorbar(axes[-1].images[0], ax=axes)
    axes = lower.subplots(1, len(single))
    for ax, (name, answers) in zip(axes, _named(single).items(), strict=True):
        right, clean = answers
        end = len(clean) - 0.5
        style = RIGHT_WRONG | {"aspect": "auto", "extent": (-0.5, end, end, -1.5)}
        image(ax, np.vstack([clean, right]), style, title=f"one wrong label: {name}")
        ax.axhline(-0.5, color=TRAIN, lw=1)
        ax.set(xlabel="examples before the query", ylabel="wrong example (top row: none)")
    save(fig, path)


def training(history: dict, best: int, solved: dict, path: Path) -> None:
    """Accuracy at the last shot against steps, and by shot at the best step beside the solvers.

    history {"step": (n,), "<set>_accuracy": (n, shots)}; solved {"ratio_matching": (shots,), ...}
    """
    fig, (left, right) = panels(2, 5.5, 4)
    accuracy = _named({name: history[f"{name}_accuracy"] for name in SETS})
    last_shot = {name: x[:, -1] for name, x in accuracy.items()}
    lines(left, last_shot, SETS.values(), history["step"])
    at = history["step"][best]
    left.axvline(at, color="0.8", zorder=0)
    label(left, 8, xlabel="step", ylabel="accuracy at the last shot", ylim=SHARE)
    solvers = {"ratio_matching": "k--", "modular_regression": "k:", "retrieval": "k-."}
    for name, style in solvers.items():
        right.plot(solved[name], style, lw=1, label=name.replace("_", " "))
    label(right, 8, xlabel="shots", ylabel=f"accuracy at step {at}", ylim=SHARE)
    by_shot = {name: x[best] for name, x in accuracy.items()}  # the colours are named on the left
    examples = range(len(solved["retrieval"]))
    lines(right, by_shot, SETS.values(), examples, marker=".", lw=1)
    save(fig, path)


def _named(sets: dict) -> dict:
    """{"id_train": ...} -> {"id, train inputs": ...}."""
    return {name.replace("_", ", ") + " inputs": values for name, values in sets.items()}
