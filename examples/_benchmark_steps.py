"""The workloads of benchmark.py: each builds a training step of tinygrok and its PyTorch twins.

A workload is a function (args, dev, torch: bool) -> {candidate: function that makes its step};
"tinygrok" is ours, and twins take part where torch is true. With --only, which measures memory,
nothing but the candidate runs, so there is no reference to compare it with."""

import importlib.util
import itertools
from functools import partial

import numpy as np

from tinygrok.criticality.jacobian import Propagation
from tinygrok.engine.optim import AdamW
from tinygrok.engine.params import Arena
from tinygrok.engine.rng import generator
from tinygrok.models.gpt import GPT
from tinygrok.models.mlp import TwoLayerNet
from tinygrok.models.vision import deep_mlp
from tinygrok.models.vision import vgg as vgg_chain
from tinygrok.tasks.in_context import InContextData
from tinygrok.tasks.modular import addition
from tinygrok.training.ensembles import build
from tinygrok.training.images import ImageTraining
from tinygrok.training.loop import equip
from tinygrok.training.sequences import SequenceTraining
from tinygrok.training.tables import Evaluation, Training

HAS_TORCH = importlib.util.find_spec("torch") is not None


def reference(args, run, batch):
    """(loss, gradients) of ours, on the host."""
    if args.only:
        return None
    loss = run.dev.to_host(run.objective.gradient(run.grads, batch))
    return loss, run.grads.to_host()


def mlp(args, dev, torch, batchnorm=False, p=None, width=None):
    """Full-batch AdamW step of the two-layer network, MSE, half of the addition table."""
    task = addition(p or args.p)
    train, _ = task.split(0.5, generator(args.seed, "split"))
    inputs = task.inputs(train)
    target = task.labels(inputs)
    net = TwoLayerNet(p or args.p, width or args.width, batchnorm=batchnorm)
    weights = net.init(generator(args.seed, "init"))
    _, optimizer = equip(net, args.seed, weights, dev, lr=0.01, weight_decay=5.0)
    nothing = Evaluation(inputs, {}, {})
    run = Training(dev, net, optimizer, [(inputs, target)], nothing, args.seed)
    candidates = {"tinygrok": lambda: run.step}
    if torch:
        import _torch_twins

        weights = run.params.to_host()
        ours = reference(args, run, run.full_batch)
        candidates |= _torch_twins.mlp(dev, weights, inputs, target, ours)
    return candidates


def ensemble(args, dev, torch, members=25):
    """Members of a phase diagram (five corrupted fractions and decays), each with its own data."""
    fractions = (0.1, 0.3, 0.5, 0.7, 0.9)
    decays = (0.0, 5.0, 10.0, 15.0, 20.0)
    grid = list(itertools.product(fractions, decays))[:members]
    common = {"p": args.p, "width": args.width, "seed": args.seed}
    run = build(dev, [common | {"xi": xi, "weight_decay": decay} for xi, decay in grid])
    candidates = {"tinygrok": lambda: run.step}
    if torch:
        import _torch_twins

        weights = run.params.to_host()
        ours = reference(args, run, run.full_batch)
        own_decays = [decay for _, decay in grid]
        candidates |= _torch_twins.ensemble(dev, weights, run.data, own_decays, ours)
    return candidates


def sequences(args, dev, torch, net, tokens, positions, std=0.02):
    """AdamW step of a GPT on the same sequences always: cross-entropy at some positions."""
    weights = net.init(generator(args.seed, "init"), std)
    rates = {"lr": 1e-3, "weight_decay": 0.5, "no_decay": net.no_decay}
    _, optimizer = equip(net, args.seed, weights, dev, **rates)
    run = SequenceTraining(dev, net, optimizer, lambda rng, t: tokens, positions, {}, args.seed)
    candidates = {"tinygrok": lambda: run.step}
    if torch:
        import _torch_twins_gpt

        weights = run.params.to_host()
        ours = reference(args, run, run.batch(1))
        candidates |= _torch_twins_gpt.gpt(dev, net, weights, tokens, positions, ours)
    return candidates


def in_context(args, dev, torch, batch=32, width=128, heads=4, depth=2, task=(29, 32, 32, 0.8)):
    """The in-context decoder: rotary positions, ReLU, tied output, loss at every third position.

    task: modulus, shots, tasks, share of the inputs"""
    p, shots, tasks, alpha = task
    split = generator(args.seed, "split")
    data = InContextData.make(p, shots, tasks, alpha, split, replace=p > 7)
    net = GPT.in_context(p, width, depth, heads, 3 * shots)
    tokens = data.batch(batch, generator(args.seed, "batches"))
    positions = np.arange(1, 3 * shots, 3)
    return sequences(args, dev, torch, net, tokens, positions, std=0.05)


def small_in_context(args, dev, torch):
    """The step of examples/in_context.py --preset small."""
    size = {"batch": 144, "width": 64, "heads": 2, "depth": 4}
    return in_context(args, dev, torch, task=(7, 12, 36, 0.7), **size)


