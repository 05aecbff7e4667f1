"""Two nodes, played by two torchruns of this machine that meet at a port."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from torchrun import ROOT


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(folder: Path, port: int, name: str) -> subprocess.Popen:
    # the first is the node of the endpoint; where one comes alone, it waits so many seconds for the other
    meet = f"last_call_timeout=15,is_host={int(name == 'first')}"
    meeting = f"--rdzv-id=two --rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:{port} --rdzv-conf={meet}"
    several = f"--nnodes=1:2 --nproc-per-node=1 --max-restarts=3 --local-addr=127.0.0.1 {meeting}".split()
    command = ["-m", "torch.distributed.run", *several, "-m", "vicjoint.run", "recipe.json", "out=run"]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    with open(folder / f"{name}.log", "w") as said:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            stdout=said,
            stderr=said,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )


def power_off(node: subprocess.Popen) -> None:
    """A torchrun and its processes, at once."""
    children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
    for number in (node.pid, *map(int, children)):
        os.kill(number, signal.SIGKILL)
    node.wait()


def steps(folder: Path) -> list[int]:
    path = folder / "run" / "metrics.jsonl"
    return [line["step"] for line in tiny.metrics(folder / "run")] if path.exists() else []


def wait_for(done, nodes: list[subprocess.Popen], folder: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end and all(node.poll() is None for node in nodes), "\n".join(
            f"{path.name}:\n{path.read_text()[-3000:]}" for path in folder.glob("*.log")
        )
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds a torchrun's processes in /proc")
def test_a_run_goes_on_where_a_node_is_lost(tmp_path):
    every, last = 10, 250
    recipe = tiny.recipe(
        train={"steps": last, "batch_size": 8}, checkpoint={"every": every}, evaluate={"probes": []}
    )
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    port = free_port()
    nodes = [start(tmp_path, port, name) for name in ("first", "second")]
    try:
        wait_for(lambda: len(steps(tmp_path)) > 2 * every, nodes, tmp_path)
        power_off(nodes[1])
        lost_at = len(steps(tmp_path))
        nodes[0].wait(180)
    finally:
        for node in nodes:
            if node.poll() is None:
                power_off(node)
    said = (tmp_path / "first.log").read_text()
    assert nodes[0].returncode == 0, said[-3000:]
    assert steps(tmp_path) == list(range(1, last + 1)), "every step once"
    assert re.search(r"process [01] of 2: another process is gone, or did not answer", said)
    began = [int(line.split()[4]) for line in said.splitlines() if line.startswith("going on from step")]
    assert len(began) == 1 and lost_at - every - 2 <= began[0] <= lost_at + 1
