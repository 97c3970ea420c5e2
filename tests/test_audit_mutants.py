"""Wrong lines planted in the library, one at a time: the audit alone finds every one of them.

Each plant names the case that sees it and the function or module, then shows the right text and
the wrong one.
"""

import functools
import gc
import inspect
import sys
from contextlib import contextmanager
from pydoc import locate
from types import CodeType, FunctionType, ModuleType

import numpy as np
import pytest

from tinygrok.audit.cases import BUILDERS
from tinygrok.audit.checker import audit

pytestmark = pytest.mark.slow

PLANTS = """
linear | ops.linear
- dw, ta=True, accumulate=accumulate)
+ dw, ta=True)

linear | ops.linear
- out += total
+ out[...] = total

linear | ops.linear
- if accumulate:
+ if out is not None:

linear | ops.linear
- return matmul(dev, dy, w, dx, tb=True)
+ return -matmul(dev, dy, w, dx, tb=True)

linear | ops.linear
- return matmul(dev, dy, w, dx, tb=True)
+ return matmul(dev, dy, w, tb=True)

linear | ops.linear
- return matmul(dev, dy, w, dx, tb=True)
+ dy *= 2; return matmul(dev, dy, w * 0.5, dx, tb=True)

linear | ops.linear
- if dw is not None:
+ if dw is not None and db is not None:

linear | ops.linear
- y += b[..., None, :]
+ x += 0; x[0] = 0; y += b[..., None, :]

linear ensemble | ops.linear
- matmul(dev, x, dy, dw, ta=True
+ matmul(dev, x[..., ::-1], dy, dw, ta=True

linear | ops.linear
- write_or_add(sum_rows(dev, dy), db
+ write_or_add(dy.mean(axis=-2), db

linear | ops.linear
- out[...] = total
+ out[...] = total; out[..., 0] *= 1.01

linear | ops.linear
- if dw is not None:
+ if dw is not None and accumulate is False:

linear large | ops.linear
- write_or_add(sum_rows(dev, dy), db
+ write_or_add(sum_rows(dev, dy[..., :256, :]), db

linear ensemble | ops.linear
- y += b[..., None, :]
+ y += b[..., None, :] if b.ndim == 1 else b[:1, None, :]

linear no bias | ops.linear
- y = matmul(dev, x, w, out)
+ y = matmul(dev, x, w)

matmul TN | engine.gemm.matmul
- a = a.swapaxes(-1, -2) if ta else a
+ a = a.swapaxes(-1, -2) * (1 + 1e-10) if ta else a

matmul NN | engine.gemm.matmul
- out += np.matmul(a, b)
+ np.matmul(a, b, out=out)

matmul TT | engine.gemm.matmul
- b = b.swapaxes(-1, -2) if tb else b
+ b = b.swapaxes(-1, -2) if tb and not ta else b

embedding | ops.embedding.embedding_backward
- if not accumulate:
+ if True:

embedding | ops.embedding.embedding_backward
- if not accumulate:
+ if accumulate:

embedding pair | ops.embedding._add_groups_host
- for s, group in enumerate(groups):
+ for s, group in enumerate(groups[:1]):

embedding many inputs | ops.embedding._add_groups_host
- grouped[..., start:stop, :], axis
+ grouped[..., start : min(stop, start + 32), :], axis

embedding many rows | ops.embedding._add_groups_host
- for start, count in group.ranks[1:]:
+ for start, count in group.ranks[1:2]:

embedding many rows | ops.embedding._add_groups_host
- table[..., group.rows, :] +=
+ table[..., group.rows, :] =

embedding pair | ops.embedding._add_groups_host
- dh.take(group.order, axis=-2
+ dh.take(group.order[::-1], axis=-2

embedding own inputs | ops.embedding.embedding_backward
- for at, groups in rows.groups.items():
+ for at, groups in zip(rows.groups, [rows.groups[(0,)]] * len(dh)):

embedding many inputs | ops.embedding._add_groups_host
- table[..., v, :] += dev.xp.add.reduce(grouped[..., start:stop, :], axis=-2)
+ table[..., v, :] += grouped[..., stop - 1, :]

embedding ensemble | ops.embedding._add_groups_host
- table = du[..., s, :, :]
+ table = du[..., s - 1, :, :]

embedding pair | ops.embedding.embedding_forward
- if out is None else out
+ if True else out

embedding many inputs | ops.embedding._gather_host
- h[..., start:stop, :] += table
+ h[..., start:stop, :] = table

activation square | engine.kernels
- np.multiply(dx, 2, out=dx)
+ np.multiply(dx, 2 * (1 + 1e-8), out=dx)

activation power9 | engine.kernels
- np.multiply(k * _power(x, k - 1), dy, out=dx)
+ np.multiply(min(k, 8) * _power(x, k - 1), dy, out=dx)

wide power11 | engine.kernels
- low = x if k < 4 else _power(x, k // 2)
+ low = x if k < 4 else _power(x, min(k // 2, 4))

second power4 | engine.kernels
- np.copyto(y, k * (k - 1) * _power(x, max(k - 2, 0)))
+ np.copyto(y, k * k * _power(x, max(k - 2, 0)))

activation relu | engine.kernels
- np.multiply(dy, x > 0, out=dx)
+ np.multiply(dy, (x > 0) * (1 + 1e-8), out=dx)

activation leaky_relu | engine.kernels
- np.copyto(dx, np.where(x > 0, dy, LEAK * dy))
+ np.copyto(dx, np.where(x > 0, dy, (1 + 1e-8) * LEAK * dy))

activation gelu | engine.kernels
- _cdf(x) + x * _pdf(x), dy
+ _cdf(x) + x * _pdf(x) * (1 + 1e-8), dy

wide gelu | engine.kernels
- _cdf(x) + x * _pdf(x), dy
+ _cdf(x) + x * _pdf(np.where(abs(x) > 4, 0.99 * x, x)), dy

second gelu | engine.kernels
- np.multiply(2 - x * x, _pdf(x), out=y)
+ np.multiply(2 - x * x * (1 + 1e-8), _pdf(x), out=y)

activation gelu_tanh | engine.kernels
- du = _GELU_C * (1 + 3 * _GELU_A * x2)
+ du = _GELU_C * (1 + 2 * _GELU_A * x2)

second gelu_tanh | engine.kernels
- ddu = 6 * _GELU_C * _GELU_A * x
+ ddu = 3 * _GELU_C * _GELU_A * x

activation tanh | engine.kernels
- np.multiply(1 - np.tanh(x) ** 2, dy, out=dx)
+ np.multiply(1 - np.tanh(x) ** 2, dy, out=dx); dx *= 1 - 1e-9

second tanh | engine.kernels
- np.multiply(-2 * np.tanh(x), 1
+ np.multiply(2 * np.tanh(x), 1

activation erf | engine.kernels
- np.multiply(_ERF_SLOPE * np.exp(-x * x), dy, out=dx)
+ np.multiply(_ERF_SLOPE * (1 + 1e-8) * np.exp(-x * x), dy, out=dx)

second erf | engine.kernels
- np.multiply(-2 * _ERF_SLOPE * x, np.exp(-x * x), out=y)
+ np.multiply(-2 * _ERF_SLOPE * x, np.exp(-x * x), out=y); y *= 1 + 1e-10

activation erf | engine.kernels.erf
- near = small * _horner(_ERF_P, small * small)
+ near = small * _horner(_ERF_P, small * small) * (1 + 1e-10)

wide erf | engine.kernels.erf
- np.minimum(x * x, 16)
+ np.minimum(x * x, 4)

wide gelu | engine.kernels.erf
- return np.tanh(x * _horner(_ERF_R, np.minimum(x * x, 16)))
+ return np.tanh(x * _horner(_ERF_R, np.minimum(x * x, 16))) * np.float32(1.0001)

activation identity | ops.activation.activation_backward
- dx = dev.empty(x.shape) if dx is None else dx
+ dx = dev.empty(x.shape)

activation tanh | ops.activation.activation_backward
- dx = dev.empty(x.shape) if dx is None else dx
+ dx = dev.empty(x.shape) if dx is None else dx; dy = dev.xp.ones_like(dy)

activation erf | ops.activation.activation_forward
- out = dev.empty(x.shape) if out is None else out
+ out = dev.empty(x.shape)

activation gelu | ops.activation.activation_backward
- x, kind = cache
+ x, kind = cache; kind = "gelu_tanh" if kind == "gelu" else kind

activation power4 | ops.activation.activation_backward
- return dx
+ dx *= 0.5; return dx

second tanh | ops.activation.activation_second
- out = dev.empty(x.shape) if out is None else out
+ out = dev.empty(x.shape)

activation gelu | ops.activation.activation_backward
- activation.df(dev, *args, x, dy, dx)
+ dx.fill(0); activation.df(dev, *args, x, dy, dx)

activation erf | engine.kernels._in_blocks
- body(*(a[i : i + BLOCK] for a in flat))
+ body(*(a[i : i + BLOCK - 1] for a in flat))

activation gelu | engine.kernels._in_blocks
- for i in range(0, flat[0].size, BLOCK):
+ for i in range(0, flat[0].size - flat[0].size % BLOCK or 1, BLOCK):

activation gelu | engine.kernels._in_blocks
- if not all(a.flags.c_contiguous for a in arrays):
+ if not all(a.ndim for a in arrays):

log loss vgg | ops.activation.activation_pair
- curved = activation_second(dev, x, kind) * xdot * lam
+ curved = activation_second(dev, x, kind) * xdot

pair post | ops.activation.activation_pair
- return xbar, activation_backward(dev, lam, cache)
+ return xbar, lam

square loss mixer | ops.activation.activation_tangent
- return activation_backward(dev, xdot, cache), xdot
+ return xdot, xdot

dropout | ops.dropout.dropout_backward
- return dev.xp.multiply(dy, mask, out=dx)
+ return dev.xp.multiply(dy, mask != 0, out=dx)

dropout | ops.dropout.dropout_backward
- return dev.xp.multiply(dy, mask, out=dx)
+ return dev.xp.multiply(dy, mask)

dropout | ops.dropout.dropout_forward
- mask = dev.empty(x.shape) if mask is None else mask
+ mask = dev.empty(x.shape)

dropout | ops.dropout.dropout_backward
- return dev.xp.multiply(dy, mask, out=dx)
+ return dev.xp.multiply(dy, dev.xp.roll(mask, 1, axis=-1), out=dx)

dropout rates | ops.dropout.dropout_backward
- return dev.xp.multiply(dy, mask, out=dx)
+ return dev.xp.multiply(dy, mask[-1:], out=dx)

training dropout | ops.dropout.dropout_forward
- kernels.dropout_mask(dev, dev.to_device(keys), offset, size
+ kernels.dropout_mask(dev, dev.to_device(keys), 0, size

batchnorm train | ops.norm.batchnorm_backward
- dx -= share * total[..., None, :]
+ dx -= 0 * share * total[..., None, :]

batchnorm train | ops.norm.batchnorm_backward
- if q is not None:
+ if q is None:

batchnorm weighted | ops.norm.batchnorm_backward
- share = q * scale
+ share = scale * (q if isinstance(q, float) else 1 / dy.shape[-2])

batchnorm weighted | ops.norm._mean_of_rows
- return sum_rows(dev, x * q)
+ return dev.xp.mean(x, axis=-2)

batchnorm weighted | ops.norm.batchnorm_backward
- total = sum_rows(dev, dy)
+ total = sum_rows(dev, dy * (q != 0 if q is not None else 1))

batchnorm eval | ops.norm.batchnorm_backward
- scale = (gain * rstd)[..., None, :]
+ scale = (gain * (rstd if q is not None else 1))[..., None, :]

batchnorm many rows | ops.norm.batchnorm_backward
- along = sum_rows(dev, product)
+ along = sum_rows(dev, product[..., :256, :])

batchnorm train | ops.norm.batchnorm_backward
- write_or_add(along, dgain, accumulate)
+ write_or_add(along, dgain, False)

batchnorm eval | ops.norm.batchnorm_backward
- write_or_add(total, dshift, accumulate)
+ write_or_add(along, dshift, accumulate)

batchnorm train | ops.norm.batchnorm_backward
- dx = xp.multiply(dy, scale, out=dx)
+ dx = xp.multiply(dy, scale, out=dy)

batchnorm eval ensemble | ops.norm.batchnorm_backward
- scale = (gain * rstd)[..., None, :]
+ scale = (gain * rstd)[..., None, :] * (1 + 1e-9)

batchnorm train | ops.norm.batchnorm_forward
- y = xp.multiply(xhat, gain[..., None, :], out=out)
+ y = xp.multiply(xhat, gain[..., None, :])

layernorm | engine.row_kernels
- dx -= mean
+ dx -= 0 * mean

layernorm | ops.norm.layernorm_backward
- write_or_add(sum_rows(dev, dy), dshift, accumulate)
+ write_or_add(sum_rows(dev, dy), dshift, False)

layernorm no shift | ops.norm.layernorm_backward
- write_or_add(sum_rows(dev, product), dgain, accumulate)
+ write_or_add(sum_rows(dev, product), dgain, accumulate and dshift is not None)

layernorm | ops.norm.layernorm_backward
- dx = dev.xp.empty_like(dy) if dx is None else dx
+ dx = dev.xp.empty_like(dy)

layernorm | engine.row_kernels
- mean = np.matmul(dy, column)
+ np.multiply(dy, gain, out=dx); mean = np.matmul(dy, column)

layernorm | engine.row_kernels
- np.multiply(dy, gain, out=dx)
+ np.multiply(dy, np.ones_like(gain), out=dx)

layernorm long rows | engine.row_kernels
- column = gain.swapaxes(-1, -2) * (1 / gain.shape[-1])
+ column = gain.swapaxes(-1, -2) * (1 / min(gain.shape[-1], 256))

layernorm small | engine.row_kernels
- np.multiply(xhat, along, out=product)
+ np.multiply(xhat, along * (1 + 1e-5 * rstd**2), out=product)

layernorm many rows | ops.norm.layernorm_backward
- write_or_add(sum_rows(dev, dy), dshift, accumulate)
+ write_or_add(sum_rows(dev, dy[..., :256, :]), dshift, accumulate)

pair batch | ops.norm.norm_pair
- p = mean(xhat * lam)
+ p = 0 * mean(xhat * lam)

log loss vgg | ops.norm.norm_pair
- through_rstd = xhat * rstd * mean(lam * xhatdot)
+ through_rstd = 0 * xhat * rstd * mean(lam * xhatdot)

square loss post | ops.norm.norm_pair
- write_or_add(sum_rows(dev, xbar * xhat + lam * xhatdot), dgain, True)
+ write_or_add(sum_rows(dev, xbar * xhat), dgain, True)

log loss batch | ops.norm.norm_tangent
- xhatdot = rstd * (centred - xhat * q)
+ xhatdot = rstd * centred

scale | ops.norm.scale_backward
- return dy * gain[..., None, :]
+ return dy * gain[..., None, :] * (1 + 1e-9)

scale no shift | ops.norm.scale_backward
- write_or_add(sum_rows(dev, dy * x), dgain, accumulate)
+ write_or_add(sum_rows(dev, dy * x), dgain, False)

softmax | engine.row_kernels
- np.subtract(dp, inner, out=dx)
+ np.multiply(dp, 1 - p, out=dx)

softmax long rows | engine.row_kernels
- inner = (dy * y).sum(axis=-1, keepdims=True)
+ inner = (dy * y)[..., :256].sum(axis=-1, keepdims=True)

softmax many rows | engine.row_kernels
- np.subtract(z, z.real.max(axis=-1, keepdims=True), out=y)
+ np.subtract(z, 0, out=y)

softmax | ops.loss.softmax_forward
- y = dev.xp.empty_like(x) if out is None else out
+ y = dev.xp.empty_like(x)

mse | ops.loss.mse_backward
- scale = q * (2.0 / r.shape[-1]) * _as_column(dloss)
+ scale = q * 2.0 * _as_column(dloss)

training table | ops.loss._normalised
- return (weight / total)[..., None]
+ return (dev.xp.maximum(weight, 0.01) / total)[..., None]

mse | ops.loss.mse_backward
- return dev.xp.multiply(r, scale, out=dlogits)
+ return dev.xp.multiply(r, scale)

mse weighted ensemble | ops.loss.mse_backward
- * _as_column(dloss)
+ * (dloss if isinstance(dloss, float) else dloss.mean())

cross entropy | ops.loss.cross_entropy_backward
- scale = q * _as_column(dloss)
+ scale = q

cross entropy many rows | engine.row_kernels
- y[labelled] -= 1
+ y[labelled] -= np.arange(y.size // y.shape[-1]).reshape(y.shape[:-1]) < 256

cross entropy long rows | engine.row_kernels
- total = y.sum(axis=-1)
+ total = y[..., :256].sum(axis=-1)

cross entropy one target | ops.loss.cross_entropy_backward
- return dev.xp.multiply(r, scale, out=dlogits)
+ return dev.xp.multiply(r, scale * (1 + 1e-9), out=dlogits)

cross entropy weighted | ops.loss.cross_entropy_backward
- scale = q * _as_column(dloss)
+ scale = (q if isinstance(q, float) else (q > 0) / q.size) * _as_column(dloss)

stablemax | ops.loss.stablemax_rows
- r *= xp.minimum(s, 1 / s)
+ r *= 1 / s

stablemax many rows | ops.loss.stablemax_rows
- r *= xp.minimum(s, 1 / s)
+ r *= s

stablemax long rows | ops.loss.stablemax_rows
- total = s.sum(axis=-1, keepdims=True)
+ total = s[..., :256].sum(axis=-1, keepdims=True)

stablemax one target | ops.loss.stablemax_rows
- kernels.subtract_onehot(dev, r, target[..., None], logits.shape[-1], r)
+ kernels.subtract_onehot(dev, r, (target + 1)[..., None], logits.shape[-1], r)

stablemax weighted | ops.loss.stablemax_backward
- return cross_entropy_backward(dev, dloss, cache, dlogits)
+ return cross_entropy_backward(dev, 1.0, cache, dlogits)

stablemax weighted ensemble | ops.loss.stablemax_rows
- r = xp.divide(s, total, out=out)
+ r = xp.divide(s, total)

rotary | ops.attention._rotate
- factor = turn if sign > 0 else turn.conj()
+ factor = turn

rotary ensemble | ops.attention._rotate
- turn = table.turn[:, :half]
+ turn = table.turn[:, 1 : half + 1] if half > 8 else table.turn[:, :half]

rotary some positions | ops.attention.rotary_backward
- return _rotate(dev, dy, table, -1.0, dx)
+ return _rotate(dev, dy, table.at(slice(None, None, -1)), -1.0, dx)

rotary | ops.attention.rotary_backward
- return _rotate(dev, dy, table, -1.0, dx)
+ return _rotate(dev, dy, table, -1.0, None)

attention | ops.attention.attention_backward
- dq *= scale
+ dq *= 1

attention | ops.attention.attention_backward
- row_kernels.softmax_backward(dev, _at(dyh, queries), _at(yh, queries), p, ds, ds)
+ row_kernels.softmax_backward(dev, _at(dyh, queries), _at(yh, queries) * 0, p, ds, ds)

attention many heads | ops.attention.attention_backward
- (_split(dev, x, heads) for x in arrays)
+ (_split(dev, x, heads) for x in arrays); yh = yh.copy(); yh[4:] = 0

attention ensemble | ops.attention.attention_backward
- (_split(dev, x, heads) for x in arrays)
+ (_split(dev, x, heads) for x in arrays); dqh = dqh[::-1]

attention | ops.attention.attention_backward
- matmul(dev, dscores[..., queries, keys], _at(qh, queries), _at(dkh, keys), ta=True)
+ matmul(dev, dscores[..., queries, keys], _at(qh, queries), _at(dkh, keys))

gpt deep | ops.attention.attention_backward
- (_split(dev, x, heads) for x in arrays)
+ (_split(dev, x, heads) for x in arrays); dyh = (dyh if heads < 6 else dyh[[0, 1, 2, 3, 4, 4]])

attention many heads | ops.attention.causal_blocks
- edges = [T * i // count for i in range(count + 1)]
+ edges = [T // count * i for i in range(count + 1)]

attention many heads | ops.attention.attention_backward
- queries = slice(a, None)
+ queries = slice(a, b)

attention not causal | ops.attention.attention_backward
- matmul(dev, att[..., queries, keys], _at(dyh, queries), _at(dvh, keys), ta=True)
+ matmul(dev, att[..., queries, keys] ** 2, _at(dyh, queries), _at(dvh, keys), ta=True)

attention long | ops.attention.attention_backward
- _at(yh, queries), p, ds, ds)
+ _at(yh, queries), p, ds, ds); ds[..., 64:, :] *= 1 + 1e-6

attention some queries | ops.attention.attention_backward
- matmul(dev, ds, _at(kh, keys), _at(dqh, queries))
+ matmul(dev, ds, _at(kh, keys), _at(dqh, queries)); dq *= 1 if len(dy.shape) < 4 else -1

conv stride | ops.conv.conv_backward
- add = accumulate or part.start > 0
+ add = accumulate

conv stride | ops.conv.conv_backward
- add = accumulate or part.start > 0
+ add = part.start > 0

conv stride, padding | ops.conv._parts
- for start in range(0, B, step)
+ for start in range(0, B - B % step, step)

conv | engine.row_kernels
- s] += high[
+ s] = high[

conv stride, padding | engine.row_kernels
- dx[...] = wide[:, :, p : p + W]
+ dx[...] = wide[:, :, :W]

conv even, padding | engine.row_kernels
- high[:, u : u + s * Ho : s] += columns[:, :, :, u]
+ high[:, u : u + s * Ho : s] = columns[:, :, :, u]

conv | ops.conv.conv_backward
- if dw is not None:
+ if dw is not None and db is not None:

maxpool | engine.row_kernels
- np.multiply(dy, which == n, out=cell)
+ np.multiply(dy, (which == n) * (1 + 1e-8), out=cell)

maxpool 3 | engine.row_kernels
- for n, cell in enumerate(cells(dx, k)):
+ for n, cell in enumerate(cells(dx, k)[:4]):

maxpool 3 | engine.row_kernels
- np.maximum(which, larger, out=which)
+ np.add(which, larger, out=which)

pair vgg | ops.conv.maxpool_tangent
- ydot = sum(cell * (which == n)
+ ydot = sum(cell * (which >= n)

avgpool | ops.conv.avgpool_backward
- share = dy * (1 / (h * w))
+ share = dy * (1 / (h * h))

avgpool 3 | ops.conv.avgpool_backward
- dev.xp.repeat(share, h, axis=1), w, axis=2)
+ dev.xp.repeat(share, h, axis=1), w, axis=2) * (1 + 1e-9)

two-layer square | models.mlp.TwoLayerNet.backward
- embedding_backward(dev, dh, tape["embed"], g["U"], accumulate)
+ embedding_backward(dev, dh, tape["embed"], g["U"])

two-layer batchnorm | models.mlp.TwoLayerNet.backward
- dgain, dshift, accumulate, dx=da)
+ dgain, dshift, dx=da)

two-layer eval | models.mlp.TwoLayerNet.backward
- da = batchnorm_backward(
+ tape["batchnorm"] = (*tape["batchnorm"][:3], 1 / len(a)); da = batchnorm_backward(

two-layer dropout | models.mlp.TwoLayerNet.backward
- if "dropout" in tape:
+ if "dropout" in tape and dh.ndim == 2:

two-layer gelu | models.mlp.TwoLayerNet.backward
- a = tape["hidden.post"]
+ a = tape["hidden.pre"]

two-layer four terms | ops.embedding._add_groups_host
- for s, group in enumerate(groups):
+ for s, group in enumerate(groups[:3]):

training four terms | engine.kernels
- np.multiply(k * _power(x, k - 1), dy, out=dx)
+ np.multiply(k * _power(x, min(k - 1, 2)), dy, out=dx)

two-layer stage | models.chain._backward
- if o.params:
+ if o.params and not print(end="") and (dy := dy * 2) is not None:

three-layer dropout | models.pairs.ThreeLayerNet.backward
- dh = dropout_backward(dev, dh, tape["dropout"], dx=dh)
+ pass

three-layer | models.pairs.ThreeLayerNet.backward
- {"U": g["U"], "W": g["V"]}, accumulate)
+ {"U": g["U"], "W": g["V"]})

two tokens | models.gpt.GPT.backward
- dlogits = dlogits * self.output_scale
+ pass

attention scale | ops.attention.attention_backward
- dq *= scale
+ dq *= 1 / math.sqrt(qh.shape[-1])

two tokens ensemble | models.block.norm_backward
- return dy
+ return 2 * dy

gpt rotary | models.block.Block.attention_sublayer_backward
- attention.rotary_backward(p.dev, dk, turned_k, dk)
+ pass

gpt rotary | models.block._add_at
- select = slice(None) if p.select is None else p.select
+ select = slice(None, None, 2) if p.select is not None else slice(None)

gpt rotary | models.block._add_at
- p.sequences(x)[..., select, :] += p.sequences(update)
+ pass

gpt learned | models.gpt.GPT.backward
- embedding_backward(dev, dh, tape["embed"], du, accumulate or self.tied)
+ embedding_backward(dev, dh, tape["embed"], du, accumulate)

gpt untied | models.gpt.GPT.backward
- embedding_backward(dev, dh, tape["embed"], du, accumulate or self.tied)
+ embedding_backward(dev, dh, tape["embed"], du, True)

gpt digits | models.gpt.GPT._positions_backward
- (("embed.position", -2), ("embed.digit", -3))
+ (("embed.position", -3), ("embed.digit", -2))

gpt digits | models.gpt.GPT._positions_backward
- g[name][...] = table.sum(axis=axis) + before
+ g[name][...] = table.sum(axis=axis)

gpt deep | models.gpt.GPT.backward
- out = run.buffer(f"d.full{i % 2}", every)
+ out = run.buffer("d.full", every)

gpt deep | models.gpt.GPT._computed_again
- before = tape[p.name + "in"]
+ before = tape["blocks.0.in"]

gpt deep | models.block.Block.attention_sublayer_backward
- _add_at(p, dx, dh)
+ _add_at(p._replace(select=None), dx, dh)

gpt ensemble | models.block._linear_parameters
- bias = source.get(p.name + name + ".bias")
+ bias = source.get(p.name + name + ".bias"); bias = bias if source is p.w else bias[:1]

gpt rotary | models.block.Block.mlp_sublayer_backward
- dh += norm_backward(p, "ln2", dz, ln2)
+ dh = norm_backward(p, "ln2", dz, ln2)

gpt stage | models.gpt.GPT.stages
- dh = rows(dy).copy()
+ dh = rows(dy)

gpt ensemble | models.gpt.GPT.backward
- matmul(dev, dlogits, x, g[self.output], ta=True, accumulate=accumulate)
+ matmul(dev, dlogits, x, g[self.output], ta=True)

chain post | models.chain.backward
- dy = dx + backward(p, o.way, p.w[o.name + ".mu"] * dy, way)
+ dy = dx + backward(p, o.way, dy, way)

chain resnet | models.chain.backward
- dx = backward(p, o.inner, dy, inner)
+ dx = backward(p, o.inner, dy, inner); dy = dy * (1 + 1e-9 * bool(way))

chain resnet | models.chain._take_backward
- dx[at] = dy
+ dx[at] = dy; dx[:, :1] *= 1 + 1e-9

chain resnet eval | models.chain._put_backward
- return dy[at]
+ return dy[at] * (1 if dy.ndim < 4 else 1 + 1e-9)

chain vit | models.chain._positions_backward
- linear.write_or_add(dy.sum(axis=0), dshift, accumulate)
+ linear.write_or_add(dy.sum(axis=0), dshift, False)

self_attention | ops.attention.self_attention_forward
- return attention_forward(dev, q.copy(), k, v, heads)
+ return attention_forward(dev, q, k, v, heads)

self_attention ensemble | ops.attention.self_attention_backward
- dx = dev.empty((*dy.shape[:-1], 3 * dy.shape[-1]))
+ dx = dev.empty((*dy.shape[:-1], 3 * dy.shape[-1])); dy = dy[:1] if dy.ndim > 3 else dy

pair vit | ops.attention.self_attention_tangent
- sdot = scale * matmul(dev, qdot, kh, tb=True) +
+ sdot = matmul(dev, qdot, kh, tb=True) +

pair vit | ops.attention.self_attention_pair
- z = matmul(dev, lamh, vdot, tb=True) + c * m
+ z = matmul(dev, lamh, vdot, tb=True) + c * matmul(dev, lamh, vh, tb=True)

log loss vit | ops.attention.self_attention_pair
- dv += matmul(dev, att * c, lamh, ta=True)
+ pass

square loss vit | ops.attention.self_attention_pair
- + scale * matmul(dev, ds, qdot, ta=True)
+ + matmul(dev, ds, qdot, ta=True)

chain batch eval | models.chain._backward
- options["accumulate"] = p.accumulate
+ options["accumulate"] = False

chain mixer | models.chain._swap_backward
- return dy.swapaxes(-1, -2)
+ return dy

chain mixer | models.chain._reshape_backward
- return dy.reshape(shape)
+ return dy.reshape(shape)[::-1]

pair resmlp | models.chain.pair
- around = pair(p, o.way, p.w[mu] * xbar, p.w[mu] * lam, way, way_dots)
+ around = pair(p, o.way, p.w[mu] * xbar, lam, way, way_dots)

pair resnet | models.chain.pair
- around = pair(p, o.way, p.w[mu] * xbar, p.w[mu] * lam, way, way_dots)
+ around = pair(p, (), p.w[mu] * xbar, p.w[mu] * lam, [], [])

log loss resmlp | models.chain.pair
- p.g[mu] += (xbar * s).sum() + (lam * sdot).sum()
+ p.g[mu] += (xbar * s).sum()

square loss resnet | models.chain.pair
- p.g[mu] += (xbar * s).sum() + (lam * sdot).sum()
+ p.g[mu] += (xbar * s).sum() + (lam * sdot).sum() * (0.99 if way else 1)

pair mixer | models.chain._upwards
- x = y + p.w[o.name + ".mu"] * s
+ x = y + p.w[o.name + ".mu"] * s if step is _forward else y

square loss vgg | models.chain._pair
- lam = _backward(replace(p, affine=False), o, lam, dot)
+ lam = _backward(p, o, lam, dot)

log loss batch | criticality.autoinit.jacobian_loss
- slope = dev.xp.log(J) / J
+ slope = dev.xp.log(J)

square loss post | criticality.autoinit._gradient
- above = p.dev.xp.zeros_like(xbar) if below else xbar
+ above = xbar

training table | training.objective.Objective._group_gradient
- accumulate=i > 0)
+ accumulate=i > 1)

training table | training.objective.Objective._add_slots
- np.add.reduce(part.reshape(-1, *view.shape), axis=0, out=view)
+ np.add.reduce(part.reshape(-1, *view.shape)[:3], axis=0, out=view)

training dropout | training.objective.Objective._pass
- mode = Mode(True, dropout, weight, shard.start, dev.workspace.get)
+ mode = Mode(True, dropout, weight, 0, dev.workspace.get)

training neurons | training.objective.Objective._gradient_by_neurons
- model.backward(dev, dz, tape, model.neurons(g, parts[i]))
+ model.backward(dev, dz, tape, model.neurons(g, parts[i - 1]))

training neurons | training.objective.Objective._gradient_by_neurons
- z += more
+ z += more; break

training sequences | training.objective._grouped
- return [group for group in groups if group]
+ return [group[:1] for group in groups if group]

training table | training.objective.Objective._pass
- loss, cache = self.loss_forward(dev, z, shard.target, weight, norm, out=z)
+ loss, cache = self.loss_forward(dev, z, shard.target, weight, None, out=z)
"""


