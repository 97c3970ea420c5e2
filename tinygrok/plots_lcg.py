"""Figures of the analyses of networks that predict pseudo-random numbers. Numbers in context count from 1."""

from pathlib import Path

import numpy as np

from .plots import TEST, TRAIN, figure, save
from .plots_sequences import _frame
from .probes.fourier import spectrum

UNIT = {"vmin": 0, "vmax": 1, "aspect": "auto", "interpolation": "nearest"}
MOVES = {"no change": "0.8", "by -delta": TRAIN, "by +2 delta": TEST, "otherwise": "0.35"}


def _table(ax, values: np.ndarray, rows, columns, **labels) -> None:
    """A small table of shares, coloured and written out."""
    ax.imshow(values, **UNIT, cmap="Blues")
    for at, value in np.ndenumerate(values):
        ax.text(*at[::-1], f"{value:.2f}", ha="center", va="center", fontsize=7, color="w" if value > 0.6 else "k")
    _frame(ax, **labels)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xticks(range(len(columns)), columns)


def digits(tables: dict[str, dict[str, np.ndarray]], by_s: dict[int, np.ndarray], path: Path) -> None:
    """Accuracy of every digit and of the whole number, a panel per modulus, and of the number by s = v_2(a - 1).

    tables {modulus: {digit or "number": (T,)}}; by_s {s: (T,)}, may be empty
    """
    panels = len(tables) + bool(by_s)
    fig = figure(4.2 * min(4, panels) + 0.6, 3.4 * -(-panels // 4))
    axes = fig.subplots(-(-panels // 4), min(4, panels), squeeze=False).flat
    for ax, (name, rows) in zip(axes, tables.items(), strict=False):
        values = np.array(list(rows.values()))[:, :80]  # the paper shows as many
        image = ax.imshow(values, **UNIT, extent=(0.5, values.shape[1] + 0.5, len(rows) - 0.5, -0.5))
        _frame(ax, title=f"modulus {name}", xlabel="numbers in context", ylabel="digit of period")
        ax.set_yticks(range(len(rows)), rows)
    for s, curve in by_s.items():
        axes[len(tables)].plot(np.arange(1, len(curve) + 1), curve, color=str(0.8 - 0.8 * s / max(by_s)), label=f"s = {s}")
        axes[len(tables)].set(xlabel="numbers in context", ylabel="accuracy of the number", ylim=(-0.02, 1.02))
        axes[len(tables)].set_title("by the power of two in a - 1, 2^s")
        axes[len(tables)].legend(frameon=False, fontsize=7)
    for ax in axes[panels:]:
        ax.axis("off")
    fig.colorbar(image, ax=list(axes[: len(tables)]), label="accuracy")
    save(fig, path)


def embedding(scores: np.ndarray, periods: np.ndarray, cosines: np.ndarray, offsets: dict[int, float], path: Path) -> None:
    """Principal components of the embedding: the first against the number and its spectrum, power by period, the best pair
    of components for every period, and cosines. Bright lines in the map are offsets of equal low digits.

    scores (V, c); periods {q: (c,)}: share of each component at period q; cosines (n, n); offsets {o: mean cosine}
    """
    fig = figure(15, 7)
    axes = fig.subplots(2, 4).flat
    axes[0].plot(scores[:20, 0], color=TEST, marker=".")
    _frame(axes[0], title="first component", xlabel="number")
    axes[1].plot(spectrum(scores[:, 0])[1:], color=TEST, lw=1)
    axes[1].set(title="|rfft| of the first component over all numbers", xlabel=f"frequency, of {len(scores)} numbers")
    names = [str(i + 1) for i in range(scores.shape[1])]
    _table(
        axes[2],
        np.array(list(periods.values())).T,
        names,
        periods,
        title="share of the power",
        xlabel="period",
        ylabel="component",
    )
    image = axes[3].imshow(cosines, vmin=0, vmax=0.5, interpolation="nearest")
    _frame(axes[3], title="cosine similarity", xlabel="number", ylabel="number")
    fig.colorbar(image, ax=axes[3])
    axes[4].bar(range(len(offsets)), offsets.values(), color=TEST)
    axes[4].set_xticks(range(len(offsets)), offsets)
    axes[4].set(title="mean cosine similarity", xlabel="offset")
    for ax, (q, shares) in zip(axes[5:], [*periods.items()][-3:] if len(periods) < 4 else [*periods.items()][1:4], strict=True):
        i, j = np.sort(np.argsort(-shares, kind="stable")[:2])
        ax.scatter(scores[:, i], scores[:, j], c=np.arange(len(scores)) % q, cmap="tab10" if q <= 10 else "hsv", s=10)
        ax.set(title=f"colour: number mod {q}", xlabel=f"component {i + 1}", ylabel=f"component {j + 1}")
    save(fig, path)


def attention(patterns: np.ndarray, r: np.ndarray, mass: np.ndarray, path: Path) -> None:
    """Mean attention of every head, look-backs r and r/2 of the target as lines; under it the attention that they get.

    patterns (depth, H, T, T), r (T,), mass (depth, H, T, 2): probes.digits.look_back_mass
    """
    depth, H, T, _ = patterns.shape
    fig = figure(3 * H + 0.8, 4.4 * depth)
    axes, n = fig.subplots(2 * depth, H, squeeze=False, height_ratios=[2.2, 1] * depth), np.arange(1, T + 1)
    for i, h in np.ndindex(depth, H):
        top, low = axes[2 * i, h], axes[2 * i + 1, h]
        image = top.imshow(np.where(patterns[i, h] > 0, patterns[i, h], np.nan), vmin=0, vmax=1, interpolation="nearest")
        _frame(top, title=f"block {i} head {h}", xlabel="key", ylabel="query")
        for back, color, name, share in ((r, TRAIN, "r", mass[i, h, :, 0]), (r // 2, TEST, "r/2", mass[i, h, :, 1])):
            top.plot(n - back, n - 1, ".", color=color, ms=1.5)
            low.plot(n[1:], share[1:], color=color, label=f"look-back {name}")
        low.set(ylim=(0, 1), xlabel="numbers in context", ylabel="attention")
    axes[1, 0].legend(frameon=False, fontsize=7)
    fig.colorbar(image, ax=axes[::2], shrink=0.5)
    save(fig, path)


def interventions(moves: dict[int, np.ndarray], backs: list[list[int]], deltas: list[list[int]], path: Path) -> None:
    """How the answer moves when the number at a look-back moves by delta, a panel per number of numbers in context.

    moves {n: (backs, deltas, 4)}: shares in the order of MOVES
    """
    fig = figure(5.5 * len(moves), 4.6)
    for ax, (n, table), back, delta in zip(
        fig.subplots(1, len(moves), squeeze=False)[0], moves.items(), backs, deltas, strict=True
    ):
        rows = table.reshape(-1, 4)
        for kind, (name, color) in enumerate(MOVES.items()):
            ax.barh(range(len(rows)), rows[:, kind], left=rows[:, :kind].sum(axis=1), color=color, label=name)
        ax.set_yticks(range(len(rows)), [f"{b} ago, delta {d}" for b in back for d in delta])
        ax.invert_yaxis()
        ax.set(title=f"{n} numbers in context", xlabel="share of the sequences", xlim=(0, 1))
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncol=4, frameon=False, title="the answer moves")
    save(fig, path)


def edits(top_k: dict[int, float], pruned: dict[str, np.ndarray], moduli: list[str], path: Path) -> None:
    """Accuracy over the last 8 numbers with attention to the k best keys only, and with one head replaced.

    pruned {replacement: (moduli, heads)}, the first row of heads: none replaced
    """
    fig = figure(3.6 + 0.9 * sum(x.shape[1] + 1 for x in pruned.values()), 1.8 + 0.4 * max(4, len(moduli)))
    first, *others = fig.subplots(1, 1 + len(pruned), width_ratios=[3, *(x.shape[1] + 1 for x in pruned.values())])
    first.bar(range(len(top_k)), top_k.values(), color=TEST)
    first.set_xticks(range(len(top_k)), top_k)
    first.set(title="accuracy, attention to k keys", xlabel="k", ylim=(0, 1.02))
    for ax, (name, values) in zip(others, pruned.items(), strict=True):
        heads = ["none", *(f"{i}" for i in range(values.shape[1] - 1))]
        _table(ax, values, moduli, heads, title=f"head replaced by {name}", xlabel="head", ylabel="modulus")
    save(fig, path)


def residues(points: dict[str, tuple[np.ndarray, int, float]], path: Path) -> None:
    """Two principal components of what heads add after a single number, coloured by the residue that they show most.

    points {name: (scores (m, 2), q, share of the variance between residues mod q)}
    """
    columns = min(4, len(points))
    fig = figure(3.2 * columns, 3.2 * -(-len(points) // columns))
    for ax, (name, (scores, q, share)) in zip(
        fig.subplots(-(-len(points) // columns), columns, squeeze=False).flat, points.items(), strict=False
    ):
        ax.scatter(*scores.T, c=np.arange(len(scores)) % q, cmap="tab10" if q <= 10 else "hsv", s=6)
        ax.set(title=f"{name}: mod {q}, share {share:.2f}", xlabel="component 1", ylabel="component 2")
    save(fig, path)


def modulus(similarity: np.ndarray, tokens: np.ndarray, m: int, patched: dict[str, np.ndarray], path: Path) -> None:
    """Cosine similarity of what the heads of the first block add with the embedding of every number, the largest number so
    far as a line; and what patching each head from a donor of another modulus does.

    similarity (H, t, V), tokens (t,); patched {name: (depth, H)}
    """
    H, depth = len(similarity), len(next(iter(patched.values())))
    fig = figure(2.7 * max(H, 3), 3.4 + 1.2 + 0.4 * depth)
    upper, lower = fig.subfigures(2, 1, height_ratios=[3.4, 1.2 + 0.4 * depth])
    axes = upper.subplots(1, H, squeeze=False)[0]
    for h, ax in enumerate(axes):
        image = ax.imshow(similarity[h].T, origin="lower", aspect="auto", interpolation="nearest")
        ax.plot(np.maximum.accumulate(tokens), color=TRAIN, lw=1)
        ax.axhline(m, color="w", lw=0.7, ls="--")
        _frame(ax, title=f"block 0 head {h}", xlabel="position", ylabel="number" if h == 0 else "")
        upper.colorbar(image, ax=ax)
    for ax, (name, values) in zip(lower.subplots(1, len(patched)), patched.items(), strict=True):
        _table(ax, values, range(depth), range(H), title=name, xlabel="head patched", ylabel="block")
    save(fig, path)
