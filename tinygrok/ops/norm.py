"""BatchNorm, LayerNorm and scales; tangents of the norms, and the gradients of functions of those
tangents."""

from ..engine.device import Array, Device
from ..engine.gemm import matmul


def batchnorm_forward(
    dev: Device,
    x: Array,
    gain: Array,
    shift: Array,
    running_mean: Array,
    running_var: Array,
    train: bool = True,
    weight: Array | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    xhat: Array | None = None,
    out: Array | None = None,
):
    """y = gain xhat + shift,  xhat = (x - mean)/sqrt(var + eps)        x (..., B, N)   the rest (..., N)

    train: mean_n = sum_b q_b x_bn and var_n = sum_b q_b (x_bn - mean_n)^2 with q_b = 1/B, or
    weight_b / sum(weight) for rows weighted by weight (..., B); the running statistics move by
    `momentum` towards the mean and the unbiased variance var n/(n - 1), n = sum(weight) (Ioffe and
    Szegedy, arXiv 1502.03167; as torch.nn.BatchNorm1d). eval: mean and var are the running
    statistics. xhat and out: arrays for xhat and y; out may be x.
    """
    xp, q = dev.xp, None
    if train:
        n = (
            float(x.shape[-2]) if weight is None else xp.sum(weight, axis=-1)[..., None]
        )  # or (..., 1)
        q = 1 / n if weight is None else weight[..., :, None] / n[..., None]  # or (..., B, 1)
        average = lambda a: xp.sum(a, axis=-2) * q if weight is None else xp.sum(a * q, axis=-2)  # noqa: E731
        mean = average(x)
        xhat = xp.subtract(x, mean[..., None, :], out=xhat)
        out = xp.multiply(xhat, xhat, out=out)
        var = average(out)
        running_mean += momentum * (mean - running_mean)
        running_var += momentum * (var * (n / (n - 1)) - running_var)
    else:
        xhat, var = xp.subtract(x, running_mean[..., None, :], out=xhat), running_var
    rstd = 1 / xp.sqrt(var + eps)
    xhat *= rstd[..., None, :]
    y = xp.multiply(xhat, gain[..., None, :], out=out)
    y += shift[..., None, :]
    return y, (xhat, rstd, gain, q)


def _write(total: Array, out: Array | None, accumulate: bool) -> None:
    if out is not None:
        out[...] = out + total if accumulate else total


def batchnorm_backward(
    dev: Device,
    dy: Array,
    cache: tuple,
    dgain: Array | None,
    dshift: Array | None,
    accumulate=False,
    dx: Array | None = None,
):
    """dgain = sum_b dy xhat        dshift = sum_b dy        dxhat = gain dy        (written where given, or added)

    train: dx_b = rstd (dxhat_b - q_b (sum_c dxhat_c + xhat_b sum_c dxhat_c xhat_c))     (q_b: weight of row b in the mean)
    eval:  dx_b = rstd dxhat_b        dx may be dy
    """
    xhat, rstd, gain, q = cache
    xp, product = dev.xp, dev.xp.multiply(dy, xhat, out=dev.workspace.get("norm.product", dy.shape))
    along, total = xp.sum(product, axis=-2), xp.sum(dy, axis=-2)
    _write(along, dgain, accumulate)
    _write(total, dshift, accumulate)
    if q is not None:
        xp.multiply(xhat, along[..., None, :], out=product)
        product += total[..., None, :]
        product *= q
        dy = xp.subtract(dy, product, out=dx)
    return xp.multiply(dy, (gain * rstd)[..., None, :], out=dx)


def layernorm_forward(
    dev: Device,
    x: Array,
    gain: Array,
    shift: Array | None = None,
    eps=1e-5,
    xhat: Array | None = None,
    out: Array | None = None,
):
    """y = gain xhat + shift,  xhat = (x - mean)/sqrt(var + eps), mean and var over the last axis

    x (..., B, N)   gain, shift (..., N); shift None: no shift. xhat and out: arrays for xhat and y.
    (Ba, Kiros and Hinton, arXiv 1607.06450)
    """
    xp = dev.xp
    xhat = xp.subtract(x, xp.mean(x, axis=-1, keepdims=True), out=xhat)
    y = xp.multiply(xhat, xhat, out=out)
    rstd = 1 / xp.sqrt(xp.mean(y, axis=-1, keepdims=True) + eps)  # (..., B, 1)
    xhat *= rstd
    xp.multiply(xhat, gain[..., None, :], out=y)
    if shift is not None:
        y += shift[..., None, :]
    return y, (xhat, rstd, gain)


