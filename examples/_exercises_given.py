"""What an exercise gives: the forward as it is written into the file, and the function to write.

Sources are copied (exercise.py): every function stands alone, and needs NumPy only. The forwards
run on complex numbers too, which the marking needs."""

import numpy as np

# -- 1 ---------------------------------------------------------------------------------------------


def linear_forward(x, w, b):
    """y = x w + b

    x (B, K)   w (K, N)   b (N,)   y (B, N)
    """
    y = x @ w + b
    return y, (x, w)


def linear_backward(dy, cache):
    """Returns (dx, dw, db), from dy (B, N).

    Start with one entry: y_bn = sum_k x_bk w_kn + b_n. Which y does w_kn act on, and how much? Sum
    over all of them. Shapes alone nearly tell the rest.
    To read: Goodfellow, Bengio, Courville, Deep Learning, section 6.5.
    """
    x, w = cache
    raise NotImplementedError


# -- 2 ---------------------------------------------------------------------------------------------


def gelu_tanh_forward(x):
    """y = x/2 (1 + tanh(c (x + a x^3))), c = sqrt(2/pi), a = 0.044715, entry by entry

    x, y (B, N)
    """
    c = (2 / np.pi) ** 0.5
    y = 0.5 * x * (1 + np.tanh(c * (x + 0.044715 * x**3)))
    return y, (x,)


def gelu_tanh_backward(dy, cache):
    """Returns dx (B, N), from dy (B, N).

    A product, and in its second factor a function of a function; tanh' = 1 - tanh^2.
    To read: Hendrycks and Gimpel, arXiv 1606.08415.
    """
    (x,) = cache
    raise NotImplementedError


# -- 3 ---------------------------------------------------------------------------------------------


def embedding_forward(u, index):
    """h_b = sum_s u[s, index[s, b]]

    u (S, P, N)   index (S, B), integers in 0..P-1   h (B, N)
    The first layer of a network that adds modulo P: one table of rows for each of the S numbers.
    """
    tables = range(len(u))
    h = sum(u[s, index[s]] for s in tables)
    return h, (u.shape, index)


def embedding_backward(dh, cache):
    """Returns du (S, P, N), from dh (B, N).

    Several inputs b may take the same row of a table, and some rows are taken by none.
    To read: Gromov, arXiv 2301.02679 (the network); the notes on numpy.add.at.
    """
    shape, index = cache
    raise NotImplementedError


# -- 4 ---------------------------------------------------------------------------------------------


def adamw_step(w, g, m, v, t, lr, weight_decay, betas, eps):
    """One step of AdamW, number t = 1, 2, ...; returns the new (w, m, v).

    w, g, m, v have one shape: parameters, their gradient, and two running means, which are 0 before
    the first step. The other arguments are numbers, betas two of them: (b1, b2).
    1. m moves to b1 of itself and 1 - b1 of the gradient; v likewise, with b2 and the squares of
       the gradient.
    2. As they start at 0, both are too small at first: m is a sum of the gradients of steps 1 to t
       with weights that do not add up to 1. Divide each by the sum of its weights, which you work
       out for b1 and b2; what is returned as m and v is not divided.
    3. w moves by -lr times the mean of the gradients over (the root of the mean of the squares,
       plus eps).
    4. Decay: in the same step w loses lr weight_decay of what it was before the step. It does not
       go through m and v.
    The arrays that you get must stay as they are.
    To read: Loshchilov and Hutter, arXiv 1711.05101; Kingma and Ba, arXiv 1412.6980, section 3.
    """
    b1, b2 = betas
    raise NotImplementedError


# -- 5 ---------------------------------------------------------------------------------------------


def softmax_forward(x):
    """y_c = exp(x_c) / sum_k exp(x_k), row by row

    x, y (B, C). The largest entry of a row is taken off first, which changes no y.
    """
    exps = np.exp(x - x.max(axis=-1, keepdims=True))
    y = exps / exps.sum(axis=-1, keepdims=True)
    return y, (y,)


