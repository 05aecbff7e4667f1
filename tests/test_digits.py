"""Moving digits: the world (what is seen, where labels say it is, bounces), and the probe that reads places
from predictions (average precision, its rows, a run)."""

import json

import numpy as np
import pytest
import torch
from probing import Bare, Given, Listed, bound, measured, missing, model_of, points, refused
from torch import nn

import vicjoint
from vicjoint.pairs.next_frame import NextFrame
from vicjoint.parts import Pair
from vicjoint.probes.detection import (
    Ranked,
    RolloutDetection,
    average_precisions,
    cells_of,
    certainty,
    fit_head,
    places_of,
)
from vicjoint.video import Video

pytest.importorskip("sklearn")

from sklearn.metrics import average_precision_score

from vicjoint.samples.digits import PIXEL, SPEED, SampleDigits, film, images_of, way
from vicjoint.samples.world import SIDE


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VICJOINT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def frames_of(record):
    with Video(record["path"]) as video:
        return video.read(range(video.info.frames))


# ---- the world ----


def test_labels_are_the_middle_of_the_ink_that_is_seen(cache):
    source = SampleDigits(train=4, test=2, digits=1)
    for record in source.train + source.test:
        for picture, ((x, y),) in zip(frames_of(record), record["positions"]):
            assert picture.shape == (64, 64, 3) and (picture == picture[..., :1]).all()
            rows, columns = (np.flatnonzero(picture[..., 0].any(axis)) for axis in (1, 0))
            # pixel i reaches from i to i + 1
            assert (rows[0] + rows[-1] + 1) / 2 == pytest.approx(64 * y, abs=1)
            assert (columns[0] + columns[-1] + 1) / 2 == pytest.approx(64 * x, abs=1)


def test_a_film_shows_all_of_its_digits_all_the_time(cache):
    both = SampleDigits(train=6, test=2, size=32)
    assert len(both.train) == 6 and len(both.test) == 2 and "6 train, 2 test videos" in both.describe()
    for record in both.train:
        pictures, places = frames_of(record), np.array(record["positions"])
        assert pictures.shape == (10, 32, 32, 3) and places.shape == (10, 2, 2)
        assert len(record["digits"]) == 2 and set(record["digits"]) <= set(range(10))
        for picture, at in zip(pictures, places):
            for x, y in at * 32:  # within half a digit's side of its middle there is ink
                near = picture[max(0, int(y) - 3) : int(y) + 4, max(0, int(x) - 3) : int(x) + 4]
                assert near.max() > 100
    one = SampleDigits(train=3, test=1, digits=1)
    for record in one.train:
        ink = frames_of(record).astype(float).sum((1, 2, 3))
        assert ink == pytest.approx(np.full(10, ink[0]), rel=0.03)  # nothing is cut off


def test_digits_of_the_test_split_are_other_images():
    images = images_of(3)
    assert [len(images[split]) for split in ("train", "test")] == [1438, 359]
    as_bytes = {split: {ink.tobytes() for _, ink in of} for split, of in images.items()}
    assert not as_bytes["train"] & as_bytes["test"]
    assert all(ink.any(0)[[0, -1]].all() and ink.any(1)[[0, -1]].all() for _, ink in images["test"])
    with_other_seed = {ink.tobytes() for _, ink in images_of(4)["test"]}
    assert with_other_seed != as_bytes["test"]


def steps_of(places_T2, margin):
    """(steps [T - 1, 2]; for each of them which borders [2] were reached on its way)."""
    steps = np.diff(places_T2, axis=0)
    return steps, np.isclose(places_T2, margin) | np.isclose(places_T2, SIDE - margin)


def test_a_border_mirrors_the_way():
    margin = np.array([10.0, 12.0])
    found = way(np.array([15.0, 30.0]), np.array([-3.0, 1.0]), margin, 5)
    assert found.tolist() == [[15, 30], [12, 31], [11, 32], [14, 33], [17, 34]]
    for index in range(30):
        _, inks, places = film(0, "train", index, frames=40)
        for ink, of in zip(inks, places):
            edge = PIXEL * (np.array(ink.shape[::-1]) + 1) / 2
            assert (of >= edge - 1e-9).all() and (of <= SIDE - edge + 1e-9).all()
            speed = np.abs(np.diff(of, axis=0))
            usual = np.median(speed, axis=0)  # of each axis; less only in the frame of a bounce
            away = np.abs(speed - usual) > 1e-6
            assert (speed <= usual + 1e-6).all()
            assert SPEED[0] - 1e-3 <= np.hypot(*usual) <= SPEED[1] + 1e-3
            turned = np.diff(np.sign(np.diff(of, axis=0)), axis=0) != 0
            for t, axis in zip(*np.nonzero(turned)):  # only where a border is within a step
                nearest = np.minimum(of - edge, SIDE - edge - of)[t : t + 3, axis].min()
                assert nearest <= usual[axis] + 1e-6
            assert away.sum() <= turned.sum() + 2


