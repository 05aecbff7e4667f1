"""The benchmark of a GPU runs through in small, and ends well where there is none."""

import json

import pytest
import torch

from benchmarks import gpu

pytest.importorskip("soundfile"), pytest.importorskip("torchaudio")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(gpu, "SECONDS", 0)


def test_all_parts_in_small(tmp_path, capsys):
    assert gpu.main(["--small", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == ["machine", *gpu.PARTS]
    rows = [row for part in gpu.PARTS for row in found[part]]
    assert not [row for row in rows if "left_out" in row or "failed" in row]
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
    assert {row["precision"] for row in found["objectives"]} == {"fp32", "tf32", "bf16"}
    for row in found["training"]:
        assert row["samples_per_second"] > 0
        assert 0 <= row["waiting"] < 1 if row["data"] == "files" else 0 < row["of_ceiling"]
    assert len(found["training"]) == 3 * len(gpu.TRAINED)


def test_a_measurement_that_fails_takes_no_other_with_it(tmp_path, capsys):
    def fails():
        raise RuntimeError("no kernel\nand more")

    report = gpu.Report(str(tmp_path / "found.json"), minutes=1)
    assert report.add("health", lambda: {"ms": 2.0}, n=3) == {"n": 3, "ms": 2.0} and not report.failed
    assert report.add("health", fails, n=4) == {"n": 4, "failed": "RuntimeError: no kernel"} and report.failed
    report.end = 0
    assert "left_out" in report.add("health", fails, n=5)
    assert len(json.loads((tmp_path / "found.json").read_text())["health"]) == 3
    assert "health: n 3  ms 2 " in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(capsys):
    assert gpu.main([]) == 0
    assert "no GPU here, nothing to measure. --small runs" in capsys.readouterr().out
