"""What reading may raise, and how a cause is kept and shown."""

from vicjoint.files.guard import printable

# what a modality raises on bad input: its own messages, the file system's, or too much of it
READ_ERRORS = (ValueError, OSError, MemoryError)
CAUSE = 500  # characters of a cause that are kept


class BadDataError(RuntimeError):
    """More bad samples than the recipe allows."""

    def __init__(self, message: str):
        # a worker's error comes out of the DataLoader anew, made from the worker's whole traceback, which
        # ends with the message
        super().__init__(
            message.rsplit(f"{type(self).__name__}: ", 1)[-1].rstrip()
            if message.startswith("Caught ")
            else message
        )


def cause_of(error: Exception) -> str:
    """An error's message, at most CAUSE characters of it."""
    text = str(error) or {MemoryError: "needs more memory than there is"}.get(
        type(error), type(error).__name__
    )
    return text if len(text) <= CAUSE else f"{text[: CAUSE // 2]} ... {text[-CAUSE // 2 :]}"


def listed(bad) -> str:
    """The first ten of (sample, cause), a line each."""
    return "\n".join(f"  {printable(sample)}: {printable(cause)}" for sample, cause in list(bad)[:10])
