"""Figures of the decoder's analyses: attention, circles, similarities, grids over all queries, wrong labels."""

from pathlib import Path

import numpy as np

from .plots import TEST, TRAIN, figure, save

TYPES = "xyz"
CLASSES = {"repeat": "#8172b3", "multiple": TEST, "spanned": "#dd8452", "unspanned": "0.6"}
SETS = {"id_train": TRAIN, "id_test": "#dd8452", "ood_train": TEST, "ood_test": "#55a868"}
DIFFERENCE = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1, "interpolation": "nearest"}
RIGHT_WRONG = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}


def _frame(ax, **labels) -> None:
    """An image's axes: all four spines, whole numbers."""
    ax.spines[:].set_visible(True)
    ax.locator_params(integer=True)
    ax.set(**labels)


def attention(patterns: np.ndarray, offsets: np.ndarray, sink: np.ndarray, path: Path) -> None:
    """Maps of every head, zeros blank, under them the mean attention at relative offsets by type of query token.

    patterns (depth, H, T, T), offsets (depth, H, 3, n), sink (depth, H, 3): mass on tokens 0 and 1
    """
    depth, H = patterns.shape[:2]
    fig = figure(2.9 * H + 0.8, 4.0 * depth)
    axes = fig.subplots(2 * depth, H, squeeze=False, height_ratios=[2.2, 1] * depth)
    for i, h in np.ndindex(depth, H):
        top, low = axes[2 * i, h], axes[2 * i + 1, h]
        image = top.imshow(np.where(patterns[i, h] > 0, patterns[i, h], np.nan), vmin=0, vmax=1, interpolation="nearest")
        _frame(top, title=f"block {i} head {h}, sink {sink[i, h].mean():.2f}", xlabel="key", ylabel="query")
        for kind, name in enumerate(TYPES):
            low.plot(offsets[i, h, kind], marker=".", lw=1, label=f"{name} token")
        low.set(ylim=(0, 1), xlabel="offset", ylabel="attention")
    axes[1, 0].legend(frameon=False, fontsize=7)
    fig.colorbar(image, ax=axes[::2], shrink=0.5)
    save(fig, path)


def numbers(features: dict[str, dict], path: Path) -> None:
    """Features of a single number: two components with (number, logarithm), parity of the logarithm, power by character.

    features {name: {"scores" (p, >= 2), "log" (p,), "base", "legendre": probes.representation.legendre, "power" ((p-1)/2,)}}
    """
    fig = figure(11, 3.5 * len(features))
    for row, (name, f) in zip(fig.subplots(len(features), 3, squeeze=False), features.items(), strict=True):
        plane, parity, power = row
        log, legendre = f["log"], f["legendre"]
        colors = np.where(log < 0, "0.5", np.where(log % 2 == 0, TEST, TRAIN))
        plane.scatter(*f["scores"][:, :2].T, c=colors, s=12)
        for n, (at, k) in enumerate(zip(f["scores"], log, strict=True)):
            plane.annotate(f"{n}, {k}" if k >= 0 else "0", at[:2], fontsize=7, xytext=(3, 3), textcoords="offset points")
        plane.set(title=f"{name}: number, log to base {f['base']}", xlabel="component 1", ylabel="component 2")
        c = legendre["component"]
        parity.scatter(legendre["scores"][:, 1 if c == 0 else 0], legendre["scores"][:, c], c=colors, s=18)
        parity.set(title=f"even log blue, odd red; correlation {legendre['correlation'][c]:.2f}")
        parity.set(xlabel=f"component {2 if c == 0 else 1}", ylabel=f"component {c + 1}")
        power.bar(np.arange(1, len(f["power"]) + 1), f["power"], color=TEST)
        power.locator_params(axis="x", integer=True)
        power.set(xlabel="character m (with -m)", ylabel="share of the power", ylim=(0, 1))
    save(fig, path)


