"""Well-known mistakes, as wrong versions of what an exercise asks for: the docstring is the hint.

The marking runs them, and gives the hint only to one whose numbers are those of the mistake, to
rounding. None stands for a tensor of which the mistake says nothing."""

import numpy as np


def gelu_tanh_first_factor(dy, cache):
    """the second factor is taken as a constant: tanh depends on x too"""
    (x,) = cache
    c = (2 / np.pi) ** 0.5
    return 0.5 * (1 + np.tanh(c * (x + 0.044715 * x**3))) * dy


def gelu_tanh_no_inner(dy, cache):
    """the derivative of the argument of tanh is missing"""
    (x,) = cache
    c = (2 / np.pi) ** 0.5
    t = np.tanh(c * (x + 0.044715 * x**3))
    return (0.5 * (1 + t) + 0.5 * x * (1 - t**2)) * dy


def embedding_overwritten(dh, cache):
    """of inputs that share a row only the last one counts: du[s, index] += dh adds once"""
    shape, index = cache
    du = np.zeros(shape)
    for s in range(shape[0]):
        du[s, index[s]] = dh
    return du


def embedding_mean(dh, cache):
    """rows have the mean over the inputs that take them, and not the sum"""
    shape, index = cache
    du = np.zeros(shape)
    for s in range(shape[0]):
        np.add.at(du[s], index[s], dh)
        counts = np.bincount(index[s], minlength=shape[1])
        du[s] /= np.maximum(counts, 1)[:, None]
    return du


def _adamw(w, g, m, v, weights, lr, weight_decay, betas, eps, root=np.sqrt):
    """The step; weights: the sums that m and v are divided by; root of the mean of squares."""
    b1, b2 = betas
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    mean = m / weights[0]
    square = v / weights[1]
    w = (1 - lr * weight_decay) * w - lr * mean / (root(square) + eps)
    return w, m, v


def adamw_no_correction(w, g, m, v, t, lr, weight_decay, betas, eps):
    """m and v are not divided by the sums of their weights"""
    return _adamw(w, g, m, v, (1, 1), lr, weight_decay, betas, eps)


def adamw_m_not_corrected(w, g, m, v, t, lr, weight_decay, betas, eps):
    """m is not divided by the sum of its weights"""
    weights = (1, 1 - betas[1] ** t)
    return _adamw(w, g, m, v, weights, lr, weight_decay, betas, eps)


def adamw_v_not_corrected(w, g, m, v, t, lr, weight_decay, betas, eps):
    """v is not divided by the sum of its weights"""
    weights = (1 - betas[0] ** t, 1)
    return _adamw(w, g, m, v, weights, lr, weight_decay, betas, eps)


def adamw_plain(w, g, m, v, t, lr, weight_decay, betas, eps):
    """m and v are not divided by the sums of their weights, and there is no weight decay"""
    return _adamw(w, g, m, v, (1, 1), lr, 0, betas, eps)


def adamw_coupled(w, g, m, v, t, lr, weight_decay, betas, eps):
    """the decay goes through the gradient: that is Adam with an L2 penalty"""
    weights = 1 - np.array(betas) ** t
    return _adamw(w, g + weight_decay * w, m, v, weights, lr, 0, betas, eps)


def adamw_no_decay(w, g, m, v, t, lr, weight_decay, betas, eps):
    """there is no weight decay"""
    return _adamw(w, g, m, v, 1 - np.array(betas) ** t, lr, 0, betas, eps)


def adamw_decay_without_rate(w, g, m, v, t, lr, weight_decay, betas, eps):
    """the decay is not multiplied by lr"""
    weights = 1 - np.array(betas) ** t
    return _adamw(w, g, m, v, weights, lr, weight_decay / lr, betas, eps)


def adamw_one_step_late(w, g, m, v, t, lr, weight_decay, betas, eps):
    """the sums of the weights are those of step t + 1: t counts from 1"""
    return _adamw(w, g, m, v, 1 - np.array(betas) ** (t + 1), lr, weight_decay, betas, eps)


def adamw_no_root(w, g, m, v, t, lr, weight_decay, betas, eps):
    """the root of the mean of the squares is missing"""
    weights = 1 - np.array(betas) ** t
    return _adamw(w, g, m, v, weights, lr, weight_decay, betas, eps, root=np.asarray)


