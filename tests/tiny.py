"""Components of a run that takes milliseconds, and processes that run it, alone or as several, until they are
killed at a chosen place.

Imported by recipes (`imports: [tiny]`) and by the processes themselves.
"""

import importlib
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vicjoint import registry
from vicjoint.batch import Conditioned
from vicjoint.parts import Modality, Pair, Predictor, Probe, Source
from vicjoint.registry import register, register_encoder
from vicjoint.training import checkpoint, loop

TESTS = Path(__file__).resolve().parent
registry.load_built_in()


@register("source", "tiny_rows")
class Rows(Source):
    def __init__(self, rows: int = 30):
        hidden = np.random.default_rng(3).normal(size=(rows + 8, 6))
        records = [{"id": f"row{i}", "x": row.tolist()} for i, row in enumerate(hidden)]
        self.train, self.test = records[:rows], records[rows:]

    def describe(self):
        return f"{len(self.train)} rows of numbers"


@register("modality", "tiny_numbers")
class Numbers(Modality):
    def forward(self, raw):
        return raw


@register_encoder("tiny_numbers", "noisy")
class Noisy(nn.Module):
    """With everything that a resumed run could get wrong: running statistics, dropout, and random numbers of
    numpy and Python."""

    def __init__(self, dim: int = 8, norm: bool = True):
        super().__init__()
        self.dim = dim
        self.net = nn.Sequential(
            nn.Linear(6, 16),
            nn.BatchNorm1d(16) if norm else nn.Identity(),
            nn.Dropout(0.2),
            nn.ReLU(),
            nn.Linear(16, dim),
        )

    def forward(self, view):
        factor = 1 + 0.1 * (np.random.rand() + random.random()) if self.training else 1.0
        return self.net(view * factor)


@register("pair", "tiny_views")
class Views(Pair):
    """Two noisy copies of a row. `bad`: rows that cannot be read; `hang`: a row that never comes, in Python
    code or (`deaf`) in code that no alarm reaches; `dies`: a row whose reader is killed, as often as the file
    says; `log`: a file that gets the name of each row that is read.
    """

    samples_per_record = 1

    def __init__(
        self,
        bad: list[str] = (),
        hang: str | None = None,
        deaf: bool = False,
        dies: str | None = None,
        deaths: str | None = None,
    ):
        self.bad, self.hang, self.deaf, self.dies, self.deaths = bad, hang, deaf, dies, deaths

    def sample(self, record, rng):
        a, b = (
            torch.tensor([record["x"]]) + 0.1 * torch.from_numpy(rng.normal(size=(1, 6))) for _ in range(2)
        )
        if record["id"] in self.bad:
            raise ValueError("broken on purpose")
        if record["id"] == self.dies and (left := int(Path(self.deaths).read_text())):
            Path(self.deaths).write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        if record["id"] == self.hang:
            if self.deaf:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
            time.sleep(3600)
        return a.float(), b.float()


@register("pair", "tiny_in_time")
class InTime(Views):
    """Three samples of a row, which moves."""

    samples_per_record = 3
    in_time = True

    def sample(self, record, rng):
        return tuple(torch.cat(side) for side in zip(*(Views.sample(self, record, rng) for _ in range(3))))


def told_of(record) -> list[float]:
    """The condition of a row."""
    return [10 + 3 * record["x"][0], record["x"][1]]


@register("pair", "tiny_told")
class Told(Views):
    """With a condition; `same`: the same one for all rows."""

    conditions = (True, True)

    def __init__(self, condition: dict | None = None, bad: list[str] = ()):
        super().__init__(bad)
        self.same = bool(condition)

    def conditions_of(self, record):
        return torch.tensor([[0.0, 0.0] if self.same else told_of(record)])

    def sample(self, record, rng):
        a, b = super().sample(record, rng)
        return Conditioned(a, self.conditions_of(record)), b


@register("predictor", "tiny_copies")
class Copies(Predictor):
    """Takes no condition."""

    def __init__(self, dim: int, /):
        super().__init__()

    def forward(self, z_a):
        return z_a


@register("probe", "tiny_probe")
class Distance(Probe):
    """Takes random numbers."""

    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds

    def measure(self, features):
        time.sleep(self.seconds)
        x = torch.tensor([record["x"] for record in features.data.records("test")])
        views = {"a": x + 0.1 * torch.rand_like(x), "b": x}
        a, b = (
            features.embed("model", side, features.represent("model", side, [view]))
            for side, view in views.items()
        )
        yield "model/distance", float(torch.cdist(a, b).mean())
        yield "model/accuracy", float((torch.cdist(a, b).argmin(1) == torch.arange(len(x))).double().mean())


