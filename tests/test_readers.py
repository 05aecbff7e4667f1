"""Readers that die or hang do not end a run, and do not change it; processes that train do not wait for a
dead one."""

import glob
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

import vicjoint
from vicjoint import distributed
from vicjoint.data import readers
from vicjoint.data.time_limit import SampleTimeout, TimeLimit
from vicjoint.recipe import load_recipe
from vicjoint.training import checkpoint
from vicjoint.training.build import build_parts


def named(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "bad_samples.jsonl").read_text().splitlines()]


def dying(tmp_path, world=1, more=()):
    """A recipe in which the reader of row7 is killed as often as the file `deaths` says; the run `whole` is
    one of it without a death."""
    deaths = tmp_path / "deaths"
    deaths.write_text("0")
    made = tiny.recipe(pair={"name": "tiny_views", "dies": "row7", "deaths": str(deaths)})
    assert tiny.run(made, [f"out={tmp_path / 'whole'}", *more], world=world) == [0] * world
    return made, deaths, tmp_path / "said"


def test_a_killed_reader_is_replaced_and_nothing_changes(tmp_path):
    made, deaths, said = dying(tmp_path)
    deaths.write_text("1")
    assert tiny.run(made, [f"out={tmp_path / 'killed'}", "data.workers=1"], stdout=said) == [0]
    assert deaths.read_text() == "0"
    tiny.same_end(tmp_path / "whole", tmp_path / "killed")
    assert (
        "(SIGKILL: often the system, when memory is short), which reads data, ended unexpectedly"
        in said.read_text()
    )
    assert (
        "Reading goes on, with new processes, from step" in said.read_text()
        and "Traceback" not in said.read_text()
    )


