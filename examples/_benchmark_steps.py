"""The workloads of benchmark.py: each builds a training step of tinygrok and, where PyTorch takes
part, its twins.

A workload is a function (args, dev, torch: bool) -> {candidate: function that makes its step};
"tinygrok" is ours. With --only, which measures memory, nothing but the candidate runs, so there is
no reference to compare it with."""

import itertools

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
from tinygrok.training.sequences import SequenceTraining
from tinygrok.training.tables import Evaluation, Training


def arenas(dev, net, weights):
    params, grads = Arena(dev, net.shapes), Arena(dev, net.shapes)
    params.load(weights)
    return params, grads


def reference(args, run, batch):
    """(loss, gradients) of ours, on the host."""
    return (
        None
        if args.only
        else (run.dev.to_host(run.objective.gradient(run.grads, batch)), run.grads.to_host())
    )


def mlp(args, dev, torch, batchnorm=False, p=None, width=None):
    """Full-batch AdamW step of the two-layer network, MSE, half of the addition table."""
    p, width = p or args.p, width or args.width
    task = addition(p)
    inputs = task.inputs(task.split(0.5, generator(args.seed, "split"))[0])
    target = task.labels(inputs)
    net = TwoLayerNet(p, width, batchnorm=batchnorm)
    params, grads = arenas(dev, net, net.init(generator(args.seed, "init")))
    weights = params.to_host()
    optimizer = AdamW(dev, params, grads, lr=0.01, weight_decay=5.0)
    run = Training(dev, net, optimizer, [(inputs, target)], Evaluation(inputs, {}, {}), args.seed)
    candidates = {"tinygrok": lambda: run.step}
    if torch:
        import _torch_twins

        candidates |= _torch_twins.mlp(
            dev, weights, inputs, target, reference(args, run, run.full_batch)
        )
    return candidates


def ensemble(args, dev, torch, members=25):
    """Members of a phase diagram (five corrupted fractions and decays) in one run: a split, labels
    and weights of their own."""
    common = {"p": args.p, "width": args.width, "seed": args.seed}
    grid = [
        (xi, decay) for xi in (0.1, 0.3, 0.5, 0.7, 0.9) for decay in (0.0, 5.0, 10.0, 15.0, 20.0)
    ]
    points = [common | {"xi": xi, "weight_decay": decay} for xi, decay in grid[:members]]
    run = build(dev, points)
    candidates = {"tinygrok": lambda: run.step}
    if torch:
        import _torch_twins

        weights, decays = run.params.to_host(), [decay for _, decay in grid[:members]]
        candidates |= _torch_twins.ensemble(
            dev, weights, run.data, decays, reference(args, run, run.full_batch)
        )
    return candidates


def sequences(args, dev, torch, net, tokens, positions, std=0.02):
    """AdamW step of a GPT on the same sequences again and again: cross-entropy at some
    positions."""
    params, grads = arenas(dev, net, net.init(generator(args.seed, "init"), std))
    weights = params.to_host()
    optimizer = AdamW(dev, params, grads, lr=1e-3, weight_decay=0.5, no_decay=net.no_decay)
    run = SequenceTraining(dev, net, optimizer, lambda rng: tokens, positions, {}, args.seed)
    candidates = {"tinygrok": lambda: run.step}
    if torch:
        import _torch_twins

        candidates |= _torch_twins.gpt(
            dev, net, weights, tokens, positions, reference(args, run, run.batch(1))
        )
    return candidates


def in_context(
    args, dev, torch, p=29, shots=32, tasks=32, width=128, heads=4, depth=2, batch=32, alpha=0.8
):
    """The in-context decoder: rotary positions, ReLU, tied output, loss at every third position."""
    data = InContextData.make(p, shots, tasks, alpha, generator(args.seed, "split"), replace=p > 7)
    net = GPT.in_context(p, width, depth, heads, 3 * shots)
    tokens = data.batch(batch, generator(args.seed, "batches"))
    return sequences(args, dev, torch, net, tokens, np.arange(1, 3 * shots, 3), 0.05)


def small_in_context(args, dev, torch):
    """The step of examples/in_context.py --preset small."""
    return in_context(
        args, dev, torch, p=7, shots=12, tasks=36, width=64, heads=2, depth=4, batch=144, alpha=0.7
    )


def lcg(args, dev, torch, batch=8, context=256, channels=256):
    """Pseudo-random numbers, one token a number: learned positions, GELU, loss at every
    position."""
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
    params, grads = Arena(dev, shapes), Arena(dev, shapes)
    for arena in (params, grads):
        arena.load({name: rng.standard_normal(shape) for name, shape in shapes.items()})
    ours, steps = AdamW(dev, params, grads, lr=1e-3, weight_decay=0.5), itertools.count(1)
    candidates = {"tinygrok": lambda: lambda: ours.step(next(steps))}
    if torch:
        import _torch_twins

        weights, expected = params.to_host(), None
        if not args.only:
            ours.step(next(steps))
            expected = params.to_host()
        candidates |= _torch_twins.optimizer(dev, weights, grads.to_host(), expected)
    return candidates


PLAN = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M")


def vgg(args, dev, torch, batch=64, divide=4):
    """AdamW step of a VGG of six convolutions (16 to 128 channels) on 32 x 32 images."""
    net, rng = vgg_chain((32, 32, 3), 10, PLAN, divide), generator(args.seed, "batches")
    params, grads = arenas(dev, net, net.init(generator(args.seed, "init"), 2**0.5))
    weights, data = (
        params.to_host(),
        (rng.standard_normal((batch, 32, 32, 3)), rng.integers(0, 10, batch)),
    )
    optimizer = AdamW(dev, params, grads, lr=1e-3, weight_decay=0.5, no_decay=net.no_decay)
    run = ImageTraining(dev, net, optimizer, lambda rng: data, {}, args.seed)
    candidates = {"tinygrok": lambda: run.step}
    if torch:
        import _torch_twins_criticality as twins

        candidates |= twins.vgg(
            dev, weights, *data, PLAN, net.no_decay, reference(args, run, run.batch(1))
        )
    return candidates


def apjn(args, dev, torch, networks=4, width=500, depth=50, batch=64):
    """The Jacobian norms from every layer to the last of deep ReLU networks, with a random
    cotangent each: the networks side by side, as in examples/critical_init.py."""
    chain, rng = deep_mlp(width, width, depth, 1), generator(args.seed, "init")
    weights = [chain.init(rng, 2**0.5) for _ in range(networks)]
    x = rng.standard_normal((batch, width))
    stages = [chain.stages(dev, {n: dev.to_device(a) for n, a in w.items()})[1:-1] for w in weights]
    inputs = dev.to_device(x)

    def one(e):
        return Propagation(dev, stages[e], inputs).apjn(np.random.default_rng(e))[0]

    candidates = {"tinygrok": lambda: lambda: dev.map(one, range(networks))}
    if torch:
        import _torch_twins_criticality as twins

        expected = None if args.only else np.array(dev.map(one, range(networks)))
        candidates |= twins.apjn(dev, weights, x, depth, expected)
    return candidates


WORKLOADS = {
    "mlp": mlp,
    "mlp-batchnorm": lambda args, dev, torch: mlp(args, dev, torch, batchnorm=True),
    "ensemble": ensemble,
    "in-context": in_context,
    "in-context-small": small_in_context,
    "lcg": lcg,
    "lcg-base-b": lcg_base_b,
    "vgg": vgg,
    "apjn": apjn,
    "optimizer": optimizer,
}
