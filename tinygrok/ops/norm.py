"""BatchNorm, LayerNorm and scales, every norm with a gain and a shift.

The norms also have their tangents, and the gradients of functions of those tangents."""

from ..engine import row_kernels
from ..engine.device import Array, Device
from ..engine.gemm import sum_rows
from .linear import write_or_add


def _shares(dev: Device, x: Array, weight):
    """(n, q): the number of rows and the share q_b of each in a mean.

    Floats, or arrays (..., 1) and (..., B, 1) for rows weighted by weight (..., B)."""
    if weight is None:
        n = float(x.shape[-2])
        return n, 1 / n
    n = dev.xp.sum(weight, axis=-1)[..., None]
    return n, weight[..., :, None] / n[..., None]


def _mean_of_rows(dev: Device, x: Array, q) -> Array:
    """sum_b q_b x_bn"""
    if isinstance(q, float):
        return sum_rows(dev, x) * q
    return sum_rows(dev, x * q)


def batchnorm_forward(
    dev: Device,
    x: Array,
    gain: Array,
    shift: Array,
    running_mean: Array,
    running_var: Array,
    train=True,
    weight=None,
    momentum=0.1,
    eps=1e-5,
    xhat=None,
    out=None,
):
    """y = gain xhat + shift,  xhat = (x - mean)/sqrt(var + eps)        x (..., B, N)

    gain, shift and the running statistics have the shape (..., N).
    train: mean_n = sum_b q_b x_bn and var_n = sum_b q_b (x_bn - mean_n)^2 with q_b = 1/B, or
    weight_b / sum(weight) for rows weighted by weight (..., B); the running statistics move by
    `momentum` towards the mean and the unbiased variance var n/(n - 1), n = sum(weight) (Ioffe and
    Szegedy, arXiv 1502.03167; as torch.nn.BatchNorm1d). eval: mean and var are the running
    statistics. xhat and out: arrays for xhat and y; out may be x.
    """
    xp = dev.xp
    if train:
        n, q = _shares(dev, x, weight)
        mean = _mean_of_rows(dev, x, q)
        xhat = xp.subtract(x, mean[..., None, :], out=xhat)
        squares = xp.multiply(xhat, xhat, out=out)
        out = squares  # which y may overwrite
        var = _mean_of_rows(dev, squares, q)
        unbiased = var * (n / (n - 1))
        running_mean += momentum * (mean - running_mean)
        running_var += momentum * (unbiased - running_var)
    else:
        q = None
        var = running_var
        xhat = xp.subtract(x, running_mean[..., None, :], out=xhat)
    rstd = 1 / xp.sqrt(var + eps)
    xhat *= rstd[..., None, :]
    y = xp.multiply(xhat, gain[..., None, :], out=out)
    y += shift[..., None, :]
    return y, (xhat, rstd, gain, q)


def batchnorm_backward(
    dev: Device, dy: Array, cache: tuple, dgain=None, dshift=None, accumulate=False, dx=None
):
    """dgain = sum_b dy xhat        dshift = sum_b dy        dxhat = gain dy

    eval:  dx_b = rstd dxhat_b
    train: dx_b = rstd (dxhat_b - q_b (sum_c dxhat_c + xhat_b sum_c dxhat_c xhat_c)), q_b the share
    of row b in the means, since moving x_c moves mean by q_c and rstd by -rstd^2 q_c xhat_c.
    dgain and dshift are written where given, or added to; dx may be dy.
    """
    xhat, rstd, gain, q = cache
    xp = dev.xp
    product = xp.multiply(dy, xhat, out=dev.workspace.get("norm.product", dy.shape))
    along = sum_rows(dev, product)
    total = sum_rows(dev, dy)
    write_or_add(along, dgain, accumulate)
    write_or_add(total, dshift, accumulate)
    # gain is the same for all rows: dx = s dy - q s (xhat along + total), s = gain rstd
    scale = (gain * rstd)[..., None, :]
    dx = xp.multiply(dy, scale, out=dx)
    if q is not None:
        share = q * scale
        dx -= xp.multiply(xhat, share * along[..., None, :], out=product)
        dx -= share * total[..., None, :]
    return dx


def layernorm_forward(
    dev: Device, x: Array, gain: Array, shift=None, eps=1e-5, xhat=None, out=None
):
    """y = gain xhat + shift,  xhat = (x - mean)/sqrt(var + eps), mean and var over the last axis

    x (..., B, N)   gain, shift (..., N); shift None: no shift. xhat and out: arrays for xhat and y.
    (Ba, Kiros and Hinton, arXiv 1607.06450)
    """
    rstd = dev.empty((*x.shape[:-1], 1), x.dtype)
    xhat = dev.xp.empty_like(x) if xhat is None else xhat
    y = dev.xp.empty_like(x) if out is None else out
    row = None if shift is None else shift[..., None, :]
    row_kernels.layernorm(dev, x, gain[..., None, :], row, eps, rstd, xhat, y)
    return y, (xhat, rstd, gain)


