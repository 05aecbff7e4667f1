"""Colours that are changed on the training device, in batches: clips, the frames after them, and images look
as they do where the processes that read change them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image as PIL

from vicjoint.batch import Conditioned, Following, concatenate
from vicjoint.modalities.image import Clip, Image
from vicjoint.pairs.next_frame import NextFrame
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.run import main
from vicjoint.transforms.compose import TransformList, Uncoloured
from vicjoint.video.write import write_mp4

CROP = {"name": "random_resized_crop", "area": [0.5, 1.0]}
ALL = [
    *(CROP, {"name": "horizontal_flip"}, {"name": "colour_jitter", "p": 1.0}, {"name": "greyscale"}),
    *({"name": "gaussian_blur"}, {"name": "solarize"}),
]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Six films of 20 frames, each coloured in its own way, and a picture."""
    folder = tmp_path_factory.mktemp("films")
    for i in range(6):
        rng = np.random.default_rng(i)
        ground = rng.integers(0, 256, (5, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        write_mp4(folder / f"{i}.mp4", np.stack([ground[:, 2 * t : 2 * t + 48] for t in range(20)]))
    PIL.fromarray(ground).save(folder / "picture.png")
    return folder


def record(films, i=0):
    return {"id": str(i), "path": str(films / f"{i}.mp4")}


def assert_same(worker, device):
    """The former rounds to 8 bits."""
    assert worker.dtype == torch.uint8 and device.dtype == torch.float32 and worker.shape == device.shape
    assert device.is_contiguous() and (worker / 255 - device).abs().max() <= 0.51 / 255


@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("b", [None, "same", ALL])
def test_a_clip_and_what_follows(films, b, frames, horizon):
    views = {}
    for colour in ("worker", "device"):
        pair = NextFrame(frames, windows=3, size=16, a=ALL, b=b, colour=colour, horizon=horizon)
        samples = [pair.sample(record(films, i), np.random.default_rng(i)) for i in range(6)]
        views[colour] = [concatenate(list(side)) for side in zip(*samples)]
    clip, after = views["device"]
    raw = after.view if horizon > 1 else after
    assert isinstance(clip, Uncoloured) and isinstance(raw, torch.Tensor if b is None else Uncoloured)
    assert len(clip) == len(after) == 18
    moved = clip.to("cpu")
    assert moved.shape == ((18, 3, frames, 16, 16) if frames > 1 else (18, 3, 16, 16))
    assert_same(views["worker"][0], moved)
    of_worker, of_device = (x.rows() if horizon > 1 else x for x in (views["worker"][1], after.to("cpu")))
    assert of_worker.shape == (18 * horizon, 3, 16, 16)
    if b is None:
        assert torch.equal(of_worker, of_device)
    else:
        assert_same(of_worker, of_device)
    if horizon > 1:
        assert after.to("cpu").targets == views["worker"][1].targets == horizon


def test_both_of_a_window_share_what_is_drawn(films):
    pair = NextFrame(4, windows=3, gap=0, size=16, a=ALL, b="same", colour="device")
    clip, target = (x.to("cpu") for x in pair.sample(record(films), np.random.default_rng(0)))
    assert torch.equal(clip[:, :, -1], target)  # the target is the last frame of the clip
    assert len({tuple(row) for row in pair.sample(record(films), np.random.default_rng(0))[0].numbers}) == 3


def test_modalities_that_read_files(films):
    for kind, file in (
        (lambda colour: Clip(frames=3, size=16, transforms=ALL, colour=colour), "0.mp4"),
        (lambda colour: Image(size=16, transforms=ALL, colour=colour), "picture.png"),
    ):
        worker, device = (
            [kind(colour).read(str(films / file), np.random.default_rng(i)) for i in range(8)]
            for colour in ("worker", "device")
        )
        assert all(isinstance(view, Uncoloured) for view in device)
        assert_same(concatenate(worker), concatenate(device).to("cpu"))
        assert kind("device").read(str(films / file)).dtype == torch.uint8  # in evaluation


def test_what_changes_no_colour_stays_bytes(films):
    pixels = torch.zeros(3, 20, 20, dtype=torch.uint8)
    found = TransformList("pair.a", [CROP], 8, "device")(pixels, np.random.default_rng(0))
    assert found.dtype == torch.uint8


def test_conditions_and_targets_travel_with_it():
    pixels = torch.randint(256, (4, 5, 3, 6, 6), dtype=torch.uint8)
    colour = TransformList("pair.a", ALL, 6).colour
    numbers = np.concatenate(
        [TransformList("pair.a", ALL, 6).draw(np.random.default_rng(i)) for i in range(4)]
    )
    view = Uncoloured(pixels, numbers, colour)
    both = Conditioned(view, torch.zeros(4, 2)).to("cpu"), Following(view, 7).to("cpu")
    assert all(torch.equal(x.view, view.to("cpu")) for x in both)
    halves = [Uncoloured(pixels[i : i + 2], numbers[i : i + 2], colour) for i in (0, 2)]
    assert torch.equal(concatenate(halves).to("cpu"), view.to("cpu"))


@pytest.fixture
def recipe(films, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
name: coloured
optim: {{name: adamw, lr: 1.0e-3, schedule: {{name: constant}}}}
source: {{name: video_folder, root: {films}}}
pair: {{name: next_frame, frames: 3, size: 16, windows: 2, colour: device, a: {ALL}, b: same}}
a: {{modality: clip, encoder: {{name: conv_gru, width: 4, dim: 8}}, expander: [8, 8]}}
b: {{modality: next_frame, encoder: {{name: conv, width: 4, dim: 8}}, expander: [8, 8]}}
objective: {{name: vicreg}}
train: {{steps: 2, batch_size: 8, device: cpu}}
data: {{workers: 0}}
evaluate: {{probes: []}}
"""
    )
    return str(path)


def test_a_run(recipe, tmp_path):
    losses = {}
    for colour in ("worker", "device"):
        assert main([recipe, f"pair.colour={colour}", f"out={tmp_path / colour}"]) == 0
        lines = (tmp_path / colour / "metrics.jsonl").read_text().splitlines()
        losses[colour] = [json.loads(line)["loss"] for line in lines]
    assert len(losses["device"]) == 2 and losses["device"] == pytest.approx(losses["worker"], rel=0.02)


def test_a_misspelt_place_is_named(recipe):
    with pytest.raises(RecipeError, match=r"pair.colour: .*worker.*device.* got 'gpu'"):
        load_recipe(recipe, ["pair.colour=gpu"])
