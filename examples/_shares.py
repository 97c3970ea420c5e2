"""Shares on the command line: NAME=SHARE ..."""

from tinygrok.engine.errors import InputError


def shares(words):
    """["wrap=0.2", ...] -> {"wrap": 0.2, ...}"""
    found = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise InputError(f"{word!r} is not of the form NAME=SHARE") from None
    return found
