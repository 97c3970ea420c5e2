"""The bare matrix products of a step, for benchmark.py: by ours (BLAS through NumPy, cuBLAS through
CuPy) and by PyTorch, on the same shapes and the same threads."""

import numpy as np

from tinygrok.engine.gemm import matmul


def recorded(dev, step):
    """The products of a step: (shape of a, shape of b, whether a, whether b is transposed)."""
    threads = dev.threads
    dev.threads = 1
    dev.products = []
    step()
    calls = dev.products
    dev.threads = threads
    dev.products = None
    return calls


def shares(dev, step):
    """(a run of the calls for every thread, of about the same work; the multiply-adds of all)."""
    calls = recorded(dev, step)
    work = [np.prod(a) * b[-2 if tb else -1] for a, b, _, tb in calls]
    total = float(sum(work))
    parts = [[] for _ in range(dev.threads)]
    reached = np.cumsum(work, dtype=float)
    for done, call in zip(reached, calls, strict=True):
        i = int(min(done * dev.threads // max(total, 1), dev.threads - 1))
        parts[i].append(call)
    return parts, total


def prepared(calls, make):
    """(a, b, out, ta, tb) of every call of a thread: one array for each role and shape."""
    arrays = {}

    def operand(role, shape):
        if (role, shape) not in arrays:
            arrays[role, shape] = make(np.full(shape, 0.5))
        return arrays[role, shape]

    found = []
    for a, b, ta, tb in calls:
        lead = a[:-2] if len(a) > len(b) else b[:-2]
        out = (*lead, a[-1 if ta else -2], b[-2 if tb else -1])
        found.append((operand("a", a), operand("b", b), operand("out", out), ta, tb))
    return found


def products(dev, step):
    """(the matrix products of a step alone, spread over the threads; their multiply-adds)."""
    parts, work = shares(dev, step)
    ready = [prepared(calls, dev.to_device) for calls in parts]

    def run(calls):
        for a, b, out, ta, tb in calls:
            matmul(dev, a, b, out, ta=ta, tb=tb)

    return lambda: dev.map(run, ready), work


def products_of_torch(dev, step):
    """The same products by PyTorch: each worker thread computes its calls on one thread."""
    import _torch_twins
    import torch

    put, _ = _torch_twins.setup(dev)
    parts, _ = shares(dev, step)
    ready = [prepared(calls, put) for calls in parts]

    def run(calls):
        torch.set_num_threads(1)
        for a, b, out, ta, tb in calls:
            torch.matmul(a.mT if ta else a, b.mT if tb else b, out=out)

    def all_products():
        dev.map(run, ready)
        torch.set_num_threads(dev.threads)  # as the twins need it

    return all_products
