"""Predictors that look back at the embeddings of a clip's frames, and the encoder that gives y of each."""

import json

import numpy as np
import pytest
import torch
from probing import Listed, bound, measured, model_of
from torch import nn
from wrong import refused

import vicjoint
from vicjoint.batch import Following
from vicjoint.embeddings.encoder import RepresentationModel
from vicjoint.exporting.reading import read_trained
from vicjoint.model import Branch
from vicjoint.pairs.next_frame import NextFrame
from vicjoint.predictors import Extrapolate
from vicjoint.probes.next_frame import NextFrameRetrieval
from vicjoint.recipe import RecipeError
from vicjoint.registry import build, build_encoder
from vicjoint.tokens import steps_of
from vicjoint.video.write import write_mp4

CONV = {"name": "conv", "width": 2, "dim": 8}


def each_frame():
    torch.manual_seed(0)
    return build_encoder("clip", "each_frame", image=CONV)


def test_each_frame_is_seen_by_itself():
    encoder, view = each_frame().eval(), torch.randn(2, 3, 5, 16, 16)
    with torch.no_grad():
        steps = steps_of(encoder, view)
        assert steps.shape == (2, 5, 8) == (2, 5, encoder.dim)
        for t in range(5):
            assert torch.allclose(steps[:, t], encoder(view[:, :, t]), atol=1e-6)
        assert torch.allclose(encoder(view), steps.mean(1), atol=1e-6)
        assert torch.allclose(steps_of(encoder, view[:, :, 0]), steps[:, :1], atol=1e-6)


@pytest.mark.parametrize("size", [16, 15])
def test_in_training_a_frame_of_several_windows_is_encoded_once(size):
    film = torch.randn(6, 3, size, size)
    film[5] = film[2]
    film[4] = film[1].clone()
    film[4, 0, 0, 0] += 1e-6  # another frame
    windows = torch.tensor([[0, 1, 2], [1, 2, 3], [3, 4, 5]])
    view, once = film[windows].transpose(1, 2), film[:5]
    encoder, reference = each_frame().train(), each_frame().train()
    y = reference.image(once)
    expected = y[torch.tensor([[0, 1, 2], [1, 2, 3], [3, 4, 2]])]
    found = steps_of(encoder, view)
    assert torch.allclose(found, expected, atol=1e-6)
    found.square().sum().backward()
    expected.square().sum().backward()
    for (name, x), (_, other) in zip(encoder.named_parameters(), reference.named_parameters()):
        assert torch.allclose(x.grad, other.grad, rtol=1e-4, atol=1e-5), name
    for (name, x), (_, other) in zip(encoder.named_buffers(), reference.named_buffers()):
        assert torch.allclose(x, other, atol=1e-6), name
    assert torch.allclose(encoder(view[:, :, 0]), reference.image(film[[0, 1, 3]]), atol=1e-6)


def test_tokens_that_are_no_steps_of_time_are_refused():
    view = torch.randn(2, 3, 4, 32, 32)
    with pytest.raises(ValueError, match=r"FrameAndMotion: its tokens, 8 of width .* on \[2, 4\]|are no y"):
        steps_of(build_encoder("clip", "frame_and_motion", width=2, dim=8), view)
    with pytest.raises(ValueError, match=r"tokens, 5 of width 8 on \[4\], are no y .* Use the encoder each"):
        steps_of(build_encoder("clip", "frames_transformer", image=CONV, dim=8), view)
    with pytest.raises(ValueError, match="gives y and no tokens"):
        steps_of(nn.Flatten(), view)


@pytest.mark.parametrize("reach", [0.0, 1.0, 3.0])
def test_it_begins_straight_on(reach):
    z = torch.randn(3, 6, 4)
    change = reach * (z[:, -1] - z[:, -2])
    straight = torch.stack([z[:, -1] + change, z[:, -1] + 2 * change], 1)
    for options in ({}, {"hidden": 0}, {"context": 2}):
        assert torch.allclose(Extrapolate(4, 2, reach=reach, **options)(z), straight, atol=1e-6)
    assert not list(Extrapolate(4, 2, hidden=0).parameters())


