"""Errors that a user can mend; examples print them as one line and end with exit code 2."""


class InputError(ValueError):
    """A value, file or device that cannot be used as asked; its message is one line that says why.

    >>> from tinygrok.engine.device import get_device
    >>> try:
    ...     get_device("cpu", threads=0)
    ... except InputError as error:
    ...     print(error)
    threads must be at least 1, not 0
    """


def one_line(x: object) -> str:
    """x as text, without line ends and control characters, cut after 200 characters."""
    text = " ".join(str(x).split())
    return "".join(filter(str.isprintable, text))[:200]