def adamw_eps_under_root(w, g, m, v, t, lr, weight_decay, betas, eps):
    """eps stands under the root, and belongs behind it"""
    weights = 1 - np.array(betas) ** t

    def root(mean):
        return np.sqrt(mean + eps) - eps

    return _adamw(w, g, m, v, weights, lr, weight_decay, betas, eps, root)


def adamw_uphill(w, g, m, v, t, lr, weight_decay, betas, eps):
    """w goes up the gradient, not down"""
    weights = 1 - np.array(betas) ** t
    return _adamw(w, g, m, v, weights, -lr, -weight_decay, betas, eps)


def softmax_diagonal(dy, cache):
    """only dy_c/dx_c counts: x_c acts on all y of its row, through the sum"""
    (y,) = cache
    return y * (1 - y) * dy


def softmax_numerator(dy, cache):
    """the sum in the denominator is taken as a constant"""
    (y,) = cache
    return y * dy


def cross_entropy_no_target(dloss, cache):
    """the term of z_target is missing"""
    logits, _ = cache
    exps = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exps / exps.sum(axis=-1, keepdims=True) / len(logits) * dloss


def cross_entropy_no_dloss(dloss, cache):
    """dloss is missing: another factor may follow L"""
    logits, target = cache
    dz = cross_entropy_no_target(1.0, cache)
    dz[np.arange(len(logits)), target] -= 1 / len(logits)
    return dz


def _norm(dy, cache, axis, through_mean=True, through_rstd=True):
    """dx of a norm over an axis, with or without what goes through its statistics."""
    xhat, rstd, gain = cache
    dxhat = gain * dy
    dx = dxhat
    if through_mean:
        dx = dx - dxhat.mean(axis=axis, keepdims=True)
    if through_rstd:
        dx = dx - xhat * (dxhat * xhat).mean(axis=axis, keepdims=True)
    return rstd * dx, None, None


def layernorm_constants(dy, cache):
    """mean and rstd are taken as constants: both depend on x"""
    return _norm(dy, cache, -1, through_mean=False, through_rstd=False)


def layernorm_rstd_constant(dy, cache):
    """rstd is taken as a constant: it depends on x"""
    return _norm(dy, cache, -1, through_rstd=False)


def layernorm_mean_constant(dy, cache):
    """the mean is taken as a constant: it depends on x"""
    return _norm(dy, cache, -1, through_mean=False)


def layernorm_other_axis(dy, cache):
    """the means go over the batch, and not over the row"""
    return _norm(dy, cache, 0)


def batchnorm_other_axis(dy, cache):
    """the means go over the row, and not over the batch"""
    return _norm(dy, cache, -1)


def batchnorm_constants(dy, cache):
    """mean and rstd are taken as constants: both depend on all samples"""
    return _norm(dy, cache, 0, through_mean=False, through_rstd=False)


def batchnorm_rstd_constant(dy, cache):
    """rstd is taken as a constant: it depends on all samples"""
    return _norm(dy, cache, 0, through_rstd=False)


def batchnorm_mean_constant(dy, cache):
    """the mean is taken as a constant: it depends on all samples"""
    return _norm(dy, cache, 0, through_mean=False)


def _scores(dS, q, k):
    """dq and dk from the gradient of q k^T / sqrt D"""
    root = q.shape[-1] ** 0.5
    return dS @ k / root, dS.swapaxes(-1, -2) @ q / root, None


def attention_diagonal(dy, cache):
    """of the softmax only dA_ts/dS_ts counts: a score acts on all A of its query"""
    q, k, v, A = cache
    return _scores(A * (1 - A) * (dy @ v.swapaxes(-1, -2)), q, k)


def attention_numerator(dy, cache):
    """the sum in the softmax is taken as a constant"""
    q, k, v, A = cache
    return _scores(A * (dy @ v.swapaxes(-1, -2)), q, k)


def attention_no_softmax(dy, cache):
    """the softmax is left out on the way back"""
    q, k, v, _ = cache
    return _scores(dy @ v.swapaxes(-1, -2), q, k)


