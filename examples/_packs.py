"""Sweeps: their flags, and packs of networks trained on corrupted labels, a file a pack."""

import functools
import json

import _memory as memory

from tinygrok import cli
from tinygrok.engine.device import get_device
from tinygrok.engine.errors import one_line
from tinygrok.engine.rng import generator
from tinygrok.tasks import TASKS
from tinygrok.training.checkpoint import fit_in_pack
from tinygrok.training.ensembles import build, complete, pack_size, packs
from tinygrok.training.sweep import process_pools

MOST_NETWORKS = 100_000  # a phase diagram of the paper: 1156

# -- flags -----------------------------------------------------------------------------------------


def add_sweep(add, dask=None, what="packs"):
    """The flags of a sweep, of a parser whose add_argument is given.

    dask   what --help says of --scheduler; None: a sweep that cannot use a cluster"""
    workers = "processes (0: this one), each of one thread or of --threads"
    add("--workers", type=cli.integer(0, cli.MOST_WORKERS), default=0, help=workers)
    if dask is not None:
        add("--scheduler", metavar="tcp://HOST:PORT", help=dask)
    resume = f"keep the finished {what} in --out and run the others"
    add("--resume", action="store_true", help=resume)


def refuse_twice(args, *flags):
    """Refuse a list of settings that has one of them twice."""
    for flag in flags:
        values = getattr(args, flag)
        if len(set(values)) < len(values):
            raise cli.InputError(f"--{flag}: every value once")


def refuse_many(networks, most=MOST_NETWORKS, sizes="the whole sweep"):
    """Refuse more networks than a sweep is for. sizes: what they are a product of."""
    if networks > most:
        raise cli.InputError(f"{sizes}: {networks:,} networks, and {most:,} at most")


def make_executor(args):
    """None, a maker of process pools, or a Dask executor where a sweep has --scheduler."""
    if vars(args).get("scheduler") is not None:
        try:
            from distributed import Client
        except ImportError as error:
            needs = "--scheduler needs Dask: pip install 'tinygrok[cluster]'"
            raise cli.InputError(needs) from error
        try:
            return Client(args.scheduler, timeout=10).get_executor(retries=5)
        except Exception as error:  # of sockets, of TLS without certificates, of missing modules
            raise cli.InputError(f"--scheduler {args.scheduler}: {one_line(error)}") from error
    return process_pools(args.workers) if args.workers else None


# -- packs of networks trained on corrupted labels -------------------------------------------------


def trained(points, device, folder, extra=lambda run: {}, **options):
    """The ensemble of a pack of points (training/ensembles.py), at its last step; interrupted in a
    folder, it goes on there. options: of get_device"""
    points = [complete(point) for point in points]
    common = points[0]
    run = build(get_device(device, common["dtype"], **options), points, extra)
    fit_in_pack(run, points, folder, common["steps"], common["log_every"])
    return run


def start(experiment, points, size=None):
    """Open the folder of a sweep over points: its packs, those of the largest networks first, which
    take longest.

    size   networks a pack; None: what suits the device"""
    refuse_many(len(points))
    args = experiment.args
    dev = experiment.dev
    points = [complete(point) for point in points]
    points.sort(key=lambda point: -(point["p"] ** 2) * point["width"])
    largest = points[0]
    processes = max(1, args.workers)
    size = size or pack_size(dev, largest, processes)
    together = min(size, len(points)) * processes
    memory.require(dev, **memory.table(dev, largest["p"], largest["width"], together))
    for task, p, alpha in {(point["task"], point["p"], point["alpha"]) for point in points}:
        TASKS[task](p).split(alpha, generator(args.seed, "split"))  # refuses what leaves too little
    cut = packs(points, size)
    experiment.open_sweep(pack=size)
    print(f"{len(points)} networks in {len(cut)} packs of up to {max(map(len, cut))}")
    return cut


def outcomes(experiment, points, cut, work, executor):
    """What work(points of a pack, folder, device and further options of get_device) gives for every
    point, in the order of the points; None when a pack failed.

    cut   the packs of a sweep that was started"""
    folder = experiment.out / cli.PACKS
    bound = functools.partial(work, folder=folder, **experiment.where(executor))
    results = experiment.sweep(cut, bound, executor, "pack", "packs finished")
    if results is None:
        return None
    found = {}
    for members, made in zip(cut, results, strict=True):
        for point, outcome in zip(members, made, strict=True):
            found[key(point)] = outcome
    return [found[key(complete(point))] for point in points]


def swept(args, points, work):
    """(the experiment, outcomes of all points as above): a sweep from its flags to its results."""
    experiment = cli.Experiment(args)
    executor = make_executor(args)
    cut = start(experiment, points)
    return experiment, outcomes(experiment, points, cut, work, executor)


def one_by_one(train_one, pack, **given):
    """What train_one(point, **given) gives for every point of a pack, each a network of its own."""
    return [train_one(point, **given) for point in pack]


def columns(names, rows):
    """Columns of the log: of every row what is under the names."""
    return {name: [row[name] for row in rows] for name in names}


def key(point):
    """A point as what a dictionary can look up."""
    return json.dumps(point, sort_keys=True)
