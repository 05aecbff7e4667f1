"""From records to batches: the order of samples (stream, distinct), the processes that read them (readers,
time_limit), and what becomes of bad ones (quarantine, errors)."""

from vicjoint.data.distinct import Distinct
from vicjoint.data.errors import READ_ERRORS, BadDataError, cause_of, listed
from vicjoint.data.quarantine import Quarantine
from vicjoint.data.readers import ReaderError, Readers, Reads
from vicjoint.data.stream import Stream, batches
from vicjoint.data.time_limit import SampleTimeout, TimeLimit

__all__ = [
    "READ_ERRORS",
    "BadDataError",
    "Distinct",
    "Quarantine",
    "ReaderError",
    "Readers",
    "Reads",
    "SampleTimeout",
    "Stream",
    "TimeLimit",
    "batches",
    "cause_of",
    "listed",
]
