"""Figures of Learning to grok.

Training, attention, circles, similarities, grids over all queries, wrong labels."""

from pathlib import Path

import numpy as np

from tinygrok.plots import style as parts
from tinygrok.plots.colors import GREEN, ORANGE, PURPLE, TEST, TRAIN, UNIT
from tinygrok.plots.style import SHARE, figure, image, label, panels, save

# The colour tells the tasks, the dashes the inputs.
SETS = {
    "id_train": {"label": "pre-training tasks, train inputs", "color": TRAIN},
    "id_test": {"label": "pre-training tasks, test inputs", "color": TRAIN, "ls": "--"},
    "ood_train": {"label": "held-out tasks, train inputs", "color": TEST},
    "ood_test": {"label": "held-out tasks, test inputs", "color": TEST, "ls": "--"},
}
UNKNOWN = {"any_any": {"label": "random tasks, random inputs", "color": TEST}}
SOLVERS = {"ratio_matching": "k--", "modular_regression": "k:", "retrieval": "k-."}
RULES = {  # sets of rows by rule
    "ood_line": {"label": "one line: ratio matching answers", "color": GREEN, "ls": "--"},
    "ood_two_lines": {"label": "two lines, which?", "color": GREEN, "ls": ":"},
    "ood_steps": {"label": "sums, steps shown", "color": ORANGE, "ls": "-."},
    "ood_axis": {"label": "sums, no step shown", "color": TEST},
    "ood_direction_free": {
        "label": "different directions",
        "color": PURPLE,
        "ls": (0, (5, 1, 1, 1)),
    },
}
CLASSES = {"repeat": "o-", "multiple": "s-", "spanned": "^-", "unspanned": "x-"}
DIFFERENCE = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}
RIGHT_WRONG = {"cmap": "gray"} | UNIT


def attention(patterns: np.ndarray, offsets: np.ndarray, sink: np.ndarray, path: Path) -> None:
    """Maps of every head, zeros blank; under them the mean attention by offset and type of query.

    patterns (depth, H, T, T), offsets (depth, H, 3, n), sink (depth, H, 3): mass on tokens 0 and 1
    """
    fig, maps, below = parts.attention_maps(patterns)
    tokens = ["from x", "from y", "from z"]
    for at in np.ndindex(below.shape):
        head = maps[at].get_title()
        maps[at].set_title(f"{head}, sink {sink[at].mean():.2f}")
        maps[at].set(xlabel="key token (0 and 1: the sink)", ylabel="query token")
        below[at].set_prop_cycle(marker=["o", "^", "s"], ls=["-", "--", ":"])
        below[at].plot(offsets[at].T, ms=4, lw=1, label=tokens)
        below[at].set(xlabel="tokens back", ylabel="mean attention")
    label(below[0, 0], 8)
    save(fig, path)


def numbers(features: dict[str, dict], path: Path) -> None:
    """Features of a single number: two components, parity of the logarithm, power by character.

    features {name: {"scores" (p, >= 2), "log" (p,), "base", "power" ((p-1)/2,),
                     "legendre": _in_context_features.legendre, "legendre_p"}}"""
    fig = figure(9.6, 3.4 * len(features))
    rows = fig.subplots(len(features), 3, squeeze=False)
    for row, (name, f) in zip(rows, features.items(), strict=True):
        plane, parity, power = row
        log = f["log"]
        number_plane(plane, f["scores"], (0, 1), log)
        plane.set_title(f"{name}\nnumber, its log to base {f['base']}")
        up = f["legendre"]["component"]  # tells even from odd logarithms
        across = 1 if up == 0 else 0
        number_plane(parity, f["legendre"]["scores"], (across, up), log)
        correlation = f["legendre"]["correlation"][up]
        chance = f"p = {f['legendre_p']:.3f}"
        parity.set_title(f"log even: blue, odd: orange\ncorrelation {correlation:.2f} ({chance})")
        shares = f["power"]
        power.bar(np.arange(1, len(shares) + 1), shares, color=TEST)
        power.axhline(2 / (len(log) - 2), color="0.4", ls="--", label="noise: 2/(p - 2)")
        power.locator_params(axis="x", integer=True)
        label(power, 8, title="waves in the log\none m, prime to p - 1: a circle", ylim=(0, 1))
        power.set(xlabel="m of the characters m, -m", ylabel="share of the power")
    save(fig, path)


def number_plane(ax, points: np.ndarray, components: tuple, log: np.ndarray, first=0) -> None:
    """Two components of the numbers from `first` on, each written beside its point with its
    logarithm (0 has none)."""
    by_parity = np.where(log % 2 == 0, TEST, TRAIN)
    at = points[:, components]
    ax.scatter(*at.T, c=np.where(log < 0, "0.5", by_parity))
    beside = {"fontsize": 8, "xytext": (4, 4), "textcoords": "offset points"}
    for n, (point, power) in enumerate(zip(at, log, strict=True), first):
        text = f"{n}, {power}" if power >= 0 else "0"
        ax.annotate(text, point, **beside)
    across, up = components
    ax.set(xlabel=f"component {across + 1}", ylabel=f"component {up + 1}")
    ax.margins(0.15)


