"""Every example as a user runs it: --quick, figures, refusals, Ctrl-C and resume."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tinygrok.training.checkpoint import load_arrays, save_arrays

EXAMPLES = Path(__file__).parent.parent / "examples"
QUICK = {
    "grok_addition": {
        "test_accuracy": lambda x: x == 1,
        "train_accuracy": lambda x: x == 1,
        "step_train_99": lambda x: x <= 60,
        "step_test_99": lambda x: x >= 120,
        "ipr_mean": lambda x: x > 0.5,
    },
    "corrupted_labels": {
        "phase": lambda x: x == "Coexistence",
        "test_accuracy": lambda x: x > 0.98,
        "corrupted_accuracy": lambda x: 0.7 < x < 0.88,
        "pruned_low_half_corrupted": lambda x: x < 0.1,
        "pruned_high_30_test": lambda x: x < 0.45,
        "filter_G_test_random_labels": lambda x: x < 0.05,
    },
    "phase_diagram": {
        "networks": lambda x: x == 18,
        "seconds_per_network": lambda x: x < 5,
        "Coexistence": lambda x: x > 0,
    },
    "analytic_weights": {
        "accuracy": lambda x: x == 1,
        "inputs": lambda x: x == 23**2,
        "mse": lambda x: x < 1e-28,
        "min_margin": lambda x: abs(x - 1) < 1e-12,
        "signal_to_noise": lambda x: x > 1e12,
    },
    "grok_polynomials": {
        "n1*n2": lambda x: (
            x["test_accuracy"] == 1 and x["explained_before"] < 0.15 and x["explained_after"] > 0.8
        ),
        "(2*n1 + 3*n2)^4": lambda x: x["test_accuracy"] == 1 and not x["excluded_sum"],
        "(2*n1 + 3*n2)^4 - n1^2": lambda x: (
            x["test_accuracy"] < 0.05 and x["excluded_sum"] and x["excluded_product"]
        ),
        "(5*n1^3 + 2*n2^4)^2 - n2": lambda x: (
            x["accuracy_with_siblings"] > 0.97 and x["accuracy_without"] < 0.03
        ),
    },
    "in_context": {
        "id_train": lambda x: x > 0.95,
        "ood_best": lambda x: x < 0.5,
        "phase": lambda x: x == "i.d. memorization",
    },
    "in_context_probe": {
        "id_covered": lambda x: x[0] > 0.5,
        "id_uncovered": lambda x: x[0] < 0.5,
        "lens_id_train": lambda x: len(x) == 3 and x[-1] > x[0] + 0.15,
        "head_offset_score": lambda x: np.shape(x) == (2, 2, 3) and np.max(x) > 0.25,
        "one_wrong_other": lambda x: x > 0.8,
        "ood_line_failures": lambda x: x > 0.3,
    },
    "lcg_probe": {  # the mechanism of the small networks: residues in the embedding, look-backs r and r/2, 2 x_(r/2) - x_r
        "accuracy mod 64": lambda x: x > 0.85,
        "power_period_2": lambda x: x > 0.9,
        "power_period_4": lambda x: x > 0.5,
        "cosine at offset 32": lambda x: x > 0.4,
        "attention_r": lambda x: 0.45 < x[0][0] < 0.7,
        "attention_half_r": lambda x: 0.22 < x[0][0] < 0.37,
        "moved_r": lambda x: min(x) > 0.8,
        "moved_half_r": lambda x: min(x) > 0.8,
        "unmoved_others": lambda x: min(x) > 0.9,
        "unmoved_query_even": lambda x: min(x) > 0.75,
        "top_1": lambda x: x < 0.1,
        "top_2": lambda x: x > 0.65,
        "top_4": lambda x: x > 0.8,
        "digit 2 mod 64": lambda x: len(x) == 32 and min(x[7:]) > 0.95,
        "accuracy, head to its mean": lambda x: x[0][1] < 0.1 < 0.85 < x[0][0],
    },
    "predict_lcg": {
        "accuracy_last": lambda x: x > 0.97,
        "numbers_to_60": lambda x: 7 <= x <= 10,
        "numbers_to_90": lambda x: 14 <= x <= 20,
        "known modulus: numbers_to_90": lambda x: x == 3,
        "unknown modulus: numbers_to_90": lambda x: x <= 6,
        "look-back order 2: numbers_to_90": lambda x: x == 8,
        "digit_accuracy": lambda x: x["2"][4] > 0.9 and x["64"][4] < 0.6 and len(x) == 6,
        "accuracy_by_s": lambda x: {"2", "3"} <= set(x),
        "accuracy_by_context": lambda x: len(x) == 32,
    },
    "lcg_scaling": {
        "accuracy_last": lambda x: min(x) > 0.9,
        "transformer: wrong": lambda x: 3 < x[0] < x[2] < 14,
        "transformer: exponent_wrong": lambda x: (
            x is None
        ),  # within a factor of two there is no law
        "look-back order 3: wrong": lambda x: max(x) < 9,
    },
    "critical_init": {
        "sigma_w_critical": lambda x: abs(x - 2**0.5) < 1e-12,
        "sigma_b_critical": lambda x: x == 0,
        "chi_theory": lambda x: x == 1,
        "chi_measured": lambda x: abs(x - 1) < 0.02,
        "exponent_theory": lambda x: x == 0,
        "exponent_measured": lambda x: abs(x) < 0.25,
        "phase_diagram_rms": lambda x: x < 0.08,
        "within_three_errors": lambda x: x > 0.85,
        "critical_points": lambda x: (
            abs(x["gelu"]["sw2"] - 1.983058) < 1e-6 and abs(x["erf"]["zeta"] - 1) < 1e-6
        ),
    },
    "autoinit": {
        "apjn_before": lambda x: len(x) == 22 and 3 < sum(x[1:-1]) / 20 < 5,
        "apjn_after": lambda x: len(x) == 22 and max(abs(J - 1) for J in x) < 0.05,
        "jll_before": lambda x: x > 15,
        "jll_after": lambda x: x < 0.005,
        "accuracy": lambda x: (
            x["autoinit"] > 0.75
            and x["off"] < 0.2
            and set(x) == {"off", "kaiming", "xavier", "autoinit"}
        ),
    },
    "benchmark": {"mlp": lambda x: 0 < x["ratio_to_floor"] < 20},
    "audit_gradients": {
        "failed": lambda x: x == 0,
        "checked": lambda x: x > 100,
        "max_relative_error": lambda x: x < 1e-7,
    },
}
FIGURES = {
    "corrupted_labels": ["training.png", "neurons.png", "examples.png", "releases.png"],
    "phase_diagram": ["phase_diagram.png"],
    "in_context": ["in_context.png"],
    "in_context_probe": [
        "attention.png",
        "numbers.png",
        "circles.png",
        "cosine_blocks.png",
        "cosine_heads.png",
        "grids.png",
        "shots.png",
        "noise.png",
    ],
    "lcg_probe": ["digits.png", "embedding.png", "attention.png", "interventions.png", "edits.png"],
    "predict_lcg": ["predict_lcg.png"],
    "lcg_scaling": ["lcg_scaling.png"],
    "critical_init": ["critical_init.png"],
    "autoinit": ["autoinit.png"],
    "grok_addition": ["grok_addition.png"],
    "analytic_weights": ["analytic_weights.png"],
    "grok_polynomials": ["grok_polynomials.png"],
}


def run(example, *flags, cwd, **options):
    command = [sys.executable, str(EXAMPLES / f"{example}.py"), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, **options)


def results(folder):
    return json.loads((folder / "run.json").read_text())


def test_every_example_is_tested():
    assert {p.stem for p in EXAMPLES.glob("[!_]*.py")} == set(QUICK)


@pytest.mark.parametrize("example", QUICK)
def test_quick(example, tmp_path):
    done = run(example, "--quick", cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    folder = tmp_path / "runs" / example
    written = results(folder)
    for key, holds in QUICK[example].items():
        assert holds(written["results"][key]), (key, written["results"])
    for key in ("config", "seed", "versions", "device", "wall_seconds", "date"):
        assert key in written
    for figure in FIGURES.get(example, []):
        assert (folder / figure).read_bytes().startswith(b"\x89PNG")
        assert (folder / figure).stat().st_size > 20_000
    assert not [p for p in folder.iterdir() if p.name.startswith(".")], "a temporary file was left"


@pytest.mark.parametrize("example", QUICK)
@pytest.mark.parametrize(
    "flags",
    [
        ["--device", "tpu"],
        ["--device", "cuda:99"],
        ["--threads", "0"],
        ["--dtype", "float16"],
        ["--seed", "-1"],
        ["--seed", "x"],
        ["--nonsense"],
        ["--out", "a_file"],
    ],
    ids=" ".join,
)
def test_bad_flags(example, flags, tmp_path):
    (tmp_path / "a_file").write_text("precious")
    refused(run(example, *flags, cwd=tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["a_file"]
    assert (tmp_path / "a_file").read_text() == "precious"


def refused(done):
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1 and "error:" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "flags",
    [
        ["--p", "1"],
        ["--p", "nan"],
        ["--task", "division", "--p", "12"],
        ["--train-frac", "1.5"],
        ["--train-frac", "0.0001", "--p", "11"],
        ["--width", "0"],
        ["--lr", "nan"],
        ["--lr", "0"],
        ["--weight-decay", "-1"],
        ["--dropout", "1"],
        ["--activation", "swish"],
        ["--batch-size", "100000"],
        ["--resume"],
    ],
    ids=" ".join,
)
def test_grok_addition_refuses(flags, tmp_path):
    refused(run("grok_addition", *flags, cwd=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags",
    [
        ["--task", "multiplication", "--p", "12"],
        ["--terms", "14"],
        ["--width", "5"],
        ["--coefficients", "1", "97"],
        ["--coefficients", "1", "2", "--terms", "3"],
        ["--task", "multiplication", "--exponents", "0", "1"],
        ["--task", "polynomial", "--polynomial", "n1^2 + x"],
        ["--task", "polynomial", "--polynomial", "n1^"],
        ["--phases", "equal", "--terms", "3"],
    ],
    ids=" ".join,
)
def test_analytic_weights_refuses(flags, tmp_path):
    refused(run("analytic_weights", *flags, cwd=tmp_path))
    assert not list(tmp_path.iterdir())


def test_analytic_weights_beside_the_paper(tmp_path):
    flags = [
        "--task",
        "polynomial",
        "--phases",
        "random",
        "--p",
        23,
        "--width",
        2000,
        "--expert-width",
        500,
        "--seeds",
        1,
    ]
    done = run("analytic_weights", *flags, "--no-plot", cwd=tmp_path)
    assert done.returncode == 0 and "0.009758" in done.stdout, done
    assert (
        0.0085
        < results(tmp_path / "runs/analytic_weights")["results"]["mse_at_paper_scale"]
        < 0.0115
    )


@pytest.mark.parametrize(
    "flags",
    [
        ["--data", "nowhere"],
        ["--model", "resnet"],
        ["--activation", "swish"],
        ["--norm", "group"],
        ["--model", "mixer", "--patch", "3"],
        ["--model", "vgg", "--width", "0"],
        ["--inits", "lsuv"],
        ["--off", "0"],
        ["--resume"],
    ],
    ids=" ".join,
)
def test_autoinit_refuses(flags, tmp_path):
    refused(run("autoinit", *flags, cwd=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", ["resmlp", "mixer", "vgg", "vgg_bn"])
def test_autoinit_tunes_and_trains_every_model(model, tmp_path):
    tiny = (
        "--width",
        8,
        "--depth",
        1,
        "--tune-steps",
        3,
        "--tune-batch",
        32,
        "--steps",
        2,
        "--batch",
        8,
        "--inits",
        "autoinit",
    )
    done = run("autoinit", "--model", model, *tiny, "--augment", 1, "--no-plot", cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    written = results(tmp_path / "runs/autoinit")["results"]
    assert written["jll_after"] < written["jll_before"]
    assert 0 < written["accuracy"]["autoinit"] < 0.5


def test_autoinit_goes_on_where_it_stopped(tmp_path):
    """Ctrl-C in the second of three networks; the resumed run ends with the bits of the undisturbed
    one."""
    flags = [
        "--width",
        "16",
        "--depth",
        "6",
        "--tune-steps",
        "3",
        "--batch",
        "32",
        "--no-plot",
        "--inits",
        "kaiming",
        "autoinit",
        "xavier",
        "--steps",
        "1500",
    ]
    flags += ["--threads", "1", "--save-seconds", "0.05"]
    assert run("autoinit", *flags, "--out", "whole", cwd=tmp_path).returncode == 0
    command = [sys.executable, str(EXAMPLES / "autoinit.py"), *flags, "--out", "parts"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "parts/autoinit-0.01-0.npz").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert (
        process.returncode == 130
        and "--resume" in printed
        and not (tmp_path / "parts/xavier-0.01-0.npz").exists()
    ), printed
    refused(run("autoinit", *flags, "--off", "3", "--out", "parts", "--resume", cwd=tmp_path))
    assert run("autoinit", *flags, "--out", "parts", "--resume", cwd=tmp_path).returncode == 0
    for path in (tmp_path / "whole").glob("*.npz"):
        whole, parts = load_arrays(path)[1], load_arrays(tmp_path / "parts" / path.name)[1]
        assert set(whole) == set(parts) and all(
            np.array_equal(whole[k], parts[k]) for k in whole
        ), path.name


def test_grok_polynomials_needs_a_prime(tmp_path):
    refused(run("grok_polynomials", "--p", "60", cwd=tmp_path))
    assert not list(tmp_path.iterdir())


def test_probe_opens_what_in_context_wrote_and_nothing_else(tmp_path):
    tiny = "--quick", "--steps", 20, "--measure-every", 10, "--depth", 1, "--width", 8, "--no-plot"
    assert run("in_context", *tiny, cwd=tmp_path).returncode == 0
    saved = tmp_path / "runs" / "in_context"
    for name in ("best.npz", "checkpoint.npz"):
        done = run(
            "in_context_probe",
            saved / name,
            "--task",
            1,
            2,
            "--shot",
            7,
            "--grid-tasks",
            1,
            "--no-plot",
            cwd=tmp_path,
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
    before = sorted(tmp_path.rglob("*"))
    for flags in (["--task", "1", "5"], ["--shot", "8"]):
        refused(run("in_context_probe", *flags, cwd=tmp_path))
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "cut.npz").write_bytes((saved / "best.npz").read_bytes()[:-100])
    (tmp_path / "foreign.npz").write_bytes(b"foreign")
    config = {"p": 5, "shots": 8, "tasks": 8}
    save_arrays(tmp_path / "other.npz", {"config": config}, {})
    meta, arrays = load_arrays(saved / "best.npz")
    save_arrays(tmp_path / "nan.npz", meta, arrays | {"final.gain": arrays["final.gain"] * np.nan})
    save_arrays(tmp_path / "wide.npz", meta | {"config": meta["config"] | {"width": 16}}, arrays)
    save_arrays(tmp_path / "odd.npz", meta | {"config": meta["config"] | {"p": "x"}}, arrays)
    for name in ("cut", "foreign", "other", "nan", "wide", "odd", "missing"):
        refused(
            run(
                "in_context_probe",
                tmp_path / f"{name}.npz",
                "--out",
                tmp_path / "new",
                cwd=tmp_path,
            )
        )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("mode", "m"), [("fixed", 45), ("unseen", 32)])
def test_lcg_probe_opens_what_predict_lcg_wrote_and_nothing_else(mode, m, tmp_path):
    tiny = [
        "--steps",
        5,
        "--measure-every",
        5,
        "--width",
        8,
        "--heads",
        2,
        "--test-rows",
        8,
        "--no-plot",
        "--pool",
        8,
    ]
    command = ["predict_lcg", *tiny, "--mode", mode, "--train-moduli", 8, "--test-draws", 3]
    assert run(*command, "--modulus", m, "--context", 8, "--depth", 2, cwd=tmp_path).returncode == 0
    saved = tmp_path / "runs" / "predict_lcg" / "checkpoint.npz"
    done = run("lcg_probe", "--rows", 5, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    written, folder = (
        results(tmp_path / "runs" / "lcg_probe")["results"],
        tmp_path / "runs" / "lcg_probe",
    )
    assert np.shape(written["attention_r"]) == (2, 2)
    assert written["top_8"] == written[f"accuracy mod {m}"]
    assert all(np.ndim(value) <= 2 and not isinstance(value, dict) for value in written.values())
    assert (
        ("head_from_largest" in written) == (mode == "unseen") == (folder / "modulus.png").exists()
    )
    digits = run(
        *command, "--base", 8, "--modulus", 64, "--context", 8, "--out", "digits", cwd=tmp_path
    )
    assert digits.returncode == 0, digits.stderr
    meta, arrays = load_arrays(saved)
    config = meta["config"]
    save_arrays(tmp_path / "other.npz", {"config": {"modulus": 64}}, {})
    save_arrays(
        tmp_path / "nan.npz",
        meta,
        arrays | {"weight/final.gain": arrays["weight/final.gain"] * np.nan},
    )
    save_arrays(tmp_path / "wide.npz", meta | {"config": config | {"width": 16}}, arrays)
    save_arrays(tmp_path / "odd.npz", meta | {"config": config | {"modulus": "x"}}, arrays)
    (tmp_path / "cut.npz").write_bytes(saved.read_bytes()[:-100])
    for name in ("other", "nan", "wide", "odd", "cut", "missing", "digits/checkpoint"):
        refused(run("lcg_probe", tmp_path / f"{name}.npz", "--out", tmp_path / "new", cwd=tmp_path))
    assert not (tmp_path / "new").exists()


def test_log_and_earlier_runs_are_kept(tmp_path):
    for steps in (10, 20):
        assert (
            run("grok_addition", "--quick", "--steps", steps, "--no-plot", cwd=tmp_path).returncode
            == 0
        )
    (tmp_path / "runs/grok_addition/notes.txt").write_text("mine")
    assert run("grok_addition", "--quick", "--steps", 20, "--no-plot", cwd=tmp_path).returncode == 0
    kept = sorted(p.name for p in (tmp_path / "runs/grok_addition").iterdir())
    assert kept == ["checkpoint.npz", "earlier-1", "earlier-2", "log.csv", "notes.txt", "run.json"]
    rows = list(csv.DictReader((tmp_path / "runs/grok_addition/log.csv").read_text().splitlines()))
    assert [int(r["step"]) for r in rows] == [0, 5, 10, 15, 20]
    assert 0 <= float(rows[-1]["test_accuracy"]) <= 1
    assert results(tmp_path / "runs/grok_addition/earlier-1")["config"]["steps"] == 10


@pytest.mark.parametrize("example", ["grok_addition", "corrupted_labels"])
def test_a_finished_run_can_be_resumed(example, tmp_path):
    """With figures: whoever was killed while they were drawn gets them."""
    flags = ["--p", "13", "--width", "20", "--steps", "20"]
    first = run(example, *flags, cwd=tmp_path)
    again = run(example, *flags, "--save-seconds", "7", "--resume", cwd=tmp_path)
    assert first.returncode == again.returncode == 0, again.stderr
    assert results(tmp_path / "runs" / example)["results"]["test_accuracy"] is not None


@pytest.mark.parametrize(
    ("example", "flags"),
    [
        ("corrupted_labels", ["--regularizer", "none", "--strength", "3"]),
        ("corrupted_labels", ["--regularizer", "dropout", "--strength", "1"]),
        ("corrupted_labels", ["--regularizer", "batchnorm", "--batch-size", "1"]),
        ("corrupted_labels", ["--corruption", "1.1"]),
        ("corrupted_labels", ["--activation", "power\u00b2"]),
        ("corrupted_labels", ["--activation", "power99999"]),
        ("corrupted_labels", ["--width", "100000000000"]),
        ("phase_diagram", ["--activation", "swish"]),
        ("phase_diagram", ["--regularizer", "dropout", "--strengths", "1"]),
        ("phase_diagram", ["--regularizer", "minibatch", "--strengths", "1000000"]),
        ("phase_diagram", ["--regularizer", "batchnorm", "--strengths", "1"]),
        ("phase_diagram", ["--strengths", "5", "5"]),
        ("phase_diagram", ["--scheduler", "tcp://127.0.0.1:1"]),
        ("phase_diagram", ["--resume"]),
        ("critical_init", ["--activation", "square"]),
        ("critical_init", ["--norm", "groupnorm"]),
        ("critical_init", ["--residual", "1.5"]),
        ("critical_init", ["--depth", "3"]),
        ("critical_init", ["--networks", "1"]),
        ("critical_init", ["--sigma-w", "0"]),
        ("critical_init", ["--sigma-w", "3", "--depth", "200"]),
        ("in_context", ["--p", "9"]),
        ("in_context", ["--batch", "71"]),
        ("in_context", ["--tasks", "30", "--batch", "60"]),
        ("in_context", ["--vocab", "3"]),
        ("in_context", ["--heads", "3"]),
        ("in_context", ["--alpha", "0.9"]),
        ("predict_lcg", ["--modulus", "97"]),
        ("predict_lcg", ["--modulus", "60"]),
        ("predict_lcg", ["--modulus", "1"]),
        ("predict_lcg", ["--heads", "3"]),
        ("predict_lcg", ["--mode", "unseen", "--modulus", "64", "--context", "32"]),
        ("predict_lcg", ["--modulus", "4294967297", "--base", "256"]),
        ("predict_lcg", ["--modulus", "256", "--base", "16"]),
        ("predict_lcg", ["--quick", "--preset", "paper-2048"]),
        ("predict_lcg", ["--test-moduli", "100"]),
        ("predict_lcg", ["--resume"]),
        ("autoinit", ["--quick", "--tune", "mu"]),
        ("lcg_scaling", ["--moduli", "64"]),
        ("lcg_scaling", ["--moduli", "64", "64"]),
        ("lcg_scaling", ["--moduli", "64", "97"]),
        ("lcg_scaling", ["--resume"]),
    ],
    ids=lambda x: x if isinstance(x, str) else " ".join(x),
)
def test_refusals(example, flags, tmp_path):
    refused(run(example, *flags, cwd=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("regularizer", ["dropout", "batchnorm", "minibatch"])
def test_phase_diagram_with_every_regularizer(regularizer, tmp_path):
    flags = [
        "--quick",
        "--regularizer",
        regularizer,
        "--p",
        "29",
        "--width",
        "20",
        "--steps",
        "20",
        "--no-plot",
    ]
    done = run("phase_diagram", *flags, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    refused(run("phase_diagram", *flags, "--resume", "--dtype", "float64", cwd=tmp_path))


@pytest.mark.parametrize(
    "flags",
    [
        [
            "--mode",
            "unseen",
            "--modulus",
            48,
            "--context",
            24,
            "--train-moduli",
            10,
            "--pool",
            20,
            "--test-draws",
            2,
        ],
        [
            "--modulus",
            4096,
            "--base",
            16,
            "--context",
            12,
            "--pool",
            50,
            "--test-draws",
            5,
            "--heads",
            2,
        ],
        [
            "--mode",
            "unseen",
            "--modulus",
            4096,
            "--base",
            64,
            "--context",
            12,
            "--train-moduli",
            50,
            "--pool",
            4,
        ],
        [
            "--preset",
            "paper-2^32",
            "--context",
            8,
            "--batch",
            2,
            "--pool",
            10,
            "--warmup",
            1,
            "--lr",
            0.003,
        ],
    ],
    ids=["unseen", "digits", "unseen digits", "2^32"],
)
def test_predict_lcg_in_every_mode(flags, tmp_path):
    """A few steps, interrupted by the end and taken up again; every test modulus is reported, with
    its split by s."""
    tiny = [*flags, "--width", 16, "--steps", 4, "--measure-every", 2, "--test-rows", 8]
    first = run("predict_lcg", *tiny, cwd=tmp_path)
    assert first.returncode == 0 and not first.stderr, first.stderr
    written = results(tmp_path / "runs/predict_lcg")["results"]
    assert written["loss_last"] < written["loss_first"]
    assert written["accuracy_by_s"]
    assert written["tokens_per_second"] > 0
    assert ("unseen" in flags) == any(key.startswith("m = ") for key in written)
    again = run("predict_lcg", *tiny, "--steps", 6, "--resume", "--no-plot", cwd=tmp_path)
    assert again.returncode == 0 and "resumed at step 4" in again.stdout, again.stderr


TINY = ["--width", "60", "--depth", "8", "--networks", "3", "--grid", "2", "--batch", "16"]


@pytest.mark.parametrize(
    ("flags", "critical"),
    [
        (["--activation", "erf", "--residual", "0.6"], True),
        (["--activation", "gelu", "--norm", "pre", "--residual", "1"], True),
        (["--activation", "erf", "--norm", "post"], True),
        (["--norm", "batch"], False),
        (["--activation", "erf", "--residual", "1"], False),
        (
            [
                "--activation",
                "leaky_relu",
                "--sigma-w",
                "1.2",
                "--sigma-b",
                "0.3",
                "--dtype",
                "float64",
            ],
            None,
        ),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_critical_init_of_every_kind(flags, critical, tmp_path):
    done = run("critical_init", *TINY, *flags, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    written = results(tmp_path / "runs" / "critical_init")["results"]
    assert abs(written["chi_measured"] / written["chi_theory"] - 1) < 0.15
    if critical is not None:
        assert (
            (written["sigma_w_critical"] is not None)
            == (written["exponent_theory"] is not None)
            == critical
        )


def test_unwritable_folder_is_noticed_before_training(tmp_path):
    refused(run("grok_addition", "--quick", "--out", "/proc", cwd=tmp_path))


def test_diverging_run_stops_with_a_message(tmp_path):
    done = run(
        "grok_addition", "--quick", "--lr", "1e15", "--loss", "mse", "--no-plot", cwd=tmp_path
    )
    assert done.returncode == 1
    assert "member 0: the loss is" in done.stdout
    assert not done.stderr
    assert (tmp_path / "runs/grok_addition/nonfinite.npz").exists()


@pytest.mark.parametrize("regularizer", ["weight_decay", "dropout", "batchnorm"])
def test_corrupted_labels_with_every_regularizer(regularizer, tmp_path):
    flags = ["--p", "13", "--width", "20", "--steps", "40", "--batch-size", "32", "--seeds", "2"]
    done = run("corrupted_labels", "--regularizer", regularizer, *flags, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    written = results(tmp_path / "runs" / "corrupted_labels")["results"]
    assert len(written["test_accuracy_by_seed"]) == 2
    assert ("rank_correlation_ipr_gamma" in written) == (regularizer == "batchnorm")


SMALL = [
    "--p",
    "23",
    "--width",
    "32",
    "--dropout",
    "0.2",
    "--log-every",
    "50",
    "--no-plot",
    "--save-seconds",
    "0.05",
]


def checkpoint(folder):
    with np.load(folder / "checkpoint.npz") as data:
        return {name: data[name] for name in data.files if name != "meta"}


def test_interrupt_and_resume_is_bitwise(tmp_path):
    """Ctrl-C saves and says how to go on; the resumed run ends with the bits of the undisturbed
    one."""
    flags = [*SMALL, "--steps", "3000"]
    assert run("grok_addition", *flags, "--out", "straight", cwd=tmp_path).returncode == 0
    command = [sys.executable, str(EXAMPLES / "grok_addition.py"), *flags, "--out", "stopped"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "stopped" / "checkpoint.npz").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "--resume" in printed, printed
    other = run("grok_addition", *flags, "--p", "29", "--out", "stopped", "--resume", cwd=tmp_path)
    refused(other)
    assert "p = 23" in other.stderr
    assert (
        run("grok_addition", *flags, "--out", "stopped", "--resume", cwd=tmp_path).returncode == 0
    )
    a, b = checkpoint(tmp_path / "straight"), checkpoint(tmp_path / "stopped")
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def kills(folder: Path, count: int, seed: int = 0) -> None:
    """Kill (SIGKILL) a run at `count` random moments, resuming each time; compare with the
    undisturbed run."""
    rng = np.random.default_rng(seed)
    flags = [*SMALL, "--steps", str(2000 + 1500 * count)]
    assert run("grok_addition", *flags, "--out", "straight", cwd=folder).returncode == 0
    killed = 0
    while killed < count:
        resume = ["--resume"] if (folder / "killed" / "checkpoint.npz").exists() else []
        command = [
            sys.executable,
            str(EXAMPLES / "grok_addition.py"),
            *flags,
            "--out",
            "killed",
            *resume,
        ]
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            _, errors = process.communicate(timeout=rng.uniform(0.2, 0.9))
            assert process.returncode == 0, errors
            raise AssertionError(f"the run ended after {killed} kills: too few steps")
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
    assert run("grok_addition", *flags, "--out", "killed", "--resume", cwd=folder).returncode == 0
    a, b = checkpoint(folder / "straight"), checkpoint(folder / "killed")
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_kill_and_resume_is_bitwise(tmp_path):
    kills(tmp_path, 4)


if __name__ == "__main__":  # python tests/test_examples.py 50
    import tempfile

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    count = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        kills(Path(folder), count)
    print(
        f"{count} kills at random moments, each resumed: weights, optimiser state and history bitwise equal"
    )
