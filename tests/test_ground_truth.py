"""Networks of a known algorithm: truth.json describes the weights, the faults do what it says."""

import json
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tinygrok.analytic.verify import verify
from tinygrok.engine.device import get_device
from tinygrok.engine.errors import InputError
from tinygrok.models.interop import from_torch_state_dict
from tinygrok.tasks.modular import addition
from tinygrok.training.checkpoint import load_weights

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import _ground_truth as circuits
import _ground_truth_faults as damage
import _ground_truth_files as files
import ground_truth

DEV = get_device("cpu", "float64", threads=1)
CIRCUITS = ["exact", "lattice", "equal", "random"]


def written(folder, *flags):
    """(truth.json, weights) that the example leaves."""
    flags = " ".join(flags).split()
    ground_truth.main([*flags, "--out", str(folder), "--threads", "1", "--no-plot"])
    truth = json.loads((folder / "truth.json").read_text())
    return truth, load_weights(folder / "network.npz")[1]


def table(weights):
    """Logits (p, p, p) of all inputs, by the two lines that truth.json has for a network."""
    U, W = weights["U"], weights["W"]
    return (U[0][:, None] + U[1][None]) ** 2 @ W


def of_the_convention(truth):
    """The weights, from truth.json alone."""
    p, N = truth["p"], truth["width"]
    parts = np.zeros((3, p, N))
    place = np.arange(p)
    for row in truth["neurons"]:
        for s in range(3):
            if row["frequency"] is not None and row["phase"][s] is not None:
                angle = 2 * np.pi * row["frequency"] * place / p + row["phase"][s]
                parts[s, :, row["neuron"]] = row["amplitude"][s] * np.cos(angle)
    return {"U": parts[:2], "W": parts[2].T}


@pytest.mark.parametrize(
    ("circuit", "p"), [(c, p) for c in CIRCUITS for p in (3, 12, 13, 15) if (c, p) != ("equal", 12)]
)
def test_clean_circuits_are_right_and_are_their_formula(circuit, p):
    task = addition(p)
    width = 3 * circuits.choose_waves(task, task.circle, None, circuit, None).frequency.size
    weights, truth = circuits.build(task, circuit, width if circuit == "random" else None, 5, 0)
    n = task.inputs(np.arange(p * p))
    z = table(weights).reshape(p * p, p)
    assert (z.argmax(axis=1) == n.sum(axis=0) % p).all()
    expected = circuits.formula(circuit, truth, n, p)
    assert (expected is None) == (circuit == "random")
    if expected is not None:
        np.testing.assert_allclose(z, expected, rtol=0, atol=1e-13)
    if circuit in ("exact", "lattice"):
        np.testing.assert_allclose(z, np.eye(p)[n.sum(axis=0) % p], rtol=0, atol=1e-13)
    found = circuits.answers(DEV, weights, task)
    library = verify(weights, task, DEV, terms=False)
    assert found.row()["accuracy"] == library.accuracy == 1
    assert found.margin.min() == pytest.approx(library.min_margin)
    assert circuits.recovered(truth, circuits.decoded(weights, task.circle), 1e-9).all()


def test_few_frequencies_are_drawn_and_their_phases_turned():
    task = addition(31)
    drawn = set()
    for seed in range(3):
        weights, truth = circuits.build(task, "exact", 18, seed, 0)
        n = task.inputs(np.arange(31**2))
        expected = circuits.formula("exact", truth, n, 31)
        z = table(weights).reshape(-1, 31)
        np.testing.assert_allclose(z, expected, rtol=0, atol=1e-13)
        drawn.add(tuple(np.unique(truth.frequency)))
        assert len(np.unique(truth.frequency)) == 3
        assert len(np.unique(truth.phase[0].round(6))) == 9  # 3 a frequency
    assert len(drawn) == 3


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("circuit", CIRCUITS)
def test_truth_alone_gives_the_weights(circuit, dtype, tmp_path):
    """Waves by their formula, and the two neurons of a memorised pair as the convention says."""
    flags = f"--circuit {circuit} --p 23 --faults 6 --seed 3 --dtype {dtype}"
    truth, weights = written(tmp_path, flags)
    assert weights["U"].dtype == dtype
    wanted = of_the_convention(truth)
    counts = dict.fromkeys(("wave", *damage.KINDS), 0)
    for row in truth["neurons"]:
        counts[row["role"]] += 1
    assert counts["flipped"] == 2
    assert counts["memorises"] == 4
    assert counts["dead"] >= 2
    for fault in truth["faults"]:
        for k in fault["neurons"]:
            assert truth["neurons"][k]["role"] == fault["kind"]
        if fault["kind"] == "memorises":
            a, b = fault["pair"]
            first, second = fault["neurons"]
            c = weights["U"][0, a, first]
            wanted["U"][0, a, [first, second]] = c
            wanted["U"][1, b, [first, second]] = c, -c
            wanted["W"][[first, second], fault["answer"]] = c, -c
            wanted["W"][[first, second], (a + b) % 23] = -c, c
    tolerance = 1e-13 if dtype == "float64" else 1e-7
    for name, x in wanted.items():
        np.testing.assert_allclose(weights[name], x, rtol=0, atol=tolerance)