def attention_no_transpose(dy, cache):
    """a transpose is missing, of A in dv or of dS in dk"""
    q, k, v, A = cache
    dA = dy @ v.swapaxes(-1, -2)
    dS = A * (dA - (dA * A).sum(axis=-1, keepdims=True))
    return None, dS @ q / q.shape[-1] ** 0.5, A @ dy


def _conv(dy, cache, overwrite=False, keep_border=False, turn=np.asarray):
    """dx of a convolution, with or without the mistakes named; turn(w) takes the place of w"""
    x, w, stride, pad = cache
    w = turn(w)
    _, H, W, _ = x.shape
    kernel = len(w)
    dpadded = np.zeros((len(x), H + 2 * pad, W + 2 * pad, x.shape[-1]))
    for u, v in np.ndindex(kernel, kernel):
        rows = slice(u, u + H + 2 * pad - kernel + 1, stride)
        columns = slice(v, v + W + 2 * pad - kernel + 1, stride)
        before = 0 if overwrite else dpadded[:, rows, columns]
        dpadded[:, rows, columns] = before + dy @ w[u, v].T
    start = 0 if keep_border else pad
    return dpadded[:, start : start + H, start : start + W], None, None


def conv_overwritten(dy, cache):
    """of the windows that a pixel lies in only the last one counts: they are to be added"""
    return _conv(dy, cache, overwrite=True)


def conv_border(dy, cache):
    """dx is cut out at the corner of the border, and not inside of it"""
    return _conv(dy, cache, keep_border=True)


def conv_swapped(dy, cache):
    """u and v of the kernel have changed places"""
    return _conv(dy, cache, turn=lambda w: w.swapaxes(0, 1))


def conv_turned(dy, cache):
    """the kernel is turned by half a turn: what you add to must be where the window was read"""
    return _conv(dy, cache, turn=lambda w: w[::-1, ::-1])


def _apjn(v, layers, slopes=True, power=1.0, mean=False):
    """Estimates with or without the slopes of tanh, to some power; mean: over all entries."""
    J = [1.0]
    u = v
    for h, w in reversed(layers):
        u = u @ w.T
        if slopes:
            u = u * (1 - np.tanh(h) ** 2)
        J.insert(0, (u * u).sum() / (u.size if mean else len(v)))
    return np.array(J) ** power


def apjn_no_slope(v, layers):
    """the slope of tanh is missing"""
    return _apjn(v, layers, slopes=False)


def apjn_root(v, layers):
    """the norm stands where its square belongs"""
    return _apjn(v, layers, power=0.5)


def apjn_mean(v, layers):
    """squares are divided by N_l too: the sum over the entries of h^l belongs to the norm"""
    J = _apjn(v, layers, mean=True)
    J[-1] /= v.shape[-1]
    return J


def apjn_mean_below(v, layers):
    """squares are divided by N_l too, below the top: the sum over h^l belongs to the norm"""
    return _apjn(v, layers, mean=True)


def apjn_reversed(v, layers):
    """the estimates stand in the order of the pass: J[0] is that of the whole network"""
    return _apjn(v, layers)[::-1]


def _tangent_pair(dy, dydot, cache, curved=True, primal=True, tangent=True):
    """dx, dxdot, dw, db; without what comes through the slope, or by one of y and ydot alone."""
    x, xdot, w, y, _ = cache
    slope = 1 - y**2
    through_slope = -2 * y * slope * (xdot @ w) * dydot
    dz = slope * dy + curved * through_slope
    dzdot = slope * dydot
    dw = primal * (x.T @ dz) + tangent * (xdot.T @ dzdot)
    return dz @ w.T, dzdot @ w.T, dw, dz.sum(axis=0)


def tangent_pair_slope_constant(dy, dydot, cache):
    """the slope 1 - y^2 is taken as a constant: it depends on x, w and b"""
    return _tangent_pair(dy, dydot, cache, curved=False)


def tangent_pair_no_tangent(dy, dydot, cache):
    """w acts on ydot through xdot w too"""
    return _tangent_pair(dy, dydot, cache, tangent=False)


def tangent_pair_no_primal(dy, dydot, cache):
    """w acts on y, and on the slope, through x w too"""
    return _tangent_pair(dy, dydot, cache, primal=False)
