"""A command on several processes of this machine, as a user starts it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def torchrun(folder: Path, processes: int, *arguments: str, path=(), timeout: float = 300):
    """`python ARGUMENTS` in a folder, by torchrun where there are several processes, with the checkout and
    `path` to import from; it has to end well."""
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    paths = os.pathsep.join(map(str, (ROOT, *path)))
    done = subprocess.run(
        [sys.executable, *(several if processes > 1 else ()), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done
