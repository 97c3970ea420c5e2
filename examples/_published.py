"""The authors' networks, from their state dictionaries: weights, and no word of how they were
trained.

Depth, width, vocabulary and learned positions follow from the shapes. The rest are flags, with the
settings of the papers as defaults; what was taken is printed, and kept in run.json.
ablghtianyi/ICL_Modular_Arithmetic (RoPETransformer), dayal-kalra/transformer-prng (GPT)."""

import numpy as np
import predict_lcg
from _trained import flags_of, is_state_dict, open_state_dict, open_trained, refuse_pickle

from tinygrok import cli
from tinygrok.engine.rng import generator
from tinygrok.tasks import in_context as ic
from tinygrok.tasks import lcg
from tinygrok.tasks.modular import all_pairs

EXTRA = 18  # tokens besides 0..p-1 that no sequence holds: p itself, 10 operators, 7 hints
P = 29
SHOTS = 32
HEADS = {"in_context": 4, "fixed": 1, "unseen": 6}
TASKS = 64  # that are asked, where nobody knows which were held out
DRAWS = 64  # multipliers, and increments, of a test
INCLUDED = "those asked here are drawn by --seed, and it may have been trained on them"

IN_CONTEXT = {
    "p": {"type": cli.integer(3, 400), "help": f"modulus, a prime (default {P})"},
    "shots": {
        "type": cli.integer(2, 170),  # the authors' block size is 512
        "help": f"triples (x, y, z) in a sequence (default {SHOTS})",
    },
}
NUMBERS = {
    "mode": {
        "choices": ["fixed", "unseen"],
        "help": "one modulus, the vocabulary, or unseen ones (default fixed)",
    },
    "modulus": {
        "type": cli.integer(4, lcg.LARGEST_LIST),
        "help": "m to test (default: the vocabulary; if unseen: that over 1.2)",
    },
    "test_moduli": {
        "type": cli.integer(4, lcg.LARGEST_LIST),
        "nargs": "+",
        "help": "if unseen: further moduli to test",
    },
}
BOTH = {
    "heads": {
        "type": cli.integer(1, 10**4),
        "help": "attention heads (default: as in the papers, or by rotary frequencies)",
    },
    "activation": {
        "choices": ["relu", "gelu", "gelu_tanh"],
        "help": "default: as in the papers, relu, or gelu where there are biases",
    },
}


def add_flags(p, flags):
    """What a state dictionary does not tell: BOTH, and IN_CONTEXT or NUMBERS."""
    group = p.add_argument_group("the authors' state dictionaries, which hold weights alone")
    for name, options in (flags | BOTH).items():
        group.add_argument(cli.flag(name), **options)


def refuse_flags(args, why):
    """Refuse those flags where another file, or none, is opened."""
    for name in IN_CONTEXT | NUMBERS | BOTH:
        if getattr(args, name, None) is not None:
            raise cli.InputError(f"{cli.flag(name)} is for the authors' state dictionaries: {why}")


def checked(args):
    """The flags, where those are refused if no file is named: then ours is opened, or trained."""
    if args.checkpoint is None:
        refuse_flags(args, "name one")
    return args


def open_network(args, usual, example, build, published):
    """(flags, data, model, weights) of a file that an example wrote, or of a state dictionary.

    usual           the file, where none is named
    example, build  as in open_trained
    published       (path, args) -> the same of a state dictionary: in_context or numbers
    """
    path = args.checkpoint or usual
    refuse_pickle(path)
    if is_state_dict(path):
        return published(path, args)
    refuse_flags(args, f"{path} holds its own settings")
    return open_trained(path, example, build)


def note(path, args, model, found, unknown):
    """Keep in the flags what was found, and print which of it the file does not tell."""
    found |= {"heads": model.heads, "activation": model.activation}
    vars(args).update(found)
    words = " ".join(cli.words(found)).replace("=", " ")
    print(f"{path}: weights alone, taken as {words}\nnot known: {unknown}; {INCLUDED}")


# -- Learning to grok ------------------------------------------------------------------------------


