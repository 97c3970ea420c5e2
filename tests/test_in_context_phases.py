"""The phase diagram of in-context learning: its points, its phases, what it refuses, and that it
goes on to the same results."""

import itertools
import json
import subprocess
import sys
import time

import _in_context_points as point
import in_context
import in_context_phases as phases
import numpy as np
import pytest
from _figures_in_context_phases import PHASES

from tinygrok.cli import InputError
from tinygrok.tasks import in_context as ic

TINY = "--quick --width 8 --depth 1 --steps 4 --measure-every 2 --threads 1 --no-plot"


def args_of(flags):
    return phases.arguments(flags.split())


def run(tmp_path, *flags):
    """Run in this process, into the folder a. -> (results, rows of the log as text)"""
    words = [*TINY.split(), "--out", str(tmp_path / "a")]
    for flag in flags:
        words += flag.split()
    assert phases.main(words) is None
    log = (tmp_path / "a/log.csv").read_text().splitlines()
    return json.loads((tmp_path / "a/run.json").read_text())["results"], log


def curves(**accuracies):
    """Of a network that was measured at steps 0, 1, 2, ..."""
    return {"step": list(range(len(accuracies["id_train"])))} | accuracies


# -- points ----------------------------------------------------------------------------------------


def test_points_are_runs_of_in_context():
    """Equally many steps, batches that are multiples of the tasks next to the one that is asked."""
    args = args_of("--tasks 36 4 28 --alpha 0.65 0.4 --seeds 2 --seed 3 --batch 72 --repeats")
    everything = phases.points(args)
    assert [(f["alpha"], f["tasks"], f["seed"]) for f in everything] == list(
        itertools.product((0.4, 0.65), (4, 28, 36), (3, 4))
    )
    assert {f["tasks"]: f["batch"] for f in everything} == {4: 72, 28: 84, 36: 72}
    assert len({f["steps"] for f in everything}) == 1
    for flags in everything:
        options = point.options_of(flags)
        assert options.batch % options.tasks == 0
        assert {name: getattr(options, name) for name in flags} == flags
        data = in_context.make_data(options)
        assert len(data.id_tasks) == flags["tasks"]
        assert len(data.train_pool) == round(flags["alpha"] * 49)


def test_points_with_some_tasks_a_step():
    args = args_of(
        "--tasks 4 28 --alpha 0.4 --batch 70 --tasks-per-step 6 --optimizer muon --hold 0.8"
    )
    few, many = phases.points(args)
    assert (few["batch"], many["batch"], many["tasks_per_step"]) == (72, 72, 6)
    assert "tasks_per_step" not in few
    for flags in (few, many):
        options = point.options_of(flags)
        assert {name: getattr(options, name) for name in flags} == flags
        assert (options.optimizer, options.matrix_lr, options.hold) == ("muon", 0.02, 0.8)


def test_points_with_rows_by_rule():
    args = args_of("--tasks 4 --alpha 0.6 --start line=1 --rows two-lines=0.5 plain=0.5 --ramp 1 2")
    (flags,) = phases.points(args)
    options = point.options_of(flags)
    assert {name: getattr(options, name) for name in flags} == flags
    assert options.start == ["line=1"]
    assert options.rows == ["two-lines=0.5", "plain=0.5"]
    assert options.ramp == [1, 2]


@pytest.mark.parametrize("flags", ["--ramp 1 2", "--rows lines=1", "--start line=0.5"])
def test_rows_that_in_context_refuses(flags, tmp_path):
    with pytest.raises(InputError) as error:
        phases.main([*TINY.split(), *flags.split(), "--out", str(tmp_path / "a")])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()


def test_a_batch_holds_every_task():
    args = args_of("--tasks 36 --batch 8")
    assert {flags["batch"] for flags in phases.points(args)} == {36}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--p 9", "9"),
        ("--tasks 4 48", "rectangles"),
        ("--tasks 6", "fours"),
        ("--tasks 49 --rule random", "none to hold out"),
        ("--alpha 0.4 0.9", "too few for 12 shots"),
        ("--alpha 0.1", "too few"),
        ("--alpha 0.4 0.4", "--alpha: every value once"),
        ("--tasks 8 8", "--tasks: every value once"),
        ("--heads 3", "heads"),
        ("--seeds 500", "1000 at most"),
        ("--depth 1000 --width 10000 --heads 2", "memory"),
        ("--resume", "--resume"),
    ],
)
def test_refusals_before_anything_is_trained(flags, said, tmp_path, monkeypatch):
    monkeypatch.setattr(phases, "train_one", None)
    words = [*flags.split(), "--threads", "1", "--out", str(tmp_path / "a")]
    with pytest.raises(InputError) as refused:
        phases.main(words)
    assert said in str(refused.value).replace(",", "")
    assert not list(tmp_path.iterdir())


