"""A network of grok_optimizers.py under each of its optimisers, and packs of them.

In a file of its own, which the workers and the scheduler of a cluster can import."""

import numpy as np

from tinygrok.engine.device import get_device
from tinygrok.engine.optim import OPTIMIZERS, global_norm
from tinygrok.engine.params import Arena
from tinygrok.engine.rng import generator
from tinygrok.models.mlp import TwoLayerNet
from tinygrok.probes.phases import step_of_99
from tinygrok.tasks import TASKS
from tinygrok.training.checkpoint import fit_in_pack
from tinygrok.training.ensembles import member_history
from tinygrok.training.loop import NonFiniteLoss
from tinygrok.training.tables import Evaluation, Training

# What is compared: its optimiser, the options of it, and what else it changes. AdamW has the betas
# of grok_addition.py everywhere.
#   rate    the learning rate that the factors of --factors multiply
#   decay   times --weight-decay is the weight decay. It means another thing to SGD, where it is
#           added to the gradient, and to Muon, whose updates have singular values near 1: round
#           numbers with which these grok at all, found at p = 59 on other seeds
#   matrices  what Muon updates: its source leaves embeddings and read-outs to AdamW, but U and W
#           are all that there is
#   norm    the constant norm of all weights, as a multiple of the first one: that of AdamW's
#           networks when they grok is about three times as large
#   loss    in place of the cross-entropy. StableMax is no optimiser: its claim is that a network
#           groks without decay once the loss is another, so AdamW and its rate stay what they are
METHODS = {
    "AdamW": {"optimizer": "adamw", "rate": 0.01, "decay": 1},
    "SGD with momentum": {"optimizer": "sgd", "rate": 1, "decay": 1e-4, "momentum": 0.9},
    "Muon": {"optimizer": "muon", "rate": 0.1, "decay": 0.2, "matrices": ["U", "W"]},
    "Grokfast": {"optimizer": "grokfast", "rate": 0.01, "decay": 1},
    "constant norm": {"optimizer": "constant_norm", "rate": 0.01, "norm": 3},
    "StableMax": {"optimizer": "adamw", "rate": 0.01, "loss": "stablemax"},
    "no decay": {"optimizer": "adamw", "rate": 0.01},  # the control of the two before
}
GROKKED = 0.99


def build(dev, points):
    """The ensemble of a pack: member e is what grok_addition.py trains with the seed of point e,
    but for the optimiser or the loss."""
    common = points[0]
    method = METHODS[common["method"]]
    task = TASKS["addition"](common["p"])
    net = TwoLayerNet(common["p"], common["width"])
    every = np.arange(task.size)
    inputs = task.inputs(every)
    labels = task.labels(inputs)
    params = Arena(dev, net.shapes, len(points))
    train = np.zeros((len(points), task.size), bool)
    data = []
    for e, point in enumerate(points):
        params.load(net.init(generator(point["seed"], "init")), e)
        numbers, _ = task.split(common["train_frac"], generator(point["seed"], "split"))
        train[e, numbers] = True
        data.append((inputs[:, numbers], labels[numbers]))
    splits = {"train": (train, "true"), "test": (~train, "true")}
    evaluation = Evaluation(inputs, {"true": labels}, splits)
    optimizer = make_optimizer(dev, net, params, method, common)
    seeds = [point["seed"] for point in points]
    loss = method.get("loss", "cross_entropy")
    return Training(dev, net, optimizer, data, evaluation, seeds, loss=loss)


def make_optimizer(dev, net, params, method, common):
    lr = common["lr"]
    options = {name: method[name] for name in ("momentum", "matrices") if name in method}
    options["weight_decay"] = method.get("decay", 0) * common["weight_decay"]
    if method["optimizer"] != "sgd":
        options["betas"] = (0.9, 0.98)
    if method["optimizer"] == "muon":  # all of its weights are matrices
        options["matrix_lr"] = lr
    if "norm" in method:
        first = dev.to_host(global_norm(dev, params)).ravel()
        options["norm"] = method["norm"] * first
    grads = Arena(dev, net.shapes, params.members)
    return OPTIMIZERS[method["optimizer"]](dev, params, grads, lr=lr, **options)


def all_grokked(run):
    """Whether every member has: the rest of the steps would only cost time."""
    best = np.max(run.history.get("test_accuracy", [0.0]), axis=0)
    return bool(np.all(best >= GROKKED))


def train(points, device="auto", folder=None, **options):
    """What became of every network of a pack, which ends when all have grokked, or after the steps.

    A network whose loss does not stay finite has "diverged"; the others train without it."""
    common = points[0]
    run = build(get_device(device, common["dtype"], **options), points)
    steps = common["steps"]
    try:
        fit_in_pack(run, points, folder, steps, common["log_every"], stop=lambda: all_grokked(run))
    except NonFiniteLoss as error:
        lost = error.member
        others = points[:lost] + points[lost + 1 :]
        results = train(others, device, folder, **options) if others else []
        return [*results[:lost], outcome(run, lost, diverged=True), *results[lost:]]
    return [outcome(run, e) for e in range(len(points))]


def outcome(run, e, diverged=False):
    """Steps to 99 % and the curve of the test accuracy of a member. One that diverges after it has
    grokked has grokked: alone it would have stopped there."""
    history = member_history(run.history, e)
    return {
        "step_train": step_of_99(history, "train"),
        "step_grok": step_of_99(history, "test"),
        "diverged": diverged,
        "test_accuracy": history["test_accuracy"].tolist(),
    }
