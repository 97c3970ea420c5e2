"""Shares on the command line: NAME=SHARE ..."""

from _moving_shares import MovingShares

from tinygrok.engine.errors import InputError


def shares(words, flag):
    """["wrap=0.2", ...] -> {"wrap": 0.2, ...}, refused by the flag that they are of"""
    found = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            share = float(value)
        except ValueError:
            raise InputError(f"{flag}: {word!r} is not of the form NAME=SHARE") from None
        if name in found:
            raise InputError(f"{flag}: {name} is there twice")
        found[name] = share
    return found


def moving_shares(kinds, start, end, ramp):
    """MovingShares of some kinds; start, end: (flag, its words). Refusals name the flag."""
    both = []
    for flag, words in (start, end):
        found = shares(words, flag)
        refused_by(flag, MovingShares, kinds, found, found, (0, 1))
        both.append(found)
    return refused_by("--ramp", MovingShares, kinds, *both, ramp)


def refused_by(flag, function, *arguments):
    """What a function returns; its refusal names the flag."""
    try:
        return function(*arguments)
    except InputError as error:
        raise InputError(f"{flag}: {error}") from None
