"""Figures of networks that predict pseudo-random numbers. Numbers in context count from 1."""

from pathlib import Path

import numpy as np

from ..probes.fourier import spectrum
from .colors import TEST, TRAIN, UNIT
from .style import SHARE, attention_maps, image, label, lines, panels, save

MOVES = {"not": "0.8", "by -delta": TRAIN, "by +2 delta": TEST, "otherwise": "0.35"}
SPARSE_DOTS = (0, (1, 4))
SPARSE_DASHES = (0, (5, 5))
LINE_STYLES = ("-", "--", "-.", ":", SPARSE_DOTS, SPARSE_DASHES)


def _bars(ax, values: dict, **labels) -> None:
    ax.bar(range(len(values)), values.values(), color=TEST)
    ax.set_xticks(range(len(values)), values)
    ax.set(**labels)


def _table(ax, values: np.ndarray, rows, columns, **labels) -> None:
    """A small table of shares, coloured and written out."""
    image(ax, values, UNIT | {"aspect": "auto", "cmap": "Blues"}, **labels)
    centred = {"ha": "center", "va": "center", "fontsize": 7}
    for (row, column), value in np.ndenumerate(values):
        color = "w" if value > 0.6 else "k"
        ax.text(column, row, f"{value:.2f}", color=color, **centred)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xticks(range(len(columns)), columns)


def _scatter(ax, points: np.ndarray, q: int, title: str, components=(0, 1)) -> None:
    """Two principal components of the numbers 0, 1, ..., coloured by their residue mod q."""
    residues = np.arange(len(points)) % q
    cmap = "tab10" if q <= 10 else "hsv"
    ax.scatter(*points.T, c=residues, cmap=cmap, s=8)
    first, second = components
    ax.set(title=title, xlabel=f"component {first + 1}", ylabel=f"component {second + 1}")


def digits(tables: dict[str, dict], by_s: dict[int, np.ndarray], path: Path) -> None:
    """Accuracy of digits and numbers, a panel per modulus, and of numbers by s = v_2(a - 1).

    tables {modulus: {digit or "number": (T,)}}
    by_s   {s: (T,)}, empty for a modulus that 4 does not divide"""
    fig, axes = panels(len(tables) + 1, 4.2, 3.4)
    for ax, (name, rows) in zip(axes, tables.items(), strict=False):
        values = np.array(list(rows.values()))[:, :80]  # the paper shows as many
        extent = (0.5, values.shape[1] + 0.5, len(rows) - 0.5, -0.5)
        style = UNIT | {"aspect": "auto", "extent": extent}
        image(ax, values, style, title=f"accuracy, modulus {name}")
        ax.set(xlabel="numbers in context", ylabel="digit of period")
        ax.set_yticks(range(len(rows)), rows)
    last = axes[len(tables) - 1]
    fig.colorbar(last.images[0], ax=last)
    curves = {f"s = {s}": curve for s, curve in by_s.items()}
    grey = [str(max(0.8 - 0.8 * s / max(by_s), 0)) for s in by_s]
    lines(axes[-1], curves, grey)
    title = "number, by the power 2^s in a - 1"
    label(axes[-1], title=title, xlabel="numbers in context", ylim=SHARE)
    save(fig, path)


def embedding(
    scores: np.ndarray, periods: dict, cosines: np.ndarray, offsets: dict, path: Path
) -> None:
    """Principal components of the embedding, their power by period, and cosine similarities.

    Bright lines of the similarities are offsets that leave the low digits equal. The last panels
    show, for three periods, the two components that have most of their power.

    scores (V, c); periods {q: (c,)}: share of each component at period q
    cosines (n, n); offsets {o: mean cosine}"""
    fig, (first, power, shares, similar, by_offset, *planes) = panels(8, 3.8, 3.5)
    first.plot(scores[:20, 0], color=TEST, marker=".")
    first.set(title="first component", xlabel="number")
    first.locator_params(axis="x", integer=True)
    power.plot(spectrum(scores[:, 0]), color=TEST, lw=1)
    frequency = f"frequency, of {len(scores)} numbers"
    power.set(title="|rfft| of the first component", xlabel=frequency)
    table = np.array(list(periods.values())).T
    components = range(1, len(table) + 1)
    _table(shares, table, components, periods, title="share of the power")
    shares.set(xlabel="period", ylabel="component")
    drawn = image(similar, cosines, {"vmin": 0, "vmax": 0.5}, title="cosine similarity")
    similar.set(xlabel="number", ylabel="number")
    fig.colorbar(drawn, ax=similar)
    _bars(by_offset, offsets, title="mean cosine similarity", xlabel="offset")
    shown = [q for q in periods if q > 2]
    for ax, q in zip(planes, shown, strict=False):
        strongest = np.argsort(-periods[q], kind="stable")
        pair = np.sort(strongest[:2])
        _scatter(ax, scores[:, pair], q, f"colour: number mod {q}", pair)
    save(fig, path)