# -- phases ----------------------------------------------------------------------------------------


def test_every_phase_has_a_colour():
    levels = itertools.product((0.2, 0.9), repeat=4)
    assert {ic.phase(*accuracies) for accuracies in levels} == set(PHASES)
    assert len(set(PHASES.values())) == len(PHASES)


@pytest.mark.parametrize("high", [0.5, 0.75])
def test_phases_agree_with_those_of_the_tasks(high):
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = {name: rng.random(3).round(2).tolist() for name in phases.SETS}
        found = phases.outcome(curves(**values), 7, high)
        best = int(np.argmax(values["ood_train"]))
        if values["ood_train"][best] <= 2 / 7:
            best = 2
        for moment, i in (("end", 2), ("best", best)):
            accuracies = [values[name][i] for name in ("id_train", "id_test")]
            accuracies += [values[name][i] for name in ("ood_train", "ood_test")]
            assert found[moment]["phase"] == ic.phase(*accuracies, high)
            assert found[moment]["step"] == i
            assert [found[moment][name] for name in phases.SETS] == accuracies


def test_a_lucky_measurement_is_no_best_step():
    """Retrieval of the training tasks is right on 1/p to 2/p of the others."""
    flat = [0.2, 0.2, 0.2]
    sets = {"id_train": [0.2, 0.9, 1.0], "id_test": flat, "ood_test": flat}
    for top, best in ((0.28, 2), (0.29, 0)):
        found = phases.outcome(curves(**sets, ood_train=[top, 0.1, 0.1]), 7, 0.5)
        assert found["best"]["step"] == best


def test_an_ability_that_fades_is_in_one_diagram_only():
    flat = [0.2, 0.2, 0.2]
    sets = {"id_train": [0.2, 0.9, 1.0], "id_test": flat, "ood_test": flat}
    found = phases.outcome(curves(**sets, ood_train=[0.1, 0.6, 0.2]), 7, 0.5)
    assert found["best"]["phase"] == "o.o.d. memorization"
    assert found["end"]["phase"] == "i.d. memorization"


def test_a_cell_shows_means_and_the_commonest_phase():
    args = args_of("--tasks 4 8 --alpha 0.5 --seeds 3")
    kinds = ["untrained", "untrained", "i.d. memorization"]
    kinds += ["o.o.d. generalization", "untrained", "o.o.d. generalization"]
    outcomes = []
    for i, kind in enumerate(kinds):
        outcomes.append({"end": dict.fromkeys(phases.SETS, i / 10) | {"phase": kind}})
    grid = phases.maps(args, outcomes, "end")
    assert [list(PHASES)[code] for code in grid["phase"][0]] == [kinds[0], kinds[3]]
    for name in phases.SETS:
        np.testing.assert_allclose(grid[name], [[0.1, 0.4]])


def test_letters_of_the_table():
    """A text for every alpha, the highest first; where the ability for held-out tasks begins."""
    args = args_of("--tasks 4 8 12 --alpha 0.5 0.7")
    empty = {name: np.zeros((2, 3)) for name in phases.SETS}
    end = empty | {"phase": np.array([[1, 1, 0], [1, 2, 0]])}
    best = empty | {"phase": np.array([[1, 1, 3], [1, 3, 4]])}
    solved = [{"retrieval": 0.1, "ratio_matching": 0.6}, {"retrieval": 0.2, "ratio_matching": 0.7}]
    found = phases.summary(args, solved, {"end": end, "best": best})
    letters = {key: text for key, text in found.items() if ": alpha" in key}
    assert list(letters.items()) == [
        ("end: alpha 0.7", "iM iG -"),
        ("end: alpha 0.5", "iM iM -"),
        ("best: alpha 0.7", "iM oM oG"),
        ("best: alpha 0.5", "iM iM oM"),
    ]
    assert found["fewest_tasks_ood"] == 8
    assert found["end: untrained"] == 2
    assert found["retrieval"] == "0.10 to 0.20"


# -- runs ------------------------------------------------------------------------------------------


def test_a_point_is_what_in_context_trains(tmp_path):
    """The same flags give the same accuracies there."""
    results, log = run(tmp_path)
    words = f"{TINY} --tasks 4 --alpha 0.6 --batch 48 --shots 6 --out {tmp_path / 'b'}".split()
    assert in_context.main(words) is None
    there = json.loads((tmp_path / "b/run.json").read_text())
    for name in phases.SETS:
        assert results[f"end_{name}"][1][0] == round(there["results"][name], 3)
    assert len(log) == 1 + 4