def test_it_learns_to_bend():
    """Points on circles of different sizes, a step of 0.5 apart, of which straight on misses the next."""
    generator = torch.Generator().manual_seed(0)

    def circles(number):
        start, size = 7 * torch.rand(number, generator=generator), 1 + torch.rand(number, generator=generator)
        angle = start[:, None] + 0.5 * torch.arange(5)
        z = size[:, None, None] * torch.stack([angle.cos(), angle.sin()], 2)
        return z[:, :4], z[:, 4]

    torch.manual_seed(0)
    predictor = Extrapolate(2, 1, context=4, hidden=32)
    optimizer = torch.optim.Adam(predictor.parameters(), 1e-2)
    for _ in range(150):
        z, target = circles(64)
        loss = (predictor(z)[:, 0] - target).square().mean()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    predictor.eval()
    z, target = circles(200)
    straight = (2 * z[:, -1] - z[:, -2] - target).square().mean()
    assert (predictor(z)[:, 0] - target).square().mean() < straight / 10


def test_what_it_cannot_do_is_said():
    with pytest.raises(ValueError, match="looks at the last 6 frames of a clip, and this one has 4. Set pre"):
        Extrapolate(3, 1)(torch.zeros(2, 4, 3))
    for options in ({"context": 1}, {"hidden": -1}, {"reach": -1}):
        refused("predictor", "extrapolate", options)


def branch() -> Branch:
    return Branch(build("modality", {"name": "clip"}), each_frame(), [12, 6])