def plants():
    """(case, path, right text, wrong text)"""
    for plant in PLANTS.strip().split("\n\n"):
        title, right, wrong = plant.split("\n")
        case, path = title.split(" | ")
        yield case, f"tinygrok.{path}", right.removeprefix("- "), wrong.removeprefix("+ ")


def codes(code: CodeType):
    """The code of a module and of everything that is defined in it, in one order."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


@functools.cache
def functions() -> list[FunctionType]:
    """Those of the library, wherever they are kept: in modules, classes, tables or closures."""
    found = [f for f in gc.get_objects() if type(f) is FunctionType]
    return [f for f in found if f.__globals__.get("__name__", "").startswith("tinygrok.")]


@contextmanager
def planted(path: str, right: str, wrong: str):
    """The text of a function or module with one place changed, in all functions made from it."""
    where = locate(path)
    module = where if isinstance(where, ModuleType) else sys.modules[where.__module__]
    text = inspect.getsource(where)
    assert text.count(right) == 1, f"{path} has {text.count(right)} times {right}"
    source = inspect.getsource(module)
    changed = source.replace(text, text.replace(right, wrong))
    assert changed != source
    before = codes(compile(source, module.__file__, "exec"))
    after = codes(compile(changed, module.__file__, "exec"))
    replacement = {a: b for a, b in zip(before, after, strict=True) if a != b}
    touched = [(f, f.__code__) for f in functions() if f.__code__ in replacement]
    assert touched
    try:
        for f, code in touched:
            f.__code__ = replacement[code]
        yield
    finally:
        for f, code in touched:
            f.__code__ = code


def caught(case: str) -> bool:
    """Whether the audit finds something wrong; an exception cannot be overlooked either."""
    try:
        with np.errstate(all="ignore"):
            return not all(row.passed for row in audit(BUILDERS[case](case)))
    except Exception:
        return True


@pytest.mark.parametrize(("case", "path", "right", "wrong"), [*plants()])
def test_the_audit_finds(case, path, right, wrong):
    with planted(path, right, wrong):
        assert caught(case)
    assert not caught(case)
