"""A long run under random SIGKILLs from a second process ends as an unbroken one, and a long run takes no
more memory or files with time.

python -m pytest -m slow tests/test_soak.py -s        # prints the figures that docs/reliability.md shows
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

STEPS = 2000
WARM = 500  # steps before memory has to be flat
KILLED_AFTER = (0.3, 2.5)  # seconds of a process's life
pytestmark = pytest.mark.slow


def long_recipe() -> dict:
    return tiny.recipe(
        train={"steps": STEPS, "batch_size": 8, "accumulate": 2},
        checkpoint={"every": 20, "keep": 2, "best": "tiny_probe/accuracy"},
        b={"weights": "ema", "momentum": 0.99},
        objective={"name": "infonce", "form": "moco", "queue": 64},
        pair={"name": "tiny_views", "bad": ["row3", "row11"]},
        data={"workers": 0, "max_bad_fraction": 0.5},
        evaluate={"every": 50, "probes": [{"name": "tiny_probe"}]},
    )


def steps_done(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def watched(process, folder: Path) -> np.ndarray:
    """(steps done, resident MiB, open files) of a process, ten times a second, until it ends."""
    rows, proc = [], Path(f"/proc/{process.pid}")
    while process.is_alive():
        try:
            resident = int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
            rows.append((steps_done(folder), resident, len(list((proc / "fd").iterdir()))))
        except (OSError, IndexError):
            break  # it ended meanwhile
        time.sleep(0.1)
    return np.array(rows)


def test_random_kills_change_nothing_and_memory_stays_flat(tmp_path, capsys):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    (process,) = tiny.start(long_recipe(), [f"out={whole}"])
    rows = watched(process, whole)
    assert tiny.finish([process]) == [0]

    rng, kills = np.random.default_rng(), 0
    while True:
        (process,) = tiny.start(long_recipe(), [f"out={killed}"])
        process.join(rng.uniform(*KILLED_AFTER))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills += 1
    assert process.exitcode == 0
    tiny.same_end(whole, killed)

    training = rows[(rows[:, 0] >= WARM) & (rows[:, 0] < STEPS)]
    slope = np.polyfit(training[:, 0], training[:, 1], 1)[0] * 1000
    files = training[:, 2]
    figures = {
        "steps": STEPS,
        "kills": kills,
        "memory_mib_after_warm_up": [float(training[0, 1]), float(training[-1, 1])],
        "memory_slope_mib_per_1000_steps": round(float(slope), 3),
        "open_files": [int(files.min()), int(files.max())],
        "looks": len(training),
    }
    with capsys.disabled():
        print("\n" + json.dumps(figures))
    assert kills >= 10, "too few for a soak test: shorten KILLED_AFTER"
    assert slope < 2, figures
    assert files.max() - files.min() <= 3, figures  # a log or a checkpoint that is being written
