"""What stops a run, with the exit code that says which kind it was (docs/exit-codes.md)."""

from __future__ import annotations


class SftError(Exception):
    """A run that ends with one clear message instead of a traceback."""

    exit_code = 1
    reason = ""
    """The word for it, where others share its exit code; the launcher's records have it."""


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


class ChangedError(SftError):
    """Data, chat template or tokenizer that are not those with which the checkpoint was made."""

    exit_code = 16


class FencedError(SftError):
    """A run directory that another process writes: it was first, or it took the directory over."""

    exit_code = 16


class StoppedError(SftError):
    """A run that was asked to stop and has saved what it has done: start it again to go on."""

    exit_code = 10


class LostPeerError(SftError):
    """A rank without which the others cannot go on is gone, or has an error that it tells itself."""

    exit_code = 11


class MeetingError(SftError):
    """Ranks that are not all of one attempt of one run."""

    exit_code = 17


class DivergedError(SftError):
    """Weights that are not the same on all ranks that must have the same."""

    exit_code = 15
    reason = "diverged"


class LossSpikesError(SftError):
    """Loss spikes in a row, more than are left out."""

    exit_code = 15
    reason = "loss_spikes"


class NonFiniteError(SftError):
    """A loss, a gradient or a final weight that is no number; nothing was stepped with it, and no model holds it."""

    exit_code = 15
