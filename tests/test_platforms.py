"""Signals of schedulers and terminals; and systems that lack what Unix has."""

import json
import os
import signal
from pathlib import Path

import pytest
from torchrun import torchrun
from two_texts import recipe, rows

from vicjoint.data import readers
from vicjoint.embed import on_signals
from vicjoint.files.cells import file_path
from vicjoint.sources.table import Table
from vicjoint.training.stopping import StopSignal

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"]


@pytest.fixture
def hangup():
    """SIGHUP as in a terminal, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_asks_to_stop(name):
    before = signal.getsignal(signal.Signals[name])
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.Signals[name])
        assert stop.asked
        os.kill(os.getpid(), signal.Signals[name])  # within a second: the same request
    assert signal.getsignal(signal.Signals[name]) is before
    with pytest.raises(KeyboardInterrupt), on_signals():
        os.kill(os.getpid(), signal.Signals[name])
    assert signal.getsignal(signal.Signals[name]) is before


def test_a_terminal_may_be_closed_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked and signal.SIGTERM in readers.stop_signals()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_processes_that_read_leave_signals_to_the_one_that_trains():
    """They reach the whole group."""
    assert [number.name for number in readers.STOP_SIGNALS] == SIGNALS


WITHOUT_UNIX = """
import signal, sys
import matplotlib.pyplot, pyarrow, torch.utils.data, torchvision, transformers  # which look at the system
for name in ("fcntl", "resource"):
    sys.modules[name] = None
names = "SIGALRM SIGCHLD SIGKILL SIGBUS SIGHUP SIGUSR1 SIGUSR2 setitimer ITIMER_REAL"
for name in names.split():
    delattr(signal, name)
from vicjoint import embed, evaluate, run
assert run.main(["r.json", "--dry-run"]) == 0
assert run.main(["r.json", "out=run"]) == 0
assert run.main(["r.json", "out=run"]) == 0
assert evaluate.main(["run"]) == 0
assert embed.main(["run", "t.csv", "--to", "y.parquet", "--workers", "0"]) == 0
"""


def test_without_what_unix_alone_has(tmp_path):
    (tmp_path / "t.csv").write_text(rows(*range(16)))
    (tmp_path / "r.json").write_text(json.dumps(recipe(2)))
    done = torchrun(tmp_path, 1, "-c", WITHOUT_UNIX)
    assert "peak memory: not known on this system" in done.stdout and (tmp_path / "y.parquet").exists()


def test_a_table_that_was_written_on_windows(tmp_path):
    names = ["img/0.png", "img/deep/1.png", "img/2.png", "img/na\\me.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    text = {name: name.replace("/", "\\") for name in names[:3]} | {names[3]: names[3]}
    for table, cells in (("unix.csv", names), ("windows.csv", text.values())):
        (tmp_path / table).write_text("path\n" + "\n".join(cells))
    unix, windows = Table(str(tmp_path / "unix.csv")), Table(str(tmp_path / "windows.csv"))
    assert windows.train == unix.train and windows.test == unix.test
    assert sorted(r["path"] for r in [*windows.train, *windows.test]) == sorted(
        str(tmp_path / name) for name in names
    )
    cell = {"folder": str(tmp_path)}
    assert file_path(cell, "img\\0.png") == f"{tmp_path}/img/0.png"
    assert file_path(cell, "img\\deep\\..\\2.png") == f"{tmp_path}/img/2.png"
    assert file_path(cell, "img\\gone.png") == f"{tmp_path}/img/gone.png"  # a bad sample, when it is read
