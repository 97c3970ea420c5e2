"""Errors that a user can mend; examples print them as one line and end with exit code 2."""


class InputError(ValueError):
    """A value, file or device that cannot be used as asked; the message is one line that says
    why."""
