"""The surveys of written weights: the figure over several numbers of terms, the table of
polynomials."""

import json
from pathlib import Path
from types import SimpleNamespace

import _analytic_surveys as surveys
import analytic_weights
import numpy as np
import pytest

from tinygrok.analytic.addition import addition_weights, random_width
from tinygrok.analytic.verify import evaluator
from tinygrok.cli import InputError
from tinygrok.engine.rng import generator
from tinygrok.tasks.modular import addition


def run(folder, flags):
    words = [*flags.split(), "--threads", "1", "--out", str(folder)]
    assert analytic_weights.main(words) is None
    return json.loads((folder / "run.json").read_text())["results"]


def test_accuracy_against_width(tmp_path, capsys):
    """Random phases need more neurons with every term, exact ones J and the one-hot width."""
    flags = "--survey --p 11 --terms 3 --seeds 4 --no-plot"
    rows = run(tmp_path, flags)
    assert list(rows) == ["S = 1", "S = 2", "S = 3"]
    for terms, row in enumerate(rows.values(), 1):
        assert row["predicted_width"] == random_width(11, terms)
        assert row["exact_widths"] == [(2, 6, 16)[terms - 1], (11, 31, 81)[terms - 1]]
        assert row["exact_accuracies"] == [1.0, 1.0]
        best = np.array(row["best_accuracy"])
        median = np.array(row["median_accuracy"])
        assert np.all(best >= median)
        assert median[0] < 0.6
        assert best[-1] == 1.0
        assert row["best_right_from"] <= row["median_right_from"]
    widths = [row["best_right_from"] for row in rows.values()]
    assert widths == sorted(widths)
    assert "N*" in capsys.readouterr().out
    log = (tmp_path / "log.csv").read_text().splitlines()
    assert len(log) == 1 + 4 * sum(len(row["widths"]) for row in rows.values())
    for path in sorted((tmp_path / "packs").glob("*.json"))[::2]:
        path.unlink()
    assert run(tmp_path, f"{flags} --resume") == rows


def test_what_is_predicted_is_for_the_inputs_that_are_run(host_dev, tmp_path, monkeypatch):
    """With 10,000 of 23^4 inputs far fewer neurons do without an error than with all of them."""
    monkeypatch.setattr(surveys, "kept", lambda *_: {"accuracy": 1.0, "width": 1})
    args = SimpleNamespace(terms=4, p=23, seeds=1, seed=0)
    curves = surveys.by_width(args, host_dev, tmp_path)
    assert [curves[S]["predicted"] for S in (1, 2)] == [random_width(23, S) for S in (1, 2)]
    assert curves[4]["predicted"] == random_width(23, 4, 10_000) < 0.8 * random_width(23, 4)


def test_all_inputs_are_run_where_they_are_few(host_dev):
    assert surveys.accuracy(host_dev, 11, 2, 31, "exact", 0)["inputs"] == 121
    assert surveys.accuracy(host_dev, 23, 3, 16, "exact", 0)["inputs"] == surveys.INPUTS


@pytest.mark.slow
def test_the_figure_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    run(tmp_path, "--survey --quick --terms 2")
    assert (tmp_path / "accuracy_by_width.png").stat().st_size > 5_000


@pytest.mark.slow
def test_polynomials_beside_the_paper(tmp_path, capsys):
    """Its MSE fits logits 3/4 of the formula's, within the deviation of the draws."""
    rows = run(tmp_path, "--task polynomial --survey --p 23 --seeds 3")
    assert len(rows) == 3
    for row in rows.values():
        assert row["accuracy"] == 1.0
        assert row["exact_accuracy"] == 1.0
        assert row["exact_mse"] < 1e-28
        assert row["mse"] > 1.15 * float(row["paper_mse"])
        deviation = max(row["mse_at_paper_scale_deviation"], 5e-4)
        assert abs(row["mse_at_paper_scale"] - float(row["paper_mse"])) < 3 * deviation
    assert "0.009758" in capsys.readouterr().out


def test_the_scale_of_the_paper(host_dev):
    """Against logits that are scaled: the formula leaves out what is 0 on average."""
    task = addition(23, (1, 1, 1))
    weights = addition_weights(task, 2000, "random", generator(1, "init"))
    inputs = generator(0, "probes").integers(23, size=(3, 4000))
    z = host_dev.to_host(evaluator(host_dev, weights)(inputs))
    target = np.eye(23)[task.labels(inputs)]
    mse = np.mean((z - target) ** 2)
    scaled = np.mean((0.75 * z - target) ** 2)
    assert surveys.mse_at_paper_scale(mse, 3, 23) == pytest.approx(scaled, rel=0.05)


def test_smallest():
    assert surveys.smallest([1, 2, 3], [0.5, 1, 1]) == 2
    assert surveys.smallest([1, 2], [0.5, 0.9]) is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--task multiplication", "addition or polynomial"),
        ("--phases random", "--phases means nothing"),
        ("--width 40", "--width means nothing"),
        ("--coefficients 1 2", "--coefficients means nothing"),
        ("--terms 6", "at most 5"),
        ("--p 101", "5 to 97"),
        ("--p 97", "164,798 neurons, too many"),
        ("--p 3", "5 to 97"),
        ("--task polynomial --p 31", "97, 23, or both"),
        ("--task polynomial --terms 3", "--terms means nothing"),
        ("--task polynomial --polynomial n1*n2", "--polynomial means nothing"),
        ("--task polynomial --expert-width 100", "--expert-width means nothing"),
    ],
)
def test_refusals(flags, said):
    with pytest.raises(InputError, match=said):
        analytic_weights.arguments(["--survey", *flags.split()])


def test_a_survey_chooses_its_moduli():
    def p_of(*words):
        return analytic_weights.arguments(list(words)).p

    assert p_of() == 97
    assert p_of("--survey") == 23
    assert p_of("--task", "polynomial") == 97
    assert p_of("--task", "polynomial", "--survey") is None


def test_every_polynomial_of_the_table_is_measured(monkeypatch):
    calls = []

    def kept(path, function, dev, text, p, phases, beta, seed):
        calls.append((text, p, phases))
        return {"accuracy": 1.0, "mse": 0.5, "mse_at_paper_scale": 0.25}

    monkeypatch.setattr(surveys, "kept", kept)
    args = SimpleNamespace(p=None, seeds=2, seed=0, beta=100.0)
    rows = surveys.polynomial_rows(args, None, Path())
    assert len(rows) == 6
    assert len(calls) == 6 * 3