def lcg(args, dev, torch, batch=8, context=256, channels=256):
    """Pseudo-random numbers, a token each: learned positions, GELU, loss at every position."""
    net = GPT.numbers(2048, channels, 1, 4, context, activation="gelu")
    tokens = generator(args.seed, "batches").integers(0, 2048, (batch, context + 1))
    return sequences(args, dev, torch, net, tokens, np.arange(context))


def lcg_base_b(args, dev, torch, batch=8, context=256, channels=256):
    """The same in two digits of base 256: number and digit positions, biases, two blocks."""
    net = GPT.base_b(256, channels, 2, 4, context // 2, digits=2)
    tokens = generator(args.seed, "batches").integers(0, 256, (batch, context + 1))
    return sequences(args, dev, torch, net, tokens, np.arange(context))


def optimizer(args, dev, torch, count=8, size=1000):
    """AdamW alone, on eight matrices of a million parameters."""
    shapes = {f"w{i}": (size, size) for i in range(count)}
    rng = generator(args.seed, "init")
    params = Arena(dev, shapes)
    grads = Arena(dev, shapes)
    for arena in (params, grads):
        arena.load({name: rng.standard_normal(shape) for name, shape in shapes.items()})
    ours = AdamW(dev, params, grads, lr=1e-3, weight_decay=0.5)
    steps = itertools.count(1)

    def step():
        ours.step(next(steps))

    candidates = {"tinygrok": lambda: step}
    if torch:
        import _torch_twins

        weights = params.to_host()
        expected = None
        if not args.only:
            step()
            expected = params.to_host()
        candidates |= _torch_twins.optimizer(dev, weights, grads.to_host(), expected)
    return candidates


PLAN = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M")


def vgg(args, dev, torch, batch=64, divide=4):
    """AdamW step of a VGG of six convolutions (16 to 128 channels) on 32 x 32 images."""
    net = vgg_chain((32, 32, 3), 10, PLAN, divide)
    weights = net.init(generator(args.seed, "init"), 2**0.5)
    rng = generator(args.seed, "batches")
    images = rng.standard_normal((batch, 32, 32, 3))
    labels = rng.integers(0, 10, batch)
    rates = {"lr": 1e-3, "weight_decay": 0.5, "no_decay": net.no_decay}
    _, optimizer = equip(net, args.seed, weights, dev, **rates)
    run = ImageTraining(dev, net, optimizer, lambda rng, t: (images, labels), {}, args.seed)
    candidates = {"tinygrok": lambda: run.step}
    if torch:
        import _torch_twins_criticality as twins

        weights = run.params.to_host()
        ours = reference(args, run, run.batch(1))
        candidates |= twins.vgg(dev, weights, images, labels, PLAN, net.no_decay, ours)
    return candidates


def apjn(args, dev, torch, networks=4, width=500, depth=50, batch=64):
    """Jacobian norms from every layer to the last of deep ReLU networks, by a random cotangent.

    The networks run side by side, as in examples/critical_init.py."""
    chain = deep_mlp(width, width, depth, 1)
    rng = generator(args.seed, "init")
    weights = [chain.init(rng, 2**0.5) for _ in range(networks)]
    x = rng.standard_normal((batch, width))
    inputs = dev.to_device(x)
    hidden = []
    for of_network in weights:
        on_device = {name: dev.to_device(a) for name, a in of_network.items()}
        hidden.append(chain.stages(dev, on_device)[1:-1])

    def one(e):
        run = Propagation(dev, hidden[e], inputs)
        return run.apjn(np.random.default_rng(e))[0]

    def step():
        return dev.map(one, range(networks))

    candidates = {"tinygrok": lambda: step}
    if torch:
        import _torch_twins_criticality as twins

        expected = None if args.only else np.array(step())
        candidates |= twins.apjn(dev, weights, x, depth, expected)
    return candidates


WORKLOADS = {
    "mlp": mlp,
    "mlp-batchnorm": partial(mlp, batchnorm=True),
    "ensemble": ensemble,
    "in-context": in_context,
    "in-context-small": small_in_context,
    "lcg": lcg,
    "lcg-base-b": lcg_base_b,
    "vgg": vgg,
    "apjn": apjn,
    "optimizer": optimizer,
}
SMALL = {  # sizes at which overhead shows
    "mlp-small": partial(mlp, p=31, width=100),
    "mlp-batchnorm-small": partial(mlp, p=31, width=100, batchnorm=True),
    "in-context-batch-8": partial(in_context, batch=8),
}
GROUPS = {"all": tuple(WORKLOADS), "small": tuple(SMALL)}  # timed one after another
EVERY = WORKLOADS | SMALL
# What grows: (workload, its sizes, the leading terms of the work).
SCALING = {
    "p": (mlp, (31, 61, 97, 139), "p^3: p^2 / 2 rows, p x width products each"),
    "width": (mlp, (125, 250, 500, 1000), "width^1"),
    "members": (ensemble, (1, 4, 12, 25), "members^1"),
    "batch": (lcg, (2, 4, 8, 16), "batch^1"),
    "context": (lcg, (64, 128, 256, 512), "context^1, attention context^2"),
    "channels": (lcg, (64, 128, 256, 512), "channels^1, inside the block channels^2"),
}
