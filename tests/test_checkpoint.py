"""Checkpoints are whole or absent, and never code."""

import os
import pickle
import signal

import pytest
import torch

from vicjoint import checkpoint


def test_keeps_the_newest_and_loads_the_last(tmp_path):
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, step, {"step": step, "weight": torch.full((2,), float(step))}, keep=2)
    assert checkpoint.steps(tmp_path) == [20, 30]
    assert checkpoint.load_last(tmp_path)["weight"].tolist() == [30, 30]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_truncated_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys):
    checkpoint.save(tmp_path, 1, {"step": 1}, keep=5)
    path = checkpoint.save(tmp_path, 2, {"step": 2, "weight": torch.zeros(1000)}, keep=5)
    path.write_bytes(path.read_bytes()[:500])
    assert checkpoint.load_last(tmp_path)["step"] == 1
    assert "step_00000002.pt cannot be read" in capsys.readouterr().out


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


def test_code_in_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "step_00000001.pt").write_bytes(pickle.dumps(Bomb()))
    assert checkpoint.load_last(tmp_path) is None


def test_a_repeated_signal_is_one_request_and_a_later_one_stops_at_once(monkeypatch):
    with checkpoint.StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # as `timeout` does: to the program, then to its group
        assert stop.asked
        later = checkpoint.time.monotonic() + 2
        monkeypatch.setattr(checkpoint.time, "monotonic", lambda: later)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            signal.getsignal(signal.SIGTERM)  # handlers run between two instructions