@pytest.mark.parametrize("width", ["", "--width 30"])
def test_every_fault_changes_what_it_says(width, tmp_path):
    """Clean and faulty networks of one seed have the same waves: the logits tell the faults."""
    p = 23
    flags = f"--p {p} --seed 2 {width}"
    _, clean = written(tmp_path / "clean", flags)
    truth, faulty = written(tmp_path / "faulty", flags, "--faults 3")
    before = table(clean)
    after = table(faulty)
    dead, flipped, pair = truth["faults"]
    assert [f["kind"] for f in truth["faults"]] == list(damage.KINDS)
    n = np.arange(p)
    d = n[:, None, None] + n[:, None] - n
    difference = after - before
    difference += 2 / p * np.cos(2 * np.pi * dead["frequency"] * d / p)
    (k,) = flipped["neurons"]
    own = {"U": faulty["U"][..., [k]], "W": faulty["W"][[k]]}
    difference -= 2 * table(own)
    a, b = pair["pair"]
    at_pair = difference[a, b].copy()
    difference[a, b] = 0
    np.testing.assert_allclose(difference, 0, atol=1e-13)  # nothing else, on any input
    right = (a + b) % p
    moved = np.flatnonzero(np.abs(at_pair) > 1e-9)
    assert sorted(moved) == sorted([right, pair["answer"]])
    assert at_pair[right] == pytest.approx(-at_pair[pair["answer"]])
    assert after[a, b].argmax() == pair["answer"]

    assert pair["effect"]["answers_changed"] == 1
    assert pair["effect"]["changed"] == [[a, b, right, pair["answer"]]]
    answers = before.argmax(axis=-1)
    for fault in truth["faults"]:
        effect = fault["effect"]
        assert len(effect["changed"]) == effect["answers_changed"]
        for n1, n2, old, new in effect["changed"]:
            assert answers[n1, n2] == old
            answers[n1, n2] = new
    np.testing.assert_array_equal(answers, after.argmax(axis=-1))
    wrong = (answers != (n[:, None] + n) % p).sum()
    assert truth["verified"]["wrong"] == wrong
    assert truth["faults"][-1]["effect"]["wrong"] == wrong


def test_a_dead_frequency_lowers_the_margin_as_predicted(tmp_path):
    """Of the one-hot network: 1 - (2/p)(1 - cos(2 pi f d/p)), at its smallest d."""
    truth, _ = written(tmp_path, "--p 29 --faults 1")
    f = truth["faults"][0]["frequency"]
    d = np.arange(29)
    predicted = 1 - 2 / 29 * (1 - np.cos(2 * np.pi * f * d / 29)).max()
    assert truth["verified"]["min_margin"] == pytest.approx(predicted, abs=1e-12)
    assert f not in truth["frequencies"]
    assert len(truth["frequencies"]) == 14  # 0 .. 14, without f


