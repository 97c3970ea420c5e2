"""The authors' state dictionaries, as the probes open them: the same logits, settings by flags, and
one line for what does not fit."""

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import _published as published  # noqa: E402
import in_context  # noqa: E402
import in_context_probe  # noqa: E402
import lcg_probe  # noqa: E402
import predict_lcg  # noqa: E402
from helpers import safetensors  # noqa: E402

from tinygrok.engine.device import get_device  # noqa: E402
from tinygrok.engine.errors import InputError  # noqa: E402
from tinygrok.engine.rng import generator  # noqa: E402
from tinygrok.models.gpt import GPT  # noqa: E402
from tinygrok.models.inspect import Decoder, run_with_tape  # noqa: E402
from tinygrok.models.interop import from_torch_state_dict, to_torch_state_dict  # noqa: E402
from tinygrok.models.mlp import TwoLayerNet  # noqa: E402
from tinygrok.training.checkpoint import save_arrays  # noqa: E402

slow = pytest.mark.slow
P = 5
NETS = {
    "in_context": lambda: GPT.in_context(P + 18, 16, 2, 2, 512),
    "fixed": lambda: GPT.numbers(16, 16, 1, 1, 12),
    "unseen": lambda: GPT.numbers(38, 16, 2, 2, 16),  # 38 is the whole part of 1.2 times 32
    "six heads": lambda: GPT.numbers(48, 24, 2, 6, 16),
    "digits": lambda: GPT.base_b(16, 16, 1, 2, 8, 2),
    "biases": lambda: GPT.numbers(16, 16, 1, 1, 12, bias=True, shift=True, activation="gelu"),
    "short": lambda: GPT.numbers(16, 16, 1, 1, 3),
}
PROBES = {
    "in_context": (in_context_probe, in_context, published.in_context),
    "fixed": (lcg_probe, predict_lcg, published.numbers),
}
PROBES |= dict.fromkeys(("unseen", "six heads", "digits", "biases", "short"), PROBES["fixed"])
FLAGS = {"in_context": "--p 5 --shots 8", "unseen": "--mode unseen --heads 2"}
TOKEN = "transformer.wte.weight"
HEAD = "lm_head.weight"
FREQUENCIES = "transformer.h.1.attn.rotary_emb.freqs"
QKV = "transformer.h.0.attn.c_attn.weight"


def state_of(kind, dtype="float32"):
    """A random network under the authors' names."""
    net = NETS[kind]()
    state = to_torch_state_dict(net, net.init(generator(0, "init"), 0.3))
    return {name: x.astype(dtype) for name, x in state.items()}


def written(folder, kind, change=None, name="model.npz"):
    """The path of a network, changed."""
    state = state_of(kind)
    path = folder / name
    if path.suffix.lower() == ".safetensors":
        safetensors(path, change(state) if change else state)
    else:
        np.savez(path, **(change(state) if change else state))
    return path


def opened(kind, path, *flags):
    """(flags of the probe, flags of the example, data, model, weights)"""
    probe, example, own = PROBES[kind]
    args = probe.arguments([str(path), *" ".join(flags).split()])
    return args, *published.open_network(args, None, example, probe.build, own)


def logits(model, weights):
    tokens = generator(1, "probes").integers(model.vocab, size=(3, 12))
    return Decoder(get_device("cpu", "float64"), model, weights).read(tokens, "logits")


# -- what is opened --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.npz", "model.safetensors", "MODEL.SafeTensors"])
@pytest.mark.parametrize("kind", ["in_context", "fixed", "unseen", "biases"])
def test_the_opened_network_is_the_one_in_the_file(kind, name, tmp_path):
    path = written(tmp_path, kind, name=name)
    _, _, _, model, weights = opened(kind, path, FLAGS.get(kind, ""))
    direct, arrays = from_torch_state_dict(state_of(kind), heads=NETS[kind]().heads)
    assert repr(model) == repr(direct)
    assert model.activation == NETS[kind]().activation
    np.testing.assert_array_equal(logits(model, weights), logits(direct, arrays))
    tokens = generator(1, "probes").integers(model.vocab, size=(3, 12))
    alone, _ = run_with_tape(NETS[kind](), arrays, tokens)
    np.testing.assert_allclose(logits(model, weights), alone, atol=1e-12)


def without(part):
    return lambda state: {name: x for name, x in state.items() if part not in name}


