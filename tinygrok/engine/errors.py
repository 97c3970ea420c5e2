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


def require_known(name, names, what: str, error: type[InputError] = InputError) -> None:
    """Refuse a name that is none of these, as an unknown `what`."""
    if name not in names:
        raise error(f"unknown {what} {name!r}: choose {', '.join(names)}")


def one_line(x: object, most: int = 200) -> str:
    """x as text, without line ends and control characters; of more than `most` characters the
    middle is left out."""
    text = "".join(filter(str.isprintable, " ".join(str(x).split())))
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"
