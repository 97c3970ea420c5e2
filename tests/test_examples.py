"""Every example as a user runs it: --quick, figures, refusals, Ctrl-C and resume."""

import csv
import importlib
import json
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
    "width_scan": {
        "p = 47: needed": lambda x: all(45 < median < 90 for _, median, _ in x),
        "p = 47: prunable": lambda x: x[0][1] < 0.3 and x[2][1] > 0.6,
        "p = 47: exponent": lambda x: x[1] < 0.6,
        "p = 47: never": lambda x: x == [0, 0, 0],
    },
    "pruning_phases": {
        phase: lambda x, phase=phase: x["phases"] == [phase]
        for phase in ("Coexistence", "Partial Inversion", "Full Inversion", "Forgetting")
    },
    "neuron_dynamics": {
        "decay 0": lambda x: (
            x["memorising_at_peak"][1] > 50
            and x["at_end"][2][1] > 50
            and x["unwanted, uncorrupted: whole"][1] < 0.2
            and x["unwanted, uncorrupted: no others"][1] > 0.5
        ),
        "decay 15": lambda x: (
            x["memorising_at_peak"][1] > 90
            and x["memorising_become"][2][1] > 0.4
            and x["power U"][3] > 0.02
        ),
    },
    "analytic_weights": {
        "accuracy": lambda x: x == 1,
        "inputs": lambda x: x == 23**2,
        "mse": lambda x: x < 1e-28,
        "min_margin": lambda x: abs(x - 1) < 1e-12,
        "signal_to_noise": lambda x: x > 1e12,
    },
    "ground_truth": {
        "wrong": lambda x: x == 1,
        "inputs": lambda x: x == 23**2,
        "clean_min_margin": lambda x: abs(x - 1) < 1e-12,
        "neurons_recovered": lambda x: x == 69,
        "faults": lambda x: x == 3,
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
    "grok_optimizers": {
        "AdamW": lambda x: x["grokked"] == 5 and x["median"] < 100,
        "Muon": lambda x: x["lr"] in (0.3, 1) and x["networks"] == 5,
        "constant norm": lambda x: x["median"] < 120,
        "StableMax": lambda x: x["median"] is None and x["best_test_accuracy"] > 0.2,
    },
    "in_context": {
        "id_train": lambda x: x > 0.7,
        "ood_best_step": lambda x: x > 0,
        "ood_best_covered": lambda x: x > 0.3,  # chance is 0.2
        "ood_best_uncovered": lambda x: x < 0.15,
    },
    "in_context_phases": {
        "end: i.d. memorization": lambda x: x >= 1,
        "end_id_train": lambda x: x[0][0] > 0.8 and x[0][0] > x[1][1] + 0.3,
        "end_ood_train": lambda x: np.max(x) < 0.4,
        "fewest_tasks_ood": lambda x: x is None,
    },
    "in_context_probe": {
        "id_covered": lambda x: x[0] > 0.5,
        "id_uncovered": lambda x: x[0] < 0.5,
        "lens_id_train": lambda x: len(x) == 3 and x[-1] > x[0] + 0.15,
        "head_offset_score": lambda x: np.shape(x) == (2, 2, 3) and np.max(x) > 0.25,
        "one_wrong_other": lambda x: x > 0.8,
        "ood_line_failures": lambda x: x > 0.3,
    },
    # The mechanism of the small networks: residues in the embedding, look-backs r and r/2,
    # 2 x_(r/2) - x_r.
    "lcg_probe": {
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
        "transformer: wrong": lambda x: 3 < x[0] < x[1] < x[2] < 14,
        "transformer: exponent_wrong": lambda x: 0.4 < x < 0.75,  # the law of order 2: 1/2
        "transformer: error_wrong": lambda x: x < 0.2,
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
    "phase_networks": {
        "ResNet-38, LayerNorm, mu 1": lambda x: x["smallest"] > 0.98 and x["largest"] < 1.6,
        "MLP-Mixer, GELU, mu 1": lambda x: x["critical"] > 0.9 and x["rms"] < 0.04,
        "MLP-Mixer, GELU, mu 0.5": lambda x: x["smallest"] < 0.3 and x["largest"] > 1.2,
        "ViT, ReLU, mu 0.5": lambda x: x["largest"] < 0.5 and x["rms"] is None,
    },
    "autoinit": {
        "relu": lambda x: 0.2 < x["J_product"]["kaiming"] < 5 and x["jll_after"] < 0.1,
        "gelu": lambda x: x["J_product"]["kaiming"] < 1e-3 < 0.1 < x["J_product"]["autoinit"],
        "residual": lambda x: x["J_product"]["kaiming"] > 1e3 > 10 > x["J_product"]["autoinit"],
        "vgg": lambda x: (
            x["J_product"]["kaiming"] < 1e-6
            and x["accuracy_quartiles"]["autoinit"][1] > 0.15
            and x["accuracy_quartiles"]["kaiming"][1] < 0.15
        ),
    },
    "training_maps": {
        "norm none, mu 0": lambda x: x["share_that_learns"] < 0.6,
        "norm none, mu 0: cells": lambda x: np.shape(x["train_accuracy"]) == (4, 4),
        "norm pre, mu 1": lambda x: x["share_that_learns"] > 0.9,
    },
    "deep_mixer": {
        "mu 1": lambda x: x["correlation_length"] is None and x["lr 0.1"][0] < 2,
        "mu 0.5": lambda x: 3 < x["correlation_length"] < 4 and x["log10_J_theory"] > 1,
    },
    "autoinit_maps": {
        "log loss: converge as predicted": lambda x: x > 0.8,
        "square loss: converge as predicted": lambda x: x > 0.8,
        "sigma_w without norms: largest deviation": lambda x: x < 0.1,
        "BatchNorm: sigma_w from block to block": lambda x: abs(x - 0.826) < 0.06,
        "VGG-19: parameters": lambda x: x > 20e6,
        "VGG-19: peak_gigabytes": lambda x: 0.2 < x < 4,
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
    "width_scan": ["width_scan.png"],
    "pruning_phases": ["pruning_phases.png"],
    "neuron_dynamics": ["dynamics.png", "spectra.png"],
    "in_context": ["in_context.png"],
    "in_context_phases": ["in_context_phases.png"],
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
    "phase_networks": ["phase_networks.png"],
    "autoinit": ["autoinit.png"],
    "training_maps": ["training_maps.png"],
    "deep_mixer": ["deep_mixer.png"],
    "autoinit_maps": ["autoinit_maps.png"],
    "grok_addition": ["grok_addition.png"],
    "analytic_weights": ["analytic_weights.png"],
    "grok_polynomials": ["grok_polynomials.png"],
    "grok_optimizers": ["grok_optimizers.png"],
    "ground_truth": ["ground_truth.png"],
}


slow = pytest.mark.slow


def words(flags):
    """Flags as a process gets them: a text is cut at its spaces."""
    result = []
    for flag in flags:
        result += flag.split() if isinstance(flag, str) else [str(flag)]
    return result


def run(example, *flags, cwd, **options):
    command = [sys.executable, str(EXAMPLES / f"{example}.py"), *words(flags)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, **options)


def succeeded(done):
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done


def refused(done):
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1, done.stderr
    assert "error:" in done.stderr
    return done


def interrupted(example, *flags, cwd, file):
    """What an example prints that gets Ctrl-C as soon as a file is there."""
    command = [sys.executable, str(EXAMPLES / f"{example}.py"), *words(flags)]
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, text=True)
    while not file.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130, printed
    assert "--resume" in printed
    return printed


def results(folder):
    return json.loads((folder / "run.json").read_text())


def equal_arrays(a, b):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_every_example_is_tested():
    """But those that compute nothing, and those for GPUs and PyTorch: tests/test_exercises.py,
    test_pages.py, test_gpu_check.py, test_torch_modules.py."""
    others = {"exercise", "record", "gpu_check", "torch_module"}
    assert {p.stem for p in EXAMPLES.glob("[!_]*.py")} == {*QUICK, *others}


@slow
@pytest.mark.parametrize("example", QUICK)
def test_quick(example, tmp_path):
    succeeded(run(example, "--quick", cwd=tmp_path))
    folder = tmp_path / "runs" / example
    written = results(folder)
    for key, holds in QUICK[example].items():
        assert holds(written["results"][key]), (key, written["results"])
    for key in ("config", "seed", "versions", "device", "wall_seconds", "date"):
        assert key in written
    for figure in FIGURES.get(example, []):
        assert (folder / figure).read_bytes().startswith(b"\x89PNG")
        assert (folder / figure).stat().st_size > 5_000
    hidden = [p.name for p in folder.iterdir() if p.name.startswith(".")]
    assert hidden == [".tinygrok"], "a temporary file was left"


@pytest.mark.parametrize("example", QUICK)
def test_help_begins_with_one_sentence(example, monkeypatch, capsys):
    """The first line of an example's docstring is its description, and fits on a line."""
    first = (EXAMPLES / f"{example}.py").read_text().splitlines()[0]
    first = first.removeprefix("r").strip('"')
    assert len(first) <= 100
    assert first.endswith("."), first
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.syspath_prepend(EXAMPLES)
    module = importlib.import_module(example)
    with pytest.raises(SystemExit):
        module.arguments(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert first in printed


@pytest.mark.parametrize(
    "example",
    [name if name == "grok_addition" else pytest.param(name, marks=slow) for name in QUICK],
)
@pytest.mark.parametrize(
    "flags",
    [
        "--device tpu",
        "--device cuda:99",
        "--threads 0",
        "--dtype float16",
        "--seed -1",
        "--seed x",
        "--nonsense",
        "--out a_file",
    ],
)
def test_bad_flags(example, flags, tmp_path):
    (tmp_path / "a_file").write_text("precious")
    refused(run(example, flags, cwd=tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["a_file"]
    assert (tmp_path / "a_file").read_text() == "precious"


REFUSED = {
    "grok_addition": [
        "--p 1",
        "--p nan",
        "--task division --p 12",
        "--train-frac 1.5",
        "--train-frac 0.0001 --p 11",
        "--width 0",
        "--lr nan",
        "--lr 0",
        "--weight-decay -1",
        "--dropout 1",
        "--activation swish",
        "--batch-size 100000",
        "--animate --seeds 2",
        "--seeds 0",
        "--resume",
        "--net mlp4",
        "--net transformer --width 130",
        "--net transformer --activation relu",
        "--net transformer --dropout 0.1",
        "--net transformer --terms 3",
        "--net mlp3 --animate",
        "--terms 1",
        "--terms 5",
        "--terms 3 --task dihedral --p 12",
        "--terms 3 --task subtraction",
        "--terms 3 --task multiplication --p 12",
        "--terms 4 --batch-size 10000",
        "--keep-every 0",
        "--keep-every 1 --steps 100000",
        "--animate --no-plot",
        "--animate --task dihedral --p 12",
    ],
    "analytic_weights": [
        "--task multiplication --p 12",
        "--terms 14",
        "--width 5",
        "--coefficients 1 97",
        "--coefficients 1 2 --terms 3",
        "--task multiplication --exponents 0 1",
        "--task polynomial --polynomial n1^2+x",
        "--task polynomial --polynomial n1^",
        "--phases equal --terms 3",
        "--survey --task multiplication",
        "--survey --width 100",
        "--survey --p 101",
    ],
    "autoinit": [
        "--data nowhere",
        "--model resnet",
        "--activation swish",
        "--norm group",
        "--model mixer --patch 3",
        "--model vgg --width 0",
        "--model vgg --width 3",
        "--inits lsuv",
        "--off 0",
        "--resume",
        "--tune mu",
        "--clip 0",
    ],
    "training_maps": [
        "--data nowhere",
        "--activation square",
        "--norm none pre act --mu 0 1",
        "--norm pre pre --mu 0 0",
        "--mu 1.5",
        "--sw2 0 2",
        "--sb2 1 0",
        "--trial 500",
        "--lr 0.1 0.1",
        "--grid 1",
        "--resume",
    ],
    "deep_mixer": [
        "--data nowhere",
        "--activation square",
        "--patch 3",
        "--mu 1 1",
        "--mu -1",
        "--sw2 0",
        "--lr 0.1 0.1",
        "--resume",
    ],
    "autoinit_maps": ["--grid 1", "--data nowhere", "--vgg-steps 0 --vgg-batch 2", "--resume"],
    "corrupted_labels": [
        "--regularizer none --strength 3",
        "--regularizer dropout --strength 1",
        "--regularizer batchnorm --batch-size 1",
        "--corruption 1.1",
        "--activation power\u00b2",
        "--activation power99999",
        "--width 100000000000",
        "--task composition --p 24",
        "--net transformer --activation square",
        "--net transformer --regularizer dropout",
        "--net transformer --regularizer batchnorm",
        "--net mlp3 --regularizer batchnorm",
        "--net mlp3 --strength 1",
    ],
    "phase_diagram": [
        "--activation swish",
        "--regularizer dropout --strengths 1",
        "--regularizer minibatch --strengths 1000000",
        "--regularizer batchnorm --strengths 1",
        "--regularizer minibatch --strengths 8 --batch-size 8",
        "--batch-size 1000",
        "--task division --p 12",
        "--strengths 5 5",
        "--scheduler tcp://127.0.0.1:1",
        "--resume",
    ],
    "pruning_phases": [
        "--phases Forgetting Forgetting",
        "--phases Chaos",
        "--lr 0",
        "--p 5 --train-frac 0.01",
        "--resume",
    ],
    "neuron_dynamics": [
        "--decays 5 5",
        "--decays -1",
        "--corruption 0",
        "--p 5 --train-frac 0.01",
        "--resume",
    ],
    "width_scan": [
        "--p 47 47",
        "--widths 60 60",
        "--widths 1",
        "--seeds 0",
        "--p 47 5 --train-frac 0.01",
        "--resume",
    ],
    "phase_networks": [
        "--nets lstm",
        "--nets vit vit",
        "--mu 0.5 0.5",
        "--mu 1.5",
        "--mlp --nets vit",
        "--grid 1",
        "--networks 0",
        "--resume",
    ],
    "critical_init": [
        "--activation square",
        "--norm groupnorm",
        "--residual 1.5",
        "--depth 3",
        "--networks 1",
        "--sigma-w 0",
        "--sigma-w 3 --depth 200",
    ],
    "in_context": [
        "--p 9",
        "--batch 71",
        "--tasks 30 --batch 60",
        "--vocab 3",
        "--heads 3",
        "--alpha 0.9",
    ],
    "in_context_phases": ["--tasks 4 6", "--alpha 0.4 0.9", "--heads 3", "--p 9", "--resume"],
    "predict_lcg": [
        "--modulus 97",
        "--modulus 60",
        "--modulus 1",
        "--heads 3",
        "--mode unseen --modulus 64 --context 32",
        "--modulus 4294967297 --base 256",
        "--modulus 256 --base 16",
        "--quick --preset paper-2048",
        "--test-moduli 100",
        "--resume",
    ],
    "lcg_scaling": ["--moduli 64", "--moduli 64 64", "--moduli 64 97", "--resume"],
    "grok_polynomials": ["--p 60"],
    "grok_optimizers": [
        "--methods Adam",
        "--methods Muon Muon",
        "--factors 3 3",
        "--factors 0",
        "--train-frac 0.0001 --p 11",
        "--seeds 1000 --choosing 1000",
        "--scheduler tcp://127.0.0.1:1",
        "--resume",
    ],
    "ground_truth": [
        "--p 2",
        "--p 601",
        "--circuit equal --p 8",
        "--circuit random --width 20",
        "--width 7",
        "--width 1000000000",
        "--p 15 --width 6 --seed 1",
        "--p 5 --faults 3",
        "--faults 101",
        "--check nothing.json",
        "--near 0",
    ],
}


@slow
@pytest.mark.parametrize(
    ("example", "flags"),
    [(example, flags) for example, cases in REFUSED.items() for flags in cases],
)
def test_refusals(example, flags, tmp_path):
    refused(run(example, flags, cwd=tmp_path))
    assert not list(tmp_path.iterdir())


@slow
def test_analytic_weights_beside_the_paper(tmp_path):
    flags = "--task polynomial --phases random --p 23 --width 2000 --expert-width 500 --seeds 1"
    done = succeeded(run("analytic_weights", flags, "--no-plot", cwd=tmp_path))
    assert "0.009758" in done.stdout
    error = results(tmp_path / "runs/analytic_weights")["results"]["mse_at_paper_scale"]
    assert 0.0085 < error < 0.0115


@slow
@pytest.mark.slow
def test_a_checkpoint_of_another_arm_is_refused(tmp_path):
    """All arms of a run have the same settings: a checkpoint also says whose it is."""
    flags = "--model mlp --quick --steps 2 --tune-steps 2 --seeds 1 --inits off kaiming --no-plot"
    succeeded(run("autoinit", flags, cwd=tmp_path))
    arms = sorted((tmp_path / "runs/autoinit").glob("kaiming-*.npz"))
    other = arms[0].with_name(arms[0].name.replace("kaiming", "off"))
    arms[0].write_bytes(other.read_bytes())
    done = run("autoinit", flags, "--resume", cwd=tmp_path)
    refused(done)
    assert f"was made with arm = {other.stem}" in done.stderr


@pytest.mark.parametrize("model", ["patchwork", "resmlp", "mixer", "vgg", "vgg_bn"])
def test_autoinit_tunes_and_trains_every_model(model, tmp_path):
    tiny = "--width 8 --tune-steps 3 --tune-batch 32 --steps 2 --batch 8 --augment 1"
    depth = "" if model.startswith("vgg") else "--depth 1"
    flags = f"--model {model} {tiny} {depth} --inits autoinit --no-plot"
    succeeded(run("autoinit", flags, cwd=tmp_path))
    written = results(tmp_path / "runs/autoinit")["results"]
    assert written["jll_after"] < written["jll_before"]
    assert 0 < written["accuracy"]["autoinit"] < 0.5


@slow
def test_autoinit_goes_on_where_it_stopped(tmp_path):
    """Ctrl-C in the second of three networks; the resumed run ends with the bits of the undisturbed
    one."""
    flags = "--width 16 --depth 6 --tune-steps 3 --batch 32 --steps 1500 --threads 1 --no-plot"
    flags += " --model mlp --inits kaiming autoinit xavier --save-seconds 0.05"
    succeeded(run("autoinit", flags, "--out whole", cwd=tmp_path))
    begun = tmp_path / "parts/autoinit-0.01-0.npz"
    interrupted("autoinit", flags, "--out parts", cwd=tmp_path, file=begun)
    assert not (tmp_path / "parts/xavier-0.01-0.npz").exists()
    refused(run("autoinit", flags, "--off 3 --out parts --resume", cwd=tmp_path))
    succeeded(run("autoinit", flags, "--out parts --resume", cwd=tmp_path))
    for path in (tmp_path / "whole").glob("*.npz"):
        _, whole = load_arrays(path)
        _, parts = load_arrays(tmp_path / "parts" / path.name)
        equal_arrays(whole, parts)


@slow
def test_probe_opens_what_in_context_wrote_and_nothing_else(tmp_path):
    tiny = "--quick --steps 20 --measure-every 10 --depth 1 --width 8 --no-plot"
    succeeded(run("in_context", tiny, cwd=tmp_path))
    saved = tmp_path / "runs" / "in_context"
    flags = "--task 1 2 --shot 7 --grid-tasks 1 --no-plot"
    for name in ("best.npz", "checkpoint.npz"):
        succeeded(run("in_context_probe", saved / name, flags, cwd=tmp_path))
    both = f"{saved / 'best.npz'} --beside {saved / 'checkpoint.npz'} --grid-tasks 1 --draws 2"
    succeeded(run("in_context_probe", both, "--out both", cwd=tmp_path))
    assert (tmp_path / "both/beside.png").exists()
    results = json.loads((tmp_path / "both/run.json").read_text())["results"]
    assert results["beside: shots"] == results["shots"]
    fewer = "--quick --steps 10 --depth 1 --width 8 --shots 6 --no-plot --out fewer"
    succeeded(run("in_context", fewer, cwd=tmp_path))
    refused(run("in_context_probe", "--beside fewer/best.npz --out new", cwd=tmp_path))
    before = sorted(tmp_path.rglob("*"))
    for flags in ("--task 1 5", "--shot 8"):
        refused(run("in_context_probe", flags, cwd=tmp_path))
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "cut.npz").write_bytes((saved / "best.npz").read_bytes()[:-100])
    (tmp_path / "foreign.npz").write_bytes(b"foreign")
    save_arrays(tmp_path / "other.npz", {"config": {"p": 5, "shots": 8, "tasks": 8}}, {})
    meta, arrays = load_arrays(saved / "best.npz")
    config = meta["config"]
    nan = {"final.gain": arrays["final.gain"] * np.nan}
    save_arrays(tmp_path / "nan.npz", meta, arrays | nan)
    save_arrays(tmp_path / "wide.npz", meta | {"config": config | {"width": 16}}, arrays)
    save_arrays(tmp_path / "odd.npz", meta | {"config": config | {"p": "x"}}, arrays)
    for name in ("cut", "foreign", "other", "nan", "wide", "odd", "missing"):
        refused(run("in_context_probe", f"{name}.npz --out new", cwd=tmp_path))
    assert not (tmp_path / "new").exists()


@slow
@pytest.mark.parametrize(("mode", "m"), [("fixed", 45), ("unseen", 32)])
def test_lcg_probe_opens_what_predict_lcg_wrote_and_nothing_else(mode, m, tmp_path):
    tiny = "--steps 5 --measure-every 5 --width 8 --heads 2 --test-rows 8 --context 8"
    tiny += f" --no-plot --mode {mode} --test-draws 3"
    drawn = "--train-moduli 8 --pool 8" if mode == "unseen" else ""
    succeeded(run("predict_lcg", tiny, drawn, f"--modulus {m} --depth 2", cwd=tmp_path))
    saved = tmp_path / "runs" / "predict_lcg" / "checkpoint.npz"
    succeeded(run("lcg_probe", "--rows 5", cwd=tmp_path))
    folder = tmp_path / "runs" / "lcg_probe"
    written = results(folder)["results"]
    assert np.shape(written["attention_r"]) == (2, 2)
    assert written["top_8"] == written[f"accuracy mod {m}"]
    for value in written.values():
        assert np.ndim(value) <= 2
        assert not isinstance(value, dict)
    unseen = mode == "unseen"
    assert ("head_from_largest" in written) == unseen
    assert (folder / "modulus.png").exists() == unseen
    digits = f"{drawn or '--pool 8'} --base 8 --modulus 64 --out digits"
    succeeded(run("predict_lcg", tiny, digits, cwd=tmp_path))
    meta, arrays = load_arrays(saved)
    config = meta["config"]
    nan = {"weight/final.gain": arrays["weight/final.gain"] * np.nan}
    save_arrays(tmp_path / "other.npz", {"config": {"modulus": 64}}, {})
    save_arrays(tmp_path / "nan.npz", meta, arrays | nan)
    save_arrays(tmp_path / "wide.npz", meta | {"config": config | {"width": 16}}, arrays)
    save_arrays(tmp_path / "odd.npz", meta | {"config": config | {"modulus": "x"}}, arrays)
    (tmp_path / "cut.npz").write_bytes(saved.read_bytes()[:-100])
    for name in ("other", "nan", "wide", "odd", "cut", "missing", "digits/checkpoint"):
        refused(run("lcg_probe", f"{name}.npz --out new", cwd=tmp_path))
    assert not (tmp_path / "new").exists()


@slow
def test_log_and_earlier_runs_are_kept(tmp_path):
    folder = tmp_path / "runs/grok_addition"
    quick = "--quick --no-plot --steps"
    succeeded(run("grok_addition", quick, 10, cwd=tmp_path))
    succeeded(run("grok_addition", quick, 20, cwd=tmp_path))
    (folder / "notes.txt").write_text("mine")
    succeeded(run("grok_addition", quick, 20, cwd=tmp_path))
    kept = sorted(p.name for p in folder.glob("[!.]*"))
    assert kept == ["checkpoint.npz", "earlier-1", "earlier-2", "log.csv", "notes.txt", "run.json"]
    rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
    assert [int(r["step"]) for r in rows] == [0, 5, 10, 15, 20]
    assert 0 <= float(rows[-1]["test_accuracy"]) <= 1
    assert float(rows[-1]["ipr_mean"]) == results(folder)["results"]["ipr_mean"]
    assert results(folder / "earlier-1")["config"]["steps"] == 10


FINISHED = {
    "grok_addition": "--p 13 --width 20 --steps 20",
    "corrupted_labels": "--p 13 --width 20 --steps 20",
    "grok_polynomials": "--quick --p 11 --width 16 --steps 20 --seeds 2",
    "neuron_dynamics": "--p 13 --width 20 --steps 20 --seeds 2",
    "in_context": "--quick --steps 2",
    "predict_lcg": "--quick --steps 2",
    "lcg_scaling": "--moduli 16 32 --steps 2",
    "in_context_phases": "--quick --steps 2",
    "grok_optimizers": "--quick --steps 5 --p 11 --width 8 --seeds 2",
    "training_maps": "--quick --steps 2 --trial 1 --grid 2 --workers 0",
    "deep_mixer": "--quick --steps 2 --depth 2 --workers 0",
    "autoinit": "--quick --steps 2 --tune-steps 4 --seeds 1 --inits kaiming",
    "autoinit_maps": "--quick --grid 2 --steps 2 --width 8 --vgg-steps 0",
}


@slow
@pytest.mark.parametrize("example", FINISHED)
def test_a_finished_run_can_be_resumed(example, tmp_path):
    """With figures: whoever was killed while they were drawn gets them."""
    flags = FINISHED[example]
    folder = tmp_path / "runs" / example
    succeeded(run(example, flags, cwd=tmp_path))
    before = results(folder)["results"]
    for figure in FIGURES[example]:
        (folder / figure).unlink()
    succeeded(run(example, flags, "--resume", cwd=tmp_path))
    for figure in FIGURES[example]:
        assert (folder / figure).exists()
    assert results(folder)["results"].keys() == before.keys()


@slow
@pytest.mark.parametrize("regularizer", ["dropout", "batchnorm", "minibatch"])
def test_phase_diagram_with_every_regularizer(regularizer, tmp_path):
    flags = f"--quick --regularizer {regularizer} --p 29 --width 20 --steps 20 --no-plot"
    succeeded(run("phase_diagram", flags, cwd=tmp_path))
    refused(run("phase_diagram", flags, "--resume --dtype float64", cwd=tmp_path))


MODES = {
    "unseen": "--mode unseen --modulus 48 --context 24 --train-moduli 10 --pool 20 --test-draws 2",
    "digits": "--modulus 4096 --base 16 --context 12 --pool 50 --test-draws 5 --heads 2",
    "unseen digits": "--mode unseen --modulus 4096 --base 64 --context 12 --pool 4",
    "2^32": "--preset paper-2^32 --context 8 --batch 2 --pool 10 --warmup 1 --lr 0.003",
}
MODES["unseen digits"] += " --train-moduli 50"


@slow
@pytest.mark.parametrize("flags", MODES.values(), ids=MODES)
def test_predict_lcg_in_every_mode(flags, tmp_path):
    """A few steps, interrupted by the end and taken up again; every test modulus is reported, with
    its split by s."""
    tiny = f"{flags} --width 16 --measure-every 2 --test-rows 8"
    succeeded(run("predict_lcg", tiny, "--steps 4", cwd=tmp_path))
    written = results(tmp_path / "runs/predict_lcg")["results"]
    assert written["loss_last"] < written["loss_first"]
    assert written["accuracy_by_s"]
    assert written["tokens_per_second"] > 0
    assert ("unseen" in flags) == any(key.startswith("m = ") for key in written)
    again = succeeded(run("predict_lcg", tiny, "--steps 6 --resume --no-plot", cwd=tmp_path))
    assert "resumed at step 4" in again.stdout


@slow
@pytest.mark.parametrize(
    ("flags", "critical"),
    [
        ("--activation erf --residual 0.6", True),
        ("--activation gelu --norm pre --residual 1", True),
        ("--activation erf --norm post", True),
        ("--norm batch", False),
        ("--activation erf --residual 1", False),
        ("--activation leaky_relu --sigma-w 1.2 --sigma-b 0.3 --dtype float64", None),
    ],
)
def test_critical_init_of_every_kind(flags, critical, tmp_path):
    tiny = "--width 60 --depth 8 --networks 3 --grid 2 --batch 16"
    succeeded(run("critical_init", tiny, flags, cwd=tmp_path))
    written = results(tmp_path / "runs" / "critical_init")["results"]
    assert abs(written["chi_measured"] / written["chi_theory"] - 1) < 0.15
    if critical is not None:
        assert (written["sigma_w_critical"] is not None) == critical
        assert (written["exponent_theory"] is not None) == critical


@slow
@pytest.mark.parametrize(
    ("flags", "inputs"), [("--terms 3", 23**3), ("--terms 4", 11**4)], ids=["three", "four"]
)
def test_more_terms_grok(flags, inputs, tmp_path):
    """Every input is measured, on the training set first; with the figure."""
    done = succeeded(run("grok_addition", flags, "--quick", cwd=tmp_path))
    folder = tmp_path / "runs/grok_addition"
    written = results(folder)
    found = written["results"]
    assert found["test_accuracy"] > 0.99
    assert found["step_train_99"] + 50 < found["step_test_99"] <= written["config"]["steps"]
    assert found["ipr_mean"] > 0.5
    counts = [int(word) for word in done.stdout.split() if word.isdigit()]
    assert any(a + b == inputs for a in counts for b in counts)
    assert (folder / "grok_addition.png").exists()
    other = refused(run("grok_addition", "--quick --p 23 --resume", cwd=tmp_path))
    assert "this run has activation = square" in other.stderr


def test_flags_that_are_given_stand_against_those_of_the_terms():
    """Defaults follow the number of terms, also with --quick; two terms keep theirs."""
    arguments = importlib.import_module("grok_addition").arguments
    two = arguments([])
    assert (two.p, two.width, two.activation, two.lr) == (97, 500, "square", 0.01)
    four = arguments(["--terms", "4"])
    assert (four.p, four.width, four.activation) == (11, 1000, "power4")
    given = arguments(words(["--terms 4 --p 7 --activation gelu --width 30 --quick"]))
    assert (given.p, given.width, given.activation) == (7, 30, "gelu")
    assert given.weight_decay == arguments(["--quick"]).weight_decay == 2


@slow
def test_the_papers_numbers_stand_only_beside_its_setting(tmp_path):
    """The default has another loss and decay: it says which flags the paper's numbers need."""
    own = succeeded(run("grok_addition", "--p 13 --width 20 --steps 20 --no-plot", cwd=tmp_path))
    assert "paper's numbers, in its setting: --loss mse" in own.stdout
    assert "0.85" not in own.stdout
    paper = "--loss mse --weight-decay 5 --steps 100 --log-every 50 --no-plot"
    assert "0.85" in succeeded(run("grok_addition", paper, cwd=tmp_path)).stdout


def test_unwritable_folder_is_noticed_before_training(tmp_path):
    refused(run("grok_addition", "--quick --out /proc", cwd=tmp_path))


@slow
def test_diverging_run_stops_with_a_message(tmp_path):
    done = run("grok_addition", "--quick --lr 1e9 --loss mse --no-plot", cwd=tmp_path)
    assert done.returncode == 1
    assert "member 0: the loss is" in done.stdout
    assert not done.stderr
    assert (tmp_path / "runs/grok_addition/nonfinite.npz").exists()


@slow
@pytest.mark.parametrize("regularizer", ["weight_decay", "dropout", "batchnorm"])
def test_corrupted_labels_with_every_regularizer(regularizer, tmp_path):
    flags = "--p 13 --width 20 --steps 40 --batch-size 32 --seeds 2"
    succeeded(run("corrupted_labels", f"--regularizer {regularizer}", flags, cwd=tmp_path))
    written = results(tmp_path / "runs" / "corrupted_labels")["results"]
    assert len(written["test_accuracy_by_seed"]) == 2
    assert ("rank_correlation_ipr_gamma" in written) == (regularizer == "batchnorm")


@slow
@pytest.mark.parametrize(
    ("example", "flags", "shown"),
    [
        ("grok_addition", "--p 13 --width 20 --steps 20", "step_test_99"),
        ("grok_polynomials", "--quick --p 11 --width 16 --steps 20", "steps of 3 seeds"),
        ("corrupted_labels", "--p 13 --width 20 --steps 20", "phase: Confusion"),
    ],
)
def test_several_seeds_are_shown_as_bands(example, flags, shown, tmp_path):
    """What was never reached is more than the steps; the figures are drawn; other seeds are no
    continuation."""
    done = succeeded(run(example, flags, "--seeds 3", cwd=tmp_path))
    assert shown in done.stdout
    assert "> 20 (> 20 to > 20), never: 3" in done.stdout
    for figure in FIGURES[example]:
        assert (tmp_path / "runs" / example / figure).exists()
    other = refused(run(example, flags, "--seeds 2 --resume", cwd=tmp_path))
    assert "was made with seeds = 3" in other.stderr


SMALL = "--p 23 --width 32 --dropout 0.2 --log-every 50 --no-plot --save-seconds 0.05"


def checkpoint(folder):
    with np.load(folder / "checkpoint.npz") as data:
        return {name: data[name] for name in data.files if name != "meta"}


@slow
@pytest.mark.parametrize("seeds", ["", " --seeds 2"])
def test_interrupt_and_resume_is_bitwise(seeds, tmp_path):
    """Ctrl-C saves and says how to go on; the resumed run ends with the bits of the undisturbed
    one."""
    flags = f"{SMALL} --steps 3000"
    flags += seeds
    succeeded(run("grok_addition", flags, "--out straight", cwd=tmp_path))
    begun = tmp_path / "stopped" / "checkpoint.npz"
    interrupted("grok_addition", flags, "--out stopped", cwd=tmp_path, file=begun)
    resumed = f"{flags} --out stopped --resume"
    other = refused(run("grok_addition", resumed, "--p 29", cwd=tmp_path))
    assert "p = 23" in other.stderr
    succeeded(run("grok_addition", resumed, cwd=tmp_path))
    straight = checkpoint(tmp_path / "straight")
    equal_arrays(straight, checkpoint(tmp_path / "stopped"))
    assert len(straight["history/ipr_mean"]) == len(straight["history/step"])
