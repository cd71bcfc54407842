"""Errors that the user can act on. Commands print their message and end with status 1, without a traceback."""


class InputError(ValueError):
    """Something the user gave cannot be used: a path, a corpus, a checkpoint, a flag. Says what was found and expected."""
