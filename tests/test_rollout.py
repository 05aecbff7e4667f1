"""Predictions fed back: targets of several steps, what the objective sees of them, the error of each step,
and what is surprising."""

import copy
import json

import numpy as np
import pytest
import torch
from probing import bound
from test_embed import command, rows, said
from torch import nn

import vicjoint
from vicjoint.accumulate import backward
from vicjoint.batch import Batch, Conditioned, Following, concatenate
from vicjoint.embeddings.store import read_index
from vicjoint.embeddings.surprises import ERROR, SURPRISE, Surprises
from vicjoint.model import Branch, Model
from vicjoint.objectives import VICReg
from vicjoint.objectives.straightened import Straightened
from vicjoint.pairs.next_frame import NextFrame
from vicjoint.parts import Modality, Predictor
from vicjoint.predictors import Residual
from vicjoint.probes.labels import around
from vicjoint.recipe import RecipeError
from vicjoint.recipe.keys import Train
from vicjoint.samples.pushed import SamplePushed
from vicjoint.samples.surprises import FAR, SampleSurprises
from vicjoint.surprise import BEFORE, LEAST, surprise
from vicjoint.video import Video

FRAMES, H, B, E = 24, 3, 12, 6


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VICJOINT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def pushed(cache):
    return SamplePushed(train=4, test=2, frames=FRAMES, size=32, every=3)


# ---- the pair ----


def pair(source, **options):
    options = {"frames": 2, "stride": 1, "gap": 2, "size": 32, "windows": 2, "flip": 0} | options
    return bound(NextFrame(**options), source)


def windows_of(record, of, seed=0):
    return of.draw(Video(record["path"]).info, np.random.default_rng(seed), record["path"])


def test_targets_are_the_frames_that_follow_each_gap_further(pushed):
    record, of = pushed.train[0], pair(pushed, horizon=H)
    clips, targets = of.sample(record, np.random.default_rng(0))
    windows = windows_of(record, of)
    assert [w.targets for w in windows] == [[w.context[-1] + 2 * k for k in (1, 2, 3)] for w in windows]
    assert isinstance(targets, Following) and targets.view.shape == (2, 3, H, 32, 32)
    with Video(record["path"]) as video:
        for w, seen in zip(windows, targets.view.transpose(1, 2)):
            frames = torch.from_numpy(video.read(w.targets)).permute(0, 3, 1, 2)
            assert torch.equal(seen, frames)
    _, last = pair(pushed, horizon=H, train_on="last").sample(record, np.random.default_rng(0))
    assert torch.equal(last.view, targets.view[:, :, -1:]) and last.horizon == H and last.targets == 1


def test_targets_by_the_clock_are_those_by_number(pushed):
    record = pushed.train[0]
    by_number, by_clock = pair(pushed, horizon=H), pair(pushed, horizon=H, seconds=1 / 25)
    assert windows_of(record, by_clock) == windows_of(record, by_number)
    assert not by_number.evenly and pair(pushed, gap=1).evenly and pair(pushed, gap=1, seconds=0.1).evenly


def test_a_horizon_of_one_is_what_there_was(pushed):
    a, b = pair(pushed).sample(pushed.train[0], np.random.default_rng(0))
    for same in (pair(pushed, horizon=1), pair(pushed, horizon=1, train_on="last")):
        again = same.sample(pushed.train[0], np.random.default_rng(0))
        assert torch.equal(again[0], a) and torch.equal(again[1], b)


def test_each_step_has_its_condition(pushed):
    record, told = pushed.train[0], {"column": "forces", "width": 2}
    of = pair(pushed, horizon=H, condition=told)
    a, _ = of.sample(record, np.random.default_rng(0))
    forces = np.loadtxt(record["forces"], delimiter=",", skiprows=1, dtype=np.float32)
    assert isinstance(a, Conditioned) and a.condition.shape == (2, H, 4)
    for w, seen in zip(windows_of(record, of), a.condition.numpy()):
        for k, row in enumerate(seen):
            first = w.context[-1] + 2 * k
            np.testing.assert_array_equal(row, forces[first : first + 2].ravel())