@pytest.mark.slow
@pytest.mark.parametrize("world, more", [(1, []), (2, []), (2, ["train.parallel=fsdp"])])
def test_readers_that_keep_dying_end_the_run_which_can_go_on(tmp_path, world, more):
    made, deaths, said = dying(tmp_path, world, more)
    deaths.write_text("1000")
    out = [f"out={tmp_path / 'killed'}", "data.workers=1", *more]
    assert tiny.run(made, out, stdout=said, world=world) == [1] * world
    assert ("another process cannot read on" in said.read_text()) == (world > 1)
    assert (
        "That was 3 times in a row. Where memory is short, lower data.workers" in said.read_text()
        and "Traceback" not in said.read_text()
    )
    assert checkpoint.steps(tmp_path / "killed" / "checkpoints")[-1] == len(
        tiny.metrics(tmp_path / "killed")
    ), "what was learnt is saved"
    deaths.write_text("0")
    assert tiny.run(made, out, world=world) == [0] * world
    tiny.same_end(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("workers, deaf", [(0, False), (1, True)], ids=["ended by the alarm", "killed"])
def test_a_sample_that_never_comes_is_replaced_and_named(tmp_path, workers, deaf):
    limit, said = "data.timeout=3", tmp_path / "said"
    bad = {"max_bad_fraction": 0.5}
    hangs = tiny.recipe(
        pair={"name": "tiny_views", "hang": "row7", "deaf": deaf, "bad": ["row1", "row2"]},
        data={"workers": workers, **bad},
    )
    began = time.monotonic()
    assert tiny.run(hangs, [f"out={tmp_path / 'one'}", limit], stdout=said) == [0]
    assert time.monotonic() - began < 120
    late = [line for line in named(tmp_path / "one") if line["sample"] == "row7"]
    assert late == [{"source": "tiny_rows", "sample": "row7", "cause": "not read within 3 s (data.timeout)"}]
    assert ("the process that hung was killed" in said.read_text()) == deaf
    assert [line["step"] for line in tiny.metrics(tmp_path / "one")] == list(range(1, 15))


def test_ended_killed_or_not_tried_again_the_replacement_is_the_same():
    made = tiny.recipe(
        pair={"name": "tiny_views", "hang": "row7", "bad": ["row1"]}, data={"workers": 0, "timeout": 0.2}
    )
    parts = build_parts(load_recipe(made))
    tried = [(batch.samples, batch.a, bad) for batch, bad in parts.batches(0, 0, 8)]
    known = build_parts(load_recipe(made))
    known.limit.late.add((0, "row7"))
    began = time.monotonic()
    again = [(batch.samples, batch.a, bad) for batch, bad in known.batches(0, 0, 8)]
    assert time.monotonic() - began < 2
    for (names, a, bad), (other_names, other_a, other_bad) in zip(tried, again):
        assert names == other_names and a.equal(other_a) and bad == other_bad
    assert ("row7", "not read within 0.2 s (data.timeout)") in [b for _, _, bad in tried for b in bad]


def test_a_limit_is_for_each_sample_and_leaves_no_alarm():
    limit = TimeLimit(0.3)
    before = signal.getsignal(signal.SIGALRM)
    for _ in range(4):
        with limit.reading(0, 0, "a"):
            time.sleep(0.1)
    with pytest.raises(SampleTimeout, match=r"not read within 0.3 s \(data.timeout\)"):
        with limit.reading(0, 0, "a"):
            try:
                time.sleep(5)
            except OSError as error:
                raise ValueError("the reader's own words") from error
    with pytest.raises(ValueError, match="its own fault"):
        with limit.reading(0, 0, "a"):
            raise ValueError("its own fault")
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    limit.learn(1, [("b", limit.cause), ("c", "broken")])
    with pytest.raises(SampleTimeout):
        with limit.reading(1, 5, "b"):
            pytest.fail("tried again")
    with limit.reading(1, 6, "c"), TimeLimit(None).reading(0, 0, "b"):
        pass


def test_ends_are_described():
    assert (
        readers.describe(-9).startswith("SIGKILL: often the system")
        and readers.describe(-7) == "SIGBUS: often too little shared memory, /dev/shm"
    )
    assert readers.describe(-11) == "SIGSEGV" and readers.describe(3) == "exit code 3"


def test_too_many_bad_samples_in_a_reader_is_one_message(tmp_path):
    said = tmp_path / "said"
    made = tiny.recipe(pair={"name": "tiny_views", "bad": [f"row{i}" for i in range(30)]})
    assert tiny.run(made, [f"out={tmp_path / 'run'}", "data.workers=1"], stdout=said) == [1]
    assert (
        "20 samples in a row cannot be read, so nothing stands in for row" in said.read_text()
        and "Traceback" not in said.read_text()
    )


# ---- signals ----


def wait_for(condition, process, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.02)


SLOW_PROBE = {"every": 3, "probes": [{"name": "tiny_probe", "seconds": 2}]}


@pytest.mark.parametrize("when", ["an evaluation on the way", "the last evaluation"])
def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(tmp_path, when):
    made = tiny.recipe(evaluate=SLOW_PROBE, train={"steps": 5, "batch_size": 8})
    quick = tiny.recipe(
        evaluate={**SLOW_PROBE, "probes": [{"name": "tiny_probe"}]}, train={"steps": 5, "batch_size": 8}
    )
    assert tiny.run(quick, [f"out={tmp_path / 'whole'}"]) == [0]
    folder, said = tmp_path / "run", tmp_path / "said"
    (process,) = tiny.start(made, [f"out={folder}"], stdout=said)
    steps = 3 if when == "an evaluation on the way" else 5
    wait_for(
        lambda: (
            (folder / "metrics.jsonl").exists()
            and len((folder / "metrics.jsonl").read_text().splitlines()) == steps
        ),
        process,
    )
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGTERM)
    assert tiny.finish([process]) == [75]
    assert (
        f"stopped by a signal after step {steps}; a checkpoint is saved" in said.read_text()
        and "Traceback" not in said.read_text()
    )
    assert tiny.run(made, [f"out={folder}"]) == [0]
    assert tiny.metrics(tmp_path / "whole") == tiny.metrics(folder)
    for name in ("evaluation.json", "evaluation.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (folder / name).read_bytes()


def test_a_second_signal_stops_at_once(tmp_path):
    said = tmp_path / "said"
    (process,) = tiny.start(
        tiny.recipe(pair={"name": "tiny_views", "hang": "row7"}),
        [f"out={tmp_path / 'run'}", "evaluate.every=0"],
        stdout=said,
    )
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), process)
    time.sleep(1)  # now it waits for row7, which can only end by the second signal
    os.kill(process.pid, signal.SIGINT)
    time.sleep(1.5)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    assert tiny.finish([process], 60) == [1]
    assert (
        "stopped at once. The same command with out=FOLDER goes on from the last checkpoint."
        in said.read_text()
    )
    assert "Traceback" not in said.read_text()