def circles(scores: np.ndarray, log: np.ndarray, x: list[list[dict]], y: list[list[dict]], path: Path) -> None:
    """Four principal components of every head's output over all (x, y), coloured by the logarithm (zero grey).

    scores (depth, H, p^2, 4), log (p,); x, y [block][head]: the circle tests of the averages over y and over x
    """
    depth, H = scores.shape[:2]
    fig = figure(5.2 * H, 2.7 * depth)
    axes = fig.subplots(depth, 2 * H, squeeze=False)
    p = len(log)
    for i, h in np.ndindex(depth, H):
        for pair, name, test, label in ((0, "x", x, np.repeat(log, p)), (1, "y", y, np.tile(log, p))):
            ax, at = axes[i, 2 * h + pair], scores[i, h, :, 2 * pair : 2 * pair + 2]
            zero = label < 0
            ax.scatter(*at[zero].T, c="0.7", s=5)
            ax.scatter(*at[~zero].T, c=label[~zero], cmap="hsv", vmin=0, vmax=p - 1, s=5)
            ax.set(xticks=[], yticks=[], xlabel=f"component {2 * pair + 1}", ylabel=f"component {2 * pair + 2}")
            t = test[i][h]
            ax.set_title(f"block {i} head {h}, colour log {name}\nm = {t['m']}, share {t['share']:.2f}", fontsize=8)
    save(fig, path)


def cosine(maps: list[list[np.ndarray]], titles: list[list[str]], path: Path) -> None:
    """Cosine-similarity maps, a row per block: (p, p), or (p^2, p^2) in the order x p + y, drawn as p x p blocks."""
    fig = figure(3.1 * len(maps[0]) + 0.7, 3.2 * len(maps))
    axes = fig.subplots(len(maps), len(maps[0]), squeeze=False)
    for ax, values, title in zip(axes.flat, sum(maps, []), sum(titles, []), strict=True):
        image = ax.imshow(values, **DIFFERENCE)
        _frame(ax, title=title, xticks=[], yticks=[])
    fig.colorbar(image, ax=axes, shrink=0.5)
    save(fig, path)


def grids(shots: list[int], correct: np.ndarray, ratio: np.ndarray, span: np.ndarray, title: str, path: Path) -> None:
    """All queries, x down and y across, a row per number of shots: model, ratio matching, their difference, the span.

    correct, ratio, span (len(shots), p, p) of bool
    """
    fig = figure(10, 2.5 * len(shots))
    for row, k, right, match, known in zip(fig.subplots(len(shots), 4, squeeze=False), shots, correct, ratio, span, strict=True):
        panels = {"model correct": right, "ratio matching": match, "model - ratio matching": right * 1 - match, "span": known}
        for ax, (name, values) in zip(row, panels.items(), strict=True):
            difference = values.dtype != bool
            ax.imshow(values, **DIFFERENCE if difference else RIGHT_WRONG)
            count = f"+{(values > 0).sum()}, -{(values < 0).sum()}" if difference else values.sum()
            _frame(ax, title=f"{name} ({count})", xticks=[], yticks=[])
        row[0].set_ylabel(f"{k} shot{'s' * (k > 1)}\nx")
        row[0].set_xlabel("y")
    fig.suptitle(f"{title}; white: yes, black: no; red: the model only, blue: ratio matching only", fontsize=9)
    save(fig, path)


def shots(
    counts: list[int], accuracy: dict[str, dict[str, list]], lens: dict[str, np.ndarray], chance: float, path: Path
) -> None:
    """Accuracy against shots by what a query needs, and by block through the logit lens.

    accuracy {"i.d. ...": {class: per count}, ...}; lens {set: (depth + 1,)}
    """
    fig = figure(4 * (len(accuracy) + 1), 3.6)
    *axes, last = fig.subplots(1, len(accuracy) + 1)
    for ax, (name, curves) in zip(axes, accuracy.items(), strict=True):
        for kind, values in curves.items():
            ax.plot(counts, values, color=CLASSES[kind], marker=".", label=kind)
        ax.set(title=name, xlabel="shots", ylabel="accuracy", ylim=(-0.02, 1.02))
    axes[0].legend(frameon=False, fontsize=8, title="the query is", title_fontsize=8)
    for name, values in lens.items():
        last.plot(values, color=SETS[name], marker=".", label=name.replace("_", ", ") + " inputs")
    last.set(title="logit lens, last shot", xlabel="blocks passed", ylabel="accuracy", ylim=(-0.02, 1.02))
    last.legend(frameon=False, fontsize=8)
    for ax in (*axes, last):
        ax.axhline(chance, color="0.8", zorder=0)
        ax.locator_params(axis="x", integer=True)
    save(fig, path)