def branch(**options) -> dict:
    return {"modality": "tiny_numbers", "encoder": {"name": "noisy"}, "expander": [16, 12], **options}


def recipe(**changes) -> dict:
    return {
        "name": "tiny",
        "imports": ["tiny"],
        "source": {"name": "tiny_rows"},
        "pair": {"name": "tiny_views"},
        "a": branch(),
        "b": branch(),
        "objective": {"name": "vicreg"},
        "optim": {
            "name": "adamw",
            "lr": 1e-2,
            "schedule": {"name": "cosine", "warmup_steps": 2},
            "clip": 5.0,
        },
        "train": {"steps": 14, "batch_size": 8},
        "data": {"workers": 0},
        "checkpoint": {"every": 4},
        "evaluate": {"every": 3, "probes": [{"name": "tiny_probe"}]},
        **changes,
    }


# ---- processes ----


def start(
    recipe: dict,
    overrides=(),
    kill: tuple[str, int] | None = None,
    world: int = 1,
    stdout: Path | None = None,
) -> list:
    """Processes (as many as `world`) that run the recipe as the command does. `kill`: (a function such as
    "vicjoint.training.steps.backward", n): the last process sends itself SIGKILL where it would call that for
    the nth time. `stdout`: a file for what they say.
    """
    context = forking()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(
            target=_run,
            args=(recipe, list(overrides), kill if rank == world - 1 else None, (rank, world, port), stdout),
        )
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    return processes


def forking():
    """The context of processes that are forked from a server with all of this loaded. Whichever test starts
    the server, it has to find this file: where it does not it says nothing, and each process of all tests
    takes seconds to load it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


def finish(processes: list, seconds: float = 240) -> list[int]:
    """Their exit codes."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0, end - time.monotonic()))
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
    assert not hung, "a process did not end"
    return [process.exitcode for process in processes]


def run(
    recipe: dict,
    overrides=(),
    kill: tuple[str, int] | None = None,
    world: int = 1,
    stdout: Path | None = None,
) -> list[int]:
    return finish(start(recipe, overrides, kill, world, stdout))


def _run(recipe: dict, overrides: list[str], kill, place: tuple[int, int, int], stdout: Path | None) -> None:
    from vicjoint.run import main

    torch.set_num_threads(1)
    rank, world, port = place
    if world > 1:
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "LOCAL_RANK": str(rank),
        }
    said = os.open(stdout or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1), os.dup2(said, 2)
    if not (kill and "report" in kill[0]):
        # a second of plots, which no test here looks at
        loop.write_report = lambda folder: folder / "report.html"
    if kill:
        name, times = kill
        module, function = name.rsplit(".", 1)
        owner = importlib.import_module(module)
        original, calls = getattr(owner, function), [0]

        def counted(*given, **named):
            calls[0] += 1
            if calls[0] == times:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*given, **named)

        setattr(owner, function, counted)
    file = Path(f"{recipe_file()}.{rank}.json")
    file.write_text(json.dumps(recipe))
    sys.exit(main([str(file), *overrides]))


def recipe_file() -> Path:
    return Path(os.environ.get("TINY_FOLDER", "/tmp")) / f"recipe_{os.getpid()}"


# ---- what came out ----

TIMES = ("seconds", "waited", "samples_per_second")


def metrics(folder: Path) -> list[dict]:
    return [
        {k: v for k, v in json.loads(line).items() if k not in TIMES}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def tensors(value, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, (list, tuple))
        else ()
    )
    return {inner: t for key, v in items for inner, t in tensors(v, f"{name}/{key}").items()}


def same_end(one: Path, other: Path) -> None:
    """Asserts that two runs ended alike: every tensor of the last checkpoint bit by bit, and every file that
    is not about time."""
    assert metrics(one) == metrics(other)
    for name in ("evaluation.json", "evaluation.jsonl", "bad_samples.jsonl", "spectrum.json"):
        assert (one / name).exists() == (other / name).exists(), name
        if (one / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert checkpoint.steps(one / "checkpoints") == checkpoint.steps(other / "checkpoints")
    ends = [tensors(checkpoint.load_last(folder / "checkpoints")) for folder in (one, other)]
    assert ends[0].keys() == ends[1].keys() and len(ends[0]) > 10
    for name, value in ends[0].items():
        assert value.dtype == ends[1][name].dtype and torch.equal(value, ends[1][name]), name
    assert not list((other / "checkpoints").glob("*.tmp"))
