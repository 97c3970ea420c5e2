"""Figures of what a network for unseen moduli does: every result beside its control."""

from pathlib import Path

import numpy as np
from _figures_lcg import scatter, shades, table

from tinygrok.plots import style as parts
from tinygrok.plots.colors import GREEN, ORANGE, PURPLE, TEST, TRAIN, UNIT
from tinygrok.plots.style import SHARE, image, label, panels, save

CONTROL = "0.65"
COLORS = (TRAIN, ORANGE, GREEN, PURPLE, TEST)  # of blocks, in turns
ORDERS = 8  # curves at most


def pairs(ax, names, found, control, words, **labels) -> None:
    """Bars of [mean, error] (n, 2) beside those of a control, found in colour, the control grey."""
    places = np.arange(len(names))
    kinds = zip((found, control), words, (TEST, CONTROL), (-0.2, 0.2), strict=True)
    for values, word, color, shift in kinds:
        mean, error = np.asarray(values, dtype=float).T
        ax.bar(places + shift, mean, 0.4, yerr=error, color=color, label=word, ecolor="k")
    ax.set_xticks(places, names, rotation=90 if len(names) > 6 else 0)
    ax.axhline(0, color="k", lw=0.6)
    label(ax, 8, above=2, **labels)


def linear_probe(found: dict, counts: list[int], attention: np.ndarray, path: Path) -> None:
    """m from the residual stream: error by numbers in context, R^2 by part; the largest number.

    found {(measure, name): (counts, 2)}, attention (2, depth, H, 2)"""
    depth, H = attention.shape[1:3]
    fig, (errors, r2, by_head, masses) = panels(4, 4.3, 3.6, columns=2)
    stream = [f"block {i}" for i in range(depth)]
    curves = {}
    for i, name in enumerate(stream):
        curves[f"after {name}"] = (name, COLORS[i % len(COLORS)], "o-")
    curves["last number alone"] = ("number", CONTROL, "s--")
    curves["untrained, after block 0"] = ("untrained block 0", CONTROL, "^:")
    curves["moduli shuffled"] = ("shuffled block 0", CONTROL, "x-.")
    curves["largest number + 1"] = ("largest + 1", "k", ".-")
    for word, (name, color, style) in curves.items():
        mean, error = 100 * found["median error", name].T
        errors.errorbar(counts, mean, error, fmt=style, color=color, ms=4, lw=1.3, label=word)
    parts.log2(errors, "x")
    title = "median error of m, moduli not trained on"
    parts.legend_below(errors, 2, title=title, xlabel="numbers in context", ylabel="% of m")

    def at_the_end(names):
        return [found["R^2", name][-1] for name in names]

    words = ("trained", "untrained")
    names = ["number", *stream]
    untrained = at_the_end([f"untrained {name}" for name in names])
    title = f"R^2 of log m, {counts[-1]} numbers: stream"
    pairs(r2, names, at_the_end(names), untrained, words, xlabel=title)
    heads = [f"{i}.{h}" for i, h in np.ndindex(depth, H)]
    names = [f"head {head}" for head in heads]
    untrained = at_the_end([f"untrained {name}" for name in names])
    pairs(by_head, heads, at_the_end(names), untrained, words, xlabel="R^2: one head alone")
    words = ("on the largest number", "at matched places")
    largest, matched = attention.reshape(2, -1, 2)
    pairs(masses, heads, largest, matched, words, xlabel="head", ylabel="attention")
    for ax in (r2, by_head):
        ax.set_ylim(-1, 1.02)
    save(fig, path)


def largest_number(tables: dict[int, dict], path: Path) -> None:
    """What changes when the largest number of the context, or another one, is replaced.

    tables {numbers in context: {what is done: {"changed", "follows": [share, error]}}}"""
    kinds = ("by a larger", "by a smaller", "hidden")
    titles = {"changed": "answers that change", "follows": "wraps by the larger number + 1"}
    fig, axes = panels(max(2 * len(tables), 1), 4.3, 3.4, columns=2)
    for i, (n, rows) in enumerate(tables.items()):
        for ax, what in zip(axes[2 * i :], titles, strict=False):
            largest = [rows[f"largest, {kind}"][what] for kind in kinds]
            another = [rows[f"another, {kind}"][what] for kind in kinds]
            words = ("the largest", "another number")
            pairs(ax, kinds, largest, another, words, ylabel="share of the answers")
            ax.set(xlabel=f"{titles[what]}, {n} numbers", ylim=(0, max(0.5, ax.get_ylim()[1])))
    save(fig, path)


def residues(points: dict, shares: dict, periods: list[int], path: Path) -> None:
    """What the first block adds after a single number: residues mod q, and two components.

    points {part: (scores (V, 2), q, share)}; shares {network: (parts, periods), and a number}"""
    fig, axes = panels(1 + len(points), 3.2, 3.2, columns=3)
    for name, color in (("untrained", CONTROL), ("network", TEST)):
        for i, row in enumerate(shares[name]):
            axes[0].plot(periods, row, ".-", color=color, label=None if i else name)
    axes[0].axhline(shares["numbers permuted"], color="k", ls="--", label="permuted, 95%")
    label(
        axes[0], 8, xlabel="residues mod q", ylabel="share of variance above chance", ylim=(-0.1, 1)
    )
    for ax, name in zip(axes[1:], points, strict=True):
        scores, q, share = points[name]
        scatter(ax, scores, q, f"{name}: mod {q}, {share:+.2f}")
    save(fig, path)


