"""How long reading one sample may take (`data.timeout`).

After that time an alarm ends the reading, in whichever process it happens, and the sample counts as a bad
one. Code that does not return to Python never sees the alarm. A process that reads data therefore writes down
what it is reading and since when, in memory that it shares with the process that trains, which kills it when
it is too late (readers.py). Both ways lead to the same replacement. Time in which a shard is
brought from elsewhere does not count (vicjoint/files/remote.py).
"""

import contextlib
import os
import signal
import threading
import time

import torch

from vicjoint.files import remote

IDLE = 0.0


class SampleTimeout(TimeoutError):
    """A sample was not read in time."""


class TimeLimit:
    """`seconds`: for one sample; None: no limit. It travels to the processes that read."""

    GRACE = 1.25  # times `seconds`, plus one: when a process that did not see the alarm is killed

    def __init__(self, seconds: float | None = None):
        self.seconds = seconds
        # (number of the pair, record's id): known ones are not tried again
        self.late: set[tuple[int, str]] = set()
        self._row, self.rows = None, None
        self._expired = False

    @property
    def cause(self) -> str:
        return f"not read within {self.seconds:g} s (data.timeout)"

    def learn(self, pair: int, bad: list[tuple[str, str]]) -> None:
        """Remember which of the (sample, cause) were late."""
        self.late |= {
            (pair, sample) for sample, cause in bad if self.seconds is not None and cause == self.cause
        }

    @contextlib.contextmanager
    def reading(self, pair: int, index: int, sample: str):
        """Around the reading of a record. Raises SampleTimeout where it takes too long, or once did."""
        if (pair, sample) in self.late:
            raise SampleTimeout(self.cause)
        if self.seconds is None:
            yield
            return
        self._expired = False
        if self._row is not None:
            self._row[2:] = torch.tensor([pair, index])
            self._row[1] = time.monotonic()
        remote.pause = self._paused
        try:
            with self._alarm():
                yield
        except Exception as error:
            if self._expired:  # whatever the reader made of it
                raise SampleTimeout(self.cause) from error
            raise
        finally:
            if self._row is not None:
                self._row[1] = IDLE

    @contextlib.contextmanager
    def _alarm(self):
        in_main = threading.current_thread() is threading.main_thread()  # Python allows handlers nowhere else
        if not in_main or not hasattr(signal, "setitimer"):  # as on Windows
            yield
            return
        before = signal.signal(signal.SIGALRM, self._on_alarm)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    @contextlib.contextmanager
    def _paused(self):
        """While entered, the time of the sample that is being read stands still."""
        left = signal.setitimer(signal.ITIMER_REAL, 0)[0] if hasattr(signal, "setitimer") else 0.0
        began, now = (self._row[1].item() if self._row is not None else IDLE), time.monotonic()
        if began != IDLE:
            self._row[1] = IDLE
        try:
            yield
        finally:
            if began != IDLE:
                self._row[1] = began + time.monotonic() - now
            if left:
                signal.setitimer(signal.ITIMER_REAL, left)

    def _on_alarm(self, *_) -> None:
        self._expired = True
        raise SampleTimeout(self.cause)

    # ---- between the training process and those that read ----

    def watch(self, workers: int) -> None:
        """Prepare shared memory for so many processes: rows of (process id, began, pair, index)."""
        self.rows = torch.zeros(workers, 4, dtype=torch.float64).share_memory_()

    def enter(self, worker: int) -> None:
        """Called in a process that reads, with its number."""
        self._row = self.rows[worker]
        self._row[0] = os.getpid()

    def overdue(self) -> list[list[float]]:
        """The rows of processes that should have seen the alarm and did not."""
        if self.seconds is None:
            return []
        oldest = time.monotonic() - self.GRACE * self.seconds - 1
        return [row for row in self.rows.tolist() if IDLE < row[1] < oldest]