def circles(scores: np.ndarray, log: np.ndarray, base: int, tests: dict, path: Path) -> None:
    """Four components of every head's output over all (x, y), by the logarithm, which stands at the
    mean of its points.

    scores  (depth, H, p^2, 4); log (p,), to a base, -1 of zero
    tests   {"x", "y": [block][head]: the circle tests of the averages over the other number}"""
    depth, H = scores.shape[:2]
    p = len(log)
    logs = {"x": np.repeat(log, p), "y": np.tile(log, p)}
    fig, axes = panels(2 * depth * H, 2.35, 2.5, 2 * H)
    for ax, (i, h, pair) in zip(axes, np.ndindex(depth, H, 2), strict=True):
        token = "xy"[pair]
        first = 2 * pair
        at = scores[i, h, :, first : first + 2]
        drawn = ax.scatter(*at.T, c=logs[token], s=12, cmap="viridis")
        parts.write_at_means(ax, at, logs[token])
        ax.set(xlabel=f"component {first + 1}", ylabel=f"component {first + 2}")
        ax.set(xticks=[], yticks=[])
        test = tests[token][i][h]
        circle = f"m = {test['m']}, share {test['share']:.2f}"
        ax.set_title(f"block {i} head {h}, by {token}\n{circle}")
    scale = f"log of x (or y) to base {base}; -1: zero"
    fig.colorbar(drawn, ax=axes, label=scale, shrink=0.7, ticks=range(-1, p - 1))
    noise = f"share: power of the strongest wave; a circle 1, noise {2 / (p - 2):.2f} a wave"
    fig.suptitle(f"Head outputs over all pairs (x, y); numbers: mean of a log\n{noise}")
    save(fig, path)


def cosine(maps: list[np.ndarray], titles: list[str], columns: int, path: Path) -> None:
    """Cosine-similarity maps, a row of so many columns per block.

    A map is (p, p), or (p^2, p^2) in the order x p + y, drawn as p x p blocks."""
    fig, axes = panels(len(maps), 3.1, 3.5, columns)
    for ax, values, title in zip(axes, maps, titles, strict=True):
        drawn = image(ax, values, DIFFERENCE, title=title)
        index = "x" if "x token" in title else "pair, x p + y"
        ax.set(xlabel=index, ylabel=index)
    score = "score: mean over equal labels (ratio y/x, answer) minus the others"
    fig.colorbar(drawn, ax=axes, shrink=0.5, label="cosine similarity")
    fig.suptitle(f"Similarity of all pairs (x, y) in the network\n{score}")
    save(fig, path)


def grids(
    shots: list, correct: np.ndarray, ratio: np.ndarray, span: np.ndarray, task: str, path: Path
) -> None:
    """All queries, x down and y across, a row per number of shots.

    Columns: what the model answers, ratio matching, their difference, the span.
    correct, ratio, span (len(shots), p, p) of bool; task: its name
    """
    fig = figure(9, 2.35 * len(shots) + 0.6)
    rows = fig.subplots(len(shots), 4, squeeze=False, sharex=True, sharey=True)
    for row, k, right, match, known in zip(rows, shots, correct, ratio, span, strict=True):
        yes_no = {"model right": right, "ratio matching": match, "in the span": known}
        for column, (name, values) in zip((0, 1, 3), yes_no.items(), strict=True):
            title = f"{name}: {values.sum()} of {values.size}"
            image(row[column], values, RIGHT_WRONG, title=title)
        difference = right.astype(int) - match
        count = f"+{(difference > 0).sum()}, -{(difference < 0).sum()}"
        image(row[2], difference, DIFFERENCE, title=f"model - ratio: {count}")
        row[0].set_ylabel("1 shot\nx" if k == 1 else f"{k} shots\nx")
    for ax in rows[-1]:
        ax.set_xlabel("y")
    key = "White: yes, black: no. Red: the model only, blue: ratio matching only"
    fig.suptitle(f"Answers to every query (x, y), {task}\n{key}")
    save(fig, path)


def shots(counts: list[int], accuracy: dict, lens: dict, p: int, path: Path) -> None:
    """Accuracy against shots by what a query needs, and by block through the logit lens.

    accuracy {"held-out tasks ...": {class: one for each of the counts of shots}, ...}
    lens     {set: (depth + 1,)}
    """
    fig, (*axes, last) = panels(len(accuracy) + 1, 3.2, 3.9)
    for ax, (name, curves) in zip(axes, accuracy.items(), strict=True):
        for kind, values in curves.items():
            ax.plot(counts, values, CLASSES[kind], label=f"query: {kind}")
        ax.set(title=name, xlabel="examples in context (shots)")
    for name, values in lens.items():
        last.plot(values, marker=".", **(SETS | UNKNOWN)[name])
    last.set(title="read out after every block, last shot", xlabel="blocks passed")
    for ax in (*axes, last):
        parts.chance(ax, p)
        parts.legend_below(ax, 1, ylabel="accuracy", ylim=SHARE)
        ax.locator_params(axis="x", integer=True)
    save(fig, path)


