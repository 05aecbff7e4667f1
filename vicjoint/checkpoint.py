"""Checkpoints: everything a run needs to go on, written under a temporary name and renamed, so a file is whole or absent; and
the signals that ask for one."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import torch


def save(folder: Path, step: int, state: dict, keep: int) -> Path:
    """Write `state` as folder/step_<step>.pt and delete all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}.pt"
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    for old in steps(folder)[:-keep]:
        (folder / f"step_{old:08d}.pt").unlink()
    return path


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending."""
    found = (re.fullmatch(r"step_(\d+)\.pt", p.name) for p in folder.glob("step_*.pt"))
    return sorted(int(m.group(1)) for m in found if m)


def load_last(folder: Path) -> dict | None:
    """The newest checkpoint that can be read (tensors and plain values only, never code), or None."""
    for step in reversed(steps(folder)):
        path = folder / f"step_{step:08d}.pt"
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a truncated zip, a foreign pickle: torch raises many types
            print(f"checkpoint {path} cannot be read ({type(error).__name__}: {error}); trying the one before it")
    return None


class StopSignal:
    """While entered, SIGTERM and SIGINT set `asked`, so that the loop can save and stop; a second one stops at once.

    One within a second of the first is the same request: `timeout` sends its signal to the program and again to the whole group."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)
    ONE_REQUEST_SECONDS = 1.0

    def __init__(self):
        self.asked, self._before, self._first = False, {}, 0.0

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._on_signal) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number, _frame) -> None:
        if self.asked and time.monotonic() - self._first > self.ONE_REQUEST_SECONDS:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self._first = True, time.monotonic()
