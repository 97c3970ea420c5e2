"""The benchmark's steps in PyTorch, written the best way we know, for benchmark.py.

Every twin starts from our weights, and is compared with our loss and gradients before it is timed
(not where reference is None: in the process that measures memory). The functions return {name:
function that makes the step}."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

LR = 0.01
BETAS = (0.9, 0.98)


def setup(dev):
    """(put, leaf): host array -> tensor, or -> parameter, where and as precise as ours."""
    torch.set_num_threads(dev.threads)
    torch.backends.cuda.matmul.allow_tf32 = dev.tf32
    target = "cuda" if dev.kind == "cuda" else "cpu"
    dtype = getattr(torch, dev.dtype.name)

    def put(x):
        x = torch.as_tensor(np.array(x))
        return x.to(target, dtype if x.is_floating_point() else None)

    def leaf(x):
        return torch.nn.Parameter(put(x))

    return put, leaf


def compared(w, loss, step, reference, tolerance=1e-2):
    """The step, after loss and gradients were compared with ours, tensor by tensor."""
    if reference is None:
        return step
    our_loss, our_gradients = reference
    value = loss()
    value.sum().backward()
    np.testing.assert_allclose(value.detach().cpu().numpy(), our_loss, rtol=1e-4)
    for name, ours in our_gradients.items():
        theirs = w[name].grad.cpu().numpy().reshape(ours.shape)
        error = np.linalg.norm(theirs - ours) / np.linalg.norm(ours)
        # float32: one ReLU that flips at zero changes a few entries
        assert error < tolerance, f"gradient {name} differs from PyTorch's by {error:.1e}"
    return step


def stepper(loss, optimizer):
    """The usual step: backward of the loss, then the optimiser."""

    def step():
        optimizer.zero_grad()
        loss().sum().backward()
        optimizer.step()

    return step


def decayed(w, no_decay):
    """AdamW's parameter groups: weight decay 0.5, and none for the names in no_decay."""
    groups = []
    for decay, bare in ((0.5, False), (0.0, True)):
        params = [x for name, x in w.items() if (name in no_decay) == bare]
        if params:
            groups.append({"params": params, "weight_decay": decay})
    return groups


def mlp(dev, weights, inputs, target, reference):
    """One-hot input as in the papers' code, and two embeddings; eager and compiled."""
    put, leaf = setup(dev)
    p = weights["U"].shape[1]
    a, b, y = map(put, (*inputs, target))
    dtype = getattr(torch, dev.dtype.name)
    columns = [F.one_hot(a, p), F.one_hot(b, p)]
    onehot = torch.cat(columns, dim=1).to(dtype)
    labels = F.one_hot(y, p).to(dtype)

    def tables(arrays, form):
        """The first layer as one matrix, or as two tables."""
        rest = {name: x for name, x in arrays.items() if name != "U"}
        if form == "one-hot":
            return rest | {"U": np.concatenate(arrays["U"])}
        return rest | {"U0": arrays["U"][0], "U1": arrays["U"][1]}

    def build(form, compiled):
        w = {name: leaf(x) for name, x in tables(weights, form).items()}
        running = [put(np.full(len(weights["W"]), x)) for x in (0.0, 1.0)]

        def loss():
            if form == "one-hot":
                h = onehot @ w["U"]
            else:
                h = F.embedding(a, w["U0"]) + F.embedding(b, w["U1"])
            h = h**2
            if "norm.gain" in w:
                h = F.batch_norm(h, *running, w["norm.gain"], w["norm.shift"], training=True)
            return F.mse_loss(h @ w["W"], labels)

        loss = torch.compile(loss) if compiled else loss
        optimizer = torch.optim.AdamW(w.values(), lr=LR, betas=BETAS, weight_decay=5.0, fused=True)
        ours = reference
        if reference is not None:
            ours = (reference[0], tables(reference[1], form))
        return compared(w, loss, stepper(loss, optimizer), ours)

    candidates = {}
    for form in ("one-hot", "embedding"):
        candidates[f"torch {form}"] = partial(build, form, False)
        candidates[f"torch {form} compiled"] = partial(build, form, True)
    return candidates


def ensemble(dev, weights, data, decays, reference):
    """All members by torch.bmm (embeddings, eager and compiled; one-hot), and one after another."""
    put, leaf = setup(dev)
    E, S, p, N = weights["U"].shape
    rows = put(np.stack([n for n, _ in data]))  # (E, S, B)
    targets = put(np.stack([y for _, y in data]))
    labels = F.one_hot(targets, p).to(getattr(torch, dev.dtype.name))
    offset = put(np.arange(E * S).reshape(E, S, 1) * p)
    kept = put(1 - LR * np.array(decays))[:, None, None]

    def batched(onehot, compiled):
        w = {"U": leaf(weights["U"].reshape(E * S * p, N)), "W": leaf(weights["W"])}
        if onehot:
            columns = [F.one_hot(rows[:, s], p) for s in range(S)]
            x = torch.cat(columns, dim=-1).to(labels.dtype)

        def loss():
            if onehot:
                h = torch.bmm(x, w["U"].view(E, S * p, N))
            else:
                h = sum(F.embedding(rows[:, s] + offset[:, s], w["U"]) for s in range(S))
            error = torch.bmm(h**2, w["W"]) - labels
            return error.square().mean(dim=(1, 2))

        loss = torch.compile(loss) if compiled else loss
        optimizer = torch.optim.AdamW(w.values(), lr=LR, betas=BETAS, weight_decay=0.0, fused=True)
        plain = stepper(loss, optimizer)

        def step():
            # A decay for each member, which AdamW's parameter groups do not offer.
            with torch.no_grad():
                w["U"].view(E, S * p, N).mul_(kept)
                w["W"].mul_(kept)
            plain()

        return compared(w, loss, step, reference)

    def one_by_one():
        members = []
        for e in range(E):
            members.append({name: leaf(x[e]) for name, x in weights.items()})
        groups = []
        for w, decay in zip(members, decays, strict=True):
            groups.append({"params": list(w.values()), "weight_decay": decay})
        optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)

        def loss(e):
            h = sum(F.embedding(rows[e, s], members[e]["U"][s]) for s in range(S))
            return F.mse_loss(h**2 @ members[e]["W"], labels[e])

        def step():
            optimizer.zero_grad()
            for e in range(E):
                loss(e).backward()
            optimizer.step()

        for e, w in enumerate(members):
            ours = reference
            if reference is not None:
                losses, gradients = reference
                ours = (losses[e], {name: g[e] for name, g in gradients.items()})
            compared(w, partial(loss, e), step, ours)
        return step

    return {
        "torch bmm": partial(batched, False, False),
        "torch bmm compiled": partial(batched, False, True),
        "torch bmm one-hot": partial(batched, True, False),
        "torch loop": one_by_one,
    }


def optimizer(dev, weights, grads, expected):
    """AdamW fused and foreach; compared by the parameters after one step."""
    put, leaf = setup(dev)

    def build(**kind):
        w = {name: leaf(x) for name, x in weights.items()}
        for name, x in w.items():
            x.grad = put(grads[name])
        optimizer = torch.optim.AdamW(w.values(), lr=1e-3, betas=BETAS, weight_decay=0.5, **kind)
        optimizer.step()
        if expected is not None:
            for name, x in w.items():
                theirs = x.detach().cpu().numpy()
                np.testing.assert_allclose(theirs, expected[name], rtol=1e-5, atol=1e-6)
        return optimizer.step

    return {
        "torch fused": partial(build, fused=True),
        "torch foreach": partial(build, foreach=True),
    }
