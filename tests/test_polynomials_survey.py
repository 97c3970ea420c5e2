"""The paper's twelve rows of what can be learned, from one command."""

import json

import _polynomials_survey as survey
import grok_polynomials
import numpy as np
import pytest

from tinygrok.analytic.trained import excluded
from tinygrok.cli import InputError
from tinygrok.engine.device import get_device
from tinygrok.training.loop import Run

CPU = get_device("cpu", threads=1)
TINY = {7: {"width": 8, "steps": 8}, 5: {"width": 6, "steps": 12}}


@pytest.fixture
def _tiny(monkeypatch):
    """Small tables in place of the paper's, beside its numbers."""
    papers = {(text, p): survey.PAPER[text, 97] for text in survey.POLYNOMIALS for p in TINY}
    monkeypatch.setattr(survey, "QUICK", TINY)
    monkeypatch.setattr(survey, "PAPER", survey.PAPER | papers)


def run(folder, *flags):
    words = ["--survey", "--quick", "--threads", "1", "--log-every", "4", "--out", str(folder)]
    assert grok_polynomials.main([*words, *flags]) is None
    return json.loads((folder / "run.json").read_text())["results"]


def test_the_paper_has_six_rows_for_each_modulus():
    for p in survey.SIZES:
        rows = {text: survey.PAPER[text, p] for text in survey.POLYNOMIALS}
        assert len(rows) == 6
        assert [row[2] == "100" for row in rows.values()] == [True, False] * 3
        for train, test, _ in rows.values():
            assert 0 < float(train) < float(test) < 0.06


def test_what_the_paper_calls_not_learnable_is_proved_to_be_of_no_form():
    for p in survey.SIZES:
        tasks = grok_polynomials.tasks_of(p)
        for text in survey.POLYNOMIALS:
            table = tasks[text].table()
            none = excluded(table, "add") and excluded(table, "multiply")
            assert none == (survey.PAPER[text, p][2] != "100")


@pytest.mark.slow
@pytest.mark.usefixtures("_tiny")
def test_a_row_is_that_of_the_usual_run(tmp_path, capsys):
    """A member is what it is in the ensemble with the sum and the product too."""
    rows = run(tmp_path / "a")
    assert list(rows) == [f"{text} mod {p}" for p in TINY for text in survey.POLYNOMIALS]
    printed = capsys.readouterr().out
    assert "p = 7, width 8 (paper: 5000), 8 steps" in printed
    assert "0.001963" in printed
    assert (tmp_path / "a/survey.png").exists()
    args = grok_polynomials.arguments(["--p", "7", "--width", "8", "--steps", "8"])
    tasks = grok_polynomials.tasks_of(7)
    usual = grok_polynomials.build(args, CPU, tasks)
    usual.fit(8, 4)
    for text, row in grok_polynomials.measured(usual, tasks, args).items():
        if text in survey.POLYNOMIALS:
            ours = rows[f"{text} mod 7"]
            for name in ("train_loss", "test_accuracy", "chance"):
                assert ours[name] == float(f"{row[name]:.5g}")
            assert ours["learnt"] == (row["test_accuracy"] >= survey.LEARNT)


@pytest.mark.usefixtures("_tiny")
def test_an_interrupted_survey_goes_on_bit_by_bit(tmp_path, monkeypatch):
    whole = run(tmp_path / "a", "--no-plot")
    step = Run.step

    def interrupted(self):
        if self.t == 6 and self.model.p == 5:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Run, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", "--no-plot")
    assert len(list((tmp_path / "b/packs").glob("*.npz"))) == 1
    monkeypatch.setattr(Run, "step", step)
    assert run(tmp_path / "b", "--no-plot", "--resume") == whole
    assert not list((tmp_path / "b/packs").glob("*.npz"))


def test_seeds_are_medians(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "QUICK", {23: {"width": 6, "steps": 4}})
    rows = run(tmp_path / "a", "--seeds", "3", "--no-plot")
    for row in rows.values():
        assert row["test_accuracy"] == pytest.approx(row["test_accuracy_quartiles"][1], rel=1e-4)
        assert np.ndim(row["train_loss"]) == 0


@pytest.mark.parametrize("flags", ["--train-frac 0.0001", "--p 61"])
def test_refusals_before_anything_is_written(flags, tmp_path):
    words = ["--survey", "--out", str(tmp_path / "a"), *flags.split()]
    with pytest.raises(InputError):
        grok_polynomials.main(words)
    assert not list(tmp_path.iterdir())
