"""Packs of networks that are trained on corrupted labels and then looked into: a file a pack."""

import functools

import _memory as memory

from tinygrok import cli
from tinygrok.engine.device import get_device
from tinygrok.training.checkpoint import fit_in_pack
from tinygrok.training.ensembles import build, complete, pack_size, packs
from tinygrok.training.sweep import process_pools

MOST_NETWORKS = 100_000


def add_sweep(add):
    """The flags of a sweep of packs, of a parser whose add_argument is given."""
    workers = cli.integer(0, cli.MOST_WORKERS)
    add("--workers", type=workers, default=0, help="processes (0: this one, with threads)")
    resume = "keep the finished packs in --out and run the others"
    add("--resume", action="store_true", help=resume)


def trained(points, device, threads, folder, extra=lambda run: {}):
    """The ensemble of a pack of points (training/ensembles.py), at its last step; interrupted in a
    folder, it goes on there."""
    points = [complete(point) for point in points]
    common = points[0]
    run = build(get_device(device, common["dtype"], threads), points, extra)
    fit_in_pack(run, points, folder, common["steps"], common["log_every"])
    return run


def outcomes(experiment, points, work):
    """What work(points of a pack, device, threads, folder) gives for every point, in the order of
    the points; None when a pack failed. Largest networks first, which take longest."""
    if len(points) > MOST_NETWORKS:
        raise cli.InputError(f"{len(points):,} networks, and {MOST_NETWORKS:,} at most")
    args = experiment.args
    dev = experiment.dev
    sizes = [point["p"] ** 2 * point["width"] for point in points]
    order = sorted(range(len(points)), key=lambda i: -sizes[i])
    largest = complete(points[order[0]])
    pack = pack_size(dev, largest, max(1, args.workers))
    together = min(pack, len(points)) * max(1, args.workers)
    memory.require(dev, **memory.table(dev, largest["p"], largest["width"], together))
    cut = packs([points[i] for i in order], pack)
    folder = experiment.open_sweep(pack=pack) / cli.PACKS
    print(f"{len(points)} networks in {len(cut)} packs of up to {max(map(len, cut))}")
    executor = process_pools(args.workers) if args.workers else None
    threads = 1 if executor else args.threads
    bound = functools.partial(work, device=args.device, threads=threads, folder=folder)
    results = experiment.sweep(cut, bound, executor, "pack", "packs finished")
    if results is None:
        return None
    found = {}
    for members, made in zip(cut, results, strict=True):
        for point, outcome in zip(members, made, strict=True):
            found[key(point)] = outcome
    return [found[key(complete(point))] for point in points]


def key(point):
    """A point as what a dictionary can look up."""
    return tuple(sorted(point.items()))
