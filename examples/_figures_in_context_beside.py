"""Two networks of Learning to grok, opened by the same analyses, one under the other."""

from pathlib import Path

import numpy as np
from _figures_in_context import CLASSES, DIFFERENCE, number_plane

from tinygrok.plots import style as parts
from tinygrok.plots.style import SHARE, figure, image, save


def beside(networks: dict[str, tuple[dict, dict]], path: Path) -> None:
    """A row per network: accuracy by what a query needs, the numbers in its best head, the head
    whose output tells ratios best, and what it answers beyond ratio matching.

    networks {its name: (results, shown) of in_context_probe.analysed}"""
    fig = figure(13, 4 * len(networks))
    rows = fig.subplots(len(networks), 4, squeeze=False)
    for row, (name, (results, shown)) in zip(rows, networks.items(), strict=True):
        by_need, head, similar, answers = row
        _, (counts, curves, _, p) = shown["shots"]
        tasks, held_out = list(curves.items())[-1]
        for kind, values in held_out.items():
            by_need.plot(counts, values, CLASSES[kind], label=f"query: {kind}")
        parts.chance(by_need, p)
        parts.legend_below(
            by_need, 2, title=f"{name}\n{tasks}", xlabel="examples in context", ylim=SHARE
        )
        by_need.set_ylabel("accuracy")

        _, (features,) = shown["numbers"]
        where, feature = list(features.items())[-1]
        # 0 has no logarithm, and lies far from the others.
        number_plane(head, feature["scores_without_zero"], (0, 1), feature["log"][1:], first=1)
        circle = f"circle {results['head_circle']:.2f} (p = {results['head_circle_p']:.3f})"
        parity = f"parity {results['head_legendre']:.2f} (p = {results['head_legendre_p']:.3f})"
        head.set_title(f"{where}\n{circle}, m = {results['head_circle_m']}\n{parity}")

        _, (maps, titles, _) = shown["cosine_heads"]
        best = int(np.argmax(results["ratio_score_head_z"]))
        drawn = image(similar, maps[best], DIFFERENCE, title=titles[best])
        similar.set(xlabel="pair, x p + y", ylabel="pair, x p + y")
        fig.colorbar(drawn, ax=similar, label="cosine similarity", shrink=0.7)

        _, (shots, right, ratio, _, task) = shown["grids"]
        difference = right[-1].astype(int) - ratio[-1]
        count = f"+{(difference > 0).sum()}, -{(difference < 0).sum()}"
        image(answers, difference, DIFFERENCE, title=f"{task}\n{shots[-1]} shots: {count}")
        answers.set(xlabel="y", ylabel="x")
    key = "last column, red: right without a matching ratio, blue: wrong with one"
    fig.suptitle(f"Numbers are written with their logs, even ones blue; {key}")
    save(fig, path)
