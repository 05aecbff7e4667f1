"""Checkpoints are whole or absent, and never code; the signals that ask for one."""

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from vicjoint.training import checkpoint, stopping
from vicjoint.training.checkpoint import CheckpointError


def state(step: int, value: float = 0.0, size: int = 1000) -> dict:
    shared = torch.full((size,), value)
    return {
        "step": step,
        "model": {"a.weight": shared, "b.weight": shared, "count": torch.tensor(step)},
        "optimizer": {
            "state": {0: {"exp_avg": torch.arange(3.0), "step": torch.tensor(5.0)}},
            "param_groups": [{"lr": 0.1 + 0.2, "betas": (0.9, 0.99)}],
        },
        "objective": {
            "queue": torch.zeros(20, 0),
            "view": torch.arange(10)[2:5],
            "half": torch.ones(2, dtype=torch.bfloat16),
        },
    }


def test_what_is_saved_comes_back(tmp_path):
    path = checkpoint.save(tmp_path, 7, state(7, 1.5), keep=2)
    back, given = checkpoint.load(path), state(7, 1.5)
    assert back.keys() == given.keys() and back["step"] == 7
    assert back["optimizer"]["param_groups"] == [{"lr": 0.1 + 0.2, "betas": (0.9, 0.99)}] and list(
        back["optimizer"]["state"]
    ) == [0]
    for part, name in (
        ("model", "a.weight"),
        ("model", "b.weight"),
        ("model", "count"),
        ("objective", "queue"),
        ("objective", "view"),
        ("objective", "half"),
    ):
        assert (
            torch.equal(back[part][name], given[part][name])
            and back[part][name].dtype == given[part][name].dtype
        )
    # the library that the format is of reads it
    assert load_file(path / "model.safetensors")["a.weight"].equal(given["model"]["a.weight"])
    # shared weights are written once, and a part of a larger tensor does not bring all of it
    assert (path / "model.safetensors").stat().st_size < 4000 + 500 and (
        path / "training.safetensors"
    ).stat().st_size < 1000
    assert not [p for p in path.rglob("*") if p.suffix not in (".safetensors", ".json")]


