"""Figures of networks that predict pseudo-random numbers. Numbers in context count from 1."""

from pathlib import Path

import numpy as np

from ..probes.fourier import spectrum
from .style import SHARE, TEST, TRAIN, UNIT, attention_maps, image, label, lines, panels, save

MOVES = {"not": "0.8", "by -delta": TRAIN, "by +2 delta": TEST, "otherwise": "0.35"}


def _bars(ax, values: dict, **labels) -> None:
    ax.bar(range(len(values)), values.values(), color=TEST)
    ax.set_xticks(range(len(values)), values)
    ax.set(**labels)


def _table(ax, values: np.ndarray, rows, columns, **labels) -> None:
    """A small table of shares, coloured and written out."""
    image(ax, values, UNIT | {"aspect": "auto", "cmap": "Blues"}, **labels)
    for at, value in np.ndenumerate(values):
        ax.text(
            *at[::-1],
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=7,
            color="w" if value > 0.6 else "k",
        )
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xticks(range(len(columns)), columns)


def _scatter(ax, points: np.ndarray, q: int, title: str, components=(0, 1)) -> None:
    """Two principal components of the numbers 0, 1, ..., coloured by their residue mod q."""
    ax.scatter(*points.T, c=np.arange(len(points)) % q, cmap="tab10" if q <= 10 else "hsv", s=8)
    ax.set(
        title=title,
        xlabel=f"component {components[0] + 1}",
        ylabel=f"component {components[1] + 1}",
    )


def digits(
    tables: dict[str, dict[str, np.ndarray]], by_s: dict[int, np.ndarray], path: Path
) -> None:
    """Accuracy of every digit and of the whole number, a panel per modulus, and of the number by s
    = v_2(a - 1).

    tables {modulus: {digit or "number": (T,)}}; by_s {s: (T,)}, empty for a modulus that 4 does not
    divide"""
    fig, axes = panels(len(tables) + 1, 4.2, 3.4)
    for ax, (name, rows) in zip(axes, tables.items(), strict=False):
        values = np.array(list(rows.values()))[:, :80]  # the paper shows as many
        style = UNIT | {
            "aspect": "auto",
            "extent": (0.5, values.shape[1] + 0.5, len(rows) - 0.5, -0.5),
        }
        drawn = image(
            ax,
            values,
            style,
            title=f"accuracy, modulus {name}",
            xlabel="numbers in context",
            ylabel="digit of period",
        )
        ax.set_yticks(range(len(rows)), rows)
    fig.colorbar(drawn, ax=axes[len(tables) - 1])
    grey = [str(max(0.8 - 0.8 * s / max(by_s), 0)) for s in by_s]
    lines(axes[-1], {f"s = {s}": curve for s, curve in by_s.items()}, grey)
    label(
        axes[-1], title="number, by the power 2^s in a - 1", xlabel="numbers in context", ylim=SHARE
    )
    save(fig, path)


def embedding(
    scores: np.ndarray,
    periods: dict[int, np.ndarray],
    cosines: np.ndarray,
    offsets: dict,
    path: Path,
) -> None:
    """Principal components of the embedding: the first one and its spectrum, power by period,
    cosines (bright lines: offsets that leave the low digits equal), and for three periods the two
    components that show them most.

    scores (V, c); periods {q: (c,)}: share of each component at period q; cosines (n, n); offsets
    {o: mean cosine}"""
    fig, axes = panels(8, 3.8, 3.5)
    axes[0].plot(scores[:20, 0], color=TEST, marker=".")
    axes[0].set(title="first component", xlabel="number")
    axes[0].locator_params(axis="x", integer=True)
    axes[1].plot(spectrum(scores[:, 0]), color=TEST, lw=1)
    axes[1].set(
        title="|rfft| of the first component", xlabel=f"frequency, of {len(scores)} numbers"
    )
    table = np.array(list(periods.values())).T
    _table(
        axes[2],
        table,
        range(1, len(table) + 1),
        periods,
        title="share of the power",
        xlabel="period",
        ylabel="component",
    )
    drawn = image(
        axes[3],
        cosines,
        {"vmin": 0, "vmax": 0.5},
        title="cosine similarity",
        xlabel="number",
        ylabel="number",
    )
    fig.colorbar(drawn, ax=axes[3])
    _bars(axes[4], offsets, title="mean cosine similarity", xlabel="offset")
    for ax, q in zip(axes[5:], [q for q in periods if q > 2], strict=False):
        pair = np.sort(np.argsort(-periods[q], kind="stable")[:2])
        _scatter(ax, scores[:, pair], q, f"colour: number mod {q}", pair)
    save(fig, path)


