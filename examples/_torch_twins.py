"""The benchmark's steps in PyTorch, written the best way we know. Used by benchmark.py where
PyTorch is installed.

Every twin starts from our weights, and is compared with our loss and gradients before it is timed
(not where reference is None: in the process that measures memory). The functions return {name:
function that makes the step}."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

LR, BETAS = 0.01, (0.9, 0.98)


def setup(dev):
    """(put, leaf): host array -> tensor, or -> parameter, where and as precise as our own device
    computes."""
    torch.set_num_threads(dev.threads)
    torch.backends.cuda.matmul.allow_tf32 = dev.tf32
    target, dtype = "cuda" if dev.kind == "cuda" else "cpu", getattr(torch, dev.dtype.name)

    def put(x):
        x = torch.as_tensor(np.array(x))
        return x.to(target, dtype if x.is_floating_point() else None)

    return put, lambda x: torch.nn.Parameter(put(x))


def compared(w, loss, step, reference, tolerance=1e-2):
    """The step, after loss and gradients were compared with ours, tensor by tensor."""
    if reference is None:
        return step
    value = loss()
    value.sum().backward()
    np.testing.assert_allclose(value.detach().cpu().numpy(), reference[0], rtol=1e-4)
    for name, g in reference[
        1
    ].items():  # float32: one ReLU that flips at zero changes a few entries
        error = np.linalg.norm(w[name].grad.cpu().numpy().reshape(g.shape) - g) / np.linalg.norm(g)
        assert error < tolerance, f"gradient {name} differs from PyTorch's by {error:.1e}"
    return step


def stepper(loss, optimizer):
    """The usual step: backward of the loss, then the optimiser."""

    def step():
        optimizer.zero_grad()
        loss().sum().backward()
        optimizer.step()

    return step


def mlp(dev, weights, inputs, target, reference):
    """One-hot input as in the papers' code, and two embeddings; eager and compiled."""
    put, leaf = setup(dev)
    p = weights["U"].shape[1]
    a, b, y = map(put, (*inputs, target))
    onehot = torch.cat([F.one_hot(a, p), F.one_hot(b, p)], dim=1).to(getattr(torch, dev.dtype.name))
    labels = F.one_hot(y, p).to(onehot.dtype)

    def build(form, compiled):
        def parts(arrays):  # two tables, or one
            tables = (
                {"U": np.concatenate(arrays["U"])}
                if form == "one-hot"
                else {f"U{s}": arrays["U"][s] for s in (0, 1)}
            )
            return {name: x for name, x in arrays.items() if name != "U"} | tables

        w = {name: leaf(x) for name, x in parts(weights).items()}
        running = [put(np.full(len(weights["W"]), x)) for x in (0.0, 1.0)]

        def loss():
            h = (
                onehot @ w["U"]
                if form == "one-hot"
                else F.embedding(a, w["U0"]) + F.embedding(b, w["U1"])
            )
            h = h**2
            if "norm.gain" in w:
                h = F.batch_norm(h, *running, w["norm.gain"], w["norm.shift"], training=True)
            return F.mse_loss(h @ w["W"], labels)

        loss = torch.compile(loss) if compiled else loss
        optimizer = torch.optim.AdamW(w.values(), lr=LR, betas=BETAS, weight_decay=5.0, fused=True)
        return compared(
            w, loss, stepper(loss, optimizer), reference and (reference[0], parts(reference[1]))
        )

    forms = [(form, compiled) for form in ("one-hot", "embedding") for compiled in (False, True)]
    return {
        f"torch {form}{' compiled' * compiled}": partial(build, form, compiled)
        for form, compiled in forms
    }


