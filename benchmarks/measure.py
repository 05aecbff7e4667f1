"""Time and memory of callables, side by side: interleaved in one process, or each in a fresh one."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch


def interleaved(calls: dict[str, Callable], seconds: float = 2.0, rounds: int = 3) -> dict[str, list[float]]:
    """Seconds of each call, one of each per round, so that a slow moment of the machine meets all alike: at
    least `rounds` rounds after one to warm up, and more until `seconds` have passed (up to 50)."""
    took = {name: [] for name in calls}
    for call in calls.values():
        call()
    began = time.perf_counter()
    while len(next(iter(took.values()))) < rounds or (
        time.perf_counter() - began < seconds and len(next(iter(took.values()))) < 50
    ):
        for name, call in calls.items():
            _synchronise()
            start = time.perf_counter()
            call()
            _synchronise()
            took[name].append(time.perf_counter() - start)
    return took


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over the rounds of slow / fast."""
    return statistics.median(s / f for s, f in zip(slow, fast))


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mib(call: Callable) -> float:
    """How much the process's peak memory rises over what it holds now. Only in a fresh process: the peak
    never falls (Linux)."""
    before = _status_mib("VmRSS")
    call()
    return _status_mib("VmHWM") - before


def _status_mib(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def in_fresh_process(module: str, *arguments: str) -> dict:
    """What `python -m module arguments` prints as its last line, read as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(columns: list[str], rows: list[list]) -> str:
    """Aligned text; numbers with three digits that count."""
    cells = [columns, *([_show(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in cells)


def _show(value) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )


def machine() -> dict:
    """What the numbers were measured on."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def write(path: str | None, results: dict) -> None:
    if path:
        Path(path).write_text(json.dumps({"machine": machine(), **results}, indent=1))
