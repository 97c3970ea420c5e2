"""AutoInit's tuning beside its theory: where it converges, and what it finds in other networks.

    python examples/autoinit_maps.py --quick
    python examples/autoinit_maps.py                  # maps of both losses, VGG-19
    python examples/autoinit_maps.py --workers 2      # processes of this machine
    python examples/autoinit_maps.py --vgg-steps 10 --data DIR    # VGG-19 on CIFAR-10's images

A block of a ReLU network has J = a^2 sigma_w^2/2, a the multiplier of its weights. Plain descent on
1/2 (ln J)^2 converges for lr < 1/sigma_w^2 from every J; on 1/2 (J - 1)^2 only where also
J < 1 + 2/kappa, kappa = lr sigma_w^2. The maps show when networks of many blocks come to J = 1,
with these lines on top. With residual connections of strength mu the tuning finds
sigma_w^2 = 2 (1 - mu^2), with BatchNorm weights that shrink from block to block, and for mu = 1 it
has no end. VGG-19 is tuned and trained for a few steps at full width. Every finished row of a map
is a file in --out, and --resume measures what is missing. Paper: He, Doshi, Gromov, AutoInit, arXiv
2206.13568; the theory: examples/_autoinit_theory.py.
"""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _memory as memory  # isort: skip
import _packs  # isort: skip
import functools  # isort: skip
import os
from pathlib import Path

import _autoinit_maps as parts
import _figures_autoinit_maps as plots
import numpy as np
from _autoinit_theory import BATCHNORM_RATIO, predicted, residual_sigma
from _kept import kept

from tinygrok.models import vision
from tinygrok.tasks import images

QUICK = {"grid": 6, "depth": 4, "width": 50, "steps": 30, "vgg_steps": 1, "vgg_batch": 4}


def arguments(argv=None):
    p = cli.parser("autoinit_maps", __doc__)
    add = p.add_argument
    size = cli.integer(2, 10**4)
    folder = "folder of images for VGG-19, as CIFAR-10's (default: noise of that size)"
    add("--grid", type=cli.integer(2, 100), default=12, help="points on both axes of the maps")
    add("--depth", type=cli.integer(2, 1000), default=6, help="blocks of the tuned networks")
    add("--width", type=size, default=100, help="their units")
    add("--steps", type=cli.integer(2, 10**5), default=40, help="steps of a tuning in the maps")
    add("--inputs", type=size, default=64, help="inputs of a tuning")
    add("--probes", type=cli.integer(1, 1000), default=1, help="unit vectors a block and input")
    add("--vgg-steps", type=cli.integer(0), default=3, help="steps of VGG-19; 0: leave it out")
    add("--vgg-batch", type=size, default=16, help="its images a step")
    add("--data", type=os.path.abspath, metavar="DIR", help=folder)
    _packs.add_sweep(add, what="parts")
    args = cli.parse(p, argv, QUICK)
    if args.vgg_steps == 0:
        cli.refuse_idle(args, "needs --vgg-steps: 0 leaves VGG-19 out", "vgg_batch", "data")
    return args


def require_memory(dev, args, vgg, image):
    """Refuse the networks of the sweep, or a VGG-19 on images of a shape, that do not fit."""
    net = vision.deep_mlp(args.width, args.width, args.depth, args.width)
    at_once = max(1, args.workers)
    arrays = 2 + 2 * max(args.probes, parts.REPORTED)  # of a block in the tuning
    outputs = args.depth * args.width * max(args.inputs, parts.MANY)
    needed = {
        "weights": at_once * memory.weights(dev, 2 * net.size),
        "activations": at_once * dev.dtype.itemsize * arrays * outputs,
    }
    if vgg is not None:
        height, width, _ = image
        outputs = 4 * height * width * 64 * args.vgg_batch  # half as many after every halving
        needed["VGG_19"] = memory.weights(dev, 2 * vgg.size) + 4 * dev.dtype.itemsize * outputs
    memory.require(dev, **needed)


# -- results ---------------------------------------------------------------------------------------


def cells(packs, measured, loss):
    """[(point, its outcome in theory, the measured one)] of the map of a loss."""
    rows = []
    for what, points in packs.items():
        if what[:2] == ("map", loss):
            rows += zip(points, map(predicted, points), measured[what], strict=True)
    return rows