def layernorm_backward(
    dev: Device, dy: Array, cache: tuple, dgain=None, dshift=None, dx=None, accumulate=False
):
    """dgain = sum_b dy xhat        dshift = sum_b dy        dxhat = gain dy

    dx = rstd (dxhat - mean(dxhat) - xhat mean(dxhat xhat)), means over the last axis: moving x_n
    moves mean by 1/N and rstd by -rstd^2 xhat_n/N. Writes dgain and dshift where given, or adds to
    them with accumulate (a further shard of the batch); dx may be dy.
    """
    xhat, rstd, gain = cache
    product = dev.xp.multiply(dy, xhat, out=dev.workspace.get("norm.product", dy.shape))
    if dgain is not None:
        write_or_add(sum_rows(dev, product), dgain, accumulate)
    if dshift is not None:
        write_or_add(sum_rows(dev, dy), dshift, accumulate)
    dx = dev.xp.empty_like(dy) if dx is None else dx
    row_kernels.layernorm_backward(dev, dy, xhat, rstd, gain[..., None, :], product, dx)
    return dx


def norm_tangent(dev: Device, xdot: Array, cache: tuple, *, axis: int):
    """ydot = gain xhatdot,  xhatdot = rstd (c - xhat q),  c = xdot - mean(xdot),  q = mean(xhat c)

    The tangent of layernorm_forward (axis -1) or of batchnorm_forward on equal rows (axis -2);
    means over that axis. Since xhat = rstd (x - mean): rstddot = -rstd^2 q."""
    xhat, rstd, gain = cache[:3]
    if axis == -2:
        rstd = rstd[..., None, :]
    centred = xdot - xdot.mean(axis=axis, keepdims=True)
    q = (xhat * centred).mean(axis=axis, keepdims=True)
    xhatdot = rstd * (centred - xhat * q)
    return gain[..., None, :] * xhatdot, (xhatdot, q, axis)


def norm_pair(
    dev: Device, xbar: Array, lam: Array, cache: tuple, tangent: tuple, dgain=None, dshift=None
):
    """xbar <- S(t) - xhat rstd mean(lam xhatdot)        lam <- S(lam)

    The adjoints of x and xdot from those of y and ydot, xbar and lam, which are first multiplied by
    gain. Means, and sums <a, b>, over the axis; c, q and xhatdot as in norm_tangent:
    S(z) = rstd (z - mean(z) - xhat mean(xhat z))        p = mean(xhat lam)
    t = xbar - rstd (q lam + p c),  where the code has rstd c = xhatdot + rstd q xhat

    Derivation. Moving x by dx and xdot by dxdot in xhatdot = rstd (c - xhat q), q = mean(xhat c):
    dxhat = S(dx)        drstd = -rstd^2 mean(xhat dx)
    dxhatdot = S(dxdot) - rstd (q dxhat + xhat mean(c dxhat)) + xhatdot drstd/rstd
    <lam, dxhatdot> = <lam, S(dxdot)> - <rstd (q lam + p c), dxhat>
                      - <xhat rstd mean(lam xhatdot), dx>
    Adding <xbar, dxhat> makes <t, S(dx)> of it; S is symmetric, <t, S(dx)> = <S(t), dx>.

    Adds sum_b (xbar xhat + lam xhatdot) to dgain and sum_b xbar to dshift, where given, from xbar
    and lam before gain.
    """
    xhat, rstd, gain = cache[:3]
    xhatdot, q, axis = tangent
    if axis == -2:
        rstd = rstd[..., None, :]

    def mean(z: Array) -> Array:
        return z.mean(axis=axis, keepdims=True)

    def S(z: Array) -> Array:
        return rstd * (z - mean(z) - xhat * mean(xhat * z))

    write_or_add(sum_rows(dev, xbar * xhat + lam * xhatdot), dgain, True)
    write_or_add(sum_rows(dev, xbar), dshift, True)
    xbar = xbar * gain[..., None, :]
    lam = lam * gain[..., None, :]
    p = mean(xhat * lam)
    t = xbar - rstd * q * (lam + p * xhat) - p * xhatdot
    through_rstd = xhat * rstd * mean(lam * xhatdot)
    return S(t) - through_rstd, S(lam)


def scale_forward(dev: Device, x: Array, gain: Array, shift=None):
    """y = gain x + shift        x (..., B, N)   gain, shift (..., N)

    ResMLP's Affine and LayerScale (arXiv 2105.03404)."""
    y = x * gain[..., None, :]
    if shift is not None:
        y = y + shift[..., None, :]
    return y, (x, gain)


def scale_backward(dev: Device, dy: Array, cache: tuple, dgain=None, dshift=None, accumulate=False):
    """dgain = sum_b dy x        dshift = sum_b dy        dx = gain dy

    dgain and dshift are written where given, or added to with accumulate."""
    x, gain = cache
    write_or_add(sum_rows(dev, dy * x), dgain, accumulate)
    write_or_add(sum_rows(dev, dy), dshift, accumulate)
    return dy * gain[..., None, :]
