"""What comes from the command line: absurd values are refused at once, by one line."""

import importlib
import json
import subprocess
import sys

import _autoinit_maps
import _packs
import autoinit_maps
import benchmark
import hostile
import in_context
import lcg_scaling
import phase_diagram
import predict_lcg
import pytest
import width_scan
from _benchmark_flags import MODULAR, own_flags
from _shares import moving_shares, shares

from tinygrok import cli
from tinygrok.engine.errors import InputError
from tinygrok.training import ensembles

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc are Linux's")
SCRIPTS = hostile.EXAMPLES.glob("[!_]*.py")
EXAMPLES = sorted(p.stem for p in SCRIPTS if "def arguments(" in p.read_text())  # not record.py
NEVER = {"nan", "inf", "-inf", "1e308", "9" * 5000, str(10**19)}  # is a number that is taken

# Combinations of which every part may be fine: they take too much memory, or hours before the first
# step.
ABSURD = {
    "analytic_weights": [
        "--terms 100",
        "--p 1000 --terms 12",
        "--p 1000 --width 1000000",
        "--p 1000 --phases random --terms 6",
        "--task multiplication --p 997 --terms 10",
        "--task polynomial --expert-width 1000000 --p 997 --phases random",
        "--task polynomial --polynomial (n1+n2+n3)^1000",
        "--survey --p 1000",
        "--survey --terms 100",
    ],
    "audit_gradients": ["--threads 10000", "--seed 99999999999999999999"],
    "autoinit": [
        "--model mlp --width 10000 --depth 1000",
        "--model mlp --width 10000 --seeds 100",
        "--model patchwork --width 10000 --depth 100",
        "--model resmlp --width 10000 --depth 100",
        "--model mixer --width 10000 --depth 1000",
        "--model mlp --depth 1000 --width 3000",
        "--model mlp --depth 1000 --width 1000 --probes 1000",
        "--depth 100000",
        "--probes 1000000",
        "--seeds 100000",
    ],
    "autoinit_maps": [
        "--width 10000 --depth 1000",
        "--width 5000 --depth 50 --workers 9",
        "--depth 1000 --width 1000 --probes 1000",
        "--inputs 10000 --width 1000 --depth 100",
        "--vgg-batch 10000",
        "--grid 10000",
        "--workers 10000",
    ],
    "benchmark": [
        "--p 1000 --width 1000000",
        "--workload ensemble --width 1000000",
        "--workload all --width 1000000",
        "--workload mlp-batchnorm --p 1000 --width 300000",
        "--repeats 1000000000",
        "--steps 1000000",
        "--steps 1",
        "--busy -1",
        "--busy 1000000",
        "--busy 1.5",
    ],
    "corrupted_labels": [
        "--p 1000 --seeds 1000",
        "--width 1000000 --seeds 1000",
        "--regularizer batchnorm --width 1000000",
        "--p 1000 --width 100000",
        "--net mlp3 --width 100000 --seeds 9",
        "--net transformer --p 1000 --width 100000",
    ],
    "critical_init": [
        "--networks 10000000",
        "--width 10000 --depth 1000",
        "--width 10000 --networks 10000",
        "--depth 1000 --batch 100000",
        "--norm batch --residual 1 --width 10000 --depth 100 --batch 100000",
        "--grid 100000",
    ],
    "phase_networks": ["--grid 1000", "--networks 100000", "--mlp --nets mixer", "--mu 0.5 1 0.5"],
    "deep_mixer": [
        "--workers 10000",
        "--depth 100000",
        "--depth 1000 --width 10000",
        "--depth 1000 --width 1000 --hidden 10000 10000",
        "--depth 1000 --batch 10000 --width 1000",
    ],
    "exercise": ["x", "--out nowhere/x.txt 1", "100"],
    "gpu_check": ["--device cuda:99999999999999999999", "--long --quick", "--only suite --quick"],
    "grok_addition": [
        "--p 1000 --width 1000000",
        "--p 1000 --width 10000 --seeds 1000",
        "--p 1000 --width 100000 --dtype float64",
        "--task dihedral --p 1000 --width 1000000",
        "--threads 1000000",
        "--net mlp3 --width 1000000",
        "--net transformer --p 1000 --width 100000",
        "--terms 4 --p 1000",
        "--terms 3 --p 1000 --width 1",
        "--terms 4 --p 97",
        "--terms 3 --width 1000000 --dtype float64",
        "--p 97 --width 1000000 --keep-every 10",
    ],
    "grok_optimizers": [
        "--workers 10000",
        "--p 1000 --width 1000000",
        "--p 1000 --width 10000 --seeds 500",
        "--seeds 1000 --choosing 1000",
        "--factors 1e308",
    ],
    "grok_polynomials": ["--p 397 --width 1000000", "--width 500000", "--p 397 --seeds 1000"],
    "ground_truth": [
        "--p 600 --width 1000000",
        "--circuit random --p 600 --width 1000000",
        "--circuit random --width 10000000",
    ],
    "in_context": [
        "--depth 1000 --width 10000",
        "--depth 1000 --width 1024",
        "--width 20000",
        "--shots 1000 --batch 1000000 --width 4096",
        "--shots 1000 --p 101 --tasks 4096 --batch 4096",
        "--vocab 1000000 --width 1024",
        "--preset paper --depth 100",
        "--preset paper --width 16384",
        "--shots 100000",
    ],
    "in_context_phases": [
        "--workers 10000",
        "--seeds 1000",
        "--depth 1000 --width 10000",
        "--shots 24 --repeats --batch 100000 --width 4096 --workers 32",
        "--p 97 --tasks 4096 --batch 4096 --width 20000",
        "--tasks 9406 --rule random --p 97",
        "--p 97 --tasks 4 8 12 --alpha 0.2 0.4 --seeds 1000",
    ],
    "in_context_probe": ["--draws 1000000", "--contexts 100000", "--grid-tasks 1000000"],
    "lcg_probe": ["--rows 1000000"],
    "lcg_scaling": [
        "--workers 10000",
        "--moduli 32768 65536 --depth 1000",
        "--seeds 100000",
        "--depth 100000",
        "--seeds 1000 --depth 1000",
        "--moduli 65536 16384 --depth 300",
        "--steps 1000000000",
        "--seed 1000000000000000000 --seeds 2",
    ],
    "neuron_dynamics": [
        "--p 1000 --width 1000000",
        "--seeds 1000 --width 10000",
        "--steps 100000000 --log-every 1",
        "--threads 1000000",
    ],
    "phase_diagram": [
        "--workers 10000",
        "--grid 200",
        "--grid 100 --seeds 1000",
        "--seeds 100",
        "--pack 1000 --width 100000 --grid 100",
        "--p 1000 --width 100000",
        "--p 1000 --pack 1000 --grid 50",
    ],
    "training_maps": [
        "--workers 10000",
        "--grid 100 --norm none pre act --mu 0",
        "--grid 200",
        "--width 10000 --depth 1000",
        "--depth 1000 --width 10000 --batch 10000 --lr 0.1",
        "--depth 1000 --width 1000 --workers 32",
    ],
    "width_scan": [
        "--workers 10000",
        "--p 1000 --widths 100000",
        "--widths 1000000 --p 97",
        "--seeds 1000 --p 5 7 11 13 17 19 23 29 31 37 41 43 47 53 59",
    ],
    "pruning_phases": [
        "--workers 10000",
        "--p 1000 --width 1000000",
        "--p 500 --width 1000000 --seeds 9",
    ],
    "predict_lcg": [
        "--depth 1000000",
        "--modulus 67108864",
        "--modulus 33554432 --width 16",
        "--mode unseen --modulus 33554432",
        "--mode unseen --modulus 8388608 --base 256",
        "--base 2 --modulus 4294967296 --context 50000",
        "--modulus 18446744073709551616 --base 65536 --width 100000",
        "--context 100000 --width 4096",
        "--test-draws 100000",
        "--test-rows 100000 --context 4096",
        "--preset paper-2^32 --depth 200",
        "--preset paper-2^16 --pool 10000 --train-moduli 10000",
        "--preset paper-2048 --width 49152",
        "--preset truncated --keep-bits 26 --modulus 67108864 --width 1000",
        "--preset pcg --pool 1000",
        "--preset pcg --context 100000 --batch 10000",
    ],
}


