"""The benchmark's convolutional step and Jacobian estimator in PyTorch. Used by benchmark.py where
PyTorch is installed."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from _torch_twins import BETAS, compared, setup, stepper


def vgg(dev, weights, images, labels, plan, no_decay, reference):
    """Channels-first and channels-last layouts, and compiled. Kernels of ours are (k, k, in,
    out)."""
    put, leaf = setup(dev)
    x, y = put(images).permute(0, 3, 1, 2).contiguous(), put(labels)
    ours = lambda g: g.transpose(3, 2, 0, 1) if g.ndim == 4 else g  # noqa: E731
    expected = reference and (reference[0], {name: ours(g) for name, g in reference[1].items()})

    def build(layout, compiled):
        w = {name: leaf(ours(a)) for name, a in weights.items()}
        for p in w.values():
            p.data = p.data.contiguous(
                memory_format=layout if p.ndim == 4 else torch.contiguous_format
            )
        inputs = x.contiguous(memory_format=layout)

        def loss():
            h, i = inputs, 0
            for item in plan:
                if item == "M":
                    h = F.max_pool2d(h, 2)
                else:
                    h, i = (
                        F.relu(F.conv2d(h, w[f"conv.{i}.weight"], w[f"conv.{i}.bias"], padding=1)),
                        i + 1,
                    )
            z = h.permute(0, 2, 3, 1).flatten(1) @ w["readout.weight"] + w["readout.bias"]
            return F.cross_entropy(z, y)

        loss = torch.compile(loss) if compiled else loss
        groups = [
            {
                "params": [p for n, p in w.items() if (n in no_decay) == bare],
                "weight_decay": 0.5 * (not bare),
            }
            for bare in (False, True)
        ]
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=BETAS, fused=True)
        return compared(w, loss, stepper(loss, optimizer), expected)

    return {
        "torch eager": partial(build, torch.contiguous_format, False),
        "torch channels last": partial(build, torch.channels_last, False),
        "torch compiled": partial(build, torch.channels_last, True),
    }


def apjn(dev, weights, x, depth, expected):
    """The same by autograd: gradients of every layer's output from one backward pass; a loop, and
    all networks by bmm."""
    put, _ = setup(dev)
    E, (B, _) = len(weights), x.shape
    x = put(x)
    stack = lambda name: put(np.stack([w[name] for w in weights]))  # noqa: E731
    W, b = ([stack(f"hidden.{i}.{kind}") for i in range(depth)] for kind in ("weight", "bias"))
    stream = [np.random.default_rng(e) for e in range(E)]

    def cotangent(generators):
        v = torch.stack([put(rng.standard_normal((B, x.shape[1]))) for rng in generators])
        return v / v.norm(dim=-1, keepdim=True)

    def norms(members, v):
        h = [x.repeat(len(v), 1, 1).requires_grad_()]
        for i in range(depth):
            h.append(torch.baddbmm(b[i][members][:, None], F.relu(h[-1]), W[i][members]))
        grads = torch.autograd.grad(h[-1], h[:-1], v)
        return torch.stack([(g * g).sum(dim=(1, 2)) / B for g in grads], dim=1)

    def build(loop):
        parts = [slice(e, e + 1) for e in range(E)] if loop else [slice(None)]

        def step():
            return [norms(part, cotangent(stream[part])).cpu() for part in parts]

        if expected is not None:
            draws = [np.random.default_rng(e) for e in range(E)]
            found = torch.cat([norms(part, cotangent(draws[part])) for part in parts]).cpu().numpy()
            np.testing.assert_allclose(found, expected[:, :-1], rtol=1e-2)  # a ReLU that flips
        return step

    return {"torch loop": partial(build, True), "torch bmm": partial(build, False)}
