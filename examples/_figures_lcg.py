"""Figures of networks that predict pseudo-random numbers. Numbers in context count from 1."""

from pathlib import Path

import numpy as np

from tinygrok.plots import style as parts
from tinygrok.plots.colors import TEST, TRAIN, UNIT
from tinygrok.plots.style import SHARE, image, label, lines, panels, save
from tinygrok.probes.fourier import spectrum

MOVES = {"not": "0.8", "by -delta": TRAIN, "by +2 delta": TEST, "otherwise": "0.35"}
SPARSE_DOTS = (0, (1, 4))
SPARSE_DASHES = (0, (5, 5))
LINE_STYLES = ("-", "--", "-.", ":", SPARSE_DOTS, SPARSE_DASHES)


def _bars(ax, values: dict, **labels) -> None:
    ax.bar(range(len(values)), values.values(), color=TEST)
    ax.set_xticks(range(len(values)), values)
    ax.set(**labels)


def table(ax, values: np.ndarray, rows, columns, **labels) -> None:
    """A small table of shares, coloured and written out."""
    image(ax, values, UNIT | {"aspect": "auto", "cmap": "Blues"}, **labels)
    centred = {"ha": "center", "va": "center", "fontsize": 7}
    for (row, column), value in np.ndenumerate(values):
        color = "w" if value > 0.6 else "k"
        ax.text(column, row, f"{value:.2f}", color=color, **centred)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xticks(range(len(columns)), columns)


def scatter(ax, points: np.ndarray, q: int, title: str, components=(0, 1)) -> None:
    """Two principal components of the numbers 0, 1, ..., coloured by their residue mod q, which
    stands at the mean of its points."""
    residues = np.arange(len(points)) % q
    ax.scatter(*points.T, c=residues, cmap="viridis", s=8)
    parts.write_at_means(ax, points, residues)
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
    lines(axes[-1], curves, shades(len(curves)), marker=".", lw=1)
    title = "the number, by the power 2^s in a - 1"
    label(axes[-1], 8, title=title, xlabel="numbers in context", ylabel="accuracy", ylim=SHARE)
    save(fig, path)


def embedding(
    scores: np.ndarray, periods: dict, cosines: np.ndarray, offsets: dict, path: Path
) -> None:
    """Principal components of the embedding, their power by period, and cosine similarities.

    Bright lines of the similarities are offsets that leave the low digits equal. The last panels
    show, for three periods, the two components that have most of their power.

    scores (V, c); periods {q: (c,)}: share of each component at period q
    cosines (n, n); offsets {o: mean cosine}"""
    fig, (first, power, shares, similar, by_offset, *planes) = panels(8, 2.4, 2.5)
    first.plot(scores[:20, 0], color=TEST, marker=".")
    first.set(title="first component", xlabel="number")
    first.locator_params(axis="x", integer=True)
    power.plot(spectrum(scores[:, 0]), color=TEST, lw=1)
    frequency = f"frequency, of {len(scores)} numbers"
    power.set(title="|rfft| of the first component", xlabel=frequency)
    of_period = np.array(list(periods.values())).T
    components = range(1, len(of_period) + 1)
    table(shares, of_period, components, periods, title="share of the power")
    shares.set(xlabel="period", ylabel="component")
    drawn = image(similar, cosines, {"vmin": 0, "vmax": 0.5}, title="cosine similarity")
    similar.set(xlabel="number", ylabel="number")
    fig.colorbar(drawn, ax=similar)
    _bars(by_offset, offsets, title="mean cosine similarity", xlabel="offset")
    shown = [q for q in periods if q > 2]
    for ax, q in zip(planes, shown, strict=False):
        strongest = np.argsort(-periods[q], kind="stable")
        pair = np.sort(strongest[:2])
        scatter(ax, scores[:, pair], q, f"numbers mod {q}", pair)
    save(fig, path)


