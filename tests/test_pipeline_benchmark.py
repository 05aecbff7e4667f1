"""The benchmarks of the way from files to batches run through in small; shares are of one whole."""

import json
import time

import pytest

from benchmarks import pipeline, squares


def test_all_cases_in_small(tmp_path, capsys):
    pipeline.main(["--quick", "--step-ms", "10", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    rows = found["rows"]
    assert [(row["case"], row["epoch"]) for row in rows] == [(c, e) for c in pipeline.CASES for e in (1, 2)]
    for row in rows:
        assert list(row["shares"]) == list(pipeline.STAGES)
        assert sum(row["shares"].values()) == pytest.approx(1) and row["bad"] == 0
        assert min(row["shares"][name] for name in ("open", "decode", "convert", "transform")) > 0
        assert row["cores"] == pytest.approx(row["cpu_ms"] * pipeline.BATCH / 10)
    printed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("note: ")]
    assert len(printed) == 1 + len(rows)


def test_roads_from_a_frame_to_a_square(tmp_path, monkeypatch):
    monkeypatch.setattr(squares, "SIZES", {"340x256": squares.SIZES["340x256"]})
    squares.main(["--seconds", "0", "--json", str(tmp_path / "found.json")])
    row = json.loads((tmp_path / "found.json").read_text())["340x256"]
    assert list(row["ms"]) == ["decoding", "whole", "ours", *squares.SCALERS]
    assert all(0 < mean < most <= 255 for mean, most in row["differs"].values())


def test_a_stage_has_no_time_of_those_within_it():
    def busy(seconds):
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    clock = pipeline.Clock()
    inner = clock.of("convert", lambda: busy(0.02))
    with clock.stage("decode"):
        busy(0.03)
        inner()
        busy(0.03)
    busy(0.05)  # of no stage
    with pytest.raises(ValueError), clock.stage("open"):
        busy(0.01)
        raise ValueError
    found = {name: seconds for name, seconds in clock.seconds.items() if seconds}
    assert found == pytest.approx({"decode": 0.06, "convert": 0.02, "open": 0.01}, abs=0.008)
