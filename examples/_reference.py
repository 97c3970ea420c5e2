"""The operations whose code is shaped by speed, once more and as plainly as they can be written.

Names and leading arguments are those of the fast forms. Nothing is written into given arrays:
backward returns all gradients. No blocks, no shards, no sorted indices. tests/test_reference.py
holds the fast forms to these on every device, and `examples/audit_gradients.py --op NAME` prints
them."""

from tinygrok.engine.device import Array, Device


def attention_forward(dev: Device, q: Array, k: Array, v: Array, heads: int, mask=None):
    """y = A v,  A = softmax(q k^T / sqrt D + mask), head by head

    q, y (..., Tq, C)   k, v (..., T, C)   mask (Tq, T)"""
    D = q.shape[-1] // heads
    patterns = []
    outputs = []
    for h in range(heads):
        part = slice(h * D, (h + 1) * D)
        scores = q[..., part] @ k[..., part].swapaxes(-1, -2) / D**0.5
        if mask is not None:
            scores = scores + mask
        exps = dev.xp.exp(scores - scores.max(axis=-1, keepdims=True))
        patterns.append(exps / exps.sum(axis=-1, keepdims=True))
        outputs.append(patterns[h] @ v[..., part])
    return dev.xp.concatenate(outputs, axis=-1), (q, k, v, patterns)


def attention_backward(dev: Device, dy: Array, cache: tuple):
    """dv = A^T dy        dA = dy v^T        dS_ts = A_ts (dA_ts - sum_r A_tr dA_tr)

    S = q k^T / sqrt D: dq = dS k / sqrt D, dk = dS^T q / sqrt D. Returns (dq, dk, dv)."""
    q, k, v, patterns = cache
    D = q.shape[-1] // len(patterns)
    dq = []
    dk = []
    dv = []
    for h, A in enumerate(patterns):
        part = slice(h * D, (h + 1) * D)
        dA = dy[..., part] @ v[..., part].swapaxes(-1, -2)
        dS = A * (dA - (dA * A).sum(axis=-1, keepdims=True))
        dq.append(dS @ k[..., part] / D**0.5)
        dk.append(dS.swapaxes(-1, -2) @ q[..., part] / D**0.5)
        dv.append(A.swapaxes(-1, -2) @ dy[..., part])
    return tuple(dev.xp.concatenate(gradient, axis=-1) for gradient in (dq, dk, dv))


def rotary_forward(dev: Device, x: Array, table):
    """y_2j = x_2j cos a - x_2j+1 sin a        y_2j+1 = x_2j sin a + x_2j+1 cos a

    x (..., T, N)   a (T, N/2), or more columns: the angle of position t and pair j"""
    pairs = x.shape[-1] // 2
    cos = table.cos[:, :pairs]
    sin = table.sin[:, :pairs]
    first = x[..., 0::2] * cos - x[..., 1::2] * sin
    second = x[..., 0::2] * sin + x[..., 1::2] * cos
    y = dev.xp.stack([first, second], axis=-1)  # (..., N/2, 2)
    return y.reshape(x.shape), (table,)


def rotary_backward(dev: Device, dy: Array, cache: tuple):
    """dx = dy turned by -a: the transpose of the matrix ((cos, -sin), (sin, cos))"""
    (table,) = cache
    return rotary_forward(dev, dy, table._replace(sin=-table.sin))[0]


def embedding_forward(dev: Device, u: Array, rows):
    """h = sum_s onehot(n_s) u[s]        u (..., S, P, N)   n (S, B) or (E, S, B)   h (..., B, N)"""
    index = dev.to_device(rows.host)[..., None]
    onehot = (index == dev.xp.arange(rows.rows)).astype(u.dtype)  # (..., S, B, P)
    return (onehot @ u).sum(axis=-3), (onehot,)


def embedding_backward(dev: Device, dh: Array, cache: tuple):
    """du[s] = onehot(n_s)^T dh"""
    (onehot,) = cache
    return onehot.swapaxes(-1, -2) @ dh[..., None, :, :]


def conv_forward(dev: Device, x: Array, w: Array, b=None, stride=1, pad=0):
    """y[b,i,j] = sum over u, v of x[b, s i + u - p, s j + v - p] w[u,v] + b

    shapes: x (B, H, W, C)   w (k, k, C, N)   b (N,)   y (B, Ho, Wo, N)"""
    border = (pad, pad)
    padded = dev.xp.pad(x, ((0, 0), border, border, (0, 0)))
    kernel = w.shape[0]
    rows = padded.shape[1] - kernel + 1  # positions of the window in the padded image
    columns = padded.shape[2] - kernel + 1
    y = 0.0 if b is None else b
    for u in range(kernel):
        for v in range(kernel):
            window = (slice(None), slice(u, u + rows, stride), slice(v, v + columns, stride))
            y = y + padded[window] @ w[u, v]
    return y, (padded, w, stride, pad)


