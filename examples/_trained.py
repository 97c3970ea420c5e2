"""Opens what an example has trained, for the probes: one reader for all of them."""

import io
from contextlib import redirect_stderr
from pathlib import Path

from tinygrok import cli
from tinygrok.engine.errors import one_line
from tinygrok.training.checkpoint import CheckpointError, load_weights


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
    words = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        elif value is not None and value is not False:
            words.append(f"{flag}={value}")
    said = io.StringIO()
    args = None
    if settings.keys() <= known.keys():
        try:
            with redirect_stderr(said):
                args = example.arguments(words)
        except SystemExit:  # a flag that the parser refuses
            pass
    if args is None or any(getattr(args, name) != value for name, value in settings.items()):
        cause = one_line(said.getvalue()) or "its settings are others"
        raise CheckpointError(f"{path}: not of examples/{Path(example.__file__).name} ({cause})")
    return args