def ensemble(dev, weights, data, decays, reference):
    """All members by torch.bmm (embeddings, eager and compiled; one-hot), and one after another."""
    put, leaf = setup(dev)
    E, S, p, N = weights["U"].shape
    rows = put(np.stack([n for n, _ in data]))  # (E, S, B)
    labels = F.one_hot(put(np.stack([y for _, y in data])), p).to(getattr(torch, dev.dtype.name))
    offset = put(np.arange(E * S).reshape(E, S, 1) * p)
    kept = put(1 - LR * np.array(decays))[:, None, None]

    def batched(onehot, compiled):
        w = {"U": leaf(weights["U"].reshape(E * S * p, N)), "W": leaf(weights["W"])}
        x = (
            torch.cat([F.one_hot(rows[:, s], p) for s in range(S)], dim=-1).to(labels.dtype)
            if onehot
            else None
        )

        def loss():
            if onehot:
                h = torch.bmm(x, w["U"].view(E, S * p, N))
            else:
                h = sum(F.embedding(rows[:, s] + offset[:, s], w["U"]) for s in range(S))
            return (torch.bmm(h**2, w["W"]) - labels).square().mean(dim=(1, 2))

        loss = torch.compile(loss) if compiled else loss
        optimizer = torch.optim.AdamW(w.values(), lr=LR, betas=BETAS, weight_decay=0.0, fused=True)
        plain = stepper(loss, optimizer)

        def step():
            with (
                torch.no_grad()
            ):  # a decay for each member, which AdamW's parameter groups do not offer
                w["U"].view(E, S * p, N).mul_(kept)
                w["W"].mul_(kept)
            plain()

        return compared(w, loss, step, reference)

    def one_by_one():
        w = [{"U": leaf(weights["U"][e]), "W": leaf(weights["W"][e])} for e in range(E)]
        groups = [
            {"params": list(m.values()), "weight_decay": decay}
            for m, decay in zip(w, decays, strict=True)
        ]
        optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)

        def loss(e):
            h = sum(F.embedding(rows[e, s], w[e]["U"][s]) for s in range(S))
            return F.mse_loss(h**2 @ w[e]["W"], labels[e])

        def step():
            optimizer.zero_grad()
            for e in range(E):
                loss(e).backward()
            optimizer.step()

        for e in range(E):
            mine = reference and (reference[0][e], {name: g[e] for name, g in reference[1].items()})
            compared(w[e], partial(loss, e), step, mine)
        return step

    return {
        "torch bmm": partial(batched, False, False),
        "torch bmm compiled": partial(batched, False, True),
        "torch bmm one-hot": partial(batched, True, False),
        "torch loop": one_by_one,
    }


def gpt(dev, net, weights, tokens, positions, reference):
    """The decoder with PyTorch's fused attention, logits at the positions that carry loss; eager
    and compiled."""
    put, leaf = setup(dev)
    H, D = net.heads, net.width // net.heads
    inputs = put(tokens[:, : positions[-1] + 1])
    T, at = inputs.shape[1], put(positions) if len(positions) < inputs.shape[1] else slice(None)
    targets = put(tokens[:, positions + 1]).reshape(-1)
    angles = np.arange(T)[:, None] * 10000.0 ** (-np.arange(0, D, 2) / D)
    cos, sin = put(np.cos(angles)), put(np.sin(angles))
    number, digit = put(np.arange(T) // net.digits), put(np.arange(T) % net.digits)
    activation = {"relu": F.relu, "gelu": F.gelu}[net.activation]

    def turn(x):
        u, v = x[..., 0::2], x[..., 1::2]
        return torch.stack((u * cos - v * sin, u * sin + v * cos), dim=-1).flatten(-2)

    def build(compiled):
        w = {name: leaf(x) for name, x in weights.items()}

        def norm(h, name):
            return F.layer_norm(h, h.shape[-1:], w[name + ".gain"], w.get(name + ".shift"))

        def linear(x, name):
            return F.linear(x, w[name + ".weight"].T, w.get(name + ".bias"))

        def loss():
            h = F.embedding(inputs, w["embed.token"])
            if "embed.position" in w:
                h = h + F.embedding(number, w["embed.position"])
            if "embed.digit" in w:
                h = h + F.embedding(digit, w["embed.digit"])
            for i in range(net.depth):
                b = f"blocks.{i}."
                q, k, v = (
                    linear(norm(h, b + "ln1"), b + "attn.qkv")
                    .unflatten(-1, (3, H, D))
                    .permute(2, 0, 3, 1, 4)
                )
                q, k = (turn(q), turn(k)) if net.positions == "rotary" else (q, k)
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                h = h + linear(y.transpose(1, 2).flatten(-2), b + "attn.out")
                h = h + linear(activation(linear(norm(h, b + "ln2"), b + "mlp.in")), b + "mlp.out")
            output = w["embed.token" if net.tied else "head"]
            return F.cross_entropy(F.linear(norm(h[:, at], "final"), output).flatten(0, 1), targets)

        loss = torch.compile(loss) if compiled else loss
        decayed = [
            [x for n, x in w.items() if (n in net.no_decay) == bare] for bare in (False, True)
        ]
        groups = [
            {"params": x, "weight_decay": wd}
            for x, wd in zip(decayed, (0.5, 0.0), strict=True)
            if x
        ]
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=BETAS, fused=True)
        return compared(w, loss, stepper(loss, optimizer), reference)

    return {"torch eager": partial(build, False), "torch compiled": partial(build, True)}


def optimizer(dev, weights, grads, expected):
    """AdamW fused and foreach; compared by the parameters after one step."""
    put, leaf = setup(dev)

    def build(**kind):
        w = {name: leaf(x) for name, x in weights.items()}
        for name, x in w.items():
            x.grad = put(grads[name])
        optimizer = torch.optim.AdamW(w.values(), lr=1e-3, betas=BETAS, weight_decay=0.5, **kind)
        optimizer.step()
        for name, x in w.items() if expected else ():
            np.testing.assert_allclose(
                x.detach().cpu().numpy(), expected[name], rtol=1e-5, atol=1e-6
            )
        return optimizer.step

    return {
        "torch fused": partial(build, fused=True),
        "torch foreach": partial(build, foreach=True),
    }
