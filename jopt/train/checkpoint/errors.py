"""What goes wrong with checkpoints."""


class CheckpointError(Exception):
    """A checkpoint cannot be written, read, or fitted to the given tree."""


class DamagedCheckpointError(CheckpointError):
    """The bytes of a checkpoint are not those that were written."""


def damaged(call: str, what: str) -> DamagedCheckpointError:
    """The error for a file that is not as `save` left it."""
    return DamagedCheckpointError(
        f"{call}: the file is damaged ({what}); a checkpoint as jopt.save wrote it was expected. "
        f"Take a copy of it, or the checkpoint before."
    )
