"""Analyses of networks for unseen moduli: each of them can say yes and can say no."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import _lcg_modulus as estimates
import _lcg_modulus_claims as claims
import _lcg_modulus_heads as heads
import _lcg_modulus_induction as induction
import numpy as np
import pytest
from _lcg_families import FAMILIES, mixed_moduli
from _moving_shares import MovingShares

from tinygrok.engine.rng import generator
from tinygrok.models.gpt import GPT
from tinygrok.models.inspect import Decoder
from tinygrok.probes import decoder as opened
from tinygrok.tasks import lcg

EXAMPLES = Path(__file__).parent.parent / "examples"
V, T, H, DEPTH, C = 41, 24, 2, 2, 8
END = {"wrap": 0.5, "full": 0.5}


def mixture(end=END):
    shares = MovingShares(FAMILIES, {"wrap": 1.0}, end, (1, 2))
    return mixed_moduli(16, V - 1, T + 1, generator(0, "split"), [32, 27], shares)


def sequences(m=16, length=40, rows=60, multipliers=(1, 5, 9, 13)):
    """Of full period."""
    rng = generator(1, "probes")
    a = rng.choice(multipliers, rows)
    c = 2 * rng.integers(m // 2, size=rows) + 1
    x = lcg.generate(m, a, c, rng.integers(m, size=rows), length + 1)
    modulus = np.full(rows, m)
    return estimates.Sequences(x, modulus, a, estimates.orders(a, modulus))


@pytest.fixture
def tiny(host_dev):
    return random_decoder(host_dev)


def random_decoder(dev):
    net = GPT.numbers(V, C, DEPTH, H, T, positions="rotary")
    return Decoder(dev, net, net.init(generator(0, "init"), 0.7))


def answering(predict):
    """A decoder that answers by a rule; edits do not concern it."""
    return SimpleNamespace(predict=lambda tokens, edit=None: predict(tokens))


# -- sequences -------------------------------------------------------------------------------------


def test_orders_and_reach():
    m = np.array([7, 7, 16, 16, 45])
    a = np.array([3, 1, 5, 9, 16])
    assert estimates.orders(a, m).tolist() == [6, 1, 4, 2, 3]
    x, m, _, order = sequences()
    reached = estimates.reach(x[:, :-1], order)
    known = np.arange(40) >= order[:, None]
    assert (reached[~known] == -1).all()
    away = (reached - x[:, 1:])[known]
    assert set(away.tolist()) == {-16, 0, 16}


def test_sequences_of_a_mixture_are_of_its_kind():
    data = mixture()
    rng = generator(0, "probes")
    assert claims.tests_of(data) == ["32", "27"]
    assert claims.tests_of(mixture({"wrap": 1.0})) == ["32, a = 1", "27, a = 1"]
    found = estimates.unseen(data, ["32", "27"], 3, rng)
    assert found.m.tolist() == [32] * 3 + [27] * 3
    assert ((found.a - 1) % lcg.hull_dobell_step(27) == 0)[3:].all()
    x, m = estimates.trained(data, 40, rng)
    assert not np.isin(m, [32, 27]).any()
    steps = np.diff(x) % m[:, None]
    adds = (steps == steps[:, :1]).all(axis=1)
    assert adds[20:].all()
    assert not adds[:20].any()
    every = heads.many_moduli(data, 2, rng, wrap=False)
    assert {27, 32} < set(every.m.tolist())
    assert every.order.max() <= T // 2
    assert (heads.many_moduli(data, 2, rng, wrap=True).a == 1).all()


def test_the_error_of_a_mean():
    mean, error = estimates.estimate(np.array([0.0, 1.0, np.nan, 2.0]))
    assert (mean, error) == (1.0, pytest.approx(1 / np.sqrt(3)))
    assert np.isnan(estimates.estimate(np.array([1.0]))).all()


# -- the modulus -----------------------------------------------------------------------------------


def test_the_probe_finds_m_in_features_that_hold_it_and_not_in_noise():
    rng = generator(0, "probes")
    m = rng.integers(65, 257, size=600)
    new = rng.integers(65, 257, size=300)
    directions = rng.standard_normal((1, C))

    def features(m):
        return np.log(m)[:, None] @ directions + 0.01 * rng.standard_normal((len(m), C))

    said = estimates.linear_probe(features(m), np.log(m), features(new))
    r2, error = estimates.with_error(estimates.r_squared, said, np.log(new), rng)
    assert r2 > 0.99
    assert 0 < error < 0.01
    assert estimates.median_error(said, np.log(new)) < 0.01
    noise = rng.standard_normal((900, C))
    said = estimates.linear_probe(noise[:600], np.log(m), noise[600:])
    assert abs(estimates.r_squared(said, np.log(new))) < 0.1


def test_features_are_those_of_the_decoder(tiny):
    tokens = generator(2, "probes").integers(V, size=(5, T))
    found = estimates.features_of(tiny, tokens, [2, T])
    assert list(found) == ["number", "block 0", "block 1", *(f"head {h}" for h in HEADS)]
    at = [1, T - 1]
    np.testing.assert_allclose(found["block 1"][1], tiny.residuals(tokens, at)[:, 1, 1], 1e-5)
    added = tiny.heads(tokens, at)
    np.testing.assert_allclose(found["head 1.0"][0], added[:, 1, 0, 0], 1e-5)
    swapped = tokens[:, ::-1].copy()
    swapped[:, -1] = tokens[:, -1]
    same = estimates.features_of(tiny, swapped, [T])
    np.testing.assert_allclose(same["number"][0], found["number"][1], 1e-5)
    assert not np.allclose(same["block 0"][0], found["block 0"][1])


HEADS = ["0.0", "0.1", "1.0", "1.1"]


def test_every_part_is_probed_beside_its_controls(tiny, monkeypatch):
    monkeypatch.setattr(estimates, "RESAMPLES", 5)
    data = mixture()
    rng = generator(3, "probes")
    held_out = estimates.unseen(data, ["32", "27"], 20, rng)
    found, counts = estimates.probe(tiny, data, held_out, 60, rng)
    assert counts == [2, 4, 8, 16, 24]
    assert found["R^2", "block 1"].shape == (5, 2)
    names = {name for _, name in found}
    assert {"number", "untrained block 0", "shuffled head 1.1", "largest + 1"} < names
    largest = held_out.x[:, :T].max(axis=1)
    error = np.median(abs(largest + 1 - held_out.m) / held_out.m)
    assert found["median error", "largest + 1"][-1, 0] == pytest.approx(error)


def test_interventions_tell_the_largest_number_from_a_known_modulus():
    """One stub wraps by the largest number + 1, which is m after all numbers; one is told m."""
    given = sequences(multipliers=(1,))

    def by_largest(tokens):
        reached = estimates.reach(tokens, np.ones(len(tokens), dtype=int))
        return reached % (np.maximum.accumulate(tokens, axis=1) + 1)

    def told(tokens):
        return estimates.reach(tokens, np.ones(len(tokens), dtype=int)) % 16

    rng = generator(4, "probes")
    found = estimates.largest_number(answering(by_largest), given, 40, 50, rng)
    for name, row in found.items():
        assert row["follows"][0] == ("larger" in name), name
        assert (row["changed"][0] > 0) == ("larger" in name), name
    found = estimates.largest_number(answering(told), given, 40, 50, rng)
    assert {row["changed"][0] for row in found.values()} == {0}
    assert max(row["follows"][0] for row in found.values()) < 0.1
    wrong = answering(lambda tokens: tokens * 0 + 49)
    assert estimates.largest_number(wrong, given, 40, 50, rng) == {}


def test_a_hidden_number_is_not_seen_later(dev):
    tiny = random_decoder(dev)
    rng = generator(5, "probes")
    tokens = rng.integers(V, size=(6, T))
    places = rng.integers(T - 1, size=6)
    other = estimates.replaced(tokens, places, (tokens[np.arange(6), places] + 1) % V)
    later = np.arange(T) > places[:, None]
    edit = estimates.without_key(tiny, places)
    hidden = tiny.predict(tokens, edit)
    assert (hidden == tiny.predict(other, edit))[later].all()
    assert (tiny.predict(tokens) != tiny.predict(other))[later].any()
    before = np.arange(T) < places[:, None]
    assert (hidden == tiny.predict(tokens))[before].all()


def test_attention_on_the_largest_number():
    tokens = np.array([generator(i, "probes").permutation(V)[:T] for i in range(30)])
    largest = np.maximum.accumulate(tokens, axis=1)
    places = (tokens[:, None, :] == largest[:, :, None]).astype(float)
    even = np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None]
    patterns = np.stack([places, np.broadcast_to(even, places.shape)], axis=1)[:, None]
    stub = SimpleNamespace(patterns=lambda asked: patterns)
    given = SimpleNamespace(x=np.column_stack([tokens, tokens[:, 0]]))
    found = estimates.attention_on_largest(stub, given)
    assert found.shape == (2, 1, 2, 2)
    assert found[0, 0, 0, 0] == 1
    assert found[1, 0, 0, 0] < 0.5
    assert found[0, 0, 1, 0] == pytest.approx(found[1, 0, 1, 0])
    assert claims.on_the_largest(found) == 0


# -- heads -----------------------------------------------------------------------------------------


def test_residues_above_chance():
    n = np.arange(60)
    rng = generator(6, "probes")
    circle = np.stack([np.cos(2 * np.pi * n / 3), np.sin(2 * np.pi * n / 3)], axis=1)
    assert heads.above_chance(circle, 3) == pytest.approx(1 - 2 / 59)
    assert abs(heads.above_chance(rng.standard_normal((6000, 2)), 3)) < 0.005


def test_residues_are_seen_in_a_network_that_has_them(host_dev, monkeypatch):
    """Embedding by parity: the heads hand it on."""
    monkeypatch.setattr(heads, "PERMUTATIONS", 20)
    net = GPT.numbers(V, C, 1, H, T, positions="rotary")
    weights = net.init(generator(0, "init"), 0.7)
    plain, _ = heads.residues(Decoder(host_dev, net, weights), V, generator(1, "probes"))
    assert plain["network"].shape == (H + 1, len(heads.PERIODS))
    assert plain["network"].max() < 0.4
    parity = np.where(np.arange(V)[:, None] % 2, 1.0, -1.0) * weights["embed.token"][:1]
    noise = 0.05 * weights["embed.token"]
    decoder = Decoder(host_dev, net, weights | {"embed.token": parity + noise})
    shares, points = heads.residues(decoder, V, generator(1, "probes"))
    assert shares["network"][:, 0].min() > 0.9
    assert [residue for _, residue, _ in points.values()] == [2] * (H + 1)
    assert shares["numbers permuted"] < 0.4


def test_a_flattened_head_is_a_head_at_its_mean(dev):
    tiny = random_decoder(dev)
    tokens = generator(7, "probes").integers(V, size=(6, T))
    mean = opened.head_means(tiny, tokens)[0]
    columns = np.eye(C)[:, C // H :]
    edit = heads.flattened(tiny, 0, mean.ravel(), columns)
    usual = tiny.set_head(0, 1, mean[1])
    agree = tiny.predict(tokens, edit) == tiny.predict(tokens, usual)
    assert agree.mean() > 0.99  # equal but for rounding
    assert (tiny.predict(tokens) != tiny.predict(tokens, usual)).any()


def test_specificity_finds_the_edit_that_belongs_to_a_prime(monkeypatch):
    monkeypatch.setattr(heads, "PERMUTATIONS", 40)
    rng = generator(8, "probes")
    moduli = np.arange(64, 128)
    by_edit = rng.random((6, 1))
    by_modulus = rng.random(64)
    lost = by_edit + by_modulus
    value, _, chance = heads.largest_specificity(lost, moduli, rng)
    assert value[0] < 1e-12
    lost = lost + 0.01 * rng.standard_normal((6, 64))
    value, _, chance = heads.largest_specificity(lost, moduli, rng)
    assert value[0] < 2 * chance[0]
    lost[4, moduli % 3 == 0] += 0.5
    value, which, chance = heads.largest_specificity(lost, moduli, rng)
    assert which == "row 4, prime 3"
    assert value[0] > 2 * chance[0]
    assert heads.largest_specificity(lost[:, :3], moduli[:3], rng)[0] == [0, 0]


def test_pruning_leaves_out_moduli_that_are_not_answered(tiny):
    data = mixture()
    rng = generator(9, "probes")
    many = heads.many_moduli(data, 3, rng, wrap=False)
    lost, moduli = heads.pruning(tiny, data, many, rng)
    assert lost["head"].shape == lost["random"].shape == (DEPTH * H, len(moduli))
    assert len(moduli) == 0


def test_patching_from_a_smaller_modulus(monkeypatch):
    """A network whose answers are the donor's numbers, and one that does not see the donor."""
    data = mixture()
    rng = generator(10, "probes")
    clean = answering(lambda tokens: tokens)

    def donors(decoder, clean, donor):
        return donor[None, None]

    monkeypatch.setattr(opened, "patch_heads", donors)
    found, unpatched = heads.patching(clean, data, ["32", "27"], 20, rng)
    assert found["m/2"][0, 0].tolist() == [1, 0]
    assert found["m"][0, 0, 0] == pytest.approx(1 - unpatched[0])
    assert 0.3 < unpatched[0] < 0.7
    monkeypatch.setattr(opened, "patch_heads", lambda decoder, clean, donor: clean[None, None])
    found, unpatched = heads.patching(clean, data, ["32", "27"], 20, rng)
    for values in found.values():
        np.testing.assert_array_equal(values[0, 0], unpatched)


