"""Whether the paper's numbers may stand beside a run: in the settings of its figure only."""

from tinygrok import cli

# Flags that leave a figure what it is.
FREE = {"seed", "seeds", "log_every", "dtype", "animate"}


def in_its_setting(args, wanted):
    """Whether the settings of a run are those of other flags, but for the FREE ones."""
    here = cli.config(args)
    there = cli.config(wanted)
    return all(here[name] == there[name] for name in set(there) - FREE)