def test_a_film_that_ends_too_early_for_the_horizon(tmp_path, pushed):
    with pytest.raises(ValueError, match=r"has 24 frames, 26 are needed \(pair.frames, .* gap, horizon\)"):
        pair(pushed, horizon=12).sample(pushed.train[0], np.random.default_rng(0))
    with pytest.raises(ValueError, match="pair.horizon: with gap 0 all 3 targets are the last context frame"):
        NextFrame(gap=0, horizon=3)


# ---- the batch and the model ----


class Plain(Modality):
    def forward(self, raw):
        return raw


class Told(Predictor):
    takes_condition = True

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(E + 2, E).double()

    def forward(self, z_a, condition=None):
        told = z_a.new_zeros(len(z_a), 2) if condition is None else condition.to(z_a)
        return self.net(torch.cat([z_a, told], 1))


def encoder(width):
    net = nn.Linear(width, 8).double()
    net.dim = 8
    return net


def model(conditions=(), predictor=None):
    torch.manual_seed(0)
    branches = {
        "a": Branch(Plain(), encoder(4), [E]).double(),
        "b": Branch(Plain(), encoder(5), [E]).double(),
    }
    return Model(branches, [("a", "b")], predictor=predictor or Told(), conditions=conditions)


def batch(targets=H):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)
    return Batch(
        Conditioned(draw(B, 4), draw(B, H, 2)),
        Following(draw(B, H, 5)[:, -targets:].transpose(1, 2), H),
        torch.arange(4).repeat_interleave(3),
        ["x"] * B,
    )


def by_hand(of: Model, given: Batch):
    z, found = of.branches["a"](given.a.view), []
    for k in range(H):
        z = of.predictor(z, given.a.condition[:, k])
        found.append(z)
    return torch.stack(found, 1), of.branches["b"].expander(
        of.branches["b"].encoder(given.b.view.transpose(1, 2))
    )


@pytest.mark.parametrize("targets", [H, 1])
def test_a_prediction_is_fed_back_and_each_step_is_a_row(targets):
    of, given = model((False, False)), batch(targets)
    z_a, z_b = of(given.a, given.b)
    predicted, seen = by_hand(of, given)
    assert torch.allclose(z_a, predicted[:, -targets:].reshape(-1, E), rtol=1e-12)
    assert torch.allclose(z_b, seen.reshape(-1, E), rtol=1e-12) and z_b.shape == (B * targets, E)
    assert given.row_groups().tolist() == [g for g in given.group.tolist() for _ in range(targets)]


def gradients(of, given, accumulate=1):
    of = copy.deepcopy(of)
    options = Train(steps=1, batch_size=B, accumulate=accumulate)
    loss, *_ = backward(of, VICReg(statistics="both"), given, options)
    return float(loss), [p.grad for p in of.parameters()]


def test_parts_give_the_gradient_of_the_whole_and_it_is_that_of_the_rows():
    of, given = model((False, False)), batch()
    loss, found = gradients(of, given)
    in_parts, parts = gradients(of, given, accumulate=4)
    assert in_parts == pytest.approx(loss, rel=1e-12)
    assert all(torch.allclose(p, q, rtol=1e-9, atol=1e-12) for p, q in zip(parts, found))
    predicted, seen = (x.flatten(0, 1) for x in by_hand(of, given))
    expected, _ = VICReg(statistics="both")(predicted, seen, given.group.repeat_interleave(H))
    assert float(expected.detach()) == pytest.approx(loss, rel=1e-12)


def test_batches_are_cut_joined_and_moved():
    given = batch()
    halves = given.split(2)
    joined = concatenate([half.b for half in halves])
    assert torch.equal(joined.view, given.b.view) and joined.horizon == H and len(halves[0].b) == B // 2
    assert torch.equal(given.to("cpu").b.view, given.b.view)


def test_a_predictor_that_looks_back_gets_its_predictions_as_further_steps():
    torch.manual_seed(0)
    predictor = Residual(E, 2, context=2, hidden=8).double()
    nn.init.normal_(predictor.change[-1].weight)
    of = model((False, False), predictor)
    z, told = torch.randn(B, 3, E, dtype=torch.float64), torch.randn(B, H, 2, dtype=torch.float64)
    found, line = of.rollout(z, H, told), z
    for k in range(H):
        line = torch.cat([line, predictor(line, told[:, k])[:, None]], 1)
    assert torch.allclose(found, line[:, 3:], rtol=1e-12)
    with pytest.raises(ValueError, match="looks at the last 2 frames of a clip, and this one has 1"):
        predictor(z[:, :1], told[:, 0])


