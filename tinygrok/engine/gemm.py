"""Matrix products with transpose flags: BLAS through NumPy, cuBLAS strided-batched through CuPy.

cupy.matmul copies transposed operands of more than two axes and ignores TF32, so the GPU path calls
cuBLAS itself."""

import math
from itertools import pairwise

import numpy as np

from .device import Array, Device

CUDA_R_32F, CUDA_R_64F = 0, 1  # cudaDataType
COMPUTE_32F, COMPUTE_64F, COMPUTE_32F_FAST_TF32 = 68, 70, 77  # cublasComputeType
GEMM_DEFAULT = -1  # cublasGemmAlgo


def matmul(
    dev: Device,
    a: Array,
    b: Array,
    out: Array | None = None,
    *,
    ta: bool = False,
    tb: bool = False,
    accumulate: bool = False,
) -> Array:
    """out = op(a) op(b), or out += op(a) op(b) with accumulate; op transposes the last two axes
    when its flag is set.

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
    with np.errstate(
        invalid="ignore"
    ):  # BLAS kernels may raise the flag on lanes beyond the matrix, which they discard
        if accumulate:
            out += np.matmul(a, b)
            return out
        return np.matmul(a, b, out=out)


def _rows(dev: Device, x: Array, transposed: bool) -> tuple[Array, bool, int]:
    """(x, flag, leading dimension) with unit stride along the last axis; a transposed view flips
    the flag, not memory."""
    if x.strides[-1] != x.itemsize and x.strides[-2] == x.itemsize and x.shape[-1] > 1:
        x, transposed = x.swapaxes(-1, -2), not transposed
    if x.strides[-1] != x.itemsize and x.shape[-1] > 1:
        x = dev.xp.ascontiguousarray(x)
    step = x.strides[-2] // x.itemsize
    if x.shape[-2] > 1 and (step < x.shape[-1] or x.strides[-2] % x.itemsize):
        x = dev.xp.ascontiguousarray(x)
        step = x.shape[-1]
    return x, transposed, max(step, x.shape[-1])


def _batch_stride(x: Array, batch: tuple[int, ...]) -> int | None:
    """Elements between consecutive matrices of x over the batch axes: 0 for a shared operand, None
    if not even."""
    lead = x.shape[:-2]
    if math.prod(lead) == 1:
        return 0
    if lead != batch:
        return None
    axes = [(n, stride) for n, stride in zip(lead, x.strides, strict=False) if n > 1]
    even = all(outer == n * inner for (_, outer), (n, inner) in pairwise(axes))
    return axes[-1][1] // x.itemsize if even else None


def _cublas(
    dev: Device, a: Array, b: Array, out: Array | None, ta: bool, tb: bool, accumulate: bool
) -> Array:
    """One cublasGemmStridedBatchedEx call, or one per index of the first batch axis where strides
    are uneven.

    cuBLAS is column-major: a row-major C = A B is read by it as C^T = B^T A^T, so the operands swap
    places and the flags stay as they are.
    """
    M, K = a.shape[-2:][::-1] if ta else a.shape[-2:]
    N = b.shape[-2] if tb else b.shape[-1]
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if out is None:
        out = dev.empty((*batch, M, N))
    if (b.shape[-1] if tb else b.shape[-2]) != K or out.shape != (*batch, M, N):
        raise ValueError(
            f"matmul of shapes {a.shape} and {b.shape} (ta={ta}, tb={tb}) into {out.shape}"
        )
    if not a.dtype == b.dtype == out.dtype == dev.dtype or out.strides[-1] != out.itemsize:
        raise ValueError(f"matmul needs {dev.dtype} operands and rows of out without gaps")
    a, ta, lda = _rows(dev, a, ta)
    b, tb, ldb = _rows(dev, b, tb)
    strides = _batch_stride(a, batch), _batch_stride(b, batch), _batch_stride(out, batch)
    if None in strides:
        pick = lambda x, i: x if x.ndim - 2 < len(batch) else x[i if x.shape[0] > 1 else 0]  # noqa: E731
        for i in range(batch[0]):
            _cublas(dev, pick(a, i), pick(b, i), out[i], ta, tb, accumulate)
        return out
    cublas = dev.xp.cuda.cublas
    data = CUDA_R_64F if dev.dtype == np.float64 else CUDA_R_32F
    compute = (
        COMPUTE_64F
        if dev.dtype == np.float64
        else COMPUTE_32F_FAST_TF32
        if dev.tf32
        else COMPUTE_32F
    )
    scale = np.array(
        [1.0, 1.0 if accumulate else 0.0], dtype=dev.dtype
    )  # alpha, beta, read by cuBLAS on the host
    alpha, beta = scale.ctypes.data, scale.ctypes.data + scale.itemsize
    cublas.gemmStridedBatchedEx(
        dev.xp.cuda.device.get_cublas_handle(),
        int(tb),
        int(ta),
        N,
        M,
        K,
        alpha,
        b.data.ptr,
        data,
        ldb,
        strides[1],
        a.data.ptr,
        data,
        lda,
        strides[0],
        beta,
        out.data.ptr,
        data,
        max(out.strides[-2] // out.itemsize, N),
        strides[2],
        math.prod(batch),
        compute,
        GEMM_DEFAULT,
    )
    return out