def attention(patterns: np.ndarray, r: np.ndarray, mass: np.ndarray, path: Path) -> None:
    """Mean attention of every head; dots: keys at look-backs r and r/2; below: what these get.

    patterns (depth, H, T, T), r (T,), mass (depth, H, T, 2): probes.digits.look_back_mass
    """
    fig, maps, below = attention_maps(patterns)
    n = np.arange(2, len(r) + 1)
    backs = (("r", r, TRAIN), ("r/2", r // 2, TEST))
    for at in np.ndindex(below.shape):
        for i, (name, back, color) in enumerate(backs):
            keys = n - back[1:]
            maps[at].plot(keys, n - 1, ".", color=color, ms=1.5)
            below[at].plot(n, mass[at][1:, i], color=color, label=f"look-back {name}")
        below[at].set_xlabel("numbers in context")
    label(below[0, 0])
    save(fig, path)


def interventions(cases: dict[int, tuple], path: Path) -> None:
    """How the answer moves when the number at a look-back moves by delta.

    cases {numbers in context: (look-backs, deltas, shares)}
    shares (look-backs, deltas, 4) in the order of MOVES"""
    fig, axes = panels(len(cases), 5.5, 4.8)
    for ax, n in zip(axes, cases, strict=True):
        backs, deltas, shares = cases[n]
        rows = shares.reshape(-1, 4)
        places = range(len(rows))
        for kind, (name, color) in enumerate(MOVES.items()):
            before = rows[:, :kind].sum(axis=1)
            ax.barh(places, rows[:, kind], left=before, color=color, label=name)
        names = []
        for back in backs:
            names += [f"{back} back, delta {delta}" for delta in deltas]
        ax.set_yticks(places, names, fontsize=7)
        ax.invert_yaxis()
        ax.set(title=f"{n} numbers in context", xlabel="share of the sequences", xlim=(0, 1))
    handles, names = axes[0].get_legend_handles_labels()
    legend = {"loc": "outside lower center", "ncol": 4, "frameon": False}
    fig.legend(handles, names, title="the answer moves", **legend)
    save(fig, path)


def edits(top_k: dict, pruned: dict, moduli: list[str], heads: list[str], path: Path) -> None:
    """Accuracy at the end of the context with attention to k keys, and with one head replaced.

    top_k {k: accuracy}; pruned {replacement: (moduli, heads)}, the first of the heads "none"
    """
    width = 3 + 0.3 * len(heads)
    height = 1.8 + 0.25 * len(moduli)
    fig, axes = panels(1 + len(pruned), width, height, columns=2)
    _bars(axes[0], top_k, title="attention to k keys", xlabel="k", ylabel="accuracy")
    axes[0].set_ylim(0, 1.02)
    for ax, (name, values) in zip(axes[1:], pruned.items(), strict=True):
        _table(ax, values, moduli, heads, title=f"head replaced by {name}")
        ax.set(xlabel="block.head", ylabel="modulus")
    save(fig, path)


def residues(points: dict[str, tuple[np.ndarray, int, float]], path: Path) -> None:
    """What heads add after a single number: two components, by the residue that they show most.

    points {name: (scores (m, 2), q, share of the variance between residues mod q)}
    """
    fig, axes = panels(len(points), 3.2, 3.2)
    for ax, name in zip(axes, points, strict=True):
        scores, q, share = points[name]
        _scatter(ax, scores, q, f"{name}: mod {q}, share {share:.2f}")
    save(fig, path)


def modulus(similarity: np.ndarray, tokens: np.ndarray, m: int, patched: dict, path: Path) -> None:
    """Cosine of what the first block's heads add with the embedding of every number, and patching.

    Red: the largest number so far. Patching replaces each head by a donor's of another modulus.
    similarity (H, t, V), tokens (t,); patched {name: (depth, H)}
    """
    H = len(similarity)
    fig, axes = panels(H + len(patched), 3.4, 3)
    style = {"origin": "lower", "aspect": "auto"}
    for h, ax in enumerate(axes[:H]):
        drawn = image(ax, similarity[h].T, style, title=f"block 0 head {h}, cosine")
        ax.set(xlabel="position", ylabel="number")
        fig.colorbar(drawn, ax=ax)
        ax.plot(np.maximum.accumulate(tokens), color=TRAIN, lw=1)
        ax.axhline(m, color="w", lw=0.7, ls="--")
    for ax, (name, values) in zip(axes[H:], patched.items(), strict=True):
        _table(ax, values, range(len(values)), range(H), title=f"patched: {name}")
        ax.set(xlabel="head", ylabel="block")
    save(fig, path)


def prediction(step: np.ndarray, training: dict, curves: dict, bits: dict, path: Path) -> None:
    """Accuracy against steps, by numbers in context beside classical predictors, and by digit.

    training {name: (n,)}; curves {name: (T,)}, the network first; bits {period of the digit: (T,)}
    """
    fig, (left, middle, right) = panels(3, 5, 4)
    lines(left, training, x=step, marker=".", lw=1)
    label(left, xlabel="step", ylabel="accuracy, last 8 numbers", ylim=SHARE)
    for (name, values), ls in zip(curves.items(), LINE_STYLES, strict=True):
        network = ls == "-"
        color = TRAIN if network else "0.3"
        lines(middle, {name: values}, [color], ls=ls, lw=2 if network else 1)
    _in_context(middle, ylabel="accuracy of the next number")
    lines(right, bits, _red_to_blue(len(bits)), lw=1.2)  # low digits red, high ones blue
    _in_context(right, "digit of period", ylabel="accuracy of a digit")
    save(fig, path)


def scaling(curves: dict, moduli: list[int], fits: dict[str, tuple], path: Path) -> None:
    """Accuracy by numbers in context; wrong answers against the modulus with the fitted laws.

    curves {m: (T,)}
    fits   {predictor: (values, a number for every entry of moduli, exponent or None)}"""
    fig, (left, right) = panels(2, 5, 4)
    named = {f"m = {m}": values for m, values in curves.items()}
    lines(left, named, _red_to_blue(len(curves)), lw=1.2)
    _in_context(left, ylabel="accuracy of the next number")
    m = np.asarray(moduli, float)
    for name, color in zip(fits, (TRAIN, TEST, "0.5"), strict=True):
        values, gamma = fits[name]
        law = "" if gamma is None else f", exponent {gamma:.2f}"
        right.loglog(moduli, values, "o", color=color, label=name + law, base=2)
        if gamma is not None:
            mean_m = np.mean(np.log(m[np.isfinite(values)]))
            mean_value = np.nanmean(np.log(values))
            centre = np.exp(mean_value - gamma * mean_m)
            right.plot(moduli, centre * m**gamma, color=color, lw=1)
    label(right, 8, xlabel="modulus", ylabel="numbers answered wrongly")
    save(fig, path)


def _red_to_blue(count: int) -> list[tuple[float, float, float]]:
    colors = []
    for i in range(count):
        red = 0.85 - 0.65 * i / count
        blue = 0.15 + 0.7 * i / count
        colors.append((red, 0.2, blue))
    return colors


def _in_context(ax, heading: str | None = None, **labels) -> None:
    """Axes of accuracies against numbers in context."""
    ax.set_xscale("log", base=2)
    label(ax, heading=heading, xlabel="numbers in context", ylim=SHARE, **labels)
