"""Whether what the flags ask for fits into memory: told by one line, before any of it is made.

An estimate counts what grows with the flags. It is within a factor of two of what a run takes
(tests/test_memory.py measures), mostly below, so that little is refused that would run."""

import math
import resource
from pathlib import Path

from tinygrok.engine.errors import InputError
from tinygrok.models.gpt import GPT
from tinygrok.training.batches import GROUPS, TABLE_SHARD_BYTES, TOKEN_SHARD_BYTES

DRAWN = 8  # bytes of a weight that is drawn, on the host, or of an integer there


def free(dev) -> float:
    """Bytes of the device that can be had; infinity where no one knows."""
    if dev.kind == "cuda":
        return dev.xp.cuda.runtime.memGetInfo()[0]
    known = [math.inf]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                known.append(1024 * int(line.split()[1]))
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return math.inf  # not Linux
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)  # ulimit -v
    if allowed != resource.RLIM_INFINITY:
        known.append(allowed - taken)
    return min(known)


def require(dev, **parts: float) -> None:
    """Refuse what does not fit. parts: bytes by what takes them."""
    needed = sum(parts.values())
    there = free(dev)
    if needed > there:
        largest = max(parts, key=lambda name: parts[name])
        most = f"{gigabytes(parts[largest])} GB for {largest.replace('_', ' ')}"
        raise InputError(
            f"this needs about {gigabytes(needed)} GB of memory ({most}), "
            f"and {gigabytes(there)} GB are free"
        )


def gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f}" if count < 1e11 else f"{count / 1e9:,.0f}"


def weights(dev, size: int, members: int = 1, shards: float = 1) -> float:
    """Bytes of `size` parameters of every member: weights, gradients, two moments.

    On a CPU gradients of groups of shards are added up; while weights are drawn there are two
    arrays more of one member."""
    itemsize = dev.dtype.itemsize
    trained = 4 * itemsize * members * size
    if dev.kind == "cuda":
        return trained
    added = itemsize * size * (GROUPS if shards > 1 else 0)
    drawn = DRAWN * size + itemsize * members * size
    return max(trained + added, drawn)


def rows_at_once(dev, rows: int, wanted: float) -> int:
    """Rows that are in work at a time, of a batch cut into about the wanted number of shards."""
    if dev.kind == "cuda":
        return rows
    shards = min(rows, max(wanted, 2 if wanted > 1 else 1))
    return min(rows, dev.threads * math.ceil(rows / shards))


def table(
    dev, p: int, width: int, members: int = 1, terms: int = 2, size: int = 0, activations: int = 0
) -> dict[str, float]:
    """Parts of a network on the table of a modulus, by default of two layers.

    size, activations: its parameters, and what a row takes besides logits"""
    rows = p**terms
    size = size or (terms + 1) * p * width
    activations = activations or 3 * width
    shards = rows * width * dev.dtype.itemsize / TABLE_SHARD_BYTES[dev.kind]
    together = members if dev.kind == "cuda" else 1
    at_once = rows_at_once(dev, rows, shards) * together
    return {
        "weights": weights(dev, size, members, shards),
        "activations": dev.dtype.itemsize * at_once * (activations + 2 * p),
        # inputs, labels, masks, predictions and losses
        "the_table": rows * DRAWN * 5 * (terms + members),
    }


def labels(dev, args) -> dict[str, float]:
    """Parts of corrupted_labels.py: networks and a control, and spectra of their weights."""
    networks = args.seeds + 1
    spectra = DRAWN * 3 * args.p * args.width * networks
    return {**table(dev, args.p, args.width, networks), "spectra": spectra}


def step(dev, args) -> dict[str, float]:
    """Parts of benchmark.py on modular arithmetic."""
    several = args.scaling or args.workload in ("ensemble", "all")
    return table(dev, args.p, args.width, 25 if several else 1)


def gpt(dev, net, batch: int, sequences: int = 0) -> dict[str, float]:
    """Parts of a GPT: batch sequences a step, and others that are measured."""
    itemsize = dev.dtype.itemsize
    C = net.width
    T = net.context
    widest = T * 4 * C * itemsize  # bytes of a sequence
    shards = batch * widest / TOKEN_SHARD_BYTES[dev.kind]
    at_once = rows_at_once(dev, batch, shards)
    kept = 1 if net.recompute else net.depth
    block = 10 * C + net.heads * T / 2  # queries, keys, values, MLP; attention to earlier ones
    of_a_token = kept * block + net.depth * C * net.recompute + 10 * C + net.vocab
    if dev.kind == "cuda":
        of_a_token /= 2  # not measured on one: rather too little
    return {
        "weights": weights(dev, net.size, 1, shards),
        "activations": itemsize * at_once * T * of_a_token,
        "sequences": DRAWN * T * (batch + 4 * sequences),
    }


MOST_UNSEEN = 2**17  # candidates are factored one by one: seconds


def numbers(dev, args, at_once: int = 1) -> dict[str, float]:
    """Parts of predict_lcg.py with its flags, or of several runs at once; refuses unseen moduli
    whose candidates take too long."""
    if args.mode == "unseen" and args.modulus > MOST_UNSEEN:
        raise InputError(f"--modulus: at most {MOST_UNSEEN} with --mode unseen")
    digits = 1
    while args.base and args.base**digits < args.modulus:
        digits += 1
    vocab = args.base or args.modulus
    tested = args.test_rows
    if args.generator != "lcg":
        vocab = 2**args.keep_bits
    elif args.mixture and args.mode == "unseen":
        vocab = args.moduli[1]
        tested *= 2 * len(args.test_moduli) + 1  # two sets a modulus, and what it trains on
    context = args.context * digits
    size = (vocab, args.width, args.depth, args.heads, context)
    parts = gpt(dev, GPT.numbers(*size, recompute=args.recompute), args.batch, tested)
    if args.base is None and args.generator == "lcg":
        parts["multipliers_and_increments"] = 4 * DRAWN * vocab
    parts["pairs_of_tests"] = 3 * DRAWN * args.test_draws**2
    if args.mode == "unseen":
        parts["pools"] = 6 * DRAWN * args.train_moduli * args.pool
    return {name: at_once * bytes for name, bytes in parts.items()}


def propagation(dev, args) -> dict[str, float]:
    """Parts of critical_init.py, a network a thread: weights as drawn and on the device, what
    backward reads."""
    batch = args.batch or (512 if args.norm == "batch" else 8)
    at_once = min(dev.threads, args.networks)
    size = args.depth * args.width**2
    itemsize = dev.dtype.itemsize
    return {
        "weights": at_once * size * (DRAWN + itemsize),
        "activations": at_once * args.depth * batch * args.width * 2 * itemsize,
    }


def images(dev, args, net, image: tuple[int, int, int]) -> dict[str, float]:
    """Parts of autoinit.py: four initialisations a seed on the host, one network in training, and
    in the tuning, of every block, its output and two arrays a probe."""
    H, W, _ = image
    outputs = args.depth * args.width  # of an image
    if args.model.startswith("vgg"):
        outputs = 4 * H * W * args.width  # half as many after every halving of the sides
    elif args.model in ("resmlp", "mixer"):
        outputs *= 2 * (H // args.patch) * (W // args.patch) if args.patch else 2 * 16
    size = sum(math.prod(shape) for shape in net.shapes.values())
    tuned = args.tune_batch * (2 + 2 * max(64, args.probes))  # 64 when J is reported
    return {
        "weights": 4 * DRAWN * args.seeds * size + weights(dev, size),
        "activations": dev.dtype.itemsize * outputs * max(tuned, 2 * args.batch),
    }