def test_a_border_may_give_any_direction_away_from_it():
    margin, ways = np.array([10.0, 10.0]), []
    for seed in range(40):
        turns = np.random.default_rng(seed)
        found = way(np.array([14.0, 32.0]), np.array([-3.0, 0.0]), margin, 4, turns)
        assert found[:3].tolist() == [[14, 32], [11, 32], [10, 32]]  # it stops at the border
        ways.append(found[3] - found[2])
    ways = np.array(ways)
    assert np.hypot(*ways.T) == pytest.approx(np.full(40, 3.0), abs=1e-3)
    assert (ways[:, 0] >= 0).all() and ways[:, 1].min() < -1.5 and ways[:, 1].max() > 1.5
    same = [film(0, "test", 5, 30, stochastic=kind)[2] for kind in (True, True, False)]
    assert np.array_equal(same[0], same[1]) and np.array_equal(same[0][:, 0], same[2][:, 0])
    assert not np.array_equal(same[0], same[2])


# ---- average precision ----


@pytest.mark.parametrize("levels", [3, 1000])
def test_average_precision_is_that_of_scikit_learn(levels):
    rng = np.random.default_rng(0)
    truth, times = rng.random((30, 16)) < 0.2, rng.integers(0, 4, 30)
    scores = np.round(levels * (truth + rng.normal(size=truth.shape))) / levels
    expected = average_precision_score(truth.ravel(), scores.ravel())
    assert Ranked(scores, truth).average_precision(np.ones(30, int)) == pytest.approx(expected, rel=1e-12)
    drawn = np.repeat(np.arange(30), times)
    expected = average_precision_score(truth[drawn].ravel(), scores[drawn].ravel())
    assert Ranked(scores, truth).average_precision(times) == pytest.approx(expected, rel=1e-12)
    assert np.isnan(Ranked(scores, truth & False).average_precision(times))