def noise(tables: dict[str, np.ndarray], single: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Accuracy with m wrong labels among k examples, and one sequence of every set with one wrong label (black: wrong).

    tables {name: (n, n)}; single {set: (right (n, n), clean (n,))}, the clean answers drawn as the first row
    """
    fig = figure(11, 6.6)
    upper, lower = fig.subfigures(2, 1)
    axes = upper.subplots(1, len(tables))
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        image = ax.imshow(table.T, origin="lower", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        _frame(ax, title=f"accuracy, {name}", xlabel="examples", ylabel="with a wrong label")
    upper.colorbar(image, ax=axes)
    for ax, (name, (right, clean)) in zip(lower.subplots(1, len(single)), single.items(), strict=True):
        ax.imshow(
            np.vstack([clean, right]), aspect="auto", extent=(-0.5, len(clean) - 0.5, len(clean) - 0.5, -1.5), **RIGHT_WRONG
        )
        ax.axhline(-0.5, color=TRAIN, lw=1)
        _frame(ax, title=f"one wrong label: {name.replace('_', ', ')} inputs", xlabel="examples before the query")
        ax.set_ylabel("wrong example (top row: none)")
    save(fig, path)


def prediction(step: np.ndarray, training: dict[str, np.ndarray], curves: dict[str, np.ndarray], bits: dict, path: Path) -> None:
    """Number accuracy against steps, against numbers in context beside the classical predictors, and digit by digit.

    training {name: (n,)}; curves {name: (T,)}, the network first; bits {period of the digit: (T,)}
    """
    fig = figure(15, 4)
    left, middle, right = fig.subplots(1, 3)
    for name, values in training.items():
        left.plot(step, values, marker=".", lw=1, label=name)
    left.set(xlabel="step", ylabel="accuracy, last 8 numbers", ylim=(-0.02, 1.02))
    for (name, values), style in zip(curves.items(), ("-", "--", "-.", ":", (0, (1, 4)), (0, (5, 5))), strict=True):
        color, width = (TRAIN, 2) if style == "-" else ("0.3", 1)
        middle.plot(np.arange(1, len(values) + 1), values, ls=style, color=color, lw=width, label=name)
    middle.set(ylabel="accuracy of the next number")
    for i, (name, values) in enumerate(bits.items()):
        color = (0.85 - 0.65 * i / len(bits), 0.2, 0.15 + 0.7 * i / len(bits))  # from red, low digits, to blue
        right.plot(np.arange(1, len(values) + 1), values, color=color, lw=1.2, label=name)
    right.set(ylabel="accuracy of a digit")
    for ax in (middle, right):
        ax.set_xscale("log", base=2)
        ax.set(xlabel="numbers in context", ylim=(-0.02, 1.02))
    for ax, title in ((left, None), (middle, None), (right, "digit of period")):
        ax.legend(frameon=False, fontsize=7, title=title, title_fontsize=7)
    save(fig, path)


def scaling(curves: dict[int, list], moduli: list[int], fits: dict[str, tuple], path: Path) -> None:
    """Accuracy by numbers in context for every modulus; numbers answered wrongly against the modulus with the fitted laws.

    curves {m: (T,)}; fits {predictor: (values, a number for every entry of moduli, exponent or None)}
    """
    fig = figure(10, 4)
    left, right = fig.subplots(1, 2)
    for i, (m, values) in enumerate(curves.items()):
        color = (0.85 - 0.65 * i / len(curves), 0.2, 0.15 + 0.7 * i / len(curves))
        left.plot(np.arange(1, len(values) + 1), values, color=color, lw=1.2, label=f"m = {m}")
    left.set_xscale("log", base=2)
    left.set(xlabel="numbers in context", ylabel="accuracy of the next number", ylim=(-0.02, 1.02))
    left.legend(frameon=False, fontsize=7)
    for (name, (values, gamma)), color in zip(fits.items(), (TRAIN, TEST, "0.5"), strict=True):
        law = "" if gamma is None else f", exponent {gamma:.2f}"
        right.loglog(moduli, values, "o", color=color, label=name + law, base=2)
        if gamma is not None:
            centre = np.exp(np.nanmean(np.log(values)) - gamma * np.mean(np.log(np.array(moduli)[np.isfinite(values)])))
            right.plot(moduli, centre * np.asarray(moduli, float) ** gamma, color=color, lw=1)
    right.set(xlabel="modulus", ylabel="numbers answered wrongly")
    right.legend(frameon=False, fontsize=8)
    save(fig, path)
