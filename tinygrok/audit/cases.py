"""The cases of networks, of their Jacobians and of training; BUILDERS lists all cases."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from ..criticality.autoinit import jacobian_loss, sphere
from ..engine.params import Arena
from ..engine.rng import mask_keys
from ..models import chain, gpt, mlp, pairs, tokens, vision
from ..models.protocol import TRAINING, Mode
from ..training import batches, objective
from .case import COMPLEX, Case, Tensors, cpu_device, even
from .operations import OPERATIONS, normal, seeded, sizes

DEEP: dict = {"layout": even, "float32": 5e-4}  # rounding grows with depth


def _tensors(name: str, net, lead: tuple = (), tuned: tuple = ()) -> tuple[Tensors, Tensors]:
    """Parameters, and buffers whose names end with `tuned`; the other buffers."""
    shapes = {k: (*lead, *shape) for k, shape in (net.shapes | net.buffers).items()}
    draws = normal(name, **shapes)
    for k, x in draws.items():
        positive = k.endswith((".var", ".mu", ".gain"))
        draws[k] = np.abs(x) + 0.5 if positive else x / 2
    state = {k: draws.pop(k) for k in net.buffers if not k.endswith(tuned)}
    return draws, state


def _on(dev, arrays: Tensors) -> Tensors:
    """Copies, since running statistics move."""
    return {k: dev.to_device(x.copy()) for k, x in arrays.items()}


def _network(name: str, net, read: Callable, lead: tuple = (), mode: Mode = TRAINING) -> Case:
    """Outputs for the inputs that read(dev) gives, by all parameters."""
    inputs, state = _tensors(name, net, lead)

    def run(dev, t, buffer=None):
        return net.forward(dev, t | _on(dev, state), read(dev), mode._replace(buffer=buffer))

    def in_workspace(t, dy):
        """Arrays that hold what the pass before has left."""
        dev = cpu_device()
        again = replace(case, run=partial(run, buffer=dev.workspace.get))
        again(t, dy, dev)
        return again(t, dy, dev)

    source = (type(net).forward, type(net).backward)
    case = Case(name, inputs, run, net.backward, source, accumulates=True, **DEEP)
    case.more["workspace"] = in_workspace
    return case


def _two_layer(
    name, kind, members=0, size="4x3x6", rate=0.0, train=True, network=mlp.TwoLayerNet, **options
) -> Case:
    """size: p, width and number of inputs."""
    p, width, count = sizes(size)
    net = network(p, width, activation=kind, **options)
    lead = (members,) if members else ()
    keys = mask_keys(range(members) if members else 0, step=1)
    inputs = seeded(name).integers(0, p, (net.terms, count))
    mode = Mode(train, (keys, rate) if rate else None)
    return _network(name, net, lambda dev: net.prepare(dev, inputs), lead, mode)


def _gpt(name: str, size=(4, 2, 2), select=None, lead: tuple = (), **options) -> Case:
    """size: width, depth and heads; two sequences of 7 of 3 tokens."""
    net = gpt.GPT(3, *size, context=8, **options)
    rows = seeded(name).integers(0, 3, (*lead, 2, 7))
    return _network(name, net, lambda dev: tokens.Tokens(dev, rows, 3, select), lead)


_three_layer = partial(_two_layer, network=pairs.ThreeLayerNet)


def _two_tokens(name: str, lead: tuple = ()) -> Case:
    net = pairs.PairTransformer(3, 4, 2)
    inputs = seeded(name).integers(0, 3, (*lead, 2, 7))
    return _network(name, net, lambda dev: net.prepare(dev, inputs), lead)


IMAGE = (4, 4, 2)
CHAINS = {  # together every kind of operation
    "post": vision.deep_mlp(32, 4, 2, 2, "gelu_tanh", "post", mu=0.7),
    "batch": vision.deep_mlp(32, 4, 2, 2, "tanh", "batch", mu=0.9),
    "resmlp": vision.resmlp(IMAGE, 2, patch=2, width=4, depth=1, hidden=5),
    "mixer": vision.mixer(IMAGE, 2, patch=2, width=4, depth=1, hidden=(3, 5)),
    "vit": vision.vit(IMAGE, 2, patch=2, width=6, depth=2, heads=2, activation="tanh", mu=0.9),
    "resnet": vision.resnet(IMAGE, 2, depth=8, width=2, activation="gelu", mu=0.9),
    "vgg": vision.vgg(IMAGE, 2, (2, "M", 3, "M"), batchnorm=True, activation="gelu"),
}


def _chain(name: str) -> Case:
    """ "chain NAME", or "chain NAME eval" """
    net = CHAINS[name.split()[1]]
    images = seeded(name).standard_normal((4, *IMAGE))
    mode = Mode(train="eval" not in name)
    return _network(name, net, lambda dev: net.prepare(dev, images), mode=mode)


def _pair(name: str) -> Case:
    """ "pair NAME": outputs and tangents of a chain, stacked, by x, xdot and everything else."""
    net = CHAINS[name.split()[1]]
    ops = sum((block for _, block in net.blocks), ())
    weights, state = _tensors(name, net, tuned=(".mu",))

    def run(dev, t):
        p = net.still(dev, _on(dev, state) | t)
        y, caches = chain.forward(p, ops, t["x"])
        ydot, dots = chain.tangent(p, ops, t["xdot"], caches)
        return dev.xp.stack([y, ydot]), (p, caches, dots)

    def back(dev, dy, cache, g):
        p, caches, dots = cache
        for gradient in g.values():
            gradient.fill(0)  # the pair adds
        adjoints = (dy[0], dy[1])
        g["x"], g["xdot"] = chain.pair(replace(p, g=g), ops, *adjoints, caches, dots)

    def by_complex_step(t, dy):
        """The tangent is the derivative along xdot."""
        y, _ = case.forward({**t, "x": t["x"] + 1e-30j * t["xdot"]})
        return np.stack([y.real, y.imag / 1e-30]), {}

    inputs = normal(name, x="4x4x4x2", xdot="4x4x4x2") | weights
    case = Case(name, inputs, run, back, (chain.tangent, chain.pair), **DEEP)
    case.more["complex tangent"] = by_complex_step
    return case


def _jacobian_loss(name: str) -> Case:
    """ "log loss NAME", "square loss NAME": of a chain, by parameters and residual strengths."""
    kind, _, which = name.split()
    net = CHAINS[which]
    images = seeded(name).standard_normal((4, *IMAGE))
    inputs, state = _tensors(name, net, tuned=(".mu",))

    def run(dev, t, g=None):
        def probes(block, shape):
            return [dev.to_device(sphere(seeded(f"{name} {block} {i}"), shape)) for i in "01"]

        x = dev.to_device(images)
        loss, _ = jacobian_loss(dev, net, _on(dev, state) | t, x, probes, g, kind)
        return loss, t

    def back(dev, dloss, t, g):
        run(dev, t, g)
        for gradient in g.values():
            gradient *= dloss

    return Case(name, inputs, run, back, (jacobian_loss,), **DEEP)


def _stage(name: str, net, x: str) -> Case:
    """A block of a network as a map, for Jacobians."""
    weights, state = _tensors(name, net)

    def run(dev, t):
        stage = net.stages(dev, _on(dev, weights | state))[-1]
        y, cache = stage.forward(t["x"])
        return y, (stage, cache)

    def back(dev, dy, cache, g):
        stage, inner = cache
        g["x"] = stage.backward(dy, inner)

    return Case(name, normal(name, x=x), run, back, (type(net).stages,), **DEEP)


def _training(name: str, net, batch: Callable, members=None, loss="mse", dropout=None) -> Case:
    """The losses of batch(dev), shard by shard; for complex steps, and as another way, at once."""

    def run(dev, t, at_once=False):
        params, grads = (Arena(dev, net.shapes, members) for _ in range(2))
        for k, view in params.views.items():
            view[...] = t[k]
        data = batch(dev)
        at_once = at_once or dev is COMPLEX  # as a GPU takes it
        if at_once and members is None:
            (data.whole,) = data.shards()
        elif at_once:
            data._stack(dev, net)
        losses = objective.Objective(dev, net, params, loss).gradient(grads, data, dropout)
        return dev.xp.asarray(losses, dev.dtype), grads

    def back(dev, dloss, grads, g):
        for k, gradient in grads.views.items():
            factor = dloss.reshape(dloss.shape + (1,) * (gradient.ndim - dloss.ndim))
            g[k][...] = factor * gradient

    inputs, _ = _tensors(name, net, () if members is None else (members,))
    case = Case(name, inputs, run, back, (objective.Objective.gradient,), **DEEP)
    case.more["at once"] = replace(case, run=partial(run, at_once=True))
    return case


def _table(name: str, counts: tuple, rates: tuple = (), **options) -> Case:
    """Members with data of their own, of different sizes: at once some rows have weight 0."""
    net = mlp.TwoLayerNet(5, 6, **options)
    rng = seeded(name)
    data = []
    for n in counts:
        inputs = rng.integers(0, 5, (net.terms, n))
        data.append((inputs, rng.integers(0, 5, n)))
    batch = partial(batches.TableBatch, model=net, data=data, whole=net.batchnorm)
    members = len(counts)
    dropout = (mask_keys(range(members), step=1), np.array(rates)) if rates else None
    return _training(name, net, batch, members, dropout=dropout)


def _sequences(name: str) -> Case:
    """Positions 1 and 4 of seven sequences."""
    net = gpt.GPT(3, 4, 2, 2, context=8, activation="gelu_tanh")
    rows = seeded(name).integers(0, 3, (7, 6))
    batch = partial(batches.TokenBatch, model=net, tokens=rows, positions=np.array([1, 4]))
    return _training(name, net, batch, loss="cross_entropy")


BUILDERS: dict[str, Callable[[str], Case]] = {
    **OPERATIONS,
    "two-layer square": partial(_two_layer, kind="square"),
    "two-layer by hand": partial(_two_layer, kind="square", size="2x2x2"),
    "two-layer large": partial(_two_layer, kind="erf", size="17x70x131", terms=3, classes=7),
    "two-layer power11": partial(_two_layer, kind="power11", terms=1),
    "two-layer gelu": partial(_two_layer, kind="gelu"),
    "two-layer batchnorm": partial(_two_layer, kind="square", members=2, batchnorm=True),
    "two-layer eval": partial(_two_layer, kind="square", batchnorm=True, train=False),
    "two-layer dropout": partial(_two_layer, kind="square", members=2, rate=0.4),
    "two-layer three terms": partial(_two_layer, kind=None, members=2, terms=3),
    "two-layer four terms": partial(_two_layer, kind=None, rate=0.4, terms=4),
    "two-layer stage": partial(_stage, net=mlp.TwoLayerNet(3, 4, batchnorm=True), x="5x4"),
    "three-layer": partial(_three_layer, kind="tanh", members=2, size="7x11x19", terms=3),
    "three-layer relu": partial(_three_layer, kind="relu"),
    "three-layer dropout": partial(_three_layer, kind="gelu", members=2, rate=0.4),
    "three-layer stage": partial(_stage, net=pairs.ThreeLayerNet(3, 4, activation="tanh"), x="5x4"),
    "two tokens": _two_tokens,
    "two tokens ensemble": partial(_two_tokens, lead=(2,)),
    "gpt rotary": partial(_gpt, select=slice(1, None, 2)),
    "gpt learned": partial(_gpt, positions="learned", shift=False),
    "gpt digits": partial(_gpt, positions="digits", digits=3, activation="gelu", select=(0, 3)),
    "gpt untied": partial(_gpt, activation="tanh", tied=False),
    "gpt deep": partial(_gpt, size=(12, 3, 6), activation="tanh", select=(2, 5), recompute=True),
    "gpt ensemble": partial(_gpt, activation="tanh", bias=True, select=slice(1, 3), lead=(2,)),
    "gpt stage": partial(_stage, net=gpt.GPT(3, 4, 2, 2, context=8, bias=True), x="2x7x4"),
    **{f"chain {which}": _chain for which in CHAINS},
    **{f"chain {which} eval": _chain for which in CHAINS},
    **{f"pair {which}": _pair for which in CHAINS},
    **{f"log loss {which}": _jacobian_loss for which in CHAINS},
    **{f"square loss {which}": _jacobian_loss for which in CHAINS},
    "training table": partial(_table, counts=(11, 7, 1), activation="tanh"),
    "training dropout": partial(_table, counts=(11, 7, 9), rates=(0.3, 0.0, 0.6)),
    "training four terms": partial(_table, counts=(11, 7, 1), terms=4),
    "training neurons": partial(_table, counts=(11, 7), batchnorm=True),
    "training sequences": _sequences,
}


def cases(pattern: str = "") -> list[Case]:
    """Every case whose name contains the pattern.

    >>> from tinygrok.audit import cases
    >>> [case.name for case in cases("linear")]
    ['linear', 'linear no bias', 'linear ensemble', 'linear large']
    """
    return [build(name) for name, build in BUILDERS.items() if pattern in name]