def attention(patterns: np.ndarray, r: np.ndarray, mass: np.ndarray, path: Path) -> None:
    """Mean attention of every head, keys at look-backs r and r/2 of the target as dots; below, the
    attention that they get.

    patterns (depth, H, T, T), r (T,), mass (depth, H, T, 2): probes.digits.look_back_mass
    """
    fig, maps, below = attention_maps(patterns)
    n = np.arange(2, len(r) + 1)
    for at, ax in np.ndenumerate(below):
        for back, color, name, share in zip(
            (r, r // 2), (TRAIN, TEST), ("r", "r/2"), mass[at].T, strict=True
        ):
            maps[at].plot(n - back[1:], n - 1, ".", color=color, ms=1.5)
            ax.plot(n, share[1:], color=color, label=f"look-back {name}")
        ax.set_xlabel("numbers in context")
    label(below[0, 0])
    save(fig, path)


def interventions(cases: dict[int, tuple[list[int], list[int], np.ndarray]], path: Path) -> None:
    """How the answer moves when the number at a look-back moves by delta: {numbers in context:
    (look-backs, deltas, shares)},

    shares (look-backs, deltas, 4) in the order of MOVES."""
    fig, axes = panels(len(cases), 5.5, 4.8)
    for ax, (n, (backs, deltas, shares)) in zip(axes, cases.items(), strict=True):
        rows = shares.reshape(-1, 4)
        for kind, (name, color) in enumerate(MOVES.items()):
            ax.barh(
                range(len(rows)),
                rows[:, kind],
                left=rows[:, :kind].sum(axis=1),
                color=color,
                label=name,
            )
        ax.set_yticks(
            range(len(rows)), [f"{b} back, delta {d}" for b in backs for d in deltas], fontsize=7
        )
        ax.invert_yaxis()
        ax.set(title=f"{n} numbers in context", xlabel="share of the sequences", xlim=(0, 1))
    fig.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncol=4,
        frameon=False,
        title="the answer moves",
    )
    save(fig, path)


def edits(
    top_k: dict[str, float],
    pruned: dict[str, np.ndarray],
    moduli: list[str],
    heads: list[str],
    path: Path,
) -> None:
    """Accuracy at the end of the context with attention to the k best keys only, and with one head
    replaced.

    pruned {replacement: (moduli, heads)}, the first of the heads being "none"
    """
    fig, axes = panels(1 + len(pruned), 3 + 0.3 * len(heads), 1.8 + 0.25 * len(moduli), 2)
    _bars(
        axes[0], top_k, title="attention to k keys", xlabel="k", ylabel="accuracy", ylim=(0, 1.02)
    )
    for ax, (name, values) in zip(axes[1:], pruned.items(), strict=True):
        _table(
            ax,
            values,
            moduli,
            heads,
            title=f"head replaced by {name}",
            xlabel="block.head",
            ylabel="modulus",
        )
    save(fig, path)


def residues(points: dict[str, tuple[np.ndarray, int, float]], path: Path) -> None:
    """Two principal components of what heads add after a single number, coloured by the residue
    that they show most.

    points {name: (scores (m, 2), q, share of the variance between residues mod q)}
    """
    fig, axes = panels(len(points), 3.2, 3.2)
    for ax, (name, (scores, q, share)) in zip(axes, points.items(), strict=True):
        _scatter(ax, scores, q, f"{name}: mod {q}, share {share:.2f}")
    save(fig, path)