def test_the_state_dict_is_the_same_network(tmp_path):
    truth, weights = written(tmp_path, "--quick --circuit random")
    path = tmp_path / "network.safetensors"
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0  # the numbers are aligned
    model, read = from_torch_state_dict(path)
    assert (model.p, model.width, model.activation) == (23, truth["width"], "square")
    for name, x in weights.items():
        np.testing.assert_array_equal(read[name], x)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_package_reads_the_state_dict(dtype, tmp_path):
    package = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    truth, weights = written(tmp_path, f"--quick --dtype {dtype}")
    state = package.load_file(tmp_path / "network.safetensors")
    N = truth["width"]
    assert {name: x.shape for name, x in state.items()} == {
        "fc1.weight": (N, 46),
        "fc2.weight": (23, N),
    }
    assert state["fc1.weight"].dtype == dtype
    np.testing.assert_array_equal(state["fc2.weight"], weights["W"].T)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_pytorch_lines_of_the_docstring(dtype, tmp_path, monkeypatch):
    """Run as they stand there: the network answers as truth.json says."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/ground_truth")
    truth, weights = written(folder, f"--quick --dtype {dtype} --circuit equal")
    doc = ground_truth.__doc__
    code = doc[doc.index("    import torch") : doc.index("Everything is checked")]
    names = {}
    exec(textwrap.dedent(code), names)
    pairs = torch.cartesian_prod(torch.arange(23), torch.arange(23))
    with torch.no_grad():
        z = names["net"](pairs).numpy()
    assert z.dtype == dtype
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(z.reshape(23, 23, 23), table(weights), rtol=0, atol=tolerance)
    wrong = (z.argmax(axis=1) != pairs.sum(dim=1).numpy() % 23).sum()
    assert wrong == truth["verified"]["wrong"]


def scored(folder, claim, near=0.1):
    path = folder / "claim.json"
    path.write_text(json.dumps(claim))
    return files.score(path, folder / "truth.json", near)


def test_a_claim_is_scored(tmp_path):
    truth, _ = written(tmp_path, "--p 23 --faults 4 --seed 1")
    shares = ("roles", "frequencies", "phases", "precision", "recall")
    right = scored(tmp_path, truth)
    assert [right[name] for name in shares] == [1] * 5
    nothing = scored(tmp_path, {})
    assert [nothing[name] for name in shares] == [0, 0, 0, None, 0]

    mirrored = json.loads(json.dumps(truth))
    for row in mirrored["neurons"]:
        if row["frequency"]:
            row["frequency"] = 23 - row["frequency"]
            row["phase"] = [None if x is None else 2 * np.pi - x for x in row["phase"]]
    assert scored(tmp_path, mirrored) == right

    waves = [row for row in truth["neurons"] if row["role"] == "wave"]
    waves[0]["frequency"] += 1
    waves[1]["phase"][2] += 0.2
    waves[2]["role"] = "dead"
    truth["faults"].pop(0)
    truth["faults"][-1]["pair"] = truth["faults"][-1]["pair"][::-1]
    half = scored(tmp_path, truth)
    N = half["neurons"]
    assert half["roles"] == pytest.approx(1 - 1 / N)
    assert half["frequencies"] == pytest.approx(1 - 1 / (N - 2))
    told = sum(x is not None for row in truth["neurons"] for x in row["phase"] or [])
    assert half["phases"] == pytest.approx(1 - 4 / told)
    assert (half["faults_planted"], half["faults_named"], half["faults_found"]) == (4, 3, 2)
    assert half["precision"] == pytest.approx(2 / 3)
    assert half["recall"] == 0.5
    assert scored(tmp_path, truth, 0.3)["phases"] == pytest.approx(1 - 3 / told)


@pytest.mark.parametrize(
    "claim",
    [
        [],
        {"neurons": [{"neuron": 1000}]},
        {"neurons": [{"neuron": 0}, {"neuron": 0}]},
        {"neurons": [{"role": "wave"}]},
        {"neurons": [{"neuron": 0, "phase": [1, 2]}]},
        {"neurons": [{"neuron": 0, "phase": ["x", 1, 2]}]},
        {"neurons": [{"neuron": 0, "frequency": "5"}]},
        {"neurons": 3},
        {"faults": [{"kind": "sleepy"}]},
        {"faults": [{"kind": "dead"}]},
        {"faults": [{"kind": "flipped", "neurons": []}]},
        {"faults": [{"kind": "memorises", "pair": 3}]},
        {"faults": [[]]},
    ],
)
def test_claims_of_another_form_are_refused(claim, tmp_path):
    truth = {"p": 5, "width": 2, "neurons": [], "faults": []}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with pytest.raises(InputError, match="claim.json"):
        scored(tmp_path, claim)


def test_check_prints_and_writes_nothing(tmp_path, capsys):
    written(tmp_path, "--p 13 --faults 3")
    before = sorted(tmp_path.iterdir())
    claim = str(tmp_path / "truth.json")
    ground_truth.main(["--check", claim, "--out", str(tmp_path)])
    assert "recall" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before


def test_an_earlier_network_is_kept_with_its_truth(tmp_path):
    first, _ = written(tmp_path, "--p 13 --faults 3")
    written(tmp_path, "--p 11")
    kept = tmp_path / "earlier-1"
    assert json.loads((kept / "truth.json").read_text()) == first
    assert from_torch_state_dict(kept / "network.safetensors")[0].p == 13
    assert from_torch_state_dict(tmp_path / "network.safetensors")[0].p == 11


def test_the_arrays_do_not_tell_the_faults(tmp_path):
    """network.npz may be given to a tool: it has no more than the modulus beside the weights."""
    written(tmp_path, "--p 13 --faults 3")
    meta, weights = load_weights(tmp_path / "network.npz")
    assert meta == {"p": 13}
    assert set(weights) == {"U", "W"}


def broken_truth(build):
    def wrong(*args):
        weights, truth = build(*args)
        k = np.flatnonzero(truth.frequency > 0)[0]
        truth.phase[0, k] += 0.01
        return weights, truth

    return wrong


def broken_weights(build):
    def wrong(*args):
        weights, truth = build(*args)
        weights["W"][0] *= 1.001
        return weights, truth

    return wrong


@pytest.mark.parametrize(
    ("breaks", "message"), [(broken_truth, "a fit finds 1"), (broken_weights, "from their formula")]
)
def test_nothing_is_written_that_does_not_hold(breaks, message, tmp_path, monkeypatch):
    monkeypatch.setattr(circuits, "build", breaks(circuits.build))
    with pytest.raises(InputError, match=message):
        written(tmp_path / "new", "--p 13")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["dead", "memorises"])
def test_a_fault_without_its_effect_is_refused(name, tmp_path, monkeypatch):
    plant = damage.plant

    def timid(kind, dev, weights, *rest):
        kept = {key: x.copy() for key, x in weights.items()}
        fault = plant(kind, dev, weights, *rest)
        if kind == name:
            weights.update(kept)
        return fault

    monkeypatch.setattr(damage, "plant", timid)
    with pytest.raises(InputError, match="nothing|alone"):
        written(tmp_path / "new", "--p 13 --faults 3")
    assert not (tmp_path / "new").exists()