def outcomes_of(example, lines, without=()):
    """What became of command lines, without some modules; None: those of hostile.walk."""
    done = subprocess.run(
        [sys.executable, hostile.__file__, example, *without],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def shown(outcome):
    return " ".join(outcome["line"])[-80:], outcome["verdict"], outcome["error"][-200:]


@pytest.mark.parametrize("bad", [{"depth": 0}, {"depth": 1000, "width": 20000}])
def test_a_scaling_study_refuses_every_point_before_the_first(bad, monkeypatch, tmp_path):
    """The smallest modulus, which is trained last: a flag that it refuses, too much memory."""
    usual = lcg_scaling.point

    def point(args, m, seed):
        return usual(args, m, seed) | (bad if m == 16 else {})

    monkeypatch.setattr(lcg_scaling, "point", point)
    flags = ["--moduli", "16", "64", "--steps", "1", "--out", str(tmp_path / "a")]
    assert usual(lcg_scaling.arguments(flags), 16, 0)["steps"] == 1
    with pytest.raises((SystemExit, InputError)):
        lcg_scaling.main(flags)
    assert not list(tmp_path.iterdir())


def test_small_moduli_are_trained_alike_with_and_without_quick():
    """With a third of the steps m = 64 would end at half of the numbers."""
    steps = {}
    for flags in ("--quick", "--moduli 64 128"):
        steps[flags] = lcg_scaling.point(lcg_scaling.arguments(flags.split()), 64, 0)["steps"]
    assert steps["--quick"] == 1400
    assert steps["--moduli 64 128"] > 1300


@pytest.mark.parametrize("name", EXAMPLES)
def test_help_shows_the_defaults_that_a_choice_brings(name, monkeypatch):
    """--preset, --model, --regularizer, --quick, ...: those that hold without --help."""
    example = importlib.import_module(name)
    parsers = []
    monkeypatch.setattr(
        cli._Parser, "print_help", lambda p, file=None: p.choosing or parsers.append(p)
    )

    def asked(*words):
        with pytest.raises(SystemExit) as left:
            example.arguments([*words, "--help"])
        assert left.value.code == 0
        return {action.dest: parsers[-1].get_default(action.dest) for action in actions()}

    def actions():
        return [a for a in parsers[-1]._actions if a.option_strings and a.dest != "help"]

    asked()
    choosing = [[a.option_strings[0], str(c)] for a in actions() for c in a.choices or ()]
    if any(a.dest == "quick" for a in actions()):
        choosing.append(["--quick"])
    for words in choosing:
        defaults = asked(*words)
        try:
            taken = vars(example.arguments(words))
        except InputError:  # a choice that needs other flags
            continue
        given = words[0].removeprefix("--").replace("-", "_")
        for flag, value in defaults.items():
            if flag != given and value is not None and flag in taken:
                assert taken[flag] == value, f"{words}: {flag}"


IDLE = {
    "audit_gradients": ["--file mine.py --kernels compiled"],
    "benchmark": [
        "--only tinygrok --steps 3",
        "--only tinygrok --repeats 3",
        "--only tinygrok --scaling",
        "--only tinygrok --busy 2",
        "--scaling --workload lcg",
        "--scaling --busy 2",
        "--workload small --p 61",
        "--workload lcg --p 31",
        "--workload vgg --width 100",
        "--resume",
        "--workload lcg --resume",
        "--scaling --resume",
    ],
    "grok_optimizers": ["--methods StableMax --weight-decay 2"],
    "grok_polynomials": [
        "--survey --p 61",
        "--survey --width 300",
        "--quick --survey --steps 20",
        "--survey --keep-every 5",
    ],
    "ground_truth": [
        "--near 0.2",
        "--check claim.json --circuit equal",
        "--check claim.json --p 23",
        "--check claim.json --width 69",
        "--check claim.json --faults 1",
        "--check claim.json --seed 1",
        "--check claim.json --dtype float32",
    ],
    "autoinit": [
        "--width 8",
        "--activation tanh",
        "--mu 0.5",
        "--model patchwork --norm pre",
        "--model mlp --patch 2",
        "--model mlp --layer-scale 0.5",
        "--model resmlp --norm pre",
        "--model mixer --layer-scale 0.5",
        "--model vgg --depth 3",
        "--model vgg_bn --mu 0.5",
        "--steps 0 --lr 1",
        "--steps 0 --measure-every 7",
        "--steps 0 --augment 2",
        "--steps 0 --clip 2",
    ],
    "autoinit_maps": ["--vgg-steps 0 --vgg-batch 4", "--vgg-steps 0 --data a"],
    "in_context": [
        "--matrix-lr 0.1",
        "--schedule cosine --hold 0.5",
        "--ramp 1 2",
        "--fade 1 2",
        "--rows axis=1 --fade 1 2",
    ],
    "in_context_phases": ["--matrix-lr 0.1", "--schedule cosine --hold 0.5"],
    "predict_lcg": [
        "--keep-bits 5",
        "--matrix-lr 0.1",
        "--start full=1",
        "--ramp 1 2",
        "--moduli 70 80",
        "--mixture full=1 --moduli 70 80",
        "--mixture full=1 --pool 3",
        "--mixture full=1 --base 16",
        "--mixture full=1 --generator xsh-rr",
        "--train-moduli 3",
        "--pool 3",
        "--base 16 --positions rotary",
        "--preset unseen --modulus 99",
        "--preset unseen --pool 3",
        "--preset unseen --test-draws 3",
        "--preset pcg --start full=1",
    ],
}


@pytest.mark.parametrize("name", IDLE)
def test_a_flag_without_effect_is_refused(name):
    example = importlib.import_module(name)
    for line in IDLE[name]:
        with pytest.raises(InputError) as refusal:
            example.arguments(line.split())
        idle = [word for word in line.split() if word.startswith("--")]
        assert str(refusal.value).partition(" ")[0] in idle


def test_flags_that_have_an_effect_are_taken():
    lines = ["--start line=1 --ramp 1 2", "--rows steps=1 --fade 1 2", "--preset paper --hold 0.5"]
    for line in lines:
        in_context.arguments(line.split())
    lines = ["--generator truncated --keep-bits 5", "--mode unseen --pool 3", "--base 16 --pool 3"]
    for line in [*lines, "--preset unseen --ramp 1 2", "--optimizer muon --matrix-lr 0.1"]:
        predict_lcg.arguments(line.split())


def test_flags_of_a_process_are_those_that_it_takes():
    """What benchmark.py hands to its own processes, which refuse what means nothing to them."""
    for flags in (["--workload", "all", "--quick"], ["--workload", "all", "--p", "31"]):
        args = benchmark.arguments(flags)
        for name in benchmark.EVERY:
            _, _, *words = own_flags(args, "benchmark.py", workload=name, out="x")
            taken = benchmark.arguments(words)
            assert (taken.workload, taken.repeats) == (name, args.repeats)
            assert (taken.p == args.p) == (name in MODULAR)
            _, _, *words = own_flags(taken, "benchmark.py", only="tinygrok")
            assert benchmark.arguments(words).p == taken.p


def test_settings_become_the_words_of_their_flags():
    settings = {"depth": 2, "ramp": [1, 2], "repeats": True, "quick": False, "hold": None}
    words = cli.words(settings | {"test_rows": 3})
    assert words == ["--depth=2", "--ramp", "1", "2", "--repeats", "--test-rows=3"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["wrap"], "--mixture: 'wrap' is not of the form"),
        (["wrap=0.5", "wrap=0.5"], "--mixture: wrap is there twice"),
        (["wrap=0.5"], "--mixture: {'wrap': 0.5}"),
    ],
)
def test_shares_are_refused_by_the_name_of_their_flag(words, message):
    start = ("--start", ["wrap=1"])
    with pytest.raises(InputError, match=message):
        moving_shares(("wrap", "full"), start, ("--mixture", words), (0, 1))
    with pytest.raises(InputError, match="--ramp: .* not from 2 to 1"):
        moving_shares(("wrap", "full"), start, start, (2, 1))
    assert shares(["wrap=0.2", "full=0.8"], "--mixture") == {"wrap": 0.2, "full": 0.8}