def test_the_device_is_the_one_that_was_asked_for(tmp_path, monkeypatch):
    """Also its TF32, of which no number tells on a CPU."""
    asked = []
    device = point.get_device

    def ask(*words, **options):
        asked.append((*words, *sorted(options.items())))
        return device(*words, **options)

    monkeypatch.setattr(point, "get_device", ask)
    run(tmp_path, "--tf32 --dtype float64 --device cpu")
    options = (("kernels", "numpy"), ("tf32", True), ("threads", 1))
    assert set(asked) == {("cpu", "float64", *options)}


def test_another_threshold_or_column_trains_no_point_anew(tmp_path, monkeypatch):
    before, log = run(tmp_path)
    assert sum(before[f"end: {name}"] for name in PHASES) == 4
    train = point.train_one
    monkeypatch.setattr(phases, "train_one", None)
    after, _ = run(tmp_path, "--high 0.01 --resume")
    assert after["end: o.o.d. generalization"] == 4
    assert after["end_id_train"] == before["end_id_train"]
    trained = []
    monkeypatch.setattr(
        phases, "train_one", lambda f, *a, **b: trained.append(f) or train(f, *a, **b)
    )
    _, longer = run(tmp_path, "--tasks 4 8 16 --resume")
    assert {flags["tasks"] for flags in trained} == {8}
    assert set(log) < set(longer)
    for flags in ("--depth 2", "--steps 5", "--seed 1", "--repeats"):
        with pytest.raises(InputError):
            run(tmp_path, flags, "--resume")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_sweep_goes_on_to_the_same_results(tmp_path, workers):
    whole, _ = run(tmp_path, "--steps 60 --measure-every 20")
    script = phases.__file__
    words = f"{TINY} --steps 60 --measure-every 20 --out b --workers {workers}".split()
    process = subprocess.Popen([sys.executable, script, *words], cwd=tmp_path)
    packs = tmp_path / "b/packs"
    while not list(packs.glob("*.json")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (tmp_path / "b/run.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in packs.glob("*.json")}
    subprocess.run([sys.executable, script, *words, "--resume"], cwd=tmp_path, check=True)
    for path, written in finished.items():
        assert path.stat().st_mtime_ns == written
    assert json.loads((tmp_path / "b/run.json").read_text())["results"] == whole
    assert (tmp_path / "b/log.csv").read_text() == (tmp_path / "a/log.csv").read_text()


# -- the figure ------------------------------------------------------------------------------------


@pytest.fixture
def figure(monkeypatch):
    """The figure of a diagram of every phase, twice."""
    pytest.importorskip("matplotlib")
    import _figures_in_context_phases as plots

    figures = []
    monkeypatch.setattr(plots, "save", lambda fig, path: figures.append(fig))
    codes = np.arange(6).reshape(2, 3) % 5
    grid = {"phase": codes} | dict.fromkeys(phases.SETS, codes / 4)
    settings = vars(args_of("--tasks 4 8 12 --alpha 0.5 0.7 --high 0.6"))
    settings |= {"retrieval": "0.10 to 0.20", "ratio_matching": "0.60 to 0.70"}
    plots.diagrams({"end": grid, "best": grid}, settings, None)
    return figures[0]


def test_the_figure_says_what_is_seen(figure):
    said = figure.get_suptitle()
    for text in ("chance 1/7", "none ends early", "24 to 34 of 49", "without repetition", "0.70"):
        assert text in said
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "an accuracy from 0.6 on is high"
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [f"{letters}  {name}" for name, letters in PHASES.items()]


def test_cells_are_told_apart_without_colours(figure):
    letters = list(PHASES.values())
    phase = figure.axes[0]
    assert [text.get_text() for text in phase.texts] == [*letters, letters[0]]
    accuracy = figure.axes[1]
    assert [text.get_text() for text in accuracy.texts] == ["0", "25", "50", "75", "100", "0"]
    titles = [ax.get_title().splitlines()[-1] for ax in figure.axes[:6:5]]
    assert titles == ["phase at the last step", "for held-out tasks"]


@pytest.mark.slow
def test_the_figure_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    run(tmp_path)
    drawn = TINY.replace("--no-plot", f"--resume --out {tmp_path / 'a'}")
    assert phases.main(drawn.split()) is None
    picture = (tmp_path / "a/in_context_phases.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