@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_process_does_not_hang_the_others(tmp_path, dead):
    folder, said = tmp_path / "run", tmp_path / "said"
    processes = tiny.start(
        tiny.recipe(train={"steps": 100_000, "batch_size": 8}),
        [f"out={folder}", "evaluate.every=0"],
        world=2,
        stdout=said,
    )
    wait_for(
        lambda: (
            (folder / "metrics.jsonl").exists()
            and len((folder / "metrics.jsonl").read_text().splitlines()) > 5
        ),
        processes[0],
    )
    processes[dead].kill()
    codes = tiny.finish(processes, 60)
    assert codes[dead] == -9 and codes[1 - dead] == 1
    assert (
        f"process {1 - dead} of 2: another process is gone, or did not answer within train.timeout=600 s"
        in said.read_text()
    )
    assert (
        f"The same command with out={folder} goes on from the last checkpoint" in said.read_text()
        and "Traceback" not in said.read_text()
    )


def test_a_process_that_hangs_is_not_waited_for_for_ever(tmp_path):
    folder, said = tmp_path / "run", tmp_path / "said"
    made = tiny.recipe(train={"steps": 100_000, "batch_size": 8, "timeout": 5})
    processes = tiny.start(made, [f"out={folder}", "evaluate.every=0"], world=2, stdout=said)
    wait_for(
        lambda: (
            (folder / "metrics.jsonl").exists()
            and len((folder / "metrics.jsonl").read_text().splitlines()) > 5
        ),
        processes[0],
    )
    os.kill(processes[1].pid, signal.SIGSTOP)
    try:
        assert tiny.finish(processes[:1], 100) == [1]
    finally:
        processes[1].kill()
    assert (
        "process 0 of 2: another process is gone, or did not answer within train.timeout=5 s"
        in said.read_text()
    )


@pytest.mark.parametrize(
    "said, lost",
    [
        (
            (
                "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"
                " [127.0.0.1]:41225"
            ),
            True,
        ),
        ("Application timeout caused pair closure", True),
        ("Timed out waiting 5000ms for recv operation to complete", True),
        ("Connection reset by peer", True),
        ("mat1 and mat2 shapes cannot be multiplied (8x4 and 5x2)", False),
    ],
)
def test_which_errors_say_that_a_process_is_lost(monkeypatch, said, lost):
    assert not distributed.is_lost(RuntimeError(said))  # one process has nobody to lose
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert distributed.is_lost(RuntimeError(said)) == lost


@pytest.mark.slow
@pytest.mark.parametrize("out", [True, False], ids=["with out", "without"])
def test_torchrun_starts_a_dead_process_again(tmp_path, out):
    made = tiny.recipe(pair={"name": "tiny_views", "dies": "row7", "deaths": str(tmp_path / "deaths")})
    (tmp_path / "deaths").write_text("0")
    assert tiny.run(made, [f"out={tmp_path / 'whole'}"], world=2) == [0, 0]
    (tmp_path / "deaths").write_text("1")
    (tmp_path / "recipe.json").write_text(json.dumps(made))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "--max-restarts=1",
            "-m",
            "vicjoint.run",
            "recipe.json",
            *(["out=run"] if out else []),
        ],
        cwd=tmp_path,
        env=on_path(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "deaths").read_text() == "0"
    folder = tmp_path / "run" if out else tmp_path / "runs" / "tiny" / "1"
    assert list(folder.parent.iterdir()) == [folder] or out
    tiny.same_end(tmp_path / "whole", folder)