def in_context(path, args):
    """(None, data, model, weights): tasks are random, and inputs all pairs."""
    p = args.p or P
    shots = args.shots or SHOTS
    model, weights = open_state_dict(path, args, HEADS["in_context"], 3 * shots)
    if model.positions != "rotary":
        raise cli.InputError(f"{path}: not rotary but {model.positions} positions (lcg_probe.py?)")
    if model.vocab not in (p, p + EXTRA):
        fitting = " or ".join(str(q) for q in (model.vocab - EXTRA, model.vocab) if q > 2)
        raise cli.InputError(
            f"{path}: --p {p} makes a vocabulary of {p}, or with the authors' other tokens of "
            f"{p + EXTRA}, but this one is {model.vocab}: that of --p {fitting}"
        )
    rng = generator(args.seed, "split")
    none = np.empty((0, 2), int)
    tasks = ic.random_tasks(p, min(TASKS, p * p), rng)
    data = ic.InContextData(p, shots, none, tasks, all_pairs(p), none)
    unknown = "which tasks were held out, and which inputs"
    note(path, args, model, {"p": p, "shots": shots}, unknown)
    return None, data, model, weights


# -- pseudo-random numbers -------------------------------------------------------------------------


def numbers(path, args):
    """(flags of predict_lcg.py, data, model, weights)"""
    mode = args.mode or "fixed"
    model, weights = open_state_dict(path, args, HEADS[mode])
    if model.positions == "digits":
        raise cli.InputError(f"{path}: a network of digits in base {model.vocab}, not of numbers")
    if model.positions != "learned":
        raise cli.InputError(f"{path}: {model.positions} positions, not learned ones")
    moduli = moduli_of(path, args, mode, model.vocab)
    settings = {"mode": mode, "modulus": moduli[0], "context": model.context}
    settings |= {"width": model.width, "depth": model.depth, "heads": model.heads}
    flags = flags_of(path, predict_lcg, settings | {"seed": args.seed})
    rng = generator(args.seed, "split")
    try:
        if mode == "fixed":
            data = lcg.fixed_modulus(moduli[0], model.context + 1, rng)
        else:
            data = unseen_moduli(moduli, model.context + 1, model.vocab, rng)
    except cli.InputError as error:
        raise cli.InputError(f"{path}, --mode {mode}: {error}") from error
    found = {"mode": mode, "modulus": moduli[0]}
    if mode == "unseen":
        found["test_moduli"] = moduli[1:]
    unknown = "which multipliers and increments" + (", and moduli" if mode == "unseen" else "")
    note(path, args, model, found, f"{unknown} were held out")
    return flags, data, model, weights


def moduli_of(path, args, mode, vocab):
    """Moduli to test, the main one first."""
    if mode == "fixed":
        if args.test_moduli:
            raise cli.InputError("--test-moduli needs --mode unseen")
        if args.modulus not in (None, vocab):
            raise cli.InputError(
                f"{path}: the modulus of a fixed one is the vocabulary, {vocab}, not {args.modulus}"
                " (--mode unseen for others)"
            )
        return [vocab]
    usual = (5 * vocab + 4) // 6  # the authors' vocabulary is the whole part of 1.2 m
    main = args.modulus or usual
    further = args.test_moduli or []
    if (main, args.test_moduli) == (lcg.PAPER_TEST_MODULI[0], None):
        further = lcg.PAPER_TEST_MODULI[1:]
    moduli = list(dict.fromkeys([main, *further]))
    if max(moduli) > vocab:
        raise cli.InputError(f"{path}: modulus {max(moduli)}, but the vocabulary is {vocab}")
    return moduli


def unseen_moduli(moduli, length, vocab, rng):
    """Tests on all of the moduli. In place of the training stream, of which heads are averaged:
    random sequences of every other modulus from `length` to the vocabulary."""
    tests = {}
    for m in moduli:
        a = lcg.draw_multipliers(m, DRAWS, rng, replace=True)
        c = lcg.draw_increments(m, DRAWS, rng, replace=True)
        tests[str(m)] = lcg.pair_grid(m, a, c)
    smallest = min(length, vocab // 2)
    others = np.setdiff1d(np.arange(smallest, vocab + 1), moduli)
    every = np.arange(1, vocab)[None]
    return lcg.LcgData(others, every, every, tests, length, vocab)
