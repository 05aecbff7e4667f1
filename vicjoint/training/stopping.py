"""The signals that ask a run to save and stop, and the random numbers of a step, which make what follows a
stop the same as without one."""

import contextlib
import random
import signal
import threading
import time

import numpy as np
import torch

from vicjoint import distributed


class Stopped(RuntimeError):
    """A signal asked to stop; a checkpoint is saved and the same command goes on from it."""


class Interrupted(BaseException):
    """Raised by the first signal where stopping at once loses nothing. Not an Exception: nothing on the way
    may take it for a failure."""


class StopSignal:
    """While entered, SIGTERM and SIGINT set `asked`, so that the loop can save and stop; a second one raises
    KeyboardInterrupt.

    One within a second of the first is the same request: `timeout` sends its signal to the program and again
    to the whole group.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)
    ONE_REQUEST_SECONDS = 1.0

    def __init__(self):
        self.asked, self._before, self._first, self._at_once = False, {}, 0.0, False

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._on_signal) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self):
        """Inside, a signal (also one that came before) raises Interrupted where it meets the program: for an
        evaluation, which can be long. The first process's signal counts: others end with it."""
        if distributed.rank() > 0:
            yield
            return
        self._at_once = True
        try:
            if self.asked:
                raise Interrupted
            yield
        finally:
            self._at_once = False

    def _on_signal(self, number, _frame) -> None:
        if self.asked and time.monotonic() - self._first > self.ONE_REQUEST_SECONDS:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self._first = True, time.monotonic()
            if self._at_once:
                raise Interrupted


TRAINING, EVALUATION = 1, 2  # which random numbers


def seed_everything(*numbers: int) -> None:
    """Set the random numbers of torch (all devices), numpy and Python from these. Called before each step
    with (seed, step, process), they are a function of the step: a run that goes on needs no state of theirs,
    on any number of processes, and an evaluation leaves no trace.
    """
    value = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    torch.manual_seed(value >> 1)
    np.random.seed(value % 2**32)
    random.seed(value)