def attention(patterns: np.ndarray, r: np.ndarray, mass: np.ndarray, path: Path) -> None:
    """Mean attention of every head; dots: keys at look-backs r and r/2; below: what these get.

    patterns (depth, H, T, T), r (T,), mass (depth, H, T, 2): probes.digits.look_back_mass
    """
    fig, maps, below = parts.attention_maps(patterns)
    n = np.arange(2, len(r) + 1)
    backs = ((r, TRAIN, "-"), (r // 2, TEST, "--"))
    for at in np.ndindex(below.shape):
        for i, (back, color, ls) in enumerate(backs):
            keys = n - back[1:]
            maps[at].plot(keys, n - 1, ".", color=color, ms=1.5)
            below[at].plot(n, mass[at][1:, i], color=color, ls=ls)
        maps[at].set(xlabel="key (orange: r back, blue: r/2)", ylabel="query")
        below[at].set(xlabel="numbers in context\norange: on look-back r, dashed: on r/2")
    save(fig, path)


def interventions(cases: dict[int, tuple], path: Path) -> None:
    """How the answer moves when the number at a look-back moves by delta.

    cases {numbers in context: (look-backs, deltas, shares)}
    shares (look-backs, deltas, 4) in the order of MOVES"""
    fig, axes = panels(len(cases), 4.7, 4.8)
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
    _bars(
        axes[0], top_k, title="attention to the k largest only", xlabel="k keys", ylabel="accuracy"
    )
    axes[0].set_ylim(0, 1.02)
    for ax, (name, values) in zip(axes[1:], pruned.items(), strict=True):
        table(ax, values, moduli, heads, title=f"head replaced by {name}")
        ax.set(xlabel="block.head", ylabel="modulus")
    save(fig, path)


def prediction(step: np.ndarray, training: dict, curves: dict, bits: dict, path: Path) -> None:
    """Accuracy against steps, by numbers in context beside classical predictors, and by digit.

    training {name: (n,)}; curves {name: (T,)}, the network first; bits {name of the digit: (T,)}
    """
    fig, (left, middle, right) = panels(3, 3.2, 4.6)
    lines(left, training, (TEST, "0.3"), step, marker=".")
    parts.legend_below(left, 1, title="training: last 8 numbers", xlabel="step", ylabel="accuracy")
    for (name, values), ls in zip(curves.items(), LINE_STYLES, strict=False):
        network = ls == "-"
        color = TRAIN if network else "0.3"
        lines(middle, {name: values}, [color], ls=ls, lw=2 if network else 1)
    _in_context(middle, 1, title="the next number", ylabel="accuracy")
    named = {}
    for i, (name, values) in enumerate(bits.items()):
        unnamed = i % -(-len(bits) // 8)  # at most eight in the legend
        named[f"_{name}" if unnamed else name] = values
    lines(right, named, shades(len(bits)), marker=".", lw=1.2)
    _in_context(right, 1, title="every digit: low ones are dark", ylabel="accuracy")
    save(fig, path)


def scaling(curves: dict, moduli: list[int], fits: dict[str, tuple], path: Path) -> None:
    """Accuracy by numbers in context; wrong answers against the modulus with the fitted laws.

    curves {m: (T,)}
    fits   {predictor: (values for the moduli, exponent, its error, or None and None)}"""
    fig, (left, right) = panels(2, 4.7, 4.8)
    named = {f"m = {m}": values for m, values in curves.items()}
    lines(left, named, shades(len(curves)), marker=".", lw=1.2)
    _in_context(left, title="the transformer", ylabel="accuracy of the next number")
    m = np.asarray(moduli, float)
    styles = zip("os^", (TRAIN, TEST, "0.5"), strict=True)
    for (name, fit), (marker, color) in zip(fits.items(), styles, strict=True):
        values, gamma, error = fit
        law = "" if gamma is None else f": exponent {gamma:.2f} +- {error:.2f}"
        right.plot(m, values, marker, color=color, label=name + law)
        if gamma is not None:
            mean_m = np.mean(np.log(m[np.isfinite(values)]))
            mean_value = np.nanmean(np.log(values))
            centre = np.exp(mean_value - gamma * mean_m)
            right.plot(m, centre * m**gamma, color=color, lw=1)
    right.plot(m, m**0.5, "k:", label="m^(1/2), the law of order 2")
    parts.log2(right, "x", "y")
    title = "numbers needed, and the fitted powers of m"
    parts.legend_below(
        right, 1, title=title, xlabel="modulus m", ylabel="1 + numbers answered wrongly"
    )
    save(fig, path)


def shades(count: int) -> list:
    """Colours from dark to light."""
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 0.85, count)))


def _in_context(ax, columns: int = 2, **labels) -> None:
    """Axes of accuracies against numbers in context."""
    parts.log2(ax, "x")
    parts.legend_below(ax, columns, xlabel="numbers in context", ylim=SHARE, **labels)
