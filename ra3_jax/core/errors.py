"""Errors that the user can act on. Commands print their message and end with status 1, without a traceback."""


class InputError(ValueError):
    """Something the user gave (a path, a corpus, a checkpoint) cannot be used. Says what was found and expected."""