# -- induction -------------------------------------------------------------------------------------


def test_matched_means():
    """Three chosen in cell 0, one in cell 1; cell 2 has none of them, and is left out."""
    values = np.array([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 1.0]])
    chosen = np.array([[True, True, False, True], [True, False, False, False]])
    cells = np.array([[0, 0, 0, 1], [0, 0, 1, 2]])
    found, control = induction.matched(values, chosen, ~chosen, cells)
    assert found[0] == 3 / 4
    assert control[0] == (3 * 0 + 1 * 1) / 4
    nothing = induction.matched(values, chosen, chosen & False, cells)
    assert np.isnan(nothing).all()
    mean, error = induction.weighted(values, np.ones((2, 4)))
    assert mean == 5 / 8
    assert error == pytest.approx(np.sqrt(2 * 0.5**2) / 8)


def test_cells_are_distinct():
    m = np.array([[16], [27]])
    n = np.arange(5)
    assert len(np.unique(induction.cells_of(m, n))) == 10


def test_differences_seen_before():
    x, _, _, order = sequences(rows=12, length=24)
    seen = induction.seen_before(x, order)
    for i, r in enumerate(order):
        steps = np.diff(x[i]).tolist()
        for t, step in enumerate(steps):
            assert seen[i, t] == (step in [steps[b] for b in range(t - r, -1, -r)])


