"""What stops a run, with the exit code that says which kind it was (docs/exit-codes.md)."""

from __future__ import annotations


class SftError(Exception):
    """A run that ends with one clear message instead of a traceback."""

    exit_code = 1


class DataError(SftError):
    """Conversations that cannot be read, rendered or masked."""

    exit_code = 3


class MaskError(DataError):
    """A conversation whose trained part cannot be proven, or that the chat template does not render."""


class StorageError(SftError):
    """The disk or the run directory does not take what is to be written."""

    exit_code = 13


class CheckpointError(SftError):
    """A checkpoint that is not there, not complete, or of another run."""

    exit_code = 14


class NonFiniteError(SftError):
    """A loss, a gradient or a final weight that is no number; nothing was stepped with it, and no model holds it."""

    exit_code = 15
