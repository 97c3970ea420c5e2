"""What ground_truth.py writes and reads: truth.json, a .safetensors file, a figure, claims."""

import json
import struct
from pathlib import Path

import numpy as np
from _ground_truth import is_mirror, wrapped
from _ground_truth_faults import KINDS

from tinygrok.disk.writer import atomic_write
from tinygrok.engine.errors import InputError
from tinygrok.models.interop import to_torch_state_dict
from tinygrok.probes.fourier import spectrum

CONVENTION = {
    "network": "logits[q] = sum over k of W[k, q] (U[0, n1, k] + U[1, n2, k])^2",
    "U[0, n, k]": "amplitude[0] cos(2 pi frequency n / p + phase[0])",
    "U[1, n, k]": "amplitude[1] cos(2 pi frequency n / p + phase[1])",
    "W[k, q]": "amplitude[2] cos(2 pi frequency q / p + phase[2])",
    "ranges": "0 <= frequency <= p/2, amplitude >= 0, -pi < phase <= pi; null where there is none",
    "mirror": "frequency 0, and p/2 of an even p: only cosines, so phase is 0 or pi",
    "wave": "phase[2] = phase[0] + phase[1] mod 2 pi",
    "dead": "all neurons of a frequency: inputs as they were, W[k] = 0",
    "flipped": "phase[2] = phase[0] + phase[1] + pi: W[k] has the opposite sign",
    "memorises": "two neurons: U[0, a] = c and c, U[1, b] = c and -c, W = c (answer - right class)"
    " and the opposite; 0 elsewhere",
    "changed": "n1, n2, answer before, answer after; the first 1000",
}
EXACT = (
    "sum over frequencies f of w_f cos(2 pi f d / p), d = n1 + n2 - q, w_f = 2/p,"
    " or 1/p where 2 f = 0 mod p"
)
LOGITS = {
    "exact": EXACT,
    "equal": "sum over frequencies f of w_f cos(2 pi f d / p) (1 + cos(2 pi f (n1 - n2) / p)),"
    " d = n1 + n2 - q, w_f = 2/p; of f = 0 only 1/p",
    "random": "sum over N neurons of (1/N) cos(2 pi f d / p), d = n1 + n2 - q, and terms that"
    " depend on the phases: noise of variance 4/N in a wrong logit",
    "lattice": EXACT,
}


def neuron_rows(truth):
    """The neurons of truth.json."""
    rows = []
    for k, role in enumerate(truth.role):
        wave = truth.frequency[k] >= 0
        row = {
            "neuron": k,
            "role": str(role),
            "frequency": int(truth.frequency[k]) if wave else None,
            "amplitude": truth.amplitude[:, k] if wave else None,
            "phase": truth.phase[:, k] if wave else None,
        }
        rows.append(row)
    return rows