def test_residual_begins_straight_on():
    z = torch.randn(B, 4, E)
    assert torch.allclose(Residual(E, context=3)(z), 2 * z[:, -1] - z[:, -2])
    assert torch.equal(Residual(E, context=1)(z), z[:, -1])


def test_straightened_takes_the_steps_of_a_window(pushed):
    of = Straightened({"name": "vicreg"}, weight=1.0)
    of.bind(pair(pushed, horizon=4))
    line = torch.arange(4.0)[:, None] * torch.randn(5, 1, E) + torch.randn(5, 1, E)
    _, terms = of(line.flatten(0, 1), line.flatten(0, 1))
    assert float(terms["straightening"]) == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="this pair gives 2 in order of time"):
        Straightened({"name": "vicreg"}).bind(pair(pushed, horizon=2, windows=8))


# ---- a run ----

RECIPE = """
name: rolled
source: {name: sample_surprises, train: 4, test: 8, frames: 24, size: 16}
pair: {name: next_frame, frames: 3, stride: 1, gap: 1, size: 16, windows: 2, horizon: 3, flip: 0}
a: {modality: clip, encoder: {name: each_frame, image: {name: conv, width: 4, dim: 8}}, expander: [8]}
b: {weights: same}
predictor: {name: residual, context: 2, hidden: 8}
objective: {name: vicreg}
optim: {name: adamw, lr: 1e-3, schedule: {name: constant}}
train: {steps: 2, batch_size: 4}
data: {workers: 0, video_backend: pyav}
evaluate: {probes: [{name: next_frame_rollout, steps: 5}, {name: surprise}]}
"""


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text(RECIPE)
    return vicjoint.train(folder / "recipe.yaml", [f"out={folder / 'out'}"])


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["predictor=null"], "pair.horizon: 3 steps are predicted one from the other, and this recipe"),
        (["pair.gap=2"], "'residual' takes its predictions as further steps of the clip, and these"),
        (
            ["predictor={name: mlp, latents: 2}", "a.encoder={name: conv_stack, frames: 3}",
             "b={weights: own,"
             " modality: next_frame, encoder: {name: conv}, expander: [8]}"],
            "pair.horizon: 3 steps, and predictor.latents: 2 predictions of each",
        ),
        (["pair.train_on=first"], "pair.train_on"),
    ],
)  # fmt: skip
def test_wrong_recipes(cache, tmp_path, overrides, message):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    with pytest.raises((RecipeError, ValueError), match=message):
        vicjoint.train(tmp_path / "recipe.yaml", [f"out={tmp_path / 'out'}", *overrides])


def test_a_run_has_a_row_of_each_step(run):
    found = json.loads((run / "evaluation.json").read_text())
    rollout = found["next_frame_rollout"]
    assert rollout.keys() == {"model", "random_init", "copy_last", "extrapolation", "chance"}
    for row in ("model", "random_init", "copy_last", "extrapolation"):
        assert {f"{name}_{k}" for name in ("error", "r1") for k in range(1, 6)} <= rollout[row].keys()
    assert rollout["chance"]["r1_5"] == pytest.approx(1 / 24)
    assert found["surprise"]["chance"] == {"auc": 0.5, "found": pytest.approx(1 / (24 - 3 - LEAST))}
    page = (run / "report.html").read_text()
    assert "here it happens" in page and page.count(": changed</b>") == 3


def test_candidates_hold_the_target_off_the_grid_too():
    assert around(target=7, last=4, step=3, frames=20, number=3) == [4, 7, 10]
    assert around(target=8, last=4, step=3, frames=20, number=4) == [4, 7, 8, 10]


# ---- surprise ----


