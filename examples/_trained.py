"""Opens networks for the probes, one reader for all: what an example has trained, by its settings,
or a state dictionary in the authors' names (models/interop.py), which holds weights alone.

A .pth file is a pickle, which could run anything: it is refused. Two lines, where PyTorch is, make
a .npz of it (CONVERSION)."""

import io
import zipfile
from contextlib import redirect_stderr, suppress
from pathlib import Path

from tinygrok import cli
from tinygrok.disk.reader import open_arrays, open_file, refused
from tinygrok.engine.errors import InputError, one_line
from tinygrok.models.gpt import GPT
from tinygrok.models.interop import from_torch_state_dict
from tinygrok.training.checkpoint import CheckpointError, load_weights

CONVERSION = (
    "state = torch.load({0!r}, map_location='cpu', weights_only=True); "
    "numpy.savez({1!r}, **state.get('model_state_dict', state))"
)


# -- what an example wrote -------------------------------------------------------------------------


def open_trained(path, example, build):
    """(flags, data, model, weights) of a file that an example wrote.

    example  its module
    build    flags -> (data, model), which may refuse them
    Raises InputError where the settings in the file are no flags of the example, or the weights not
    those of the network that they describe; known before the weights are read.
    """
    built = []

    def shapes(settings, headers):
        args = flags_of(path, example, settings)
        if args.depth > len(headers):
            raise CheckpointError(f"{path}: {len(headers)} arrays are not {args.depth} blocks")
        built.extend([args, *build(args)])
        return built[-1].shapes

    _, weights = load_weights(path, shapes)
    return *built, weights


def flags_of(path, example, settings):
    """The flags of an example from the settings of a run, by its own parser."""
    known = cli.config(example.arguments([]))
    said = io.StringIO()
    args = None
    if settings.keys() <= known.keys():
        try:
            with redirect_stderr(said):
                args = example.arguments(cli.words(settings))
        except SystemExit:  # a flag that the parser refuses
            pass
    if args is None or any(getattr(args, name) != value for name, value in settings.items()):
        cause = one_line(said.getvalue()) or "its settings are others"
        raise CheckpointError(f"{path}: not of examples/{Path(example.__file__).name} ({cause})")
    return args


# -- state dictionaries ----------------------------------------------------------------------------


def refuse_pickle(path):
    """Refuse what torch.save writes, whatever its name: an archive with a data.pkl, or, by old
    versions, a bare pickle. Nothing of it is read."""
    with refused(path), open_file(path) as file:
        first = file.read(9)
        members = zipfile.ZipFile(file).namelist() if zipfile.is_zipfile(file) else []
    bare = first[:1] == b"\x80" and first[8:] != b"{"  # of .safetensors byte 8 opens the header
    named = path.suffix.lower() in (".pt", ".pth") and not members
    if bare or named or any(name.endswith("data.pkl") for name in members):
        lines = CONVERSION.format(path.name, path.with_suffix(".npz").name)
        raise InputError(
            f"{path}: a pickle of PyTorch, which is never loaded here; first make a .npz of it: "
            f"import numpy, torch; {lines}"
        )


def is_state_dict(path):
    """Whether a file holds weights alone: what examples write has its settings beside them."""
    if path.suffix.lower() == ".safetensors":
        return True
    with suppress(InputError), refused(path), open_arrays(path) as (headers, _):
        return "meta" not in headers
    return False  # damaged: load_weights says how


def open_state_dict(path, args, heads, context=None):
    """(decoder, its weights) of a state dictionary.

    heads    of a file without rotary frequencies, where --heads is not given
    context  with rotary positions: the longest sequence
    """
    with refused(path), open_arrays(path) as (headers, read):
        state = {name: read(name) for name in headers}
    told = any(name.endswith(".rotary_emb.freqs") for name in state)
    given = None if told else args.heads or heads
    try:
        model, weights = from_torch_state_dict(state, given, args.activation, context)
        if not isinstance(model, GPT):
            raise InputError("a two-layer network (fc1, fc2), not a decoder")
        if args.heads not in (None, model.heads):
            raise InputError(f"its rotary frequencies are of {model.heads} heads, not {args.heads}")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return model, weights