@pytest.mark.parametrize(
    ("example", "makes", "flags"),
    [
        (lcg_scaling, lcg_scaling, "--moduli 16 32"),
        (phase_diagram, ensembles, "--quick --p 11 --width 8"),
        (width_scan, _packs, "--quick --p 11 --widths 8"),
        (autoinit_maps, _autoinit_maps, "--quick --vgg-steps 0"),
    ],
)
def test_sweeps_hand_tf32_to_their_networks(example, makes, flags, monkeypatch, tmp_path):
    """makes: the module that makes the device of a pack."""
    handed = []

    def refuse(*given, threads, tf32, kernels):
        handed.append((*given, threads, tf32, kernels))
        raise InputError("seen")

    monkeypatch.setattr(makes, "get_device", refuse)
    monkeypatch.setattr(lcg_scaling, "require", lambda args, dev: None)
    flags = [*flags.split(), "--threads", "1", "--out", str(tmp_path / "a")]
    for tf32 in ([], ["--tf32"]):
        with pytest.raises(InputError, match="seen"):
            example.main([*flags, *tf32])
    given = ("auto", "float32", 1)
    assert handed == [(*given, False, "numpy"), (*given, True, "numpy")]


OPTIONAL = ["torch", "sklearn", "distributed", "mpi4py", "tqdm"]
BARE = [("benchmark", OPTIONAL), ("autoinit", OPTIONAL), ("phase_diagram", OPTIONAL)]


@pytest.mark.slow
@pytest.mark.parametrize(("example", "without"), [*((name, ()) for name in EXAMPLES), *BARE])
def test_hostile_values(example, without):
    """Every flag, whatever an example has: what it refuses, it refuses by one line, at once.

    Also where nothing optional is installed."""
    outcomes = outcomes_of(example, None, without)
    assert outcomes
    assert not [shown(outcome) for outcome in outcomes if outcome["verdict"]]
    taken = [x["line"][-1] for x in outcomes if x["code"] != 2]
    taken = [flag for flag in taken if not flag.startswith("--out=")]  # a folder of any name
    assert not [flag for flag in taken if flag.rpartition("=")[2] in NEVER]


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_absurd_combinations(example):
    outcomes = outcomes_of(example, [words.split() for words in ABSURD[example]])
    assert not [shown(x) for x in outcomes if x["verdict"] or x["code"] != 2]