FORMS = {
    "prefixes": lambda s: {"_orig_mod.module." + name: x for name, x in s.items()},
    "masks": lambda s: s | {"transformer.h.0.attn.bias": np.tril(np.ones((1, 1, 9, 9)))},
    "the head alone": without(TOKEN),
    "no frequencies": without("freqs"),
    "float16": lambda s: {name: x.astype("float16") for name, x in s.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_what_people_have(form, tmp_path):
    path = written(tmp_path, "in_context", FORMS[form])
    _, _, _, model, weights = opened("in_context", path, FLAGS["in_context"], "--heads 2")
    direct, arrays = from_torch_state_dict(state_of("in_context"))
    difference = abs(logits(model, weights) - logits(direct, arrays)).max()
    assert difference < (0.02 if form == "float16" else 1e-12)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision(dtype, tmp_path):
    """The rotary frequencies were rounded with the weights; the exact ones are taken."""
    path = tmp_path / "model.safetensors"
    safetensors(path, state_of("in_context"), dtype)
    _, _, _, model, weights = opened("in_context", path, FLAGS["in_context"])
    direct, arrays = from_torch_state_dict(state_of("in_context"))
    assert model.heads == 2
    scale = abs(logits(direct, arrays)).max()
    assert abs(logits(model, weights) - logits(direct, arrays)).max() < 0.02 * scale


@slow
@pytest.mark.parametrize(
    ("kind", "net", "flags", "size"),
    [
        ("in_context", GPT.in_context(47, 512, 2, 4), "", 6_320_640),
        ("fixed", GPT.numbers(2048, 768, 1, 1, 256), "", 8_849_664),
        ("unseen", GPT.numbers(2457, 768, 4, 6, 256), "--mode unseen", 30_402_048),
    ],
)
def test_the_published_sizes_need_no_flag(kind, net, flags, size, tmp_path):
    """The papers' settings are the defaults."""
    state = to_torch_state_dict(net, net.init(generator(0, "init")))
    path = tmp_path / "model.safetensors"
    safetensors(path, state)
    args, config, data, model, weights = opened(kind, path, flags)
    assert repr(model) == repr(net)
    assert model.size == size
    assert sum(x.size for x in weights.values()) == size
    if kind == "in_context":
        assert (args.p, args.shots, args.heads) == (29, 32, 4)
        assert len(state) == 2 * 9 + 4
    else:
        assert config.modulus == args.modulus == 2048
        assert data.length == 257
    if kind == "unseen":
        assert list(data.tests) == ["2048", "1521", "1800", "1936", "2178", "2312", "2352"]


def test_what_the_weights_do_not_tell_is_printed_and_kept(tmp_path, capsys):
    path = written(tmp_path, "in_context")
    args, _, data, _, _ = opened("in_context", path, FLAGS["in_context"])
    printed = capsys.readouterr().out
    assert "--p 5 --shots 8 --heads 2 --activation relu" in printed
    assert "not known: which tasks were held out" in printed
    assert (args.p, args.shots, args.heads, args.activation) == (5, 8, 2, "relu")
    assert len(data.id_tasks) == len(data.test_pool) == 0
    assert len(data.ood_tasks) == len(data.train_pool) == P * P
    path = written(tmp_path, "unseen")
    args, config, data, _, _ = opened("unseen", path, FLAGS["unseen"], "--test-moduli 27 36")
    assert "not known: which multipliers and increments, and moduli" in capsys.readouterr().out
    assert (config.mode, config.modulus, args.test_moduli) == ("unseen", 32, [27, 36])
    assert list(data.tests) == ["32", "27", "36"]
    assert not np.isin([32, 27, 36], data.moduli).any()
    assert data.batch(500, generator(0, "probes")).max() < 38


def test_heads_of_a_paper_are_taken_where_nothing_tells_them(tmp_path):
    path = written(tmp_path, "six heads")
    assert opened("six heads", path, "--mode unseen --modulus 40")[3].heads == 6
    assert opened("six heads", path, "--mode unseen --modulus 40 --heads 3")[3].heads == 3
    path = written(tmp_path, "biases")
    assert opened("biases", path)[3].activation == "gelu"
    assert opened("biases", path, "--activation gelu_tanh")[3].activation == "gelu_tanh"


# -- what is refused -------------------------------------------------------------------------------


def changed(name, change):
    return lambda state: state | {name: change(state[name])}


def tokens(count):
    return lambda state: state | {TOKEN: state[TOKEN][:count], HEAD: state[HEAD][:count]}


REFUSED = {
    "digits": ("digits", "", None, "a network of digits in base 16, not of numbers"),
    "other vocabulary": ("in_context", "", None, "--p 29 makes .* but this one is 23: .* --p 5 or"),
    "small vocabulary": ("in_context", "--p 29", tokens(9), "this one is 9: that of --p 9$"),
    "composite p": ("in_context", "--p 21", tokens(21), "prime"),
    "heads of others": ("in_context", "--p 5 --heads 4", None, "are of 2 heads, not 4"),
    "odd heads": ("fixed", "--heads 3", None, "width 16 does not split into 3 heads"),
    "other modulus": ("fixed", "--modulus 8", None, "is the vocabulary, 16, not 8"),
    "large modulus": ("unseen", "--mode unseen --heads 2 --modulus 64", None, "vocabulary is 38"),
    "prime modulus": ("unseen", "--mode unseen --heads 2 --modulus 37", None, "mod 37 no"),
    "no full period": ("unseen", "", None, "model.npz, --mode fixed: mod 38 no multiplier"),
    "moduli of a fixed one": ("fixed", "--test-moduli 8 9", None, "needs --mode unseen"),
    "short": ("short", "", None, "--context: 3 must be at least 4"),
    "nan": ("fixed", "", changed(QKV, lambda x: x * np.nan), "c_attn.weight is not finite"),
    "transposed": ("fixed", "", changed(QKV, np.transpose), r"\(48, 16\), got \(16, 48\)"),
    "missing": ("fixed", "", without(QKV), "missing or foreign arrays: .*c_attn.weight"),
    "no norms": ("in_context", "--p 5", without("transformer.ln_f.weight"), "arrays: .*ln_f"),
    "foreign": ("fixed", "", lambda s: s | {"transformer.h.0.extra": s[QKV]}, "h.0.extra"),
    "other frequencies": ("in_context", "--p 5", changed(FREQUENCIES, lambda x: x * 2), "rotary"),
    "huge frequencies": (
        "in_context",
        "--p 5",
        changed(FREQUENCIES, lambda x: 1e300 * x.astype(float)),
        "rotary",
    ),
    "halved frequencies": (
        "in_context",
        "--p 5",
        changed(FREQUENCIES, lambda x: (1.01 * x).astype("float16")),
        "other rotary frequencies",
    ),
    "inv_freq": (
        "in_context",
        "--p 5",
        lambda s: s | {"transformer.h.0.attn.rotary_emb.inv_freq": s[FREQUENCIES]},
        "foreign arrays: .*inv_freq",
    ),
    "anything": ("fixed", "", lambda s: {"x": np.ones(3)}, "not a state dict of the known classes"),
    "empty": ("fixed", "", lambda s: {}, "not a state dict of the known classes"),
    "absurd shots": ("in_context", "--shots 171", None, None),
    "text for p": ("in_context", "--p x", None, None),
    "unknown activation": ("fixed", "--activation tanh", None, None),
}


def the_line(kind, flags, capsys):
    """What the probe refuses flags with; nothing may be written."""
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises((InputError, SystemExit)) as error:
        PROBES[kind][0].main(flags)
    line = str(error.value)
    if error.type is SystemExit:  # by the parser
        assert error.value.code == 2
        line = capsys.readouterr().err.removesuffix("\n")
    assert line.isprintable()
    assert len(line) < 600
    assert sorted(Path.cwd().rglob("*")) == before
    return line


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_in_a_line(what, tmp_path, monkeypatch, capsys):
    kind, flags, change, message = REFUSED[what]
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, kind, change)
    line = the_line(kind, [str(path), *flags.split()], capsys)
    assert re.search(message or "argument --", line), line


@pytest.mark.parametrize("kind", ["in_context", "fixed"])
def test_files_of_others_are_refused_in_a_line(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good = written(tmp_path, kind).read_bytes()
    net = TwoLayerNet(7, 10)
    np.savez("fcn.npz", **to_torch_state_dict(net, net.init(generator(0, "init"))))
    other = "fixed" if kind == "in_context" else "in_context"
    written(tmp_path, other, name="other.npz")
    contents = {
        "none.npz": None,
        "none.pth": None,
        "cut.npz": good[:-100],
        "text.npz": b"text",
        "empty.safetensors": b"",
        "text.safetensors": b"\xff" * 100,
        "zip.safetensors": good,
    }
    for name, content in contents.items():
        if content is not None:
            Path(name).write_bytes(content)
        assert name in the_line(kind, [name], capsys)
    assert "two-layer network" in the_line(kind, ["fcn.npz"], capsys)
    assert "positions" in the_line(kind, ["other.npz"], capsys)
    os.mkfifo("pipe.npz")
    assert "not a regular file" in the_line(kind, ["pipe.npz"], capsys)


def test_flags_of_a_state_dictionary_are_refused_with_other_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_arrays("ours.npz", {"config": {"p": 5, "depth": 0}}, {})
    for kind, flag in (("in_context", "--p"), ("fixed", "--modulus"), ("fixed", "--test-moduli")):
        line = the_line(kind, ["ours.npz", flag, "7"], capsys)
        assert line.startswith(f"{flag} is for the authors' state dictionaries: ours.npz holds its")
        assert the_line(kind, [flag, "7", "--quick"], capsys).startswith(f"{flag} is for the au")
    assert "not of examples/predict_lcg.py" in the_line("fixed", ["ours.npz"], capsys)


# -- pickles ---------------------------------------------------------------------------------------


def test_a_pickle_is_never_loaded_and_the_line_converts_it(tmp_path, monkeypatch, capsys):
    """As the authors save: under model_state_dict, with two names for one tied tensor."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.chdir(tmp_path)
    state = {name: torch.from_numpy(x.copy()) for name, x in state_of("fixed").items()}
    state[HEAD] = state[TOKEN]
    whole = {"step": 3, "model_state_dict": state, "optimizer_state_dict": {}}
    torch.save(whole, "model.pth")
    torch.save(state, "bare.pth", _use_new_zipfile_serialization=False)
    Path("renamed.npz").write_bytes(Path("model.pth").read_bytes())
    Path("unknown.PTH").write_bytes(b"what not")
    for name in ("bare.pth", "renamed.npz", "unknown.PTH", "model.pth"):
        line = the_line("fixed", [name], capsys)
        assert "never loaded here" in line
        assert f"torch.load('{name}', map_location='cpu', weights_only=True)" in line
    exec(line.partition("make a .npz of it: ")[2], {})
    found = opened("fixed", Path("model.npz"))[3:]
    expected = from_torch_state_dict(state_of("fixed"), heads=1)
    np.testing.assert_array_equal(logits(*found), logits(*expected))


def test_headers_that_begin_like_a_pickle_are_none(tmp_path):
    """A .safetensors header of 640 bytes begins with 80 02, as pickles do."""
    path = tmp_path / "model.safetensors"
    safetensors(path, state_of("fixed"))
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    padded = 0x280 + 0x100 * (length // 0x100)
    text = whole[8 : 8 + length].ljust(padded)
    path.write_bytes(struct.pack("<Q", padded) + text + whole[8 + length :])
    assert path.read_bytes()[:1] == b"\x80"
    assert opened("fixed", path)[3].vocab == 16


# -- from the command line -------------------------------------------------------------------------


def run(probe, *flags, cwd):
    command = [sys.executable, str(EXAMPLES / f"{probe}.py"), *" ".join(flags).split()]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


RUNS = {
    "in_context": ("in_context_probe", "--grid-tasks 2 --draws 5 --shot 2"),
    "fixed": ("lcg_probe", "--rows 6"),
    "unseen": ("lcg_probe", "--rows 6 --test-moduli 27"),
}


@slow
@pytest.mark.parametrize("kind", RUNS)
def test_probes_on_state_dictionaries(kind, tmp_path):
    """The same results of both kinds of file, with every figure."""
    probe, flags = RUNS[kind]
    records = []
    for name, more in (("model.npz", "--out first"), ("model.safetensors", "--no-plot")):
        written(tmp_path, kind, name=name)
        done = run(probe, name, flags, FLAGS.get(kind, ""), more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        assert "not known: which" in done.stdout
        folder = tmp_path / ("first" if "first" in more else f"runs/{probe}")
        records.append(json.loads((folder / "run.json").read_text()))
    first, second = records
    assert first["results"] == second["results"]
    assert first["config"]["heads"] == NETS[kind]().heads
    names = " ".join(first["results"])
    if kind == "in_context":
        assert first["config"]["p"] == P
        assert not re.search(r"\b(id|ood)_(covered|train)|_test\b", names), names
        assert {"any_covered", "any_by_wrong_labels", "lens_any_any"} <= set(first["results"])
    else:
        assert first["config"]["modulus"] == {"fixed": 16, "unseen": 32}[kind]
        assert ("accuracy mod 27" in names) == (kind == "unseen")
    figures = {path.name for path in (tmp_path / "first").glob("*.png")}
    assert len(figures) >= {"in_context": 8, "fixed": 5, "unseen": 7}[kind]


@slow
@pytest.mark.parametrize("kind", ["in_context", "digits"])
def test_refusals_end_with_exit_code_2(kind, tmp_path):
    written(tmp_path, kind)
    probe = PROBES[kind][0].__name__
    for flags in ("model.npz", "none.safetensors", "model.npz --heads x"):
        done = run(probe, flags, "--out new", cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"{probe}.py: error: ")
    assert not (tmp_path / "new").exists()
