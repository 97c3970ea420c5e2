"""Matrix products with transpose flags: BLAS through NumPy, cuBLAS strided-batched through CuPy.

cupy.matmul copies transposed operands of more than two axes and ignores TF32, so the GPU path calls
cuBLAS itself."""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .device import Array, Device

CUDA_R_32F = 0  # cudaDataType
CUDA_R_64F = 1
COMPUTE_32F = 68  # cublasComputeType
COMPUTE_64F = 70
COMPUTE_32F_FAST_TF32 = 77
GEMM_DEFAULT = -1  # cublasGemmAlgo


def matmul(
    dev: Device, a: Array, b: Array, out=None, *, ta=False, tb=False, accumulate=False
) -> Array:
    """out = op(a) op(b), or out += op(a) op(b) with accumulate; op transposes if its flag is set.

    a (..., M, K), or (..., K, M) with ta;  b (..., K, N), or (..., N, K) with tb;  out (..., M, N).
    Leading axes are batch axes and broadcast; a missing one means that the operand is shared.
    """
    if accumulate and out is None:
        raise ValueError("matmul can accumulate only into a given out")
    if dev.products is not None:
        dev.products.append((a.shape, b.shape, ta, tb))
    if dev.kind == "cuda":
        return _cublas(dev, a, b, out, ta, tb, accumulate)
    a = a.swapaxes(-1, -2) if ta else a
    b = b.swapaxes(-1, -2) if tb else b
    # BLAS kernels may raise the flag on lanes beyond the matrix, which they discard.
    with np.errstate(invalid="ignore"):
        if accumulate:
            out += np.matmul(a, b)
            return out
        return np.matmul(a, b, out=out)


def sum_rows(dev: Device, x: Array) -> Array:
    """sum_b x_bn        x (..., B, N)   the sum (..., N)

    On a CPU as a product with ones: BLAS adds rows three times as fast as NumPy."""
    if dev.kind == "cuda":
        return x.sum(axis=-2)
    ones = np.ones(x.shape[-2], x.dtype)
    with np.errstate(invalid="ignore"):  # as in matmul
        return np.matmul(ones, x)


class _Operand(NamedTuple):
    """Matrices x (..., rows, columns) as cuBLAS takes them: unit stride along the last axis.

    step     elements from a row to the next
    stride   elements from a matrix to the next over the batch axes: 0 for a shared operand, None
             where it is not the same throughout
    """

    x: Array
    transposed: bool
    step: int
    stride: int | None


def _operand(dev: Device, x: Array, transposed: bool, batch: tuple[int, ...]) -> _Operand:
    """Rows with gaps in them, or that overlap, are copied; a transposed view flips the flag."""
    if x.shape[-1] > 1 and x.strides[-1] != x.itemsize and x.strides[-2] == x.itemsize:
        x = x.swapaxes(-1, -2)
        transposed = not transposed
    if x.shape[-1] > 1 and x.strides[-1] != x.itemsize:
        x = dev.xp.ascontiguousarray(x)
    step, rest = divmod(x.strides[-2], x.itemsize)
    if x.shape[-2] > 1 and (step < x.shape[-1] or rest):
        x = dev.xp.ascontiguousarray(x)
        step = x.shape[-1]
    step = max(step, x.shape[-1])
    return _Operand(x, transposed, step, _batch_stride(x, batch))


def _batch_stride(x: Array, batch: tuple[int, ...]) -> int | None:
    """The stride of an _Operand."""
    lead = x.shape[:-2]
    if math.prod(lead) == 1:
        return 0
    if lead != batch:
        return None
    axes = [(n, stride) for n, stride in zip(lead, x.strides, strict=False) if n > 1]
    for (_, outer), (n, inner) in pairwise(axes):
        if outer != n * inner:
            return None
    _, innermost = axes[-1]
    return innermost // x.itemsize


def _cublas(dev: Device, a: Array, b: Array, out, ta: bool, tb: bool, accumulate: bool) -> Array:
    """One call of cuBLAS, or one per index of the first batch axis where strides are uneven."""
    M, K = a.shape[-2:][::-1] if ta else a.shape[-2:]
    depth, N = b.shape[-2:][::-1] if tb else b.shape[-2:]
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    c = dev.empty((*batch, M, N)) if out is None else out
    if depth != K or c.shape != (*batch, M, N):
        flags = f"(ta={ta}, tb={tb})"
        raise ValueError(f"matmul of shapes {a.shape} and {b.shape} {flags} into {c.shape}")
    one_dtype = a.dtype == b.dtype == c.dtype == dev.dtype
    if not one_dtype or c.strides[-1] != c.itemsize:
        raise ValueError(f"matmul needs {dev.dtype} operands and rows of out without gaps")
    left = _operand(dev, a, ta, batch)
    right = _operand(dev, b, tb, batch)
    stride = _batch_stride(c, batch)
    if None not in (left.stride, right.stride, stride):
        _gemm_strided_batched(dev, left, right, c, stride, accumulate)
        return c
    for i in range(batch[0]):
        part_a = _pick(left.x, i, batch)
        part_b = _pick(right.x, i, batch)
        _cublas(dev, part_a, part_b, c[i], left.transposed, right.transposed, accumulate)
    return c


def _pick(x: Array, i: int, batch: tuple[int, ...]) -> Array:
    """The operand at index i of the first batch axis, which it may lack or share."""
    if x.ndim - 2 < len(batch):
        return x
    return x[i if x.shape[0] > 1 else 0]


def _gemm_strided_batched(dev: Device, a: _Operand, b: _Operand, c: Array, stride, accumulate):
    """cublasGemmStridedBatchedEx: c = op(a) op(b) + beta c for every matrix of the batch.

    cuBLAS is column-major: a row-major C = A B is read by it as C^T = B^T A^T, so the operands swap
    places and the flags stay as they are.
    """
    M, N = c.shape[-2:]
    K = a.x.shape[-2] if a.transposed else a.x.shape[-1]
    batch = math.prod(c.shape[:-2])
    step = max(c.strides[-2] // c.itemsize, N)
    data = CUDA_R_32F
    compute = COMPUTE_32F_FAST_TF32 if dev.tf32 else COMPUTE_32F
    if dev.dtype == np.float64:
        data = CUDA_R_64F
        compute = COMPUTE_64F
    scale = np.array([1.0, accumulate], dtype=dev.dtype)  # alpha, beta: read on the host
    alpha = scale.ctypes.data
    beta = alpha + scale.itemsize
    # fmt: off
    dev.xp.cuda.cublas.gemmStridedBatchedEx(
        dev.xp.cuda.device.get_cublas_handle(), int(b.transposed), int(a.transposed), N, M, K,
        alpha, b.x.data.ptr, data, b.step, b.stride,
        a.x.data.ptr, data, a.step, a.stride,
        beta, c.data.ptr, data, step, stride,
        batch, compute, GEMM_DEFAULT,
    )
    # fmt: on
