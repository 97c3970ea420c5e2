"""The benchmark's convolutional step and Jacobian estimator in PyTorch, for benchmark.py."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from _torch_twins import BETAS, compared, decayed, setup, stepper


def vgg(dev, weights, images, labels, plan, no_decay, reference):
    """Channels-first and channels-last layouts, and compiled."""
    put, leaf = setup(dev)
    x = put(images).permute(0, 3, 1, 2).contiguous()
    y = put(labels)

    def turned(arrays):
        """Our kernels are (k, k, in, out), PyTorch's (out, in, k, k)."""
        theirs = dict(arrays)
        for name, a in arrays.items():
            if a.ndim == 4:
                theirs[name] = a.transpose(3, 2, 0, 1)
        return theirs

    if reference is not None:
        reference = (reference[0], turned(reference[1]))

    def build(layout, compiled):
        w = {name: leaf(a) for name, a in turned(weights).items()}
        for p in w.values():
            own = layout if p.ndim == 4 else torch.contiguous_format
            p.data = p.data.contiguous(memory_format=own)
        inputs = x.contiguous(memory_format=layout)

        def loss():
            h = inputs
            i = 0
            for item in plan:
                if item == "M":
                    h = F.max_pool2d(h, 2)
                else:
                    kernel = w[f"conv.{i}.weight"]
                    h = F.relu(F.conv2d(h, kernel, w[f"conv.{i}.bias"], padding=1))
                    i += 1
            z = h.permute(0, 2, 3, 1).flatten(1) @ w["readout.weight"] + w["readout.bias"]
            return F.cross_entropy(z, y)

        loss = torch.compile(loss) if compiled else loss
        groups = decayed(w, no_decay)
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=BETAS, fused=True)
        return compared(w, loss, stepper(loss, optimizer), reference)

    return {
        "torch eager": partial(build, torch.contiguous_format, False),
        "torch channels last": partial(build, torch.channels_last, False),
        "torch compiled": partial(build, torch.channels_last, True),
    }


def apjn(dev, weights, x, depth, expected):
    """Gradients of all layers' outputs from one backward pass; a loop over networks, and bmm."""
    put, _ = setup(dev)
    E = len(weights)
    B = len(x)
    x = put(x)

    def stack(i, kind):
        return put(np.stack([w[f"hidden.{i}.{kind}"] for w in weights]))

    W = [stack(i, "weight") for i in range(depth)]
    b = [stack(i, "bias") for i in range(depth)]
    stream = [np.random.default_rng(e) for e in range(E)]

    def cotangent(generators):
        draws = [rng.standard_normal((B, x.shape[1])) for rng in generators]
        v = torch.stack([put(draw) for draw in draws])
        return v / v.norm(dim=-1, keepdim=True)

    def norms(members, v):
        h = [x.repeat(len(v), 1, 1).requires_grad_()]
        for i in range(depth):
            bias = b[i][members][:, None]
            h.append(torch.baddbmm(bias, F.relu(h[-1]), W[i][members]))
        grads = torch.autograd.grad(h[-1], h[:-1], v)
        return torch.stack([(g * g).sum(dim=(1, 2)) / B for g in grads], dim=1)

    def build(loop):
        parts = [slice(e, e + 1) for e in range(E)] if loop else [slice(None)]

        def step():
            return [norms(part, cotangent(stream[part])).cpu() for part in parts]

        if expected is not None:
            draws = [np.random.default_rng(e) for e in range(E)]
            found = torch.cat([norms(part, cotangent(draws[part])) for part in parts])
            found = found.cpu().numpy()
            np.testing.assert_allclose(found, expected[:, :-1], rtol=1e-2)  # a ReLU that flips
        return step

    return {"torch loop": partial(build, True), "torch bmm": partial(build, False)}