def test_copying_differences_is_told_from_knowing_the_modulus():
    given = sequences(rows=200)
    order = given.order

    def copies(tokens):
        """Repeats the last difference, r back, and wraps by no modulus."""
        return estimates.reach(tokens, order)

    def wraps(tokens):
        known = np.arange(tokens.shape[1]) >= order[:, None]
        return np.where(known, copies(tokens) % 16, -1)

    found, by_order = induction.accuracy(answering(copies), given)
    seen, unseen = found["difference seen"]
    assert seen[0] > 0.3
    assert unseen[0] == 0
    past, before = found["past the order"]
    assert past[0] > before[0] + 0.2
    assert set(by_order) == {1, 2, 4}
    assert induction.left_out(given) == []
    alone = given.order == 4
    assert induction.left_out(estimates.Sequences(*(part[alone] for part in given))) == [16]
    knows = answering(wraps)
    found, _ = induction.accuracy(knows, given)
    assert found["difference seen"][0][0] == found["difference seen"][1][0] == 1
    np.testing.assert_array_equal(induction.wrapping(knows, given)[:, 0], [1, 1, 1])
    np.testing.assert_array_equal(induction.wrapping(answering(copies), given)[:, 0], [1, 0, 0])


def test_look_backs_of_heads_that_look_there_and_of_one_that_does_not():
    given = sequences(27, rows=40, multipliers=(4, 10))  # r = 9 and 3
    n = given.x.shape[1] - 1
    every = np.arange(len(given.x))
    patterns = np.zeros((len(given.x), 1, 4, n, n))
    patterns[:, 0, 0, -1, -2] = 1
    patterns[every, 0, 1, -1, n - 1 - given.order] = 1
    patterns[every, 0, 2, -1, n - given.order] = 1
    patterns[:, 0, 3, -1] = 1 / n
    found = induction.look_backs(SimpleNamespace(patterns=lambda tokens: patterns), given)
    for head, name in enumerate(("previous", "phase", "following")):
        values = found[name][0, :, :, 0]
        there, matched = values[head]
        assert there > 10 * matched, name
        assert values[3, 0] == pytest.approx(values[3, 1])