def test_the_mean_over_steps_and_intervals():
    rng = np.random.default_rng(1)
    truth = rng.random((40, 2, 16)) < 0.2
    scores = truth + np.array([0.2, 2.0])[:, None] * rng.normal(size=truth.shape)
    found = average_precisions(scores, truth, [i // 2 for i in range(40)])
    assert found["map"] == pytest.approx((found["ap_1"] + found["ap_2"]) / 2)
    assert found["ap_1"] > 0.9 > found["ap_2"]
    assert all(found[f"{name}_low"] <= found[name] <= found[f"{name}_high"] for name in points(found))


def test_cells_go_row_by_row_and_nothing_is_outside():
    places = np.array([[[0.1, 0.6], [0.99, 0.0]], [[1.0, 0.5], [-0.01, 0.5]]])
    assert [np.flatnonzero(of).tolist() for of in cells_of(places, 4)] == [[3, 8], []]
    scores = certainty(places, 4)
    assert set(np.argsort(-scores[0])[:2]) == {3, 8} and scores[0].max() > 0.5
    assert set(np.argsort(-scores[1])[:4]) == {4, 7, 8, 11} and scores[1].max() < 0


def test_the_head_learns_cells_and_the_held_out_choose_the_epoch():
    rng = np.random.default_rng(0)
    places = rng.random((1200, 1, 2))
    y = torch.from_numpy(cells_of(places, 2)).float()
    z = torch.from_numpy(
        np.concatenate([places[:, 0] @ rng.normal(size=(2, 5)), places[:, 0] ** 2], 1)
    ).float()
    held, steps = torch.arange(1200) >= 1000, []
    state = torch.get_rng_state()
    head = fit_head(torch.cat([z, torch.ones(1200, 1)], 1), y, held, steps.append)  # a constant says nothing
    assert torch.equal(torch.get_rng_state(), state) and sum(steps) == 30 * 1000
    scores = head(torch.cat([z, torch.ones(1200, 1)], 1)[held]).detach().numpy()
    assert average_precision_score(y[held].numpy().ravel(), scores.ravel()) > 0.97


# ---- the probe ----


class Pixels(nn.Module):
    """y of a picture is its pixels."""

    def forward(self, view):
        return nn.functional.avg_pool2d(view[:, :1].float(), 4).flatten(1) / 255


class EachPixels(nn.Module):
    """Of each frame of a clip, as a predictor that looks back sees it."""

    def forward(self, view):
        return Pixels()(view[:, :, -1])


@pytest.fixture(scope="module")
def source(cache):
    return SampleDigits(train=120, test=24, digits=1, frames=6)


def pair_of(source, **options):
    options = {
        "frames": 2,
        "stride": 1,
        "gap": 1,
        "size": 64,
        "windows": 1,
        "horizon": 3,
        "flip": 0,
    } | options
    return bound(NextFrame(**options), source)


def test_rows_of_the_probe(source):
    made = model_of(Bare(EachPixels()), Bare(Pixels()), Given(lambda z: z))
    probe = RolloutDetection(cells=4, queries=2)
    found = measured(probe, made, made, source, pair_of(source))
    by_rule = ["copy_last", "extrapolation", "random_init", "constant_velocity", "frequency", "chance"]
    assert list(found) == ["model", "targets", *by_rule]
    assert set(points(found["model"])) == {"map", "ap_1", "ap_2", "ap_3"}
    assert found["model"] == found["copy_last"] == found["random_init"]  # a predictor that predicts nothing
    assert found["targets"]["map"] > 0.8 > found["copy_last"]["ap_3"]
    assert found["targets"]["ap_3"] > found["copy_last"]["ap_3"] + 0.2
    assert found["chance"]["ap_2"] == pytest.approx(1 / 16)
    assert found["frequency"]["map"] > found["chance"]["map"]
    assert found["constant_velocity"]["ap_1"] > found["constant_velocity"]["ap_3"] > 0.4


def test_training_films_are_read_for_the_head_alone(source):
    made = model_of(Bare(EachPixels()), Bare(Pixels()), Given(lambda z: z))
    few = RolloutDetection(cells=4, films=3)
    data = vicjoint.parts.EvaluationData(("a", "b"), source, pair_of(source))
    assert [r["id"] for r in few.to_read(data, "train")] == [source.train[i]["id"] for i in (0, 60, 119)]
    assert len(few.to_read(data, "test")) == 24
    scored = measured(few, made, made, source, pair_of(source))
    more = measured(RolloutDetection(cells=4), made, made, source, pair_of(source))
    assert scored["targets"]["map"] < more["targets"]["map"]
    assert scored["constant_velocity"] == more["constant_velocity"]


def test_what_cannot_be_measured_is_said(source, capsys):
    probe = RolloutDetection()
    assert missing(probe, source, pair_of(source)) is None
    with pytest.raises(ValueError, match="'rollout_detection' looks at windows of videos"):
        missing(probe, source, Pair())
    plain = Listed(train=source.train, test=[{"id": "x", "path": "x.mp4"}])
    assert "no test record has 'positions', the places in each frame" in missing(probe, plain, pair_of(plain))
    assert "two context frames or more" in missing(probe, source, pair_of(source, frames=1))
    refused("rollout_detection", {"cells": 1}, "cells: expected a number at least 2, got 1")
    record = source.test[0]
    for wrong, message in (
        ({"positions": "here"}, "its positions are 'here', expected a list with, for each frame, the places"),
        ({"positions": [[1.0, 2.0, 3.0]] * 6}, "expected a list with, for each frame, the places"),
        ({"positions": record["positions"][:4]}, "its positions have 4 rows, and frame 4"),
    ):
        with pytest.raises(ValueError, match=message.replace("[", r"\[")):
            places_of(record | wrong, "positions", [0, 1, 4])
    made = model_of(Bare(EachPixels()), Bare(Pixels()), Given(lambda z: z))
    two = record | {"id": "two", "positions": [[at, [0.5, 0.5]] for (at,) in record["positions"]]}
    broken = Listed(train=source.train, test=[record, record | {"id": "other", "positions": ["here"]}, two])
    found = measured(RolloutDetection(cells=4), made, made, broken, pair_of(broken))
    assert found["chance"]["map"] == pytest.approx(3 / 32, abs=0.02)  # films may hold different numbers
    assert "evaluation leaves out other: its positions are" in capsys.readouterr().out
    none = Listed(train=source.train, test=[record | {"positions": ["here"]}])
    with pytest.raises(ValueError, match="0 test films can be read with this pair. Expected 1 or more"):
        measured(RolloutDetection(cells=4), made, made, none, pair_of(none))


def test_films_of_one_thing_each(source):
    flat = [r | {"positions": [at for (at,) in r["positions"]]} for r in source.test]
    for before, after in zip(source.test, flat):
        numbers = [0, 2]
        assert np.array_equal(places_of(before, "positions", numbers), places_of(after, "positions", numbers))


RECIPE = """
name: digits
source: {name: sample_digits, train: 16, test: 8, frames: 6, size: 16}
pair: {name: next_frame, frames: 3, stride: 1, gap: 1, size: 16, windows: 1, horizon: 3, flip: 0}
a: {modality: clip, encoder: {name: each_frame, image: {name: conv, width: 4, dim: 8}}, expander: [8]}
b: {weights: same}
predictor: {name: residual, context: 3, hidden: 8}
objective: {name: vicreg}
optim: {name: adamw, lr: 1e-3, schedule: {name: constant}}
train: {steps: 2, batch_size: 4}
data: {workers: 0, video_backend: pyav}
evaluate: {probes: [{name: rollout_detection}]}
"""


def test_a_run(cache, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run = vicjoint.train(tmp_path / "recipe.yaml", [f"out={tmp_path / 'out'}"])
    found = json.loads((run / "evaluation.json").read_text())["rollout_detection"]
    assert {"map", "map_low", "ap_1", "ap_3"} <= found["model"].keys()
    assert 0 < found["model"]["map"] < 1 and found["chance"]["ap_1"] < 2 / 64 + 1e-9
    assert "average precision of the cells that hold a thing, step 3" in (run / "report.html").read_text()