def agreement(rows):
    """The share of the cells of a map that converge, or do not, as predicted; and of those that
    do converge, the share that cross J = 1, or do not, as predicted; None: none converges."""
    converge = []
    cross = []
    for _, theory, found in rows:
        expected = theory["settled"] is not None
        converge.append(expected == (found["settled"] is not None))
        if expected and converge[-1]:
            cross.append(theory["crossed"] == found["crossed"])
    return float(np.mean(converge)), float(np.mean(cross)) if cross else None


def ratio(sigmas):
    """The geometric mean of the ratios from block to block."""
    return float((sigmas[-1] / sigmas[0]) ** (1 / (len(sigmas) - 1)))


def summary(maps, networks, law):
    """The results.   maps {loss: cells}, networks {(norm, mu): what was found}, law: J by step"""
    results = {}
    for loss, rows in maps.items():
        converge, cross = agreement(rows)
        results[f"{loss} loss: converge as predicted"] = converge
        results[f"{loss} loss: cross J = 1 as predicted"] = cross
    deviations = []
    for (norm, mu), found in networks.items():
        if norm == "none" and mu < 1:
            deviations.append(abs(np.mean(found["sigma_w"]) / residual_sigma(mu) - 1))
    results["sigma_w without norms: largest deviation"] = float(max(deviations))
    results["BatchNorm: sigma_w from block to block"] = ratio(networks["batch", 0.0]["sigma_w"])
    results["the same in theory"] = BATCHNORM_RATIO
    results["mu = 1: J - 1 in the last step"] = law[-1] - 1
    return results


def table_of(networks):
    """{network: its row}, printed: Jacobian log loss, J, and sigma_w of the hidden blocks."""
    print(f"\n{'before -> after':<24}{'Jacobian log loss':<22}{'J':<30}sigma_w")
    table = {}
    for (norm, mu), found in networks.items():
        name = f"{plots.NAMES[norm]}, mu = {mu:g}"
        loss = f"{found['loss_before']:.3g} -> {found['loss_after']:.3g}"
        J = f"{ends(found['J_before'])} -> {ends(found['J_after'])}"
        print(f"{name:<24}{loss:<22}{J:<30}{parts.OFF:g} -> {ends(found['sigma_w'])}")
        table[name] = [found["loss_before"], found["loss_after"]]
    return table


def ends(values):
    return f"{min(values):.2f}..{max(values):.2f}"


def log_of(maps):
    """Columns of the log: every cell of the maps."""
    names = ("finite", "crossed", "settled")
    rows = []
    for of_loss in maps.values():
        for point, theory, found in of_loss:
            expected = {f"{name}_predicted": theory[name] for name in names}
            rows.append(point | found | expected)
    predictions = [f"{name}_predicted" for name in names]
    return _packs.columns(("loss", "sigma_w", "lr", *names, *predictions), rows)


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    data = parts.noise(args.seed, 2 * args.vgg_batch)
    if args.data is not None:
        data = images.load(Path(args.data))
    image = data.train.shape[1:]
    vgg = vision.vgg(image, data.classes) if args.vgg_steps else None
    require_memory(experiment.dev, args, vgg, image)
    executor = _packs.make_executor(args)
    folder = experiment.open_sweep() / cli.PACKS
    packs = parts.packs_of(args)
    work = functools.partial(parts.measure, **experiment.where(executor))
    found = experiment.sweep(list(packs.values()), work, executor, "part", "parts finished")
    if found is None:
        return 1
    measured = dict(zip(packs, found, strict=True))
    maps = {loss: cells(packs, measured, loss) for loss in parts.LOSSES}
    networks = {what[1:]: x[0] for what, x in measured.items() if what[0] == "found"}
    law = measured["residual",][0]["J"]
    results = summary(maps, networks, law)
    if vgg is not None:
        print(f"VGG-19, images of {image}: {vgg!r}")
        how = (experiment.dev, vgg, data, args.vgg_batch, args.vgg_steps, args.seed)
        row = kept(folder / "vgg.json", parts.vgg19, *how)
        results |= {f"VGG-19: {name}": value for name, value in row.items()}

    def figures(out):
        curves = zip(packs["curves",], measured["curves",], strict=True)
        plots.maps(maps, list(curves), networks, law, out / "autoinit_maps.png")

    table = table_of(networks)
    shown = {name: ends(x) if isinstance(x, list) else x for name, x in results.items()}
    experiment.finish(results | {"networks": table}, log_of(maps), figures, shown=shown)
    return None


if __name__ == "__main__":
    cli.main(main)