def test_edits_together(tiny):
    given = estimates.unseen(mixture(), ["32"], 4, generator(11, "probes"))
    tokens = given.x[:, :-1]
    means = opened.head_means(tiny, tokens)
    both = tiny.predict(tokens, induction.without(tiny, means, [(0, 1), (1, 0)]))
    one = tiny.predict(tokens, induction.without(tiny, means, [(0, 1)]))
    assert (one == tiny.predict(tokens, tiny.set_head(0, 1, means[0, 1]))).all()
    assert (both != one).any()
    table = induction.pruned(tiny, given, means, [(0, 1)])
    assert list(table) == ["none", *HEADS, "0.1", "0.0"][:5]
    assert table["none"].shape == (3, 2)


# -- all of it -------------------------------------------------------------------------------------


def test_lines_are_results_and_are_printed(capsys):
    lines = [("accuracy", [0.5, 0.1], "before", (np.float64(0.25), np.nan))]
    claims.print_lines(lines)
    said = capsys.readouterr().out
    assert "accuracy    0.500   0.100     0.250     nan   before" in said
    table = claims.written(lines)
    assert table["accuracy; before"][:3] == [0.5, 0.1, 0.25]
    claims.print_lines(lines, [98, 125])
    assert "r + 2 numbers: without m = 98, 125, whose" in capsys.readouterr().out
    claims.print_lines([])
    assert not capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("family", ["full", "wrap"])