def pruning(lost: dict[str, np.ndarray], moduli: np.ndarray, heads: list[str], path: Path) -> None:
    """The share of its right answers that a modulus loses, without a head; control: random
    directions. lost {kind: (heads, moduli)}"""
    fig, axes = panels(2, 8.4, 3, columns=1)
    titles = {"head": "one head at its mean", "random": "as many random directions at their mean"}
    for ax, (kind, title) in zip(axes, titles.items(), strict=True):
        if not len(moduli):
            ax.set_title("no modulus is answered at least half the time")
            continue
        drawn = image(ax, lost[kind], UNIT | {"aspect": "auto", "cmap": "Blues"}, title=title)
        ax.set_xticks(range(len(moduli)), moduli, rotation=90, fontsize=7)
        rows = heads if kind == "head" else [head.split(".")[0] for head in heads]
        ax.set_yticks(range(len(heads)), rows, fontsize=7)
        ax.set(ylabel="block.head" if kind == "head" else "block", xlabel="modulus")
        fig.colorbar(drawn, ax=ax, label="share lost")
    save(fig, path)


def patching(found: dict[str, np.ndarray], clean: list, path: Path) -> None:
    """Answers below m/2 with each head from a run mod m/2, beside the controls' donors.

    found {donor: (depth, H, 2)}"""
    depth, H = found["m"].shape[:2]
    fig, (ax,) = panels(1, 7.6, 3.8)
    styles = zip(found, (TEST, ORANGE, CONTROL), (-0.27, 0, 0.27), strict=True)
    for donor, color, shift in styles:
        mean, error = found[donor].reshape(-1, 2).T
        places = np.arange(len(mean)) + shift
        ax.bar(places, mean, 0.27, yerr=error, color=color, label=f"from a run mod {donor}")
    ax.axhline(clean[0], color="k", ls="--", lw=1, label="unpatched")
    heads = [f"{i}.{h}" for i, h in np.ndindex(depth, H)]
    ax.set_xticks(range(len(heads)), heads)
    ylabel = "share of the answers below m/2"
    label(ax, 8, above=2, xlabel="head that is patched", ylabel=ylabel, ylim=(0, 1.02))
    save(fig, path)


def differences(found: dict, by_order: dict, backs: dict, without: dict, path: Path) -> None:
    """Induction on differences: when answers are right, where heads look, what is lost without.

    found {name: ([mean, error], of the control)}; by_order {r: (T,)}; backs {name: (depth, H, 2,
    2)}; without {heads: (3, 2)}"""
    fig, (curves, seen, looks, lost) = panels(4, 4.3, 4, columns=2)
    shown = dict(list(by_order.items())[:: -(-len(by_order) // ORDERS)])
    colors = shades(len(shown))
    for (order, accuracy), color in zip(shown.items(), colors, strict=True):
        beyond = np.arange(1, len(accuracy) + 1) - order
        curves.plot(beyond, accuracy, ".-", color=color, lw=1, label=f"r = {order}")
    curves.axvline(2, color="k", ls="--", lw=1)
    curves.set(xlim=(-12, 30), ylim=SHARE, ylabel="accuracy")
    title = "numbers in context less the order r of a"
    label(curves, 7, xlabel=title)
    names = ["r + 2 numbers\nin context", "difference\nseen", "the same,\nsolver"]
    yes, no = zip(*found.values(), strict=True)
    pairs(seen, names, yes, no, ("yes", "no, matched"), ylim=SHARE, ylabel="accuracy")
    depth, H = backs["following"].shape[:2]
    heads = [f"{i}.{h}" for i, h in np.ndindex(depth, H)]
    follow = backs["following"].reshape(-1, 2, 2)
    words = ("what followed x_(t-kr)", "matched look-backs")
    pairs(looks, heads, follow[:, 0], follow[:, 1], words, xlabel="head", ylabel="attention, a key")
    rows = np.array([values[:, 0] for values in without.values()])
    kinds = ["no wrap", "wrap seen", "not seen"]
    table(lost, rows, list(without), kinds, title="accuracy without heads")
    lost.set(ylabel="heads at their mean", xlabel="what the answer asks for")
    save(fig, path)


def modulus(similarity: np.ndarray, tokens: np.ndarray, m: int, path: Path) -> None:
    """Cosine of what the first block's heads add with the embedding of every number.

    Red: the largest number so far. similarity (H, t, V), tokens (t,)"""
    fig, axes = panels(len(similarity), 4.2, 3, columns=2)
    style = {"origin": "lower", "aspect": "auto"}
    for h, ax in enumerate(axes):
        drawn = image(ax, similarity[h].T, style, title=f"block 0 head {h}, cosine")
        ax.set(xlabel="position", ylabel="number")
        fig.colorbar(drawn, ax=ax)
        ax.plot(np.maximum.accumulate(tokens), color=TRAIN, lw=1)
        ax.axhline(m, color="w", lw=0.7, ls="--")
    save(fig, path)