def modulus(
    similarity: np.ndarray, tokens: np.ndarray, m: int, patched: dict[str, np.ndarray], path: Path
) -> None:
    """Cosine similarity of what the first block's heads add with the embedding of every number;
    red: the largest number so far; and what patching each head from a donor of another modulus
    does.

    similarity (H, t, V), tokens (t,); patched {name: (depth, H)}
    """
    H = len(similarity)
    fig, axes = panels(H + len(patched), 3.4, 3)
    for h, ax in enumerate(axes[:H]):
        style = {"origin": "lower", "aspect": "auto"}
        drawn = image(
            ax,
            similarity[h].T,
            style,
            title=f"block 0 head {h}, cosine",
            xlabel="position",
            ylabel="number",
        )
        fig.colorbar(drawn, ax=ax)
        ax.plot(np.maximum.accumulate(tokens), color=TRAIN, lw=1)
        ax.axhline(m, color="w", lw=0.7, ls="--")
    for ax, (name, values) in zip(axes[H:], patched.items(), strict=True):
        _table(
            ax,
            values,
            range(len(values)),
            range(H),
            title=f"patched: {name}",
            xlabel="head",
            ylabel="block",
        )
    save(fig, path)


def prediction(
    step: np.ndarray,
    training: dict[str, np.ndarray],
    curves: dict[str, np.ndarray],
    bits: dict,
    path: Path,
) -> None:
    """Number accuracy against steps, against numbers in context beside the classical predictors,
    and digit by digit.

    training {name: (n,)}; curves {name: (T,)}, the network first; bits {period of the digit: (T,)}
    """
    fig, (left, middle, right) = panels(3, 5, 4)
    lines(left, training, x=step, marker=".", lw=1)
    label(left, xlabel="step", ylabel="accuracy, last 8 numbers", ylim=SHARE)
    for (name, values), style in zip(
        curves.items(), ("-", "--", "-.", ":", (0, (1, 4)), (0, (5, 5))), strict=True
    ):
        color, width = (TRAIN, 2) if style == "-" else ("0.3", 1)
        lines(middle, {name: values}, [color], ls=style, lw=width)
    _in_context(middle, ylabel="accuracy of the next number")
    lines(right, bits, _red_to_blue(len(bits)), lw=1.2)  # low digits red, high ones blue
    _in_context(right, "digit of period", ylabel="accuracy of a digit")
    save(fig, path)


def scaling(curves: dict[int, list], moduli: list[int], fits: dict[str, tuple], path: Path) -> None:
    """Accuracy by numbers in context for every modulus; numbers answered wrongly against the
    modulus with the fitted laws.

    curves {m: (T,)}; fits {predictor: (values, a number for every entry of moduli, exponent or
    None)}"""
    fig, (left, right) = panels(2, 5, 4)
    lines(
        left,
        {f"m = {m}": values for m, values in curves.items()},
        _red_to_blue(len(curves)),
        lw=1.2,
    )
    _in_context(left, ylabel="accuracy of the next number")
    for (name, (values, gamma)), color in zip(fits.items(), (TRAIN, TEST, "0.5"), strict=True):
        law = "" if gamma is None else f", exponent {gamma:.2f}"
        right.loglog(moduli, values, "o", color=color, label=name + law, base=2)
        if gamma is not None:
            centre = np.exp(
                np.nanmean(np.log(values))
                - gamma * np.mean(np.log(np.array(moduli)[np.isfinite(values)]))
            )
            right.plot(moduli, centre * np.asarray(moduli, float) ** gamma, color=color, lw=1)
    label(right, 8, xlabel="modulus", ylabel="numbers answered wrongly")
    save(fig, path)


def _red_to_blue(count: int) -> list[tuple[float, float, float]]:
    return [(0.85 - 0.65 * i / count, 0.2, 0.15 + 0.7 * i / count) for i in range(count)]


def _in_context(ax, heading: str | None = None, **labels) -> None:
    """Axes of accuracies against numbers in context."""
    ax.set_xscale("log", base=2)
    label(ax, heading=heading, xlabel="numbers in context", ylim=SHARE, **labels)
