"""The linear layer."""

from ..engine.device import Array, Device
from ..engine.gemm import matmul, sum_rows


def linear_forward(dev: Device, x: Array, w: Array, b=None, out=None):
    """y = x w + b        x (..., B, K)   w (..., K, N)   b (..., N)   y (..., B, N)

    Leading axes are ensemble axes; an operand without them is shared by all members.
    """
    y = matmul(dev, x, w, out)
    if b is not None:
        y += b[..., None, :]
    return y, (x, w)


def linear_backward(
    dev: Device, dy: Array, cache: tuple, dw=None, db=None, dx=None, need_dx=True, accumulate=False
):
    """dw = x^T dy        db = sum over B of dy        dx = dy w^T

    Writes dw and db where given, or adds to them with accumulate (a tied weight, a further shard of
    the batch). Returns dx, or None with need_dx=False (a first layer). All of them are of each
    member: the gradient of a shared operand is their sum over the members, left to the caller.
    """
    x, w = cache
    if dw is not None:
        matmul(dev, x, dy, dw, ta=True, accumulate=accumulate)
    if db is not None:
        write_or_add(sum_rows(dev, dy), db, accumulate)
    if not need_dx:
        return None
    return matmul(dev, dy, w, dx, tb=True)


def write_or_add(total: Array, out, accumulate: bool) -> None:
    """out <- total, or out <- out + total with accumulate (a further shard of the batch).

    Nothing happens without out: nobody asks for that gradient."""
    if out is None:
        return
    if accumulate:
        out += total
    else:
        out[...] = total