# ---- a user's script, which has no main guard ----

SCRIPT = """
import tiny, vicjoint
open("begun", "a").write("once ")
{part}
vicjoint.train(tiny.recipe(**{changes}), ["out=run", "data.workers=1", "evaluate.last=false"])
"""
OWN_PART = """
@vicjoint.register("pair", "mine")
class Mine(tiny.Views):
    pass
"""


def script(tmp_path, part: str, **changes) -> subprocess.CompletedProcess:
    (tmp_path / "script.py").write_text(SCRIPT.format(part=part, changes=changes))
    return run_script(tmp_path)


def on_path() -> dict[str, str]:
    """The environment of a process that finds these tests and the package."""
    path = os.pathsep.join([str(tiny.TESTS), str(tiny.TESTS.parent)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def run_script(tmp_path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=on_path(),
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_script_without_a_guard_trains_and_is_not_run_again(tmp_path):
    done = script(tmp_path, "", evaluate={})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "begun").read_text() == "once " and len(tiny.metrics(tmp_path / "run")) == 14


@pytest.mark.slow
def test_a_script_with_a_part_of_its_own_is_told_of_the_guard(tmp_path):
    done = script(tmp_path, OWN_PART, pair={"name": "mine"})
    assert done.returncode == 1 and "below a guard" in done.stderr and "start again" not in done.stderr
    text = (
        (tmp_path / "script.py")
        .read_text()
        .replace("\nvicjoint.train", "\nif __name__ == '__main__': vicjoint.train")
    )
    (tmp_path / "script.py").write_text(text)
    assert run_script(tmp_path).returncode == 0


def made_in_main():
    """A part of a script."""


made_in_main.__module__ = "__main__"


def test_a_process_that_reads_does_not_train(monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "name", f"{readers.READER} 1")
    monkeypatch.setattr(readers.os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        vicjoint.train("video_next_frame")
    assert ended.value.code == readers.NO_GUARD
    monkeypatch.undo()
    found = readers.Readers(SimpleNamespace(limit=None), [[0]], list, workers=1)
    found._processes = [SimpleNamespace(pid=1, is_alive=lambda: False, exitcode=readers.NO_GUARD)]
    with pytest.raises(readers.ReaderError, match="from its top again.*below a guard.*if __name__ =="):
        found._check_dead(wait=False)
    main = sys.modules["__main__"]
    for spec, own_parts, file in (
        (None, {}, None),
        (None, {"mine": made_in_main}, "s.py"),
        ("m", {}, "s.py"),
    ):
        monkeypatch.setattr(main, "__spec__", spec)
        monkeypatch.setattr(main, "__file__", "s.py", raising=False)
        monkeypatch.setattr("vicjoint.registry._components", {"pair": own_parts})
        with readers.starting():
            assert main.__file__ == file
        assert main.__file__ == "s.py"
    assert readers.Reading().Process().name.startswith(readers.READER)


@pytest.mark.skipif(sys.platform != "linux", reason="they are forked from a server there")
def test_readers_end_with_the_process_that_they_read_for(tmp_path):
    """Also where that is killed: they are no children of it."""
    recipe = tiny.recipe(data={"workers": 1}, evaluate={"probes": []})
    tiny.run(recipe, [f"out={tmp_path / 'run'}"], kill=("vicjoint.training.steps.backward", 3))
    own = forkserver._forkserver._forkserver_pid
    end = time.monotonic() + 20
    while left := [p for p in map(Path, glob.glob("/proc/[0-9]*/stat")) if is_reader_of(p, own)]:
        assert time.monotonic() < end, left
        time.sleep(0.05)


def is_reader_of(stat: Path, server: int) -> bool:
    try:
        name, _, rest = stat.read_text().partition(") ")
    except OSError:
        return False
    state, parent = rest.split()[:2]
    return "pt_data_worker" in name and state != "Z" and int(parent) == server
