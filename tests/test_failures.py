"""What can be expected to fail ends in one message that says what to do, with the right exit code and no
traceback."""

import errno
import json
import os
from pathlib import Path

import pytest
import tiny
import torch

from vicjoint import run
from vicjoint.files.cache import cache_root
from vicjoint.files.paths import user_path
from vicjoint.training import loop, steps


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "write_report", lambda folder: folder / "report.html")
    Path("tiny.json").write_text(json.dumps(tiny.recipe()))
    Path("file").write_text("")


def fails(capsys, code: int, *overrides: str) -> str:
    """The message of a command that ends with this exit code."""
    assert run.main(["tiny.json", *overrides]) == code
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    message = [line for line in said.err.splitlines() if line and "step/s" not in line]
    assert len(message) == 1, message
    return message[0]


NO_NORM = "a.encoder={name: noisy, norm: false}", "b={weights: same}"


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["train.batch_size=4", "train.accumulate=4"], "train.batch_size: 4 samples leave one at a time"),
        (
            ["train.batch_size=4", "train.accumulate=4", "train.exact=false", "a.expander=[4]", *NO_NORM],
            "in 4 parts (train.accumulate), which is too few: the objective compares samples. Raise",
        ),
    ],
)
def test_one_sample_at_a_time(overrides, said, capsys):
    assert said in fails(capsys, 2, *overrides) and not Path("runs").exists()


def test_one_sample_at_a_time_without_batch_norm_is_as_good_as_any(capsys):
    alone = ["train.accumulate=4", "a.expander=[4]", *NO_NORM]
    assert run.main(["tiny.json", "out=run", "train.batch_size=4", "train.steps=1", *alone]) == 0


def test_a_batch_of_one(capsys):
    assert run.main(["tiny.json", "train.batch_size=1"]) == 2
    assert "train.batch_size: expected a number at least 2, got 1." in capsys.readouterr().err


def test_no_compiler(capsys, monkeypatch):
    def compile(model):
        raise RuntimeError(
            "InvalidCxxCompiler: No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1 ..."
        )

    monkeypatch.setattr(torch, "compile", compile)
    said = fails(capsys, 2, "train.compile=true")
    assert "train.compile: torch.compile does not work here (InvalidCxxCompiler: No working C++" in said
    assert "TORCHDYNAMO" not in said and not Path("runs").exists()


def test_a_folder_that_cannot_be_written(capsys, monkeypatch):
    assert fails(capsys, 2, "out=file/run") == (
        "out: file/run cannot be written (Not a directory). Give another out=FOLDER."
    )
    Path("runs").write_text("")  # the working folder has no room for it
    assert fails(capsys, 2).startswith("out: runs cannot be written (")


def test_a_run_folder_of_somebody_else(capsys, monkeypatch):
    assert run.main(["tiny.json", "out=run", "train.steps=1"]) == 0
    capsys.readouterr()
    Path("run/.lock").unlink()
    Path("run/.lock").mkdir()
    assert fails(capsys, 2, "out=run", "train.steps=1").startswith(
        "out: run cannot be written (Is a directory)"
    )


@pytest.mark.parametrize(
    "error, said",
    [
        (
            RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
            f"stopped: RuntimeError at {__file__}:{{line}}: mat1 and mat2",
        ),
        (ValueError("a fault"), f"stopped: ValueError at {__file__}:{{line}}: a fault"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/data/x.png"),
            "stopped: /data/x.png: Permission denied. When that is mended, the same command with out=run",
        ),
        (OSError(errno.EIO, "Input/output error"), "stopped: run: Input/output error. When that is mended"),
        (OSError(errno.ENOSPC, "No space left"), "stopped: run cannot be written: No space left. Its check"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"),
            "stopped: there is too little memory (CUDA out of memory. Tried to allocate 2 GiB.). Lower",
        ),
        (MemoryError(), "stopped: there is too little memory (MemoryError). Lower"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "stopped: there is too little memory ([enforce fail]",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_in_a_step(error, said, capsys, monkeypatch):
    def fail(*given):
        raise error

    monkeypatch.setattr(steps, "backward", fail)
    line = fail.__code__.co_firstlineno + 1
    assert fails(capsys, 1, "out=run").startswith(said.format(line=line))


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(steps, "backward", lambda *given: {}["missing"])
    with pytest.raises(KeyError):
        run.main(["tiny.json"])


def test_a_place_is_that_of_the_users_own_code():
    try:
        torch.nn.Linear(2, 3)(torch.zeros(1, 4))
    except RuntimeError as error:
        assert loop.place_of(error).startswith(f"{__file__}:")


def test_no_home_folder(monkeypatch, capsys):
    """A user number that the system does not know, and no HOME."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    for name in ("HOME", "VICJOINT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="~/x: no home folder is known for its ~. Write the path out."):
        user_path("~/x")
    assert cache_root().name == f"vicjoint-{os.getuid()}" and cache_root().parent.is_dir()
    assert run.main(["tiny.json", "out=~/x"]) == 2
    assert (
        "out: expected a path without ~, since no home folder is known, got '~/x'." in capsys.readouterr().err
    )


def test_a_home_folder_stands_for_its_sign_wherever_a_path_is_given(monkeypatch, tmp_path, capsys):
    from vicjoint import evaluate, export, load_encoder

    monkeypatch.setenv("HOME", str(tmp_path))
    assert run.main(["tiny.json", "out=~/run", "train.steps=1"]) == 0
    assert capsys.readouterr().out.endswith(f"run: {tmp_path / 'run'}\n") and not Path("~").exists()
    assert evaluate.main(["~/run", "--json", "~/found.json"]) == 0 and Path("found.json").exists()
    assert export.main(["~/run", "--to", "~/exported"]) == 0 and Path("exported/config.json").exists()
    assert load_encoder("~/run", imports=["tiny"]).dim == 8