def test_surprise_is_the_error_over_those_before_it():
    errors = np.array([1.0, 3.0, 2.0, 2.0, 8.0, 1.0])
    found = surprise(errors)
    assert np.isnan(found[:LEAST]).all()
    assert found[4:].tolist() == [8 / 2, pytest.approx(1 / 3.2)]
    long = np.arange(1.0, 41.0)
    assert surprise(long)[30] == pytest.approx(31 / long[30 - BEFORE : 30].mean())
    assert np.isnan(surprise(np.zeros(8))).all() and len(surprise(np.zeros(0))) == 0


def test_what_happens_in_the_test_world(cache):
    source = SampleSurprises(train=2, test=8, frames=24, size=64)
    assert [r["event"] for r in source.test] == ["none", "vanishes", "none", "jumps"] * 2
    assert {r["event"] for r in source.train} == {"none"} and "4 of them with a sprite" in source.describe()
    for record in source.test:
        with Video(record["path"]) as video:
            frames = video.read(range(24)).astype(float)
        changes = np.abs(np.diff(frames, axis=0)).sum((1, 2, 3))
        if record["event"] == "none":
            assert "moment" not in record and record["changed"] == 0
            continue
        assert record["changed"] == 1 and 12 <= record["moment"] < 20
        if record["event"] == "jumps":
            assert changes.argmax() == record["moment"] - 1
        else:
            assert np.abs(changes[record["moment"] :]).max() < 0.1 * changes[record["moment"] - 2]
    assert FAR > 5


def test_tables_of_errors_become_tables_of_surprises():
    import pyarrow

    rng = np.random.default_rng(0)
    films = {"one": rng.uniform(1, 2, 30), "two": rng.uniform(1, 2, 9), "three": rng.uniform(1, 2, 1)}
    whole = pyarrow.table(
        {
            "item": [name for name, errors in films.items() for _ in errors],
            "start_seconds": [float(t) for errors in films.values() for t in range(len(errors))],
            ERROR: np.concatenate(list(films.values())),
        }
    )
    expected = np.concatenate([surprise(errors) for errors in films.values()])
    for size in (40, 7, 1):
        change = Surprises()
        found = [change(whole.slice(at, size)) for at in range(0, len(whole), size)]
        scores = pyarrow.concat_tables(found)[SURPRISE]
        np.testing.assert_allclose(scores.to_numpy(), expected, rtol=1e-12)
        assert scores.null_count == int(np.isnan(expected).sum()) == 2 * LEAST + 1


def test_embed_writes_the_surprise_of_what_follows_each_clip(run, tmp_path, cache):
    films = [r["path"] for r in SampleSurprises(train=4, test=8, frames=24, size=16).test[:2]]
    out = tmp_path / "out.parquet"
    assert command(str(run), *films, "--surprise", "--to", str(out)) == 0
    found = rows(out)
    assert len(found) == 2 * 21 and ERROR not in found[0]
    assert read_index(out).matrix.shape == (42, 8)
    of, other = vicjoint.load_encoder(run), vicjoint.load_encoder(run, "b")
    for film, some in zip(films, (found[:21], found[21:])):
        with Video(film) as video:
            frames = torch.from_numpy(video.read(range(24))).permute(0, 3, 1, 2)
        clips = torch.stack([frames[t : t + 3] for t in range(21)]).transpose(1, 2).contiguous()
        off = of.encode(clips, "embedding") - other.encode(frames[3:], "embedding")
        errors = off.square().sum(1).double().numpy()
        scores = [row["surprise"] for row in some]
        assert scores[:LEAST] == [None] * LEAST
        np.testing.assert_allclose(scores[LEAST:], surprise(errors)[LEAST:], rtol=1e-3)
        assert some[0]["start_seconds"] == 0 and some[0]["end_seconds"] == pytest.approx(3 / 24)


def test_surprise_is_refused_where_nothing_is_predicted(run, tmp_path, capsys):
    out = str(tmp_path / "out.parquet")
    assert command(str(run), "x.mp4", "--surprise", "--branch", "b", "--to", out) == 2
    assert "--surprise: asks how well a frame is foreseen from the clip before it" in said(capsys)
    assert command(str(run), "x.mp4", "--surprise", "--level", "tokens", "--to", out) == 2
    assert "--surprise: is a number of a clip, not of its tokens" in said(capsys)