def save_safetensors(path: Path, model, weights):
    """The state dict of the plain PyTorch module: the length of a JSON header in 8 bytes, the
    header {name: dtype, shape, first and last byte}, the bytes of all arrays."""
    state = to_torch_state_dict(model, weights)
    header = {"__metadata__": {"format": "pt"}}
    chunks = []
    end = 0
    for name, x in state.items():
        data = x.astype(x.dtype.newbyteorder("<")).tobytes()
        kind = f"F{8 * x.itemsize}"
        offsets = [end, end + len(data)]
        header[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": offsets}
        chunks.append(data)
        end += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    whole = b"".join([struct.pack("<Q", len(text)), text, *chunks])
    atomic_write(path, lambda file: file.write(whole))


# -- a claim against the truth ---------------------------------------------------------------------


def read_json(path: Path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def fault_keys(record):
    """{(kind, what)}: the frequency of a dead one, the neuron of a flipped one, the pair of a
    memorised one."""
    keys = set()
    for fault in record.get("faults", []):
        kind = fault["kind"]
        if kind not in KINDS:
            raise ValueError(f"no kind of fault is called {kind!r}")
        if kind == "dead":
            what = int(fault["frequency"])
        elif kind == "flipped":
            what = int(fault["neurons"][0])
        else:
            what = tuple(int(x) for x in fault["pair"])
        keys.add((kind, what))
    return keys


def neuron_claims(record, p, width):
    """{neuron: (role, frequency, phase (3,))} of a claim: nan and None where it says nothing.

    A frequency above p/2 is told as p - f, with the opposite phases."""
    claims = {}
    for row in record.get("neurons", []):
        k = int(row["neuron"])
        if not 0 <= k < width or k in claims:
            raise ValueError(f"neuron {k} is not there, or there twice")
        frequency = row.get("frequency")
        phase = np.array(row.get("phase") or [None] * 3, dtype=float)
        if phase.shape != (3,):
            raise ValueError(f"neuron {k} has {phase.size} phases, not 3")
        if frequency is not None and 2 * frequency > p:
            frequency = p - frequency
            phase = -phase
        claims[k] = (row.get("role"), frequency, phase)
    return claims


def score(claim_path: Path, truth_path: Path, tolerance):
    """How much of truth.json a claim of the same form gets right.

    roles         share of all neurons
    frequencies   share of the neurons that have one
    phases        share of the phases that there are, within the tolerance in radians
    precision, recall   of the faults named: None where none is"""
    truth = read_json(truth_path)
    claim = read_json(claim_path)
    try:
        p = truth["p"]
        width = truth["width"]
        answers = neuron_claims(truth, p, width)
        claims = neuron_claims(claim, p, width)
        planted = fault_keys(truth)
        named = fault_keys(claim)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{claim_path} is no claim of the form of truth.json ({what})") from error
    roles = []
    frequencies = []
    phases = []
    for k, (role, frequency, phase) in answers.items():
        said = claims.get(k, (None, None, np.full(3, np.nan)))
        roles.append(said[0] == role)
        if frequency is None:
            continue
        frequencies.append(said[1] == frequency)
        told = ~np.isnan(phase)
        near = np.abs(wrapped(said[2] - phase)) <= tolerance  # nan is not near
        phases += (near & frequencies[-1])[told].tolist()
    found = len(planted & named)
    return {
        "p": p,
        "neurons": width,
        "roles": float(np.mean(roles)),
        "frequencies": float(np.mean(frequencies)),
        "phases": float(np.mean(phases)),
        "faults_planted": len(planted),
        "faults_named": len(named),
        "faults_found": found,
        "precision": found / len(named) if named else None,
        "recall": found / len(planted) if planted else None,
    }


# -- the figure ------------------------------------------------------------------------------------


def draw(path: Path, p, weights, truth, found, faults, margin):
    """Power by frequency, the phase relation, and the answers, with the planted faults marked."""
    from tinygrok.plots.colors import ORANGE, TEST, TRAIN
    from tinygrok.plots.style import figure, image, label, save

    fig = figure(7, 6.6)
    top, bottom = fig.subfigures(2, 1, height_ratios=(1, 1.15))
    ax = top.subplots()
    left, right = bottom.subplots(1, 2)
    inputs = (spectrum(weights["U"], axis=1) ** 2).sum(axis=(0, 2))
    outputs = (spectrum(weights["W"]) ** 2).sum(axis=0)
    f = np.arange(p // 2 + 1)
    ax.bar(f - 0.2, inputs, 0.4, color=TRAIN, label="U, inputs")
    ax.bar(f + 0.2, outputs, 0.4, color=TEST, label="W, read-out")
    height = max(inputs.max(), outputs.max())
    for kind, marker in (("dead", "kx"), ("flipped", "kv")):
        at = [fault["frequency"] for fault in faults if fault["kind"] == kind]
        if at:
            ax.plot(at, np.full(len(at), height * 1.07), marker, ms=6, label=f"{kind}, planted")
    title = f"power of all {len(weights['W'])} neurons by frequency"
    ax.set(title=title, xlabel="frequency", ylabel="|rfft|^2", ylim=(0, height * 1.3))
    ax.legend(frameon=False, fontsize=9, ncol=4, loc="upper center")

    turn = found.phase[2] - found.phase[0] - found.phase[1]
    relation = wrapped(turn - 1e-6)  # what is pi but for rounding is drawn at pi
    for role, color, marker in (("wave", TEST, "."), ("flipped", ORANGE, "v")):
        those = (truth.role == role) & ~is_mirror(found.frequency, p)
        where = found.frequency[those]
        left.plot(where, relation[those], marker, color=color, label=role)
    ticks = {"yticks": [-np.pi, 0, np.pi], "yticklabels": ["-pi", "0", "pi"]}
    label(left, 8, title="psi_W - psi_1 - psi_2, fitted", xlabel="frequency", **ticks)
    left.set(xlim=ax.get_xlim(), ylim=(-3.6, 3.6))

    largest = np.abs(margin).max()
    style = {"cmap": "RdBu", "vmin": -largest, "vmax": largest, "origin": "lower"}
    pairs = [fault["pair"] for fault in faults if fault["kind"] == "memorises"]
    title = "margin of the right answer" + ("; circles: memorised" if pairs else "")
    drawn = image(right, margin, style, title=title, xlabel="n2")
    right.set_ylabel("n1")
    bottom.colorbar(drawn, ax=right)
    for a, b in pairs:
        right.plot(b, a, "o", ms=11, mfc="none", color="k")
    save(fig, path)