def test_lcg_probe_opens_a_mixture(family, tmp_path):
    """A tiny network of any training: all numbers, all figures, nothing on stderr."""
    pytest.importorskip("matplotlib")
    shares = "wrap=0.5 full=0.5" if family == "full" else "wrap=1"
    flags = "--preset unseen --steps 3 --ramp 1 2 --width 8 --heads 2 --depth 2 --batch 8 "
    flags += f"--moduli 16 40 --context 12 --test-moduli 32 27 --mixture {shares} --test-rows 8"
    flags += " --measure-every 3 --no-plot --out net --threads 1"
    probe = "net/checkpoint.npz --rows 16 --out opened --threads 1"
    for example, words in (("predict_lcg", flags), ("lcg_probe", probe)):
        command = [sys.executable, str(EXAMPLES / f"{example}.py"), *words.split()]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
    folder = tmp_path / "opened"
    results = json.loads((folder / "run.json").read_text())["results"]
    assert "R^2, first block; last number alone" in results
    assert np.shape(results["accuracy, difference seen"]) == (2, 2)
    assert max(np.ndim(value) for value in results.values()) == 2
    for name in ("linear_probe", "largest_number", "residues", "pruning", "patching"):
        assert (folder / f"{name}.png").exists()
    assert (folder / "differences.png").exists()