def softmax_backward(dy, cache):
    """Returns dx (B, C), from dy (B, C).

    Which y of a row does x_c act on? Write dy_k/dx_c for k = c and for k != c, in terms of y alone,
    and sum over k.
    To read: Goodfellow, Bengio, Courville, Deep Learning, section 6.2.2.3.
    """
    (y,) = cache
    raise NotImplementedError


# -- 6 ---------------------------------------------------------------------------------------------


def cross_entropy_forward(logits, target):
    """L = 1/B sum_b (log sum_c exp z_bc - z_b,target_b)

    logits z (B, C)   target (B,), integers in 0..C-1   L a number
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    rows = np.arange(len(logits))
    losses = np.log(np.exp(shifted).sum(axis=-1)) - shifted[rows, target]
    return losses.mean(), (logits, target)


def cross_entropy_backward(dloss, cache):
    """Returns dlogits (B, C), from dloss = dL'/dL, a number: L' is what is made of L.

    Differentiate log sum_c exp z_c first: the result has a name. Logits may be large.
    To read: Goodfellow, Bengio, Courville, Deep Learning, section 6.2.2.3.
    """
    logits, target = cache
    raise NotImplementedError


# -- 7 ---------------------------------------------------------------------------------------------


def layernorm_forward(x, gain, shift):
    """y = gain xhat + shift,  xhat = (x - mean)/sqrt(var + 1e-5), mean and var of every row

    x, y (B, N)   gain, shift (N,)
    """
    mean = x.mean(axis=-1, keepdims=True)
    var = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt(var + 1e-5)
    xhat = (x - mean) * rstd
    y = gain * xhat + shift
    return y, (xhat, rstd, gain)


def layernorm_backward(dy, cache):
    """Returns (dx, dgain, dshift), from dy (B, N).

    x_n acts on all of its row: through x - mean itself, through the mean, and through rstd. Find
    dmean/dx_n and drstd/dx_n in terms of xhat and rstd.
    To read: Ba, Kiros and Hinton, arXiv 1607.06450.
    """
    xhat, rstd, gain = cache
    raise NotImplementedError


# -- 8 ---------------------------------------------------------------------------------------------


def batchnorm_forward(x, gain, shift):
    """y = gain xhat + shift,  xhat = (x - mean)/sqrt(var + 1e-5), mean and var over the batch

    x, y (B, N)   gain, shift (N,). As in training; running statistics are left out.
    """
    mean = x.mean(axis=0)
    var = ((x - mean) ** 2).mean(axis=0)
    rstd = 1 / np.sqrt(var + 1e-5)
    xhat = (x - mean) * rstd
    y = gain * xhat + shift
    return y, (xhat, rstd, gain)


def batchnorm_backward(dy, cache):
    """Returns (dx, dgain, dshift), from dy (B, N).

    Every sample acts on all the others, through the mean and the variance of its channel. If you
    have done LayerNorm: what changes, and what is simpler?
    To read: Ioffe and Szegedy, arXiv 1502.03167, section 3.
    """
    xhat, rstd, gain = cache
    raise NotImplementedError


# -- 9 ---------------------------------------------------------------------------------------------


def attention_forward(q, k, v):
    """y = A v,  A = softmax(q k^T / sqrt D) over the keys s <= t that a query t may see

    q, k, v, y (B, T, D)   A (B, T, T), 0 where s > t. One head.
    """
    _, T, D = q.shape
    scores = q @ k.swapaxes(-1, -2) / D**0.5
    seen = np.arange(T) <= np.arange(T)[:, None]
    exps = np.where(seen, np.exp(scores - scores.max(axis=-1, keepdims=True)), 0)
    A = exps / exps.sum(axis=-1, keepdims=True)
    y = A @ v
    return y, (q, k, v, A)


def attention_backward(dy, cache):
    """Returns (dq, dk, dv), from dy (B, T, D).

    Go back one step at a time: the product A v, the softmax (exercise 5), the product q k^T.
    To read: Vaswani et al., arXiv 1706.03762, section 3.2.1.
    """
    q, k, v, A = cache
    raise NotImplementedError


# -- 10 --------------------------------------------------------------------------------------------


def conv_forward(x, w, b, stride, pad):
    """y[b,i,j,n] = sum over u, v, c of x[b, s i + u - p, s j + v - p, c] w[u,v,c,n] + b_n

    x (B, H, W, C)   w (k, k, C, N)   b (N,)   y (B, Ho, Wo, N) with Ho = (H + 2p - k) // s + 1
    stride s, padding p: x = 0 outside the image
    """
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    kernel = len(w)
    rows = padded.shape[1] - kernel + 1  # where the upper left corner of a window may lie
    columns = padded.shape[2] - kernel + 1
    y = b
    for u in range(kernel):
        for v in range(kernel):
            pixels = padded[:, u : u + rows : stride, v : v + columns : stride]
            y = y + pixels @ w[u, v]
    return y, (x, w, stride, pad)


def conv_backward(dy, cache):
    """Returns (dx, dw, db), from dy (B, Ho, Wo, N).

    The forward is k^2 linear layers, one for each (u, v): take each one back, and add up. A pixel
    lies in several windows. The border is no part of dx.
    To read: Dumoulin and Visin, arXiv 1603.07285, section 4.
    """
    x, w, stride, pad = cache
    raise NotImplementedError


# -- 11 --------------------------------------------------------------------------------------------


def apjn_forward(x, weights):
    """h^0 = x,  h^(l+1) = tanh(h^l) w^l,  y = h^L

    x (B, N_0)   weights [w^0, ..., w^(L-1)] with w^l (N_l, N_(l+1))   y (B, N_L)
    """
    layers = []
    h = x
    for w in weights:
        layers.append((h, w))
        h = np.tanh(h) @ w
    return h, layers


def apjn_probe(v, layers):
    """Returns J (L + 1,): J[l] estimates J^{l,L} = |dh^L/dh^l|^2 / (B N_L), for l = 0, ..., L.

    |...|^2 is the sum of the squares of the Jacobian's entries, over the batch; this is the
    averaged partial Jacobian norm, whose growth with depth tells whether a network is critical.
    v (B, N_L) has a random vector of the unit sphere for each sample, so that the mean of v v^T is
    1/N_L. Take v back through the layers, and make of what you meet on the way numbers whose mean
    over v is J^{l,L}. All of them come from one pass; J[L] is 1.
    To read: Doshi, He and Gromov, arXiv 2111.12143.
    """
    raise NotImplementedError


# -- 12 --------------------------------------------------------------------------------------------


def tangent_pair_forward(x, xdot, w, b):
    """y = tanh(x w + b)  and its tangent  ydot = (1 - y^2) (xdot w)

    x, xdot (B, K)   w (K, N)   b (N,)   y, ydot (B, N)
    ydot is the derivative of y along xdot. Norms of Jacobians are functions of tangents: AutoInit
    tunes a network by their gradients.
    """
    y = np.tanh(x @ w + b)
    slope = 1 - y**2
    ydot = slope * (xdot @ w)
    return (y, ydot), (x, xdot, w, y, ydot)


def tangent_pair_backward(dy, dydot, cache):
    """Returns (dx, dxdot, dw, db), from dy (B, N) and dydot (B, N): L depends on y and on ydot.

    Everything that y depends on acts on ydot too, through the slope 1 - y^2. The library calls dy
    and dydot xbar and lam.
    To read: He, Doshi and Gromov, arXiv 2206.13568; tinygrok/models/chain.py, its first lines.
    """
    x, xdot, w, y, ydot = cache
    raise NotImplementedError