def test_the_model_predicts_from_the_embedding_of_each_frame():
    a = branch()
    model, clip, frame = model_of(a, a, Extrapolate(6, 2, context=3)), torch.randn(4, 3, 3, 16, 16), 1
    nn.init.normal_(model.predictor.rest[-1].weight)
    model.eval()
    with torch.no_grad():
        z = torch.stack([a(clip[:, :, t]) for t in range(3)], 1)
        found, z_b = model(clip, clip[:, :, frame])
        assert torch.allclose(found, model.predictor(z)[:, 0], atol=1e-5) and torch.allclose(z_b, z[:, frame])
        two = model.between("a", "b")
        assert torch.equal(two.embed("a", two.steps("a", clip)), found)
        assert torch.equal(two.predictions(two.steps("a", clip))[:, 0], found)
        assert torch.equal(two.rollout(two.steps("a", clip), 2), model.predictor(z))
        with pytest.raises(ValueError, match=r"3 steps are asked for, and the predictor gives 2 \(pair.hor"):
            two.rollout(two.steps("a", clip), 3)
        assert two.steps("b", clip[:, :, 0]).shape == (4, 8) == two.represent("a", clip).shape
    model.train()
    found, z_b = model(clip, clip[:, :, frame])
    found.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    # batch norm saw the target as one more frame of the clip
    together = a(torch.cat([clip, clip[:, :, frame : frame + 1]], 2), True)
    assert torch.equal(z_b, together[:, -1]) and torch.equal(found, model.predictor(together[:, :-1])[:, 0])
    several = clip.flip(2)[:, :, :2]
    found, z_b = model(clip, Following(several, horizon=2))
    together = a(torch.cat([clip, several], 2), True)
    assert torch.equal(z_b, together[:, 3:].flatten(0, 1))
    assert torch.equal(found.unflatten(0, (4, 2)), model.predictor(together[:, :3]))


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Grey films that grow brighter, each at a pace of its own."""
    folder = tmp_path_factory.mktemp("films")
    for i in range(6):
        frames = (
            np.zeros((24, 32, 32, 3), np.uint8)
            + (np.arange(24) * (3 + i)).astype(np.uint8)[:, None, None, None]
        )
        write_mp4(folder / f"{i}.mp4", frames)
    return folder


def test_without_a_rest_the_model_is_the_extrapolation_of_its_own_space(films):
    source = Listed(test=[{"id": str(i), "path": str(films / f"{i}.mp4")} for i in range(6)])
    a = branch()
    model = model_of(a, a, Extrapolate(6, 1, hidden=0, reach=2.0, context=3)).eval()
    pair = bound(NextFrame(frames=3, stride=1, gap=2, size=16), source)
    found = measured(NextFrameRetrieval(pictures=0), model, model, source, pair)
    assert found["model"] == pytest.approx(found["extrapolation"], abs=1e-4)
    assert found["model"] != pytest.approx(found["copy_last"], abs=1e-2)
    # the same distance as the second of two steps
    model.predictor = Extrapolate(6, 2, hidden=0, context=3)
    pair = bound(NextFrame(frames=3, stride=1, gap=1, size=16, horizon=2), source)
    assert measured(NextFrameRetrieval(pictures=0, step=2), model, model, source, pair) == found


def recipe(films, out, **changes):
    return {
        "name": "bends",
        "source": {"name": "video_folder", "root": str(films)},
        "pair": {
            "name": "next_frame",
            "frames": 4,
            "stride": 1,
            "gap": 1,
            "size": 16,
            "windows": 4,
            "stretch": 8,
        },
        "a": {"modality": "clip", "encoder": {"name": "each_frame", "image": CONV}, "expander": [12, 6]},
        "b": {"weights": "same"},
        "predictor": {"name": "extrapolate", "context": 4, "hidden": 8},
        "objective": {"name": "infonce_distance"},
        "optim": {"name": "adamw", "lr": 1e-2, "schedule": {"name": "cosine", "warmup_steps": 1}},
        "train": {"steps": 4, "batch_size": 8},
        "data": {"workers": 0},
        "evaluate": {"probes": [{"name": "next_frame_retrieval"}]},
        "out": str(out),
        **changes,
    }


def test_a_run_and_the_embeddings_of_its_files(films, tmp_path):
    folder = vicjoint.train(recipe(films, tmp_path / "run"))
    rows = json.loads((folder / "evaluation.json").read_text())["next_frame_retrieval"]
    assert {"model", "extrapolation", "pixels_extrapolation", "ceiling"} <= set(rows)
    paths = sorted(map(str, films.iterdir()))
    encoder, model = vicjoint.load_encoder(folder, "a"), read_trained(folder, None, ()).model.eval()
    assert isinstance(encoder, RepresentationModel) and encoder.embed(paths).shape == (6, 8)
    two, clips = model.between("a", "b"), torch.cat([encoder.reader.read(p) for p in paths[:2]])
    with torch.no_grad():
        expected = two.embed("a", two.steps("a", clips))
    assert torch.allclose(encoder.embed(paths[:2], "embedding"), expected, atol=1e-5)


def test_all_steps_at_once(films, tmp_path):
    made = recipe(films, tmp_path / "run")
    made["pair"]["horizon"] = 3
    made["evaluate"]["probes"] = [
        {"name": "next_frame_retrieval", "step": 3, "pictures": 0},
        {"name": "next_frame_rollout"},
    ]
    folder = vicjoint.train(made)
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["next_frame_rollout"]["model"]["error_3"] > 0
    assert 0 <= found["next_frame_retrieval"]["model"]["r1"] <= 1
    model = read_trained(folder, None, ()).model
    assert model.predictor(torch.zeros(2, 4, 6)).shape == (2, 3, 6)


def test_a_run_that_cannot_look_back_says_so_before_it_trains(films, tmp_path):
    for changes, message in (
        (
            {"predictor": {"name": "extrapolate", "context": 5}},
            "the last 5 frames of a clip, and this one has 4",
        ),
        (
            {
                "a": {
                    "modality": "clip",
                    "encoder": {"name": "conv_stack", "frames": 4, "width": 2},
                    "expander": [6],
                },
                "b": {"modality": "next_frame", "encoder": CONV, "expander": [6]},
            },
            "are no y .* of each step of time",
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            vicjoint.train(recipe(films, tmp_path / "no", **changes))
