"""The networks of deep_mixer.py: an MLP-Mixer of many blocks that trains by plain SGD, and what the
theory says of it.

In a file of its own, which worker processes can import."""

import math

import _memory as memory
import numpy as np
from _training_maps import by_sgd, load, rows_in_work

from tinygrok.criticality.jacobian import Propagation
from tinygrok.criticality.meanfield import averages
from tinygrok.engine.device import get_device
from tinygrok.engine.rng import generator
from tinygrok.models.vision import mixer
from tinygrok.training.checkpoint import fit_in_pack
from tinygrok.training.loop import NonFiniteLoss
from tinygrok.training.sweep import pack_name

SIZES = ("depth", "width", "hidden", "patch", "activation", "sw2", "batch", "steps")
SIZES += ("measure_every", "dtype", "seed")
CURVES = ("step", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
MOST_BLOCKS = 10**5  # to find the correlation length in: a second
MEASURED = 300  # images of training, and of test, whose accuracy is measured
PROBED = 8  # images at which J is measured
PROBES = 4

# -- networks --------------------------------------------------------------------------------------


def network(point, data):
    """The chain of a point, for these images."""
    sizes = {name: point[name] for name in ("patch", "width", "depth", "activation", "mu")}
    image = data.train.shape[1:]
    return mixer(image, data.classes, hidden=tuple(point["hidden"]), **sizes)


def first_weights(point, net):
    """Kernels of variance sigma_w^2/fan-in, the first one 1/fan-in; biases 0. The same draws at
    every mu."""
    return net.init(generator(point["seed"], "init"), math.sqrt(point["sw2"]), first=1.0)


def train(pack, device, images, folder, **options):
    """The curves of a pack of points, and the step at which the loss ceased to be finite, or None.

    images   their folder, None: digits
    folder   keeps the checkpoint of a network that is under way
    options   of get_device"""
    data = load(images)
    results = []
    for point in pack:
        dev = get_device(device, point["dtype"], **options)
        net = network(point, data)
        weights = first_weights(point, net)
        how = (point["seed"], point["batch"], point["lr"], MEASURED)
        run = by_sgd(net, weights, data, dev, *how)
        diverged = None
        try:
            fit_in_pack(run, [point], folder, point["steps"], point["measure_every"])
        except NonFiniteLoss:
            diverged = run.t + 1
            (folder / pack_name([point])).with_suffix(".npz").unlink(missing_ok=True)
        found = {name: [float(x) for x in run.history[name]] for name in CURVES}
        results.append(found | {"diverged": diverged})
    return results


# -- theory and measurement of J -------------------------------------------------------------------


def half_blocks(point):
    """chi of the halves of a block at infinite width: an endless generator.

    Biases are 0, so that pre-activations have K = sigma_w^2; S is the variance over channels, which
    LayerNorm divides by, 1 behind the first layer (images of mean square 1):

    tokens    chi = mu^2 + sigma_w^4 D/S        S <- mu^2 S + sigma_w^2 (V - M2)
    channels  chi = mu^2 + sigma_w^4 D/S        S <- mu^2 S + sigma_w^2 V

    V = <phi^2>, D = <phi'^2>, M2 = <phi>^2. What the token MLP adds has a part that all channels
    share, M2, and the next LayerNorm takes it away. All tokens have one S here; in a network they
    differ below mu = 1, and <1/S> > 1/<S>: J grows faster than by this theory."""
    sw2 = point["sw2"]
    mu2 = point["mu"] ** 2
    V, D, M2 = (float(x) for x in averages(point["activation"])(sw2))
    S = 1.0
    while True:
        for added in (V - M2, V):
            yield mu2 + sw2 * sw2 * D / S
            S = mu2 * S + sw2 * added


def expected(point):
    """log10 J^{l,L} by theory for l = 0..depth: L is behind the last block, l behind l blocks."""
    halves = half_blocks(point)
    logs = [math.log10(next(halves) * next(halves)) for _ in range(point["depth"])]
    return np.append(np.cumsum(logs[::-1])[::-1], 0.0)


def correlation_length(point):
    """1/|ln chi| of a block very deep in the network, in blocks; None at mu = 1, where J grows as a
    power of the depth, and where chi is 1."""
    if point["mu"] == 1:
        return None
    halves = half_blocks(point)
    settled = math.ceil(20 / (1 - point["mu"]))  # S settles as mu^4 a block
    for _ in range(min(settled, MOST_BLOCKS)):
        chi = next(halves) * next(halves)
    return None if abs(chi - 1) < 1e-9 else 1 / abs(math.log(chi))


def measured(point, data, dev):
    """log10 J^{l,L} of the network as it starts, for l = 0..depth: the mean over a few images and
    probes."""
    net = network(point, data)
    weights = first_weights(point, net) | net.init_buffers()
    w = {name: dev.to_device(x) for name, x in weights.items()}
    first, *blocks, _ = net.stages(dev, w)
    x, _ = first.forward(dev.to_device(data.train[:PROBED]))
    run = Propagation(dev, blocks, x)
    J = run.apjn(generator(point["seed"], "probes"), PROBES).mean(axis=0)
    return np.log10(J[::2])


# -- memory ----------------------------------------------------------------------------------------


def needed(dev, point, data, processes):
    """Parts of the memory of as many networks as train at a time."""
    H, W, _ = data.train.shape[1:]
    tokens = (H // point["patch"]) * (W // point["patch"])
    hidden = point["hidden"]
    block = 8 * tokens * point["width"] + 3 * (hidden[0] * point["width"] + hidden[1] * tokens)
    rows = rows_in_work(dev, tokens * point["width"], point["batch"], MEASURED)
    return {
        "weights": processes * memory.weights(dev, network(point, data).size),
        "activations": processes * dev.dtype.itemsize * rows * point["depth"] * block,
        "images": processes * 2 * data.train.nbytes,
    }
