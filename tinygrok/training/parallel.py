"""Data-parallel training: every rank takes its rows of a batch, all-reduces of the gradient arena
and of the loss sum them.

    mpirun -n 2 python examples/in_context.py ...

Ranks are processes of an MPI launcher, found by the variables that it sets: without one nothing is
imported. Gradients are summed by MPI on CPUs (mpi4py, extra `cluster`) and by NCCL on GPUs (one GPU
a rank), weights are never sent: every rank starts from the same ones and makes the same update.
Rank 0 alone writes and prints; all see the same --out folder."""

import functools
import os

from ..engine.device import Array, Device
from ..engine.errors import InputError

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
        if int(os.environ.get(size, 1)) > 1:
            own, visible = (
                os.environ.get(local, os.environ[rank]),
                os.environ.get("CUDA_VISIBLE_DEVICES"),
            )
            gpus = visible.split(",") if visible else [own]
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(own) % len(gpus)]
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


class World:
    """The ranks that train together; of one rank, which sends nothing, where there is no
    communicator."""

    def __init__(self, comm=None):
        self.comm, self.rank, self.size = (
            comm,
            comm.Get_rank() if comm else 0,
            comm.Get_size() if comm else 1,
        )

    def join(self, dev: Device) -> None:
        """Prepare sums of this device's arrays; every rank calls it."""
        if self.size == 1:
            return
        if len(set(self.comm.allgather((dev.kind, dev.dtype.name)))) > 1:
            raise InputError(
                "the ranks must share one kind of device and one dtype: choose --device and --dtype"
            )
        if dev.kind == "cuda":
            from cupyx.distributed import init_process_group

            nccl = init_process_group(self.size, self.rank, use_mpi=True)
            self._add = lambda x: nccl.all_reduce(x, x)
        else:
            from mpi4py import MPI

            self._add = lambda x: self.comm.Allreduce(MPI.IN_PLACE, x)

    def rows(self, count: int) -> slice:
        """This rank's rows of a batch."""
        if count < self.size:
            raise InputError(f"a batch of {count} rows cannot be shared by {self.size} ranks")
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum(self, *arrays: Array) -> None:
        """Each array becomes its sum over the ranks, the same bits on all of them."""
        for x in arrays if self.size > 1 else ():
            self._add(x)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some rank; also where the ranks wait for each other."""
        return flag if self.size == 1 else any(self.comm.allgather(flag))


@functools.cache
def world() -> World:
    """The ranks of this launch."""
    size, found = launched()[1], World()
    if size > 1:
        try:
            from mpi4py import MPI
        except ImportError as error:
            raise InputError(
                f"{size} ranks need mpi4py (pip install 'tinygrok[cluster]'): {error}"
            ) from error
        found = World(MPI.COMM_WORLD)
    if found.size != size:
        raise InputError(
            f"the launcher started {size} ranks, but the MPI that mpi4py uses is another and sees none of them"
        )
    return found
