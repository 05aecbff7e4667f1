"""Conditions: read from cells and tables, standardised, given to the predictor, shuffled in evaluation."""

import json

import numpy as np
import pytest
import tiny
import torch
from probing import Bare, Listed, bound, measured, model_of
from torch import nn

import vicjoint
from vicjoint.batch import Batch, Conditioned
from vicjoint.conditions import Conditioning
from vicjoint.files.cells import CellError
from vicjoint.model import Model
from vicjoint.pairs.condition import Condition
from vicjoint.pairs.cross_modal import CrossModal
from vicjoint.pairs.next_frame import NextFrame
from vicjoint.parts import Modality, Predictor
from vicjoint.predictors import MLP
from vicjoint.probes.many_futures import ManyFutures
from vicjoint.probes.next_frame import NextFrameRetrieval
from vicjoint.probes.retrieval import Retrieval
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.samples.pushed import FRICTION, SamplePushed, pushed
from vicjoint.training import checkpoint
from vicjoint.training.build import build_parts, why_not
from vicjoint.video import Video
from vicjoint.video.write import write_mp4

FRAMES = 24
ACTIONS = {"column": "forces", "width": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VICJOINT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return SamplePushed(train=12, test=4, frames=FRAMES, size=32, every=3)


def pair(source, condition=ACTIONS, **options):
    options = {"frames": 2, "stride": 1, "gap": 3, "size": 32, "windows": 2, "flip": 0} | options
    return bound(NextFrame(**options, condition=condition), source)


def film(folder, name="film", frames=12):
    rng = np.random.default_rng(0)
    write_mp4(folder / f"{name}.mp4", rng.integers(0, 256, (frames, 32, 32, 3), dtype=np.uint8))
    return {"id": name, "path": str(folder / f"{name}.mp4"), "folder": str(folder)}


# ---- the option ----


@pytest.mark.parametrize(
    "given, said",
    [
        ({"colum": "x"}, r"pair.condition.colum: is not known. Did you mean 'column'\? Expected column, "),
        ({}, "pair.condition: expected a column, or beside: .csv or .npy, and not both"),
        ({"column": "x", "beside": ".csv"}, "expected a column, or beside: .csv or .npy, and not both"),
        ({"column": 3}, "pair.condition.column: expected the name of a column, got 3"),
        ({"beside": ".txt", "width": 2}, "pair.condition.beside: expected .csv or .npy, got '.txt'"),
        ({"beside": ".csv"}, "pair.condition.width: missing. Expected how many numbers a row of the .csv"),
        ({"column": "x", "width": 0}, "width: expected a whole number of at least 1, got 0"),
        ({"column": "x", "width": True}, "width: expected a whole number of at least 1, got True"),
        ({"column": "x", "width": 2, "values": ["a", "b"]}, "values are for one cell, width for a row"),
        ({"column": "x", "values": ["a"]}, r"expected a list of two or more different values, got \['a'\]"),
        ([{"column": "x"}, {"column": "y", "values": "no"}], "pair.condition.1.values: expected a list"),
    ],
)
def test_a_wrong_option_is_refused_in_words(given, said):
    with pytest.raises(ValueError, match=said):
        NextFrame(condition=given)


def test_what_does_not_fit_the_pair_is_refused():
    with pytest.raises(ValueError, match="width and beside are for a row of numbers for each frame"):
        CrossModal("a", "b", condition=ACTIONS)
    with pytest.raises(ValueError, match="with gap 0 the target is the last context frame"):
        NextFrame(gap=0, condition=ACTIONS)
    with pytest.raises(CellError, match="pair.condition.column: column 'dos' is not in the table.*'dose'"):
        bound(NextFrame(condition={"column": "dos"}), Listed([{"id": "1", "path": "", "dose": 1}]))


# ---- cells ----

CELLS = [{"column": "dose"}, {"column": "camera", "values": ["left", "right", 3]}]


def test_numbers_and_values_of_a_row():
    condition = Condition(CELLS)
    assert condition.standardised == (True, False, False, False)
    assert condition.of({"dose": "2.5", "camera": " right"}).tolist() == [[2.5, 0, 1, 0]]
    assert condition.of({"dose": 7, "camera": 3}).tolist() == [[7, 0, 0, 1]]


@pytest.mark.parametrize(
    "record, said",
    [
        ({"dose": "", "camera": "left"}, "column 'dose' is empty"),
        ({"dose": None, "camera": "left"}, "column 'dose' is empty"),
        ({"dose": "much", "camera": "left"}, "column 'dose': 'much' is no number. List its values"),
        ({"dose": "inf", "camera": "left"}, "column 'dose': 'inf' is not finite"),
        ({"dose": 1, "camera": "NA"}, "column 'camera' is empty"),
        (
            {"dose": 1, "camera": "rigt"},
            r"'rigt' is none of pair.condition.values \(left, right, 3\).*'right'",
        ),
        ({"dose": 1}, "column 'camera' is not in the table"),
    ],
)
def test_a_cell_that_says_nothing_is_a_named_bad_sample(record, said):
    with pytest.raises(CellError, match=said):
        Condition(CELLS).of(record)


# ---- tables beside films ----

ROWS = np.arange(24, dtype=np.float32).reshape(12, 2)


def told(record, windows=((2, 5), (4, 7)), condition=ACTIONS, **options):
    with Video(record["path"], "pyav") as video:
        info = video.info
    made = pair(Listed([record]), condition, **options)
    return made.condition.of(record, windows, info.frames)


def test_the_rows_from_the_last_context_frame_to_the_target(tmp_path):
    record = film(tmp_path)
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{x:g},{y:g}\n" for x, y in ROWS))
    np.save(tmp_path / "a.npy", ROWS)
    expected = [[4, 5, 6, 7, 8, 9], [8, 9, 10, 11, 12, 13]]
    inside = {"path": "a.csv", "bytes": (tmp_path / "a.csv").read_bytes()}
    for cell in ("a.csv", "a.npy", ROWS.tolist(), json.dumps(ROWS.tolist()), ROWS, inside):
        assert told(record | {"forces": cell}).tolist() == expected
    (tmp_path / "film.csv").write_text("".join(f"{x:g},{y:g}\n" for x, y in ROWS))  # no line of names
    assert told(record, condition={"beside": ".csv", "width": 2}).tolist() == expected
    # one number a frame needs no lists of one; and what holds for the film stands before it
    both = [{"column": "dose"}, {"column": "push", "width": 1}]
    record |= {"dose": 9, "push": list(range(12))}
    assert told(record, condition=both).tolist() == [[9, 2, 3, 4], [9, 4, 5, 6]]


def test_by_time_the_mean_of_the_rows(tmp_path):
    record = film(tmp_path) | {"forces": ROWS.tolist()}
    assert told(record, seconds=0.04).tolist() == [[6, 7], [10, 11]]
    assert pair(Listed([record]), seconds=0.04).conditions == (True, True)


@pytest.mark.parametrize(
    "cell, said",
    [
        (ROWS[:11].tolist(), "column 'forces': has 11 rows, and the film has 12 frames"),
        ("short.csv", r"short.csv: has 2 rows, and the film has 12 frames. Expected a row for each frame"),
        (ROWS[:, :1].tolist(), r"has shape \[12, 1\], expected \[frames, 2\] \(pair.condition.width: 2\)"),
        ([[1, 2], [3]], "expected a row of 2 numbers for each frame"),
        ([[1, float("nan")]] * 12, "column 'forces': number 1 of row 0 is nan"),
        ("", "column 'forces' is empty"),
        ("none.csv", "none.csv: no such file"),
        ("word.csv", "word.csv: row 1 is 'a,3', expected numbers"),
        ("ragged.csv", "ragged.csv: row 1 has 1 numbers, the first has 2"),
        ("odd.xlsx", "odd.xlsx: expected a list of numbers, or a file ending in"),
        ("[[1, 2]", "no list of numbers"),
    ],
)
def test_a_wrong_table_is_a_named_bad_sample(cell, said, tmp_path):
    (tmp_path / "short.csv").write_text("1,2\n3,4\n")
    (tmp_path / "word.csv").write_text("1,2\na,3\n")
    (tmp_path / "ragged.csv").write_text("1,2\n3\n")
    record = film(tmp_path) | {"forces": cell}
    with pytest.raises(CellError, match=said):
        pair(Listed([record])).sample(record, np.random.default_rng(0))
    with pytest.raises(CellError, match=said):
        pair(Listed([record])).views(record, "a")


def test_samples_carry_the_rows_of_their_own_windows(source):
    made, record = pair(source), source.train[0]
    rows = np.loadtxt(record["forces"], delimiter=",", skiprows=1)
    assert rows.shape == (FRAMES, 2)
    a, _ = made.sample(record, np.random.default_rng(1))
    assert isinstance(a, Conditioned) and a.condition.shape == (2, 6) and len(a) == 2
    frames = lambda n: made.frames_of(video, [n])[0]
    with Video(record["path"], "pyav") as video:
        for clip, condition in zip(a.view, a.condition):
            last = next(n for n in range(1, FRAMES - 3) if torch.equal(frames(n), clip[:, -1]))
            assert np.allclose(condition.numpy(), rows[last : last + 3].ravel(), atol=1e-6)
    # without the option, what it was
    plain, _ = pair(source, None).sample(record, np.random.default_rng(1))
    assert torch.equal(plain, a.view)
    view = made.views(record, "a")[0]
    assert view.condition.shape == (1, 6) and made.views(record, "b")[0].condition is None


# ---- the model ----


def test_standardised_but_for_values():
    conditioning = Conditioning([True, False, True])
    rows = torch.tensor([[1.0, 0, 5], [3, 1, 5]])
    said = conditioning.fit(rows)
    assert conditioning(rows).tolist() == [[-1, 0, 0], [1, 1, 0]]
    assert said == "standardised by 2 training rows; the same in all of them, and left out: number 2"
    with pytest.raises(ValueError, match="condition: 3 training rows, and all have the same condition"):
        conditioning.fit(torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"the condition has shape \[2, 2\], expected \[B, 3\]"):
        conditioning(rows[:, :2])


@pytest.mark.parametrize("latents", [1, 3])
def test_the_condition_reaches_the_prediction(latents):
    torch.manual_seed(0)
    predictor = MLP(6, 2, hidden=8, latents=latents)
    model = model_of(Bare(nn.Identity()), Bare(nn.Identity()), predictor)
    model = Model(dict(model.branches.items()), [("a", "b")], predictor=predictor, conditions=[True, True])
    x, c = torch.randn(5, 6), torch.randn(5, 2)
    z_a, _ = model(Conditioned(x, c), x)
    other, _ = model(Conditioned(x, c.flip(0)), x)
    assert z_a.shape == (5, 6) and not torch.allclose(z_a, other)
    assert model.predictions(x, c).shape == (5, latents, 6)
    with pytest.raises(ValueError, match="was trained with a condition"):
        model(x, x)
    without = model_of(Bare(nn.Identity()), Bare(nn.Identity()), MLP(6, 0, hidden=8))
    with pytest.raises(ValueError, match="takes no condition, and the pair gives one"):
        without(Conditioned(x, c), x)


def test_a_batch_takes_conditions_along():
    a = Conditioned((torch.arange(6)[:, None], torch.ones(6, 1)), torch.arange(6.0)[:, None])
    batch = Batch(a, torch.arange(6), torch.arange(6), [str(i) for i in range(6)])
    parts = [part.a for part in batch.to("cpu").split(3)]
    assert [part.condition[:, 0].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert torch.equal(Conditioned.concatenate(parts).view[0], a.view[0])
    assert torch.equal(Conditioned.concatenate(parts).condition, a.condition)


# ---- evaluation ----


class Place(nn.Module):
    """How light a frame is, or the last one of a clip."""

    def forward(self, view):
        frame = view[:, :, -1] if view.ndim == 5 else view
        light = frame.float().mean((1, 2, 3))
        return torch.stack([light, -light], 1)


class Added(Predictor):
    """The condition moves both numbers of z, the second one by `sign` times it."""

    takes_condition = True

    def __init__(self, sign: float = 1.0):
        super().__init__()
        self.sign = sign

    def forward(self, z_a, condition):
        return z_a + condition * torch.tensor([1.0, self.sign])


@pytest.fixture(scope="module")
def stairs(tmp_path_factory):
    """Grey films whose light changes by what the table says, and is never the same twice."""
    folder, records = tmp_path_factory.mktemp("stairs"), []
    for number in range(6):
        rng = np.random.default_rng(number)
        light = rng.permutation(np.linspace(20, 235, 12).round())
        steps = np.diff(light, append=0)
        frames = np.repeat(light, 32 * 32 * 3).reshape(12, 32, 32, 3).astype(np.uint8)
        write_mp4(folder / f"{number}.mp4", frames, crf=0)
        np.save(folder / f"{number}.npy", steps.astype(np.float32))
        records.append({"id": f"{number}", "path": str(folder / f"{number}.mp4")})
    return Listed(records[:3], records[3:])


def test_next_frame_retrieval_shows_what_the_condition_is_worth(stairs):
    made = bound(
        NextFrame(frames=2, stride=1, gap=1, size=32, windows=2, condition={"beside": ".npy", "width": 1}),
        stairs,
    )
    branches = {side: Bare(Place()) for side in "ab"}
    model = Model(branches, [("a", "b")], predictor=Added(-1.0), conditions=[True])
    found = measured(NextFrameRetrieval(candidates=6, pictures=0), model, model, stairs, made)
    assert found["model"]["r1"] > 0.9 and found["shuffled_condition"]["r1"] < 0.6
    assert why_not(ManyFutures(), type("D", (), {"pair": made})()) == (
        "with a condition (pair.condition) the future is no longer open"
    )
    plain = bound(NextFrame(frames=2, stride=1, gap=1, size=32, windows=2), stairs)
    without = model_of(Bare(Place()), Bare(Place()))
    assert "shuffled_condition" not in measured(
        NextFrameRetrieval(candidates=6, pictures=0), without, without, stairs, plain
    )


class Pair2(Modality):
    reads = "text"

    def read(self, value, rng=None, window=None):
        return torch.tensor([json.loads(value)], dtype=torch.float32)


def test_retrieval_shows_what_the_condition_is_worth():
    rng, records = np.random.default_rng(0), []
    for i in range(60):
        x, dose = rng.normal(size=2), float(rng.normal() * 3)
        b = json.dumps((x + dose).tolist())
        records.append({"id": str(i), "a": json.dumps(x.tolist()), "b": b, "dose": dose})
    source = Listed(records[:20], records[20:])
    made = bound(CrossModal("a", "b", condition={"column": "dose"}), source, (Pair2(), Pair2()))
    a, _ = made.sample(records[3], rng)
    assert a.condition.tolist() == [[pytest.approx(records[3]["dose"])]]
    branches = {side: Bare(nn.Identity()) for side in "ab"}
    model = Model(branches, [("a", "b")], predictor=Added(), conditions=[True])
    found = measured(Retrieval(linear_map=0, pictures=0), model, model, source, made)
    assert found["model"]["a_to_b_r5"] > 0.9 > 0.5 > found["shuffled_condition"]["a_to_b_r5"]
    assert found["model"]["b_to_a_r5"] > 0.5 + found["shuffled_condition"]["b_to_a_r5"]
    assert found["model"]["a_to_b_r1"] > found["chance"]["a_to_b_r1"]
    # replicates: the mean of two predictions each, with the conditions of others in each
    for record in records:
        record["pair_of"] = str(int(record["id"]) // 2)
    means = measured(Retrieval(linear_map=0, pictures=0, replicates="pair_of"), model, model, source, made)
    assert means["model"]["a_to_b_r5"] > 0.9 > 0.6 > means["shuffled_condition"]["a_to_b_r5"]


# ---- runs ----


def recipe(**changes):
    told = {"pair": {"name": "tiny_told", "condition": {}}, "predictor": {"name": "mlp", "hidden": 8}}
    return tiny.recipe(evaluate={"probes": []}, **(told | changes))


def test_a_condition_needs_a_predictor_that_takes_it():
    with pytest.raises(RecipeError, match="pair.condition: a condition is given to the predictor, and this"):
        build_parts(load_recipe(recipe(predictor=None)))
    with pytest.raises(RecipeError, match="predictor: 'tiny_copies' takes no condition, and pair.condition"):
        build_parts(load_recipe(recipe(predictor={"name": "tiny_copies"})))


def test_a_run_learns_to_standardise_and_goes_on_with_it(tmp_path, capsys):
    folder = vicjoint.train(recipe(out=str(tmp_path / "run")), ["train.steps=6", "checkpoint.every=3"])
    assert "condition: standardised by 30 training rows" in capsys.readouterr().out
    told = torch.tensor([tiny.told_of(r) for r in tiny.Rows().train])
    state = checkpoint.load(checkpoint.path_of(folder / "checkpoints", 6))["model"]
    assert torch.allclose(state["conditioning.shift"], told.mean(0), atol=1e-6)
    assert torch.allclose(1 / state["conditioning.factor"], told.std(0, correction=0), atol=1e-6)
    encoder = vicjoint.load_encoder(folder, "a")
    with pytest.raises(ValueError, match="branch 'a' predicts with a condition"):
        encoder.width("embedding")
    assert encoder.width("representation") == 8
    assert vicjoint.load_encoder(folder, "b").width("embedding") == 12


def test_a_condition_that_is_always_the_same_is_refused(tmp_path):
    same = recipe(pair={"name": "tiny_told", "condition": {"same": True}}, out=str(tmp_path / "run"))
    with pytest.raises(RecipeError, match="pair.condition: 30 training rows, and all have the same"):
        vicjoint.train(same)


# ---- the sample world ----


def test_the_sprite_moves_by_the_forces_of_its_table(source):
    for record in source.train[:4]:
        forces = np.loadtxt(record["forces"], delimiter=",", skiprows=1)
        path = np.array(record["sprites"][0]["path"])
        assert (np.abs(forces).sum(1) > 0).tolist() == [n % 3 == 0 for n in range(FRAMES)]
        margin = record["sprites"][0]["size"] / 2
        assert path.min() >= margin - 1e-3 and path.max() <= 64 - margin + 1e-3
    still = pushed((32.0, 32.0), np.array([[4.0, 0], [0, 0], [0, 0]]), 5)
    assert still.tolist() == [[32, 32], [36, 32], [36 + 4 * FRICTION, 32]]
    thrown = pushed((58.0, 32.0), np.array([[4.0, 0], [0, 0], [0, 0]]), 5)
    assert thrown[:, 0].tolist() == [58, 56, 56 - 4 * FRICTION]
