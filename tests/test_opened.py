"""Experiments on opened decoders: a random one against itself, and stubs whose answer is known."""

from types import SimpleNamespace

import _lcg_opened as moved
import numpy as np
import pytest

from tinygrok.engine.rng import generator
from tinygrok.models.gpt import GPT
from tinygrok.models.inspect import Decoder
from tinygrok.probes import decoder as opened
from tinygrok.tasks import lcg

V, T, C, H, DEPTH = 9, 12, 8, 2, 2


@pytest.fixture
def random_decoder(dev):
    """A random decoder of two blocks, its weights on the host, and numbers (11, T + 1)."""
    net = GPT.numbers(V, C, DEPTH, H, T)
    weights = net.init(generator(0, "init"), 0.7)
    return Decoder(dev, net, weights), weights, generator(3, "probes").integers(V, size=(11, T + 1))


def test_a_head_replaced_by_itself_changes_nothing(random_decoder):
    decoder, _, x = random_decoder
    tokens = x[:, :-1]
    clean = decoder.predict(tokens)
    assert (opened.patch_heads(decoder, tokens, tokens, 1) == clean).all()
    patched = opened.patch_heads(decoder, tokens, tokens[::-1].copy())
    assert patched.shape == (DEPTH, H, 11, T)
    donor = opened.head_slices(decoder, tokens[::-1].copy(), 1)
    edit = decoder.set_head(1, 0, 1.25 * donor[:, :, 0])
    assert (patched[1, 0] == decoder.predict(tokens, edit)).all()
    assert (patched != clean).any(axis=(2, 3)).all()


def test_accuracy_without_heads(random_decoder):
    decoder, _, x = random_decoder
    means = opened.head_means(decoder, x[:, :-1])
    assert means.shape == (DEPTH, H, C // H)
    slices = opened.head_slices(decoder, x[:, :-1], 1)
    np.testing.assert_allclose(means[1], slices.reshape(-1, H, C // H).mean(axis=0), rtol=1e-4)
    found = moved.accuracy_without_heads(decoder, x, means, {3: 2}, 4)
    assert list(found) == ["number", 3, 9]
    clean = decoder.predict(x[:, :-1])
    one = decoder.predict(x[:, :-1], decoder.set_head(0, 1, means[0, 1]))
    for column, predicted in ((0, clean), (2, one)):
        right = (predicted == x[:, 1:])[:, -4:]
        low_digit = (predicted % 3 == x[:, 1:] % 3)[:, -4:]
        assert found["number"][column] == pytest.approx(right.mean())
        assert found[3][column] == pytest.approx(low_digit.mean())


def test_the_parts_of_the_first_block_add_up(random_decoder):
    decoder, weights, _ = random_decoder
    parts = moved.first_block(decoder, V)
    assert list(parts) == ["head 0", "head 1", "MLP"]
    single = np.arange(V)[:, None]
    first = weights["embed.token"] + weights["embed.position"][0]
    bias = weights.get("blocks.0.attn.out.bias", 0)
    np.testing.assert_allclose(
        first + sum(parts.values()) + bias,
        decoder.residuals(single, [0])[:, 0, 0],
        atol=1e-11 if decoder.dev.dtype == np.float64 else 1e-4,
    )


def test_power_of_pure_periods():
    n = np.arange(64)
    scores = np.stack([(-1.0) ** n, np.cos(np.pi * n / 4), np.sin(np.pi * n / 4)], axis=1)
    power = moved.power_by_period(scores, (2, 4, 8))
    np.testing.assert_allclose(power[2], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(power[4], [0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(power[8], [0, 1, 1], atol=1e-12)


@pytest.mark.parametrize(("m", "n", "backs"), [(64, 32, [32, 16, 8, 24, 1]), (15, 8, [6, 3, 4, 1])])
def test_moves_of_the_order_2_extrapolation(m, n, backs):
    """x_n = 2 x_(n-r/2) - x_(n-r): the answer moves by -delta, by 2 delta, or stays."""
    rng = generator(0, "probes")
    half = backs[1]
    stub = SimpleNamespace(
        predict=lambda x: (2 * np.roll(x, half - 1, 1) - np.roll(x, 2 * half - 1, 1)) % m
    )
    results, (looked, deltas, shares) = moved.order_2_moves(stub, rng.integers(m, size=(20, n)), m)
    assert looked == backs
    assert set(results.values()) == {1}
    assert (shares.sum(axis=-1) == 1).all()
    for j, delta in enumerate(deltas):
        stays_anyway = 2 * delta % m == 0
        assert shares[0, j, 1] == 1
        assert shares[1, j, 0 if stays_anyway else 2] == 1
    assert (shares[2:, :, 0] == 1).all()


def test_a_head_that_knows_the_largest_number():
    """Head 0 adds the embedding of the largest number so far, head 1 that of zero."""
    embedding = np.eye(V)
    tokens = generator(1, "probes").integers(1, V, size=(5, T))
    largest = np.maximum.accumulate(tokens, axis=1)
    said = np.stack([embedding[largest], embedding[0 * largest]], axis=1)
    stub = SimpleNamespace(heads=lambda x, at: said[:, None])
    distances, error, similar = moved.heads_on_modulus(stub, tokens, embedding, V)
    np.testing.assert_allclose(distances, [0, largest[:, T // 2 :].mean() / V])
    assert error == pytest.approx((V - 1 - largest[:, -1]).mean() / V)
    assert similar.shape == (2, T, V)
    assert (similar[0].argmax(axis=-1) == largest[0]).all()


def test_the_rule_itself_moves_as_the_extrapolation():
    """The classical rule itself, on true sequences."""
    rng = generator(2, "probes")
    a = lcg.draw_multipliers(64, 30, rng, True)
    c = lcg.draw_increments(64, 30, rng, True)
    x = lcg.generate(64, a, c, rng.integers(64, size=30), 32)
    stub = SimpleNamespace(predict=lambda tokens: lcg.look_back(tokens, 64, 2))
    assert set(moved.order_2_moves(stub, x, 64)[0].values()) == {1}