def layernorm_backward(
    dev: Device,
    dy: Array,
    cache: tuple,
    dgain: Array | None,
    dshift: Array | None = None,
    dx=None,
    accumulate: bool = False,
):
    """dgain = sum_b dy xhat      dshift = sum_b dy      dxhat = gain dy

    dx = rstd (dxhat - mean(dxhat) - xhat mean(dxhat xhat)), means over the last axis; dx may be dy.
    Writes dgain and dshift, or adds to them with accumulate (a further shard of the batch).
    """
    xhat, rstd, gain = cache
    xp, column = (
        dev.xp,
        gain[..., None] * (1 / gain.shape[-1]),
    )  # the means below are products with this column
    product = xp.multiply(dy, xhat, out=dev.workspace.get("norm.product", dy.shape))
    for terms, total in ((product, dgain), (dy, dshift)):
        if total is not None:
            _write(terms.sum(axis=-2), total, accumulate)
    along, mean = matmul(dev, product, column), matmul(dev, dy, column)  # (..., B, 1)
    xp.multiply(xhat, along, out=product)
    dx = xp.multiply(dy, gain[..., None, :], out=dx)
    dx -= product
    dx -= mean
    dx *= rstd
    return dx


def norm_tangent(dev: Device, xdot: Array, cache: tuple, *, axis: int):
    """ydot = gain xhatdot,  xhatdot = rstd (c - xhat q),  c = xdot - mean(xdot),  q = mean(xhat c)

    The tangent of layernorm_forward (axis -1) or of batchnorm_forward on equal rows (axis -2);
    means over that axis."""
    xhat, rstd, gain = cache[:3]
    centred = xdot - xdot.mean(axis=axis, keepdims=True)
    q = (xhat * centred).mean(axis=axis, keepdims=True)
    dot = (rstd if axis == -1 else rstd[..., None, :]) * (centred - xhat * q)
    return gain[..., None, :] * dot, (dot, q)


def norm_pair(
    dev: Device,
    xbar: Array,
    lam: Array,
    cache: tuple,
    tangent: tuple,
    dgain=None,
    dshift=None,
    *,
    axis: int,
):
    """Adjoints of x and xdot from those of y and ydot, xbar and lam (AutoInit, arXiv 2206.13568).
    With both times gain,

    S(z) = rstd (z - mean(z) - xhat mean(xhat z)),  p = mean(xhat lam),  t = xbar - rstd q (lam + p xhat) - p xhatdot:
    xbar <- S(t) - xhat rstd mean(lam xhatdot)        lam <- S(lam)
    Adds sum_b (xbar xhat + lam xhatdot) to dgain and sum_b xbar to dshift, where given.
    """
    (xhat, rstd, gain), (dot, q) = cache[:3], tangent
    rstd = rstd if axis == -1 else rstd[..., None, :]
    _write((xbar * xhat + lam * dot).sum(axis=-2), dgain, True)
    _write(xbar.sum(axis=-2), dshift, True)
    xbar, lam = xbar * gain[..., None, :], lam * gain[..., None, :]
    mean = lambda z: z.mean(axis=axis, keepdims=True)  # noqa: E731
    back = lambda z: rstd * (z - mean(z) - xhat * mean(xhat * z))  # noqa: E731
    p = mean(xhat * lam)
    return back(xbar - rstd * q * (lam + p * xhat) - p * dot) - xhat * rstd * mean(lam * dot), back(
        lam
    )


def scale_forward(dev: Device, x: Array, gain: Array, shift: Array | None = None):
    """y = gain x + shift        x (..., B, N)   gain, shift (..., N)        (ResMLP's Affine and LayerScale, arXiv 2105.03404)"""
    y = x * gain[..., None, :]
    return y if shift is None else y + shift[..., None, :], (x, gain)


def scale_backward(
    dev: Device, dy: Array, cache: tuple, dgain: Array | None, dshift=None, accumulate=False
):
    """dgain = sum_b dy x        dshift = sum_b dy        dx = gain dy        (gradients written where given, or added)"""
    x, gain = cache
    _write((dy * x).sum(axis=-2), dgain, accumulate)
    _write(dy.sum(axis=-2), dshift, accumulate)
    return dy * gain[..., None, :]
