"""Estimates of memory (examples/_memory.py) beside what small runs take."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MEASURED = Path(__file__).parent / "measured_memory.py"
# Large enough that what an estimate leaves out, a few MB of code and tables, does not matter.
RUNS = {
    "blocks that are wide": "critical_init --width 600 --depth 20 --networks 2 --grid 2",
    "many inputs": "critical_init --width 200 --depth 20 --networks 2 --grid 2"
    " --batch 1500 --probes 1",
    "many networks, few inputs": "autoinit --model mlp --width 300 --depth 8 --seeds 3"
    " --inits off --lr 0.01 --steps 1 --tune-steps 1 --measure-every 1 --tune-batch 2",
    "many probes": "autoinit --model mlp --width 64 --depth 20 --inits off --lr 0.01"
    " --steps 1 --tune-steps 1 --measure-every 1",
    "convolutions": "autoinit --model vgg --width 8 --inits off --steps 1 --tune-steps 1"
    " --measure-every 1",
    "cells of a map": "training_maps --workers 0 --grid 2 --norm pre --mu 1 --depth 30 --width 500"
    " --steps 1 --trial 1 --lr 0.01 0.1",
    "a deep mixer": "deep_mixer --workers 0 --mu 1 --lr 0.1 --depth 40 --width 64 --steps 1",
    "VGG-19": "autoinit_maps --quick --grid 2 --width 8 --depth 2 --steps 2 --vgg-batch 16",
    "two tokens": "grok_addition --net transformer --p 97 --width 256 --steps 1",
    "three layers": "grok_addition --net mlp3 --p 61 --width 2000 --steps 1",
    "a step": "benchmark --only tinygrok --p 97 --width 2000",
    "three terms": "grok_addition --terms 3 --p 101 --width 50 --steps 1",
    "four terms": "grok_addition --terms 4 --p 29 --width 50 --steps 1",
    "an ensemble": "benchmark --only tinygrok --workload ensemble --p 61 --width 300",
    "a mixture": "predict_lcg --preset unseen --steps 1 --measure-every 1 --test-rows 64",
    "a decoder": "in_context --preset paper --p 7 --shots 8 --tasks 16 --batch 32 --width 192"
    " --depth 2 --steps 1 --measure-every 1",
    "solvers": "in_context --preset paper --depth 1 --width 8 --heads 1 --tasks 32 --batch 32"
    " --steps 1 --measure-every 1",
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("name", RUNS)
def test_an_estimate_is_right_within_a_factor_of_two(name, tmp_path):
    words = [sys.executable, str(MEASURED), *RUNS[name].split(), "--threads", "1"]
    words += ["--out", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["estimate"] / 2 < found["peak"] < found["estimate"] * 2, found