def noise(tables: dict[str, np.ndarray], single: dict[str, tuple], path: Path) -> None:
    """Accuracy with m wrong labels among k examples, and a sequence of every set with one of them.

    tables  {name: (n, n)}
    single  {set: (right (n, n), clean (n,))}, black: wrong; the first row are the clean answers"""
    fig = figure(9.6, 6.6)
    upper, lower = fig.subfigures(2, 1)
    style = UNIT | {"origin": "lower", "aspect": "auto"}
    axes = upper.subplots(1, len(tables), squeeze=False)[0]
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        drawn = image(ax, table.T, style, title=name)
        ax.set(xlabel="examples in context", ylabel="of them with a wrong label")
    upper.colorbar(drawn, ax=axes, label="accuracy")
    axes = lower.subplots(1, len(single), squeeze=False)[0]
    for ax, (name, (right, clean)) in zip(axes, single.items(), strict=True):
        end = len(clean) - 0.5
        style = RIGHT_WRONG | {"aspect": "auto", "extent": (-0.5, end, end, -1.5)}
        title = (SETS | UNKNOWN)[name]["label"].replace(", ", ",\n")
        image(ax, np.vstack([clean, right]), style, title=title, xlabel="examples in context")
        ax.axhline(-0.5, color=TRAIN, lw=1)
    axes[0].set(ylabel="wrong example (top row: none)")
    lower.suptitle("one sequence with one wrong label; white: right answer, black: wrong")
    save(fig, path)


def training(history: dict, best: int, solved: dict, p: int, path: Path) -> None:
    """Accuracy at the last shot against steps; of held-out tasks by shot, at the best step and at
    the end, beside the solvers.

    history {"step": (n,), "<set>_accuracy": (n, shots), "ood_covered": (n,)}
    solved  {"ratio_matching": (shots,), ...}
    """
    fig, (left, right) = panels(2, 4.7, 4.9)
    steps = history["step"]
    for name, style in SETS.items():
        left.plot(steps, history[f"{name}_accuracy"][:, -1], **style)
    left.plot(
        steps, history["ood_covered"], ":", color=TEST, label="held-out, ratio matching knows"
    )
    at = "before training" if best == 0 else f"step {steps[best]}"
    left.axvline(steps[best], color="0.6", ls=":", zorder=0, label=f"best on held-out: {at}")
    shots = len(solved["retrieval"]) - 1
    left.set(title=f"Training: after {shots} examples in context", xlabel="training step")
    held_out = history["ood_train_accuracy"]
    if 0 < best < len(steps) - 1:
        right.plot(held_out[best], "o-", color=TEST, label=f"held-out, {at} (best)")
    end = f"step {steps[-1]} (final)"
    right.plot(held_out[-1], "s-", color=TEST, mfc="w", lw=1, label=f"held-out, {end}")
    right.plot(history["id_train_accuracy"][-1], color=TRAIN, label=f"pre-training, {end}")
    for name, style in SOLVERS.items():
        right.plot(solved[name], style, lw=1, label=name.replace("_", " "))
    right.set(title="More examples in context: train inputs", xlabel="examples in context (shots)")
    right.locator_params(axis="x", integer=True)
    for ax in (left, right):
        parts.chance(ax, p)
        parts.legend_below(ax, ylabel="accuracy", ylim=SHARE)
    save(fig, path)


def by_rule(history: dict, floors: dict, p: int, path: Path) -> None:
    """What held-out tasks are right in by the rule of the row: against steps, late queries that no
    example's multiple answers (of lines: all); and at the end, sums by examples in context.

    history  {"step": (n,), "<set>_late": (n,), "<set>_accuracy": (n, shots), "uncovered": (n,)}
    floors   {set: {"by_shot": (shots,)}}: a learner that matches, else excludes answers"""
    fig, (left, right) = panels(2, 4.7, 4.9)
    steps = history["step"]
    for name, style in RULES.items():
        if name in floors:
            left.plot(steps, history[f"{name}_late"], **style)
    left.plot(steps, history["uncovered"], ":", color=TRAIN, label="rows drawn freely")
    title = "8 or more examples, none matches (lines: all)"
    left.set(title=title, xlabel="training step")
    if "ood_axis" in floors:
        right.plot(history["ood_axis_accuracy"][-1], **RULES["ood_axis"])
        floor = floors["ood_axis"]["by_shot"]
        right.plot(floor, "k.--", lw=1, label="matching an example, else excluding answers")
    right.set(title="Sums, no step shown: the final network", xlabel="examples in context (shots)")
    right.locator_params(axis="x", integer=True)
    for ax in (left, right):
        parts.chance(ax, p)
        parts.legend_below(ax, 1, ylabel="accuracy on held-out tasks", ylim=SHARE)
    save(fig, path)