def test_keeps_the_newest_the_best_and_loads_the_last(tmp_path):
    for step in (10, 20, 30, 40):
        checkpoint.save(tmp_path, step, state(step, step), keep=2, best=10)
    assert checkpoint.steps(tmp_path) == [10, 30, 40]
    assert checkpoint.load_last(tmp_path)["model"]["a.weight"][0] == 40
    assert not list(tmp_path.glob("*.tmp"))
    checkpoint.save(tmp_path, 40, state(40, 41), keep=1, best=40)
    assert checkpoint.steps(tmp_path) == [40] and checkpoint.load_last(tmp_path)["model"]["a.weight"][0] == 41
    with pytest.raises(
        TypeError, match="a checkpoint holds tensors and plain values; optimizer.x is of type set"
    ):
        checkpoint.save(tmp_path, 50, {"step": 50, "model": {}, "optimizer": {"x": {1}}}, keep=1)
    assert checkpoint.steps(tmp_path) == [40] and not list(tmp_path.glob("*.tmp"))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize(
    "harm, said",
    [
        (truncate, "bytes of|cannot be used"),
        (flip, "is damaged|cannot be used"),
        (os.unlink, "FileNotFoundError"),
        (lambda p: p.write_text(""), "cannot be used"),
        (lambda p: p.write_bytes(pickle.dumps(Bomb())), "cannot be used"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, name, harm, said):
    checkpoint.save(tmp_path, 1, state(1), keep=5)
    path = checkpoint.save(tmp_path, 2, state(2), keep=5)
    harm(path / name)
    if name == "manifest.json" and harm is flip:
        (path / name).write_text((path / name).read_text().replace('"crc32": ', '"crc32": 1'))
    with pytest.raises(CheckpointError, match=said):
        checkpoint.load(path)
    assert checkpoint.load_last(tmp_path)["step"] == 1
    assert f"checkpoint {path} cannot be used" in capsys.readouterr().out


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


def test_every_flipped_bit_is_noticed(tmp_path):
    """In the values: where one flips in a file's names, other checks would find it too."""
    path = checkpoint.save(tmp_path, 2, state(2, size=10), keep=5)
    before = (path / "model.safetensors").read_bytes()
    for bit in range(0, 8 * len(before), 37):
        content = bytearray(before)
        content[bit // 8] ^= 1 << bit % 8
        (path / "model.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match="model.safetensors is damaged"):
            checkpoint.load(path)


def test_a_foreign_checkpoint_is_refused_and_put_aside(tmp_path, capsys):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, state(step, size=9 if step == 3 else 5), keep=5)
    shutil.copytree(tmp_path / "step_00000002", tmp_path / "step_00000009")  # under another one's name
    refuse = lambda state: "it is of another recipe" if len(state["model"]["a.weight"]) == 9 else None
    assert checkpoint.load_last(tmp_path, refuse)["step"] == 2
    said = capsys.readouterr().out
    assert "step_00000009 cannot be used: its name and its content (step 2) differ" in said
    assert f"checkpoint {tmp_path}/step_00000003 cannot be used: it is of another recipe" in said
    (tmp_path / "step_00000007.tmp").mkdir()
    checkpoint.tidy(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step_00000001",
        "step_00000002",
        "step_00000003.refused",
        "step_00000009.refused",
    ]
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints in .* can be used"):
        checkpoint.load_last(tmp_path, lambda state: "no")
    assert checkpoint.load_last(tmp_path / "nothing") is None


def test_an_old_format_is_named(tmp_path):
    path = checkpoint.save(tmp_path, 1, state(1), keep=1)
    (path / "manifest.json").write_text(
        (path / "manifest.json").read_text().replace('"format": 1', '"format": 99')
    )
    with pytest.raises(CheckpointError, match="it has format 99, and this version reads 1"):
        checkpoint.load(path)


# ---- a full disk ----


def full(folder, monkeypatch):
    """A file system of 1 MiB."""
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True
    ).returncode:
        pytest.skip("file systems cannot be mounted here")
    return lambda: subprocess.run(["umount", folder], check=True)


def too_large(folder, monkeypatch):
    """Files of at most 100 kB, as a quota has them."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)


def no_room(folder, monkeypatch):
    """The error alone, at the end of the writing."""
    original = os.fsync

    def refuses(number):
        if "step_00000002" in os.readlink(f"/proc/self/fd/{number}"):
            raise OSError(28, "No space left on device")
        original(number)

    monkeypatch.setattr(os, "fsync", refuses)
    return lambda: None


@pytest.mark.parametrize("narrow", [full, too_large, no_room])
def test_a_full_disk_leaves_the_old_checkpoint_and_no_rubbish(tmp_path, monkeypatch, narrow):
    folder = tmp_path / "disk"
    folder.mkdir()
    undo = narrow(folder, monkeypatch)
    try:
        checkpoint.save(folder, 1, state(1, 3.0, 10_000), keep=1)
        with pytest.raises(
            CheckpointError,
            match=(
                r"step_00000002 cannot be written: .*(No space left|File too large|os error).* It needs about"
                r" \d+ MiB, and "
                r"\d+ MiB are free there. The one of step 1 is as it was. Make room"
            ),
        ) as caught:
            checkpoint.save(folder, 2, state(2, 4.0, 400_000), keep=1)
        assert "Traceback" not in str(caught.value)
        assert [p.name for p in folder.iterdir()] == ["step_00000001"]
        assert checkpoint.load_last(folder)["model"]["a.weight"][0] == 3.0
    finally:
        undo()
    monkeypatch.undo()


# ---- signals ----


def test_a_repeated_signal_is_one_request_and_a_later_one_stops_at_once(monkeypatch):
    with stopping.StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # as `timeout` does: to the program, then to its group
        assert stop.asked
        later = stopping.time.monotonic() + 2
        monkeypatch.setattr(stopping.time, "monotonic", lambda: later)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            signal.getsignal(signal.SIGTERM)  # handlers run between two instructions


def test_where_nothing_is_lost_the_first_signal_stops(monkeypatch):
    with stopping.StopSignal() as stop:
        with pytest.raises(stopping.Interrupted), stop.at_once():
            os.kill(os.getpid(), signal.SIGINT)
            signal.getsignal(signal.SIGINT)
        with pytest.raises(stopping.Interrupted), stop.at_once():  # asked for before
            pytest.fail("entered")
        assert stop.asked and json.dumps(stop.asked) == "true"


def test_a_folder_whose_name_is_not_utf8(tmp_path):
    """Bytes of an old file system, as Python gives them."""
    folder = tmp_path / "caf\udce9"
    checkpoint.save(folder, 3, state(3), keep=1)
    assert torch.equal(checkpoint.load_last(folder)["model"]["a.weight"], state(3)["model"]["a.weight"])