def conv_backward(dev: Device, dy: Array, cache: tuple):
    """dw[u,v] = sum over b, i, j of x[b, s i + u - p, s j + v - p]^T dy[b,i,j]

    dx is the sum of dy w[u,v]^T, at the pixels of (u, v). Returns (dx, dw, db)."""
    padded, w, stride, pad = cache
    kernel = w.shape[0]
    rows = padded.shape[1] - kernel + 1
    columns = padded.shape[2] - kernel + 1
    dw = dev.zeros(w.shape)
    dpadded = dev.zeros(padded.shape)
    for u in range(kernel):
        for v in range(kernel):
            window = (slice(None), slice(u, u + rows, stride), slice(v, v + columns, stride))
            dw[u, v] = dev.xp.einsum("bijc,bijn->cn", padded[window], dy)
            dpadded[window] += dy @ w[u, v].T
    _, H, W, _ = padded.shape
    dx = dpadded[:, pad : H - pad, pad : W - pad]
    return dx, dw, dy.sum(axis=(0, 1, 2))


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
):
    """y = gain xhat + shift,  xhat = (x - mean)/sqrt(var + eps)        x (..., B, N)

    Returns (y, cache, (running_mean, running_var)). train: mean = sum_b q_b x_b and
    var = sum_b q_b (x_b - mean)^2, q_b = weight_b/n, n = sum_b weight_b."""
    mean = running_mean[..., None, :]
    var = running_var[..., None, :]
    q = None
    if train:
        weight = dev.xp.ones(x.shape[:-1], dtype=x.dtype) if weight is None else weight
        n = weight.sum(axis=-1)[..., None, None]
        q = weight[..., None] / n
        mean = (q * x).sum(axis=-2, keepdims=True)
        var = (q * (x - mean) ** 2).sum(axis=-2, keepdims=True)
        unbiased = var * n / (n - 1)
        running_mean = (1 - momentum) * running_mean + momentum * mean[..., 0, :]
        running_var = (1 - momentum) * running_var + momentum * unbiased[..., 0, :]
    xhat = (x - mean) / dev.xp.sqrt(var + eps)
    y = gain[..., None, :] * xhat + shift[..., None, :]
    return y, (x, mean, var + eps, gain, q), (running_mean, running_var)


def batchnorm_backward(dev: Device, dy: Array, cache: tuple):
    """(dx, dgain, dshift), line by line the chain rule of  y = gain xhat + shift"""
    x, mean, var_eps, gain, q = cache
    centred = x - mean
    xhat = centred * var_eps**-0.5
    dxhat = gain[..., None, :] * dy
    dx = dxhat * var_eps**-0.5
    if q is not None:  # mean = sum_b q_b x_b,  var = sum_b q_b (x_b - mean)^2,  d var/d mean = 0
        dmean = -(dxhat * var_eps**-0.5).sum(axis=-2, keepdims=True)
        dvar = (dxhat * centred * -0.5 * var_eps**-1.5).sum(axis=-2, keepdims=True)
        dx = dx + dmean * q + dvar * q * 2 * centred
    dgain = (dy * xhat).sum(axis=-2)
    return dx, dgain, dy.sum(axis=-2)


def layernorm_forward(dev: Device, x: Array, gain: Array, shift=None, eps=1e-5):
    """y = gain xhat + shift,  xhat = (x - mean)/sqrt(var + eps), means over the last axis

    x (..., B, N)   gain, shift (..., N)"""
    mean = x.mean(axis=-1, keepdims=True)
    var = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    xhat = (x - mean) / dev.xp.sqrt(var + eps)
    y = gain[..., None, :] * xhat
    if shift is not None:
        y = y + shift[..., None, :]
    return y, (x, mean, var + eps, gain)


def layernorm_backward(dev: Device, dy: Array, cache: tuple):
    """(dx, dgain, dshift), line by line the chain rule of  y = gain xhat + shift"""
    x, mean, var_eps, gain = cache
    N = x.shape[-1]
    centred = x - mean
    xhat = centred * var_eps**-0.5
    dxhat = gain[..., None, :] * dy
    # mean = sum_n x_n/N,  var = sum_n (x_n - mean)^2/N,  d var/d mean = 0
    dmean = -(dxhat * var_eps**-0.5).sum(axis=-1, keepdims=True)
    dvar = (dxhat * centred * -0.5 * var_eps**-1.5).sum(axis=-1, keepdims=True)
    dx = dxhat * var_eps**-0.5 + dmean / N + dvar / N * 2 * centred
    dgain = (dy * xhat).sum(axis=-2)
    return dx, dgain, dy.sum(axis=-2)
