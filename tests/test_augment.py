"""The pair `augment`: the paper's views by default, pure functions of their generator, coloured in workers or
in a batch; multi-crop."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from wrong import refused

import vicjoint
from benchmarks.images import official, photo
from vicjoint import data, registry
from vicjoint.batch import Crops
from vicjoint.files.images import decode
from vicjoint.modalities.image import Pixels
from vicjoint.objectives import InfoNCE, VICReg
from vicjoint.objectives.multicrop import MultiCrop
from vicjoint.pairs.augment import Augment
from vicjoint.sources.image_folder import ImageFolder
from vicjoint.transforms.compose import TransformList, Uncoloured


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 colourful JPEGs in two classes, as a class folder."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(24):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((60, 48)).save(root / "ab"[i % 2] / f"{i}.jpg")
    return root


def records(folder):
    return [{"id": p.name, "path": str(p)} for p in sorted(folder.rglob("*.jpg"))]


def test_the_default_views_are_the_papers():
    pair = Augment()
    for view, blur, solarize in ((pair.a, 1.0, 0.0), (pair.b, 0.1, 0.2)):
        crop, flip, jitter, grey, gaussian, solar = view.steps
        assert (
            crop.size == 224
            and crop.area == (0.08, 1.0)
            and crop.aspect == (3 / 4, 4 / 3)
            and crop.interpolation == "bicubic"
        )
        assert flip.p == 0.5 and jitter.reach == (0.4, 0.4, 0.2, 0.1) and jitter.p == 0.8 and grey.p == 0.2
        assert (
            gaussian.p == blur
            and gaussian.sigma == (0.1, 2.0)
            and solar.p == solarize
            and solar.limit * 255 == 127.5
        )


def test_a_sample_is_a_function_of_its_generator(folder):
    pair, record = Augment(size=32), records(folder)[0]
    first, again, other = (pair.sample(record, np.random.default_rng(s)) for s in (1, 1, 2))
    assert all(v.shape == (1, 3, 32, 32) and v.dtype == torch.uint8 for v in first)
    assert (
        all(torch.equal(x, y) for x, y in zip(first, again))
        and not torch.equal(first[0], other[0])
        and not torch.equal(*first)
    )


def test_colour_on_the_device_is_colour_in_the_worker(folder):
    views = {}
    for colour in ("worker", "device"):
        stream = data.Stream(records(folder), Augment(size=32, colour=colour), seed=0)
        pair, bad = next(data.batches([stream], [24], 0, 0, 1))
        assert not bad and isinstance(pair.b, Uncoloured) == (colour == "device")
        views[colour] = pair.to("cpu")
    for branch in ("a", "b"):
        worker, device = getattr(views["worker"], branch), getattr(views["device"], branch)
        assert device.dtype == torch.float32 and -1e-5 <= device.min() and device.max() <= 1 + 1e-5
        assert (worker / 255 - device).abs().max() <= 0.51 / 255


def test_views_survive_spawned_workers(folder):
    stream = data.Stream(records(folder), Augment(size=16, colour="device"), seed=0)
    alone, spawned = (
        [p.to("cpu") for p, _ in data.batches([stream], [8], workers, 0, 3)] for workers in (0, 1)
    )
    assert (
        all(torch.equal(x.a, y.a) and torch.equal(x.b, y.b) for x, y in zip(alone, spawned))
        and len(alone) == 3
    )


def test_multi_crop_views(folder):
    pair = Augment(size=48, local_size=16, views={"global": 2, "local": 3})
    assert pair.crops == 4 and pair.a.steps[0].area == (0.4, 1.0) and pair.small.steps[0].area == (0.05, 0.4)
    stream = data.Stream(records(folder), pair, seed=0)
    batch, _ = next(data.batches([stream], [4], 0, 0, 1))
    batch = batch.to("cpu")
    assert isinstance(batch.a, Crops) and [list(v.shape) for v in batch.a] == [[4, 3, 48, 48]] + 3 * [
        [4, 3, 16, 16]
    ]
    part = batch.split(2)[1]
    assert isinstance(part.a, Crops) and torch.equal(part.a[2], batch.a[2][2:])
    own = Augment(
        size=48, views={"global": 2, "local": 1}, a=[{"name": "random_resized_crop", "area": [0.3, 0.6]}]
    )
    assert tuple(own.a.steps[0].area) == (0.3, 0.6)  # what the recipe states stands


def test_multi_crop_objective_is_the_mean_over_pairs():
    crops, b = torch.randn(3, 8, 5), torch.randn(8, 5)  # K, B, E
    z_a, z_b = crops.transpose(0, 1).flatten(0, 1), b.repeat_interleave(3, 0)
    loss, terms = MultiCrop(VICReg(), 3)(z_a, z_b, torch.arange(8))
    each = [VICReg()(crop, b) for crop in crops]
    assert loss == pytest.approx(float(sum(x for x, _ in each) / 3), rel=1e-6)
    assert float(terms["covariance"]) == pytest.approx(
        float(sum(t["covariance"] for _, t in each) / 3), rel=1e-6
    )
    assert float(sum(terms.values())) == pytest.approx(float(loss), rel=1e-6)


def test_several_crops_and_a_queue_are_refused():
    with pytest.raises(
        ValueError, match="pair.views: 3 crops of branch a would put each view of b into the queue as often"
    ):
        MultiCrop(InfoNCE(form="moco", queue=8), 3)
    said = MultiCrop(VICReg(convention="solo_learn"), 3).describe(8)
    assert said == VICReg(convention="solo_learn").describe(8) and MultiCrop(InfoNCE(), 3).describe(8) is None


def recipe(folder, **changes):
    return {
        "name": "small",
        "source": {"name": "image_folder", "root": str(folder), "test_fraction": 0.3},
        "pair": {"name": "augment", "size": 16},
        "a": {"modality": "image", "encoder": {"name": "conv", "width": 4, "dim": 16}, "expander": [16, 16]},
        "b": {"weights": "same"},
        "objective": {"name": "vicreg"},
        "optim": {"name": "lars", "lr": 0.3, "schedule": {"name": "cosine", "warmup_epochs": 1}},
        "train": {"epochs": 3, "batch_size": 8},
        "data": {"workers": 0},
        **changes,
    }


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["pair.colour=device"],
        [
            "pair.views={global: 2, local: 2}",
            "pair.local_size=8",
            "pair.colour=device",
            "train.accumulate=2",
            "train.exact=true",
        ],
        ["b={modality: image, encoder: {name: conv, width: 8, dim: 24}, expander: [16, 16], weights: own}"],
        ["b.weights=ema"],
    ],
)
def test_a_run_on_images(folder, tmp_path, overrides):
    run = vicjoint.train(
        recipe(folder),
        [
            f"out={tmp_path / 'run'}",
            "evaluate.probes=[{name: knn, k: [3, 5]}, {name: linear, epochs: 3}]",
            *overrides,
        ],
    )
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # 17 images in batches of 8, three times
    assert len(steps) == 7 and all(np.isfinite(s["loss"]) for s in steps)
    assert steps[0]["lr"] == pytest.approx(0.3 * 8 / 256 / 2)  # the warm-up is one epoch: two steps
    results = json.loads((run / "evaluation.json").read_text())
    assert set(results) == {"knn", "linear"} and set(results["knn"]) == {
        "model",
        "random_init",
        "pixels",
        "chance",
    }
    page = (run / "report.html").read_text()
    assert "nearest training images" in page and "next frame" not in page
    encoder = vicjoint.load_encoder(run)
    assert encoder(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape == (2, 16)


def test_bad_images_are_replaced_and_named(folder, tmp_path):
    root = tmp_path / "some_bad"
    for i, path in enumerate(sorted(folder.rglob("*.jpg"))):
        (root / path.parent.name).mkdir(parents=True, exist_ok=True)
        (root / path.parent.name / path.name).write_bytes(
            path.read_bytes() if i % 3 else path.read_bytes()[:200]
        )
    run = vicjoint.train(
        recipe(root),
        [f"out={tmp_path / 'run'}", "data.max_bad_fraction=0.9", "evaluate.probes=[{name: knn, k: [3]}]"],
    )
    named = [json.loads(line) for line in (run / "bad_samples.jsonl").read_text().splitlines()]
    assert named and all(n["source"] == "image_folder" and "cannot be decoded" in n["cause"] for n in named)
    assert (run / "evaluation.json").exists()


def test_odd_images_are_read_or_named(tmp_path):
    """A class folder as users have them: every image comes out, or is named with its cause."""
    folder, rng = tmp_path / "odd" / "class", np.random.default_rng(0)
    folder.mkdir(parents=True)
    colour = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    colour.save(folder / "plain.jpg")
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    colour.convert("RGBA").save(folder / "rgba.png")
    colour.save(folder / "animated.gif", save_all=True, append_images=[colour.rotate(90)])
    colour.resize((1, 1)).save(folder / "pixel.png")
    Image.fromarray(rng.integers(0, 65536, (9, 9), dtype=np.uint16)).save(folder / "sixteen.png")
    (folder / "broken.jpg").write_bytes((folder / "plain.jpg").read_bytes()[:300])
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpeg").write_text("<html></html>")
    source = ImageFolder(str(tmp_path / "odd"), test_fraction=0.2)
    stream = data.Stream([*source.train, *source.test], Augment(size=16), seed=0)
    named, read = {}, set()
    for pair, bad in data.batches([stream], [9], 0, 0, 4):
        named |= dict(bad)
        read |= {name.split("@")[0] for name in pair.samples}
        assert pair.a.shape == (9, 3, 16, 16)
    assert {name.split("/")[1] for name in read} == {
        "plain.jpg",
        "cmyk.jpg",
        "rgba.png",
        "animated.gif",
        "pixel.png",
        "sixteen.png",
    }
    assert {name.split("/")[1]: cause.split(": ", 1)[1] for name, cause in named.items()} == {
        "broken.jpg": named["class/broken.jpg"].split(": ", 1)[1],
        "empty.png": "the file is empty (0 bytes)",
        "page.jpeg": "cannot be decoded: not an image of a known format",
    }


@pytest.mark.parametrize("branch, blur, solarize", [("a", 1.0, 0.0), ("b", 0.1, 0.2)])
def test_views_have_the_distribution_of_the_published_pipeline(branch, blur, solarize):
    """200 views of one photo from PIL transforms and from ours: Kolmogorov-Smirnov on what augmentations
    change."""
    count, content, normalise = 200, photo(), Pixels()
    theirs, ours = official(blur, solarize), getattr(Augment(224), branch)
    torch.manual_seed(0)
    np.random.seed(0)
    opened, decoded = Image.open(io.BytesIO(content)).convert("RGB"), decode(content, "photo")
    reference = np.array([statistics(theirs(opened)) for _ in range(count)])
    found = np.array(
        [statistics(normalise(ours(decoded, np.random.default_rng(i)))[0]) for i in range(count)]
    )
    for of_ours, of_theirs in zip(found.T, reference.T):
        at = np.sort(np.concatenate([of_ours, of_theirs]))
        gap = (
            np.abs(
                np.searchsorted(np.sort(of_ours), at, "right")
                - np.searchsorted(np.sort(of_theirs), at, "right")
            ).max()
            / count
        )
        assert gap < 0.195  # one in a thousand by chance


def statistics(view: torch.Tensor) -> list[float]:
    """Brightness, contrast, colourfulness, redness, sharpness of a view [3, H, W]."""
    luminance = view.mean(0)
    return [
        float(v)
        for v in (
            luminance.mean(),
            luminance.std(),
            (view - luminance).abs().mean(),
            (view[0] - view[2]).mean(),
            luminance.diff().abs().mean() / luminance.std(),
        )
    ]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 4}, "pair.size: 4 is too small"),
        ({"centre": 0}, "pair.centre: 0 is not a share"),
        ({"views": {"global": 3}}, r"pair.views: {'global': 3} is not known. Expected {global: 2, local: n}"),
        ({"a": []}, "pair.a: no random_resized_crop"),
        (
            {"b": [{"name": "greyscale"}, {"name": "random_resized_crop"}]},
            "pair.b: greyscale stands before a crop or flip",
        ),
        (
            {"a": [{"name": "random_resized_crop"}, {"name": "solarise"}]},
            "pair.a.1.name: no transform 'solarise'. Did you mean 'solarize'",
        ),
        (
            {"a": [{"name": "random_resized_crop", "scale": [0.1, 1]}]},
            "pair.a.0.scale: transform 'random_resized_crop' takes no option 'scale'. ",
        ),
        (
            {"a": [{"name": "random_resized_crop", "area": "half"}]},
            "pair.a.0.area: expected a list, got 'half'",
        ),
    ],
)
def test_wrong_options_are_named(options, message):
    refused("pair", "augment", options, message)


class Plain:
    """A transform that inherits nothing."""

    def __init__(self, size: int, /):
        self.size = size

    def __call__(self, pixels, rng):
        return pixels


def test_a_transform_says_what_it_is(monkeypatch):
    registry.load_built_in()
    monkeypatch.setitem(registry._components["transform"], "plain", Plain)
    with pytest.raises(
        ValueError, match="pair.a: transform 'plain' says neither .* Inherit .*Geometry or Colour"
    ):
        TransformList("pair.a", [{"name": "random_resized_crop"}, {"name": "plain"}], 16)
