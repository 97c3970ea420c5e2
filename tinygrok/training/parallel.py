"""Data-parallel training: every rank takes its rows of a batch, all-reduces of the gradient arena
and of the loss sum them.

    mpirun -n 2 python examples/in_context.py ...

Ranks are processes of an MPI launcher, found by the variables that it sets: without one nothing is
imported. Gradients are summed by MPI on CPUs (mpi4py, extra `cluster`) and by NCCL on GPUs (one GPU
a rank), weights are never sent: every rank starts from the same ones and makes the same update.
Rank 0 alone writes and prints; all see the same --out folder."""

import functools
import os
from collections.abc import Callable
from typing import Any

from ..engine.device import Array, Device
from ..engine.errors import InputError
from .batches import even_slices

# rank, ranks, and rank on its own machine: Open MPI; MPICH and Intel MPI
LAUNCHERS = [
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
]


@functools.cache
def launched() -> tuple[int, int]:
    """(rank, ranks) as the launcher tells; (0, 1) without one. Gives the rank the GPU of its number
    on its machine, among those that a scheduler leaves visible."""
    for rank, size, local in LAUNCHERS:
        ranks = int(os.environ.get(size, 1))
        if ranks > 1:
            _choose_gpu(os.environ.get(local, os.environ[rank]))
            return int(os.environ[rank]), ranks
    return 0, 1


def _choose_gpu(own: str) -> None:
    """The GPU of a rank, by its number on its machine."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [own]
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(own) % len(gpus)]


class World:
    """The ranks that train together; of one rank, which sends nothing, where there is no
    communicator."""

    def __init__(self, comm: Any = None):
        self.comm = comm
        self.rank: int = 0 if comm is None else comm.Get_rank()
        self.size: int = 1 if comm is None else comm.Get_size()
        self._add: Callable[[Array], Any] | None = None

    def join(self, dev: Device) -> None:
        """Prepare sums of this device's arrays; every rank calls it."""
        if self.size == 1:
            return
        kinds = self.comm.allgather((dev.kind, dev.dtype.name, dev.kernels))
        if len(set(kinds)) > 1:
            same = "one kind of device, dtype and kernels: choose --device, --dtype and --kernels"
            raise InputError(f"the ranks must share {same}")
        self._add = self._sum_of_ranks(dev)

    def _sum_of_ranks(self, dev: Device) -> Callable[[Array], Any]:
        if dev.kind == "cuda":
            from cupyx.distributed import init_process_group  # pyright: ignore[reportMissingImports]

            nccl = init_process_group(self.size, self.rank, use_mpi=True)
            return lambda x: nccl.all_reduce(x, x)
        from mpi4py import MPI

        return lambda x: self.comm.Allreduce(MPI.IN_PLACE, x)

    def rows(self, count: int) -> slice:
        """This rank's rows of a batch."""
        if count < self.size:
            raise InputError(f"a batch of {count} rows cannot be shared by {self.size} ranks")
        return even_slices(count, self.size)[self.rank]

    def sum(self, *arrays: Array) -> None:
        """Each array becomes its sum over the ranks, the same bits on all of them."""
        if self._add is None:
            return
        for x in arrays:
            self._add(x)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some rank; also where the ranks wait for each other."""
        return flag if self.size == 1 else any(self.comm.allgather(flag))


@functools.cache
def world() -> World:
    """The ranks of this launch. Raises InputError where they cannot find each other."""
    _, size = launched()
    if size == 1:
        return World()
    try:
        from mpi4py import MPI
    except ImportError as error:
        need = f"{size} ranks need mpi4py (pip install 'tinygrok[cluster]')"
        raise InputError(f"{need}: {error}") from error
    found = World(MPI.COMM_WORLD)
    if found.size != size:
        other = "the MPI that mpi4py uses is another and sees none of them"
        raise InputError(f"the launcher started {size} ranks, but {other}")
    return found
