"""Files in, vectors out: features are those of an evaluation, windows slide over long files, and a file of
embeddings is the same however often the work was killed."""

import io
import json
import os
import signal
import tarfile
import threading
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import save_file

import vicjoint
from vicjoint import embed
from vicjoint.data import TimeLimit
from vicjoint.data.reading import build_reading
from vicjoint.embeddings import encoder as encoders
from vicjoint.embeddings import items, reading, store, work
from vicjoint.embeddings.store import StoreError, read_index
from vicjoint.exporting.reading import read_trained
from vicjoint.modalities.image import Clip
from vicjoint.model import build_model
from vicjoint.parts import EvaluationData, Modality, Want
from vicjoint.probes.features import Reader
from vicjoint.probes.reading import Part, part_of
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.registry import register
from vicjoint.sources.base import SourceError
from vicjoint.video import Video
from vicjoint.video.write import RATE_FPS, write_mp4

LEARNING = """
objective: {name: vicreg}
optim: {name: adamw, lr: 0.001, schedule: {name: cosine}}
train: {steps: 1, batch_size: 4}
"""
TWO = f"""
name: two
source: {{name: table, root: ROOT/index.csv}}
pair: {{name: cross_modal, a: picture, b: words, choose: [words], separator: "|"}}
a: {{modality: {{name: image, size: 16}}, encoder: {{name: conv, width: 4, dim: 8}}, expander: [16, 6]}}
b: {{modality: text, encoder: {{name: bytes_cnn, width: 4, layers: 1, dim: 5}}, expander: [6], weights: own}}
{LEARNING}"""
PICTURES = f"""
name: pictures
source: {{name: image_folder, root: ROOT/pictures}}
pair: {{name: augment, size: 16}}
a: {{modality: image, encoder: {{name: conv, width: 4, dim: 8}}, expander: [16, 6]}}
b: {{weights: same}}
{LEARNING}"""
FUTURE = f"""
name: future
source: {{name: video_folder, root: ROOT/videos}}
pair: {{name: next_frame, frames: 3, stride: 2, size: 16, windows: 2}}
a: {{modality: clip, encoder: {{name: conv_stack, frames: 3, width: 4, dim: 8}}, expander: [6]}}
b: {{modality: next_frame, encoder: {{name: conv, width: 4, dim: 8}}, expander: [6], weights: own}}
predictor: {{name: mlp, hidden: 8}}
{LEARNING}
data: {{video_backend: pyav}}
"""
FILMS = f"""
name: films
source: {{name: table, root: ROOT/films.csv, column: film}}
pair: {{name: cross_modal, a: film, b: film, seconds: 1.0}}
a:
  modality: {{name: clip, frames: 4, size: 16}}
  encoder: {{name: conv_stack, frames: 4, width: 4, dim: 8}}
  expander: [6]
b:
  modality: {{name: audio, rate_hz: 8000}}
  encoder: {{name: conv_mel, width: 4, dim: 8}}
  expander: [6]
  weights: own
{LEARNING}
data: {{video_backend: pyav}}
"""


def exported(folder, root, text: str) -> str:
    """An export of the untrained model of a recipe."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(text.replace("ROOT", str(root)))
    torch.manual_seed(0)
    model = build_model(load_recipe(folder / "recipe.yaml", check_paths=False))
    state = {name: x.clone().contiguous() for name, x in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    return str(folder)


def picture(path, level: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(level).integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def film(path, seconds: float, seed: int = 0, sound: bool = True) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng, frames = np.random.default_rng(seed), round(seconds * RATE_FPS)
    video = np.repeat(rng.integers(0, 256, (frames, 8, 8, 3), np.uint8).repeat(4, 1), 4, 2)
    write_mp4(path, video, rng.uniform(-0.5, 0.5, round(seconds * 16000)) if sound else None)
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures, films, tables of them, and exports of four recipes."""
    root = tmp_path_factory.mktemp("embed")
    pictures = [picture(root / "pictures" / f"{i}.png", i) for i in range(12)]
    films = [film(root / "videos" / f"{i}.mp4", 1.5 + i, i) for i in range(3)]
    lines = [f'{os.path.relpath(p, root)},"word {i}|other {i}",{i}' for i, p in enumerate(pictures)]
    (root / "index.csv").write_text("\n".join(["picture,words,number", *lines]))
    (root / "films.csv").write_text("\n".join(["film", *(os.path.relpath(f, root) for f in films)]))
    for name, text in {"two": TWO, "augment": PICTURES, "future": FUTURE, "films": FILMS}.items():
        if name != "films" or audio():
            exported(root / name, root, text)
    return root


def audio() -> bool:
    try:
        import soundfile
    except ImportError:
        return False
    return soundfile is not None


needs_audio = pytest.mark.skipif(not audio(), reason="needs vicjoint[audio]")


def paths(root, folder: str) -> list[str]:
    return sorted(str(p) for p in (root / folder).iterdir())


def command(*arguments) -> int:
    return embed.main([str(argument) for argument in arguments])


def said(capsys) -> str:
    return " ".join("".join(capsys.readouterr()).split())


def bad_lines(out) -> list[str]:
    return out.with_name(out.name + ".bad.jsonl").read_text().splitlines()


def rows(path) -> list[dict]:
    return read_index(path).columns.to_pylist()


# ---- from Python ----


@pytest.mark.parametrize("name", ["two", "augment", "future", pytest.param("films", marks=needs_audio)])
def test_features_are_those_of_an_evaluation(place, name):
    recipe = load_recipe(place / name / "recipe.yaml", check_paths=False)
    (task,), _ = build_reading(recipe)
    model = build_model(recipe)
    for side in "ab":
        encoder = vicjoint.load_encoder(place / name, side)
        model.branches[side].modality.load_state_dict(encoder.modality.state_dict())
        data = EvaluationData(("a", "b"), task.source, task.pair)
        two = read_trained(place / name, None, ()).model.between("a", "b")
        for space in ("representation", "embedding"):
            want = Want(side, "train", rows=("model",), space=space)
            part = Part(data, *part_of(want)[:2], data.records("train", side))
            part.add(want)
            with torch.no_grad():
                Reader(0, TimeLimit(), torch.device("cpu")).encode(part, {"model": two})
            column = recipe.tasks[0].pair.get(side) if task.pair.uses_readers else "path"
            values = [r[column] for r in data.records("train", side)]
            if column == "words":
                values = [value.split("|")[0] for value in values]
            elif column != "path":
                values = [str(place / value) for value in values]
            found = encoder.embed(values, space)
            assert found.shape == (len(values), 6 if space == "embedding" else encoder.dim)
            assert torch.equal(found, torch.cat(part.features["model", space]))
            assert found.std(0).min() > 0


def test_the_embedding_of_a_branch_with_a_predictor_is_its_prediction(place):
    encoder = vicjoint.load_encoder(place / "future")
    model = read_trained(place / "future", None, ()).model
    y = encoder.embed(paths(place, "videos"))
    with torch.no_grad():
        z = model.branches["a"].expander(y)
        assert torch.equal(encoder.embed(paths(place, "videos"), "embedding"), model.predict(z))
        assert not torch.equal(model.predict(z), z)


@pytest.mark.parametrize("batch_size", [64, 5])
def test_tokens_and_maps_of_pictures(place, batch_size):
    """The encoder's own, in order, whatever the batches; y of this encoder is a linear map of its pooled
    map."""
    encoder = vicjoint.load_encoder(place / "two")
    files = paths(place, "pictures")
    found = encoder.embed(files, level="tokens", batch_size=batch_size)
    maps = encoder.embed(files, level="map", batch_size=batch_size)
    assert [tuple(x.shape) for x in found] == [(1, 16)] * 12 and found[0].dtype == torch.float32
    assert all(torch.equal(of.flatten(0, -2), x) for of, x in zip(maps, found))
    with torch.no_grad():
        trunk = encoder.encoder.trunk
        pooled = [trunk.pool(of.movedim(2, 0)[None]) for of in maps]
        y = encoder.encoder.project(torch.cat(pooled))
    assert torch.allclose(y, encoder.embed(files), atol=1e-5)
    (x, mask, grid), raw = encoder.tokens(torch.zeros(2, 3, 32, 48, dtype=torch.uint8)), encoder.embed([])
    assert x.shape == (2, 6, 16) and mask.all() and grid == (2, 3) and raw.shape == (0, 8)


def test_tokens_of_texts_are_as_many_as_the_text_has(place):
    encoder = vicjoint.load_encoder(place / "two", "b")
    texts = ["a", "a longer text", "some"]
    found = encoder.embed(texts, level="tokens")
    alone = [encoder.embed([text], level="tokens")[0] for text in texts]
    assert [len(x) for x in found] == [len(x) for x in alone] and len(found[0]) < len(found[2]) < len(
        found[1]
    )
    assert all(torch.allclose(x, one, atol=1e-6) for x, one in zip(found, alone))
    with pytest.raises(ValueError, match="level: map: the tokens of encoder SequenceCNN lie on no grid"):
        encoder.embed(texts, level="map")


def test_tokens_of_bad_items_are_left_out(place, tmp_path):
    encoder, good = vicjoint.load_encoder(place / "two"), paths(place, "pictures")[0]
    with torch.no_grad():
        found, bad = encoder.embed([good, tmp_path / "none.png", good], errors="skip", level="tokens")
    assert [number for number, _ in bad] == [1] and len(found) == 2 and torch.equal(*found)
    encoder.encoder.trunk.layers[0].weight.data.fill_(torch.nan)
    found, bad = encoder.embed([good], errors="skip", level="tokens")
    assert found == [] and "not finite" in bad[0][1]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"level": "token"}, "level: 'token' is unknown. Expected pooled, tokens or map."),
        (
            {"level": "map", "space": "embedding"},
            "space: embedding is made of y, and with level: map y is not",
        ),
        ({"space": "z"}, "space: 'z' is unknown. Expected representation or embedding."),
    ],
)
def test_wrong_levels(place, options, message):
    with pytest.raises(ValueError, match=message):
        vicjoint.load_encoder(place / "two").embed([], **options)


def test_a_raw_view_gives_what_it_gave_before(place):
    encoder = vicjoint.load_encoder(place / "two")
    raw = encoder.modality.read(paths(place, "pictures")[0])
    with torch.no_grad():
        assert torch.allclose(encoder(raw), encoder.embed(paths(place, "pictures")[:1]), atol=1e-6)
    assert set(dict(encoder.named_children())) == {"modality", "encoder"} and encoder.dim == 8
    assert encoder.train().training and encoder.embed([]).shape == (0, 8) and encoder.training


def test_bad_items_raise_or_are_listed(place, tmp_path):
    encoder = vicjoint.load_encoder(place / "two")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    good = paths(place, "pictures")
    given = [good[0], tmp_path / "broken.png", good[1], "missing.png"]
    with pytest.raises(ValueError, match=r"item 1: .*broken.png: cannot be decoded: not an image"):
        encoder.embed(given)
    found, bad = encoder.embed(given, errors="skip", batch_size=2)
    assert torch.allclose(found, encoder.embed(good[:2]), atol=1e-6)
    assert [index for index, _ in bad] == [1, 3]
    assert bad[1][1] == "missing.png: no such file"
    texts = vicjoint.load_encoder(place / "two", "b")
    with pytest.raises(ValueError, match="item 1: the text is empty"):
        texts.embed(["a word", ""])
    with pytest.raises(ValueError, match="item 0: 7: expected text, got int 7"):
        texts.embed([7])


def test_wrong_arguments_of_embed(place):
    encoder = vicjoint.load_encoder(place / "two")
    with pytest.raises(
        ValueError, match="items: expected a list of items, got one: 'a.png'. Put it into a list"
    ):
        encoder.embed("a.png")
    with pytest.raises(ValueError, match="space: 'z' is unknown. Expected representation or embedding."):
        encoder.embed([], space="z")
    with pytest.raises(ValueError, match="errors: 'ignore' is unknown. Expected raise or skip."):
        encoder.embed([], errors="ignore")


def test_a_branch_that_reads_no_files_says_so(tmp_path):
    folder = tiny_export(tmp_path)
    with pytest.raises(
        RecipeError, match="pair 'tiny_views' does not read files or texts by itself.*encoder"
    ):
        vicjoint.load_encoder(folder, imports=["tiny"]).embed(["row1"])


def tiny_export(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(json.dumps(tiny.recipe()))
    model = build_model(load_recipe(folder / "recipe.yaml", imports=["tiny"]))
    save_file(
        {n: x.clone().contiguous() for n, x in model.state_dict().items()}, folder / "model.safetensors"
    )
    return folder


def test_the_hash_is_of_the_weights(place, tmp_path):
    one, other = (vicjoint.load_encoder(place / "two", branch).origin for branch in "ab")
    assert one.model == other.model and len(one.model) == 12 and one.step is None
    torch.manual_seed(1)
    model = build_model(load_recipe(place / "two" / "recipe.yaml", check_paths=False))
    assert encoders.hash_of(model) != one.model


# ---- windows along time ----


def test_a_clip_slides(place, monkeypatch):
    path, opened = paths(place, "videos")[2], []
    monkeypatch.setattr("vicjoint.transforms.squares.Video", lambda *a: opened.append(a) or Video(*a))
    for options, length, last in (
        (dict(frames=4, size=16), 1.0, (2.5, 3.5)),
        (dict(frames=4, size=16, window=0.75), None, (2.5, 3.25)),
    ):
        clip = Clip(**options)
        with clip.slide(path, 0.5, length) as sliding:
            assert sliding.spans[0] == (0.0, length or 0.75) and sliding.spans[-1] == last
            views = list(sliding.read(0, len(sliding.spans)))
            assert torch.equal(next(sliding.read(3, 4)), views[3])
        assert len(opened) == 1 and len(views) == 6
        for view, (start, end) in zip(views, sliding.spans):
            assert torch.equal(view, clip.read(path, None, (start, end - start)))
        opened.clear()


def test_a_clip_of_a_stride_slides(place):
    path, clip = paths(place, "videos")[2], Clip(frames=4, stride=3, size=16)
    with clip.slide(path, 0.5) as sliding:
        # 84 frames of 24 a second; a clip is 10 frames long
        assert sliding.spans[:2] == [(0.0, pytest.approx(10 / 24)), (0.5, pytest.approx(22 / 24))]
        assert sliding.spans[-1] == (3.0, pytest.approx(82 / 24))
        (view,) = sliding.read(1, 2)
    with Video(path) as video:
        frames = clip.squares.frames(video, [12, 15, 18, 21])
    assert torch.equal(
        view[0, :, 0, :, :],
        torch.nn.functional.interpolate(frames[:1], (16, 16), mode="bilinear", antialias=True)[0],
    )


def test_frames_that_windows_share_are_decoded_once_and_not_held(place, monkeypatch):
    path, decoded = paths(place, "videos")[2], []
    each = Video.each

    def counted(self, numbers, part):
        for number, frame in zip(numbers, each(self, numbers, part)):
            decoded.append(number)
            yield frame

    monkeypatch.setattr(Video, "each", counted)
    with Clip(frames=8, size=16).slide(path, 0.25, 2.0) as sliding:
        reading, held = sliding.read(0, len(sliding.spans)), []
        for _ in reading:
            held.append(len(reading.gi_frame.f_locals["held"]))
    assert len(decoded) == len(set(decoded)) and decoded == sorted(decoded)
    assert max(held) <= 8 and len(decoded) > 8


@needs_audio
def test_a_sound_slides(place, tmp_path):
    import soundfile

    from vicjoint.modalities.audio import Audio

    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 30000), 12000)
    soundfile.write(tmp_path / "short.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 6000), 12000)
    audio = Audio(rate_hz=8000, seconds=1.0)
    with audio.slide(str(tmp_path / "long.wav"), 0.4) as sliding:
        assert sliding.spans == [(pytest.approx(n * 0.4), pytest.approx(n * 0.4 + 1)) for n in range(4)]
        for view, (start, _) in zip(sliding.read(0, 4), sliding.spans):
            assert torch.equal(view, audio.read(str(tmp_path / "long.wav"), None, (start, 1.0)))
    with audio.slide(str(tmp_path / "short.wav"), 0.4) as sliding:
        assert sliding.spans == [(0.0, 0.5)]
        assert torch.equal(next(sliding.read(0, 1)), audio.read(str(tmp_path / "short.wav")))
    with pytest.raises(ValueError, match="short.wav: is 0.50 s long, a window has 2 s"):
        audio.slide(str(tmp_path / "short.wav"), 0.4, 2.0)


def test_next_frame_slides_without_a_target(place):
    path = paths(place, "videos")[0]  # 36 frames
    (task,), _ = build_reading(load_recipe(place / "future" / "recipe.yaml", check_paths=False))
    with task.pair.slide(path, "a", 1 / 24) as clips, task.pair.slide(path, "b", 0.25) as frames:
        assert len(clips.spans) == 32 and clips.spans[-1] == (pytest.approx(31 / 24), pytest.approx(1.5))
        assert [span[0] for span in frames.spans] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
        middle = task.pair.views({"id": path, "path": path}, "a")[0]
        assert middle.content.endswith("frames 15-19")
        assert torch.equal(next(clips.read(15, 16)), middle.raw)
        assert next(clips.read(31, 32)).shape == (1, 3, 3, 16, 16)
        target = task.pair.views({"id": path, "path": path}, "b")[0]
        with Video(path) as video:
            shown = task.pair.frames_of(video, [6])
        assert torch.equal(next(frames.read(1, 2)), shown) and target.raw.shape == shown.shape


@register("modality", "embed_waves")
class Waves(Modality):
    """A timed modality of a user, with a text for a file: as many seconds as it says."""

    reads, timed = "text", True

    def read(self, value, rng=None, window=None):
        return torch.tensor([[*(window or (0.0, 0.0)), float(value)]])

    def seconds(self, value):
        return float(value)


def test_a_users_modality_slides_by_its_read():
    with Waves().slide("2.1", 0.5, 1.0) as sliding:
        assert sliding.spans == [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0)]
        assert [view[0, :2].tolist() for view in sliding.read(1, 3)] == [[0.5, 1.0], [1.0, 1.0]]
    with pytest.raises(ValueError, match="2.1: nothing says how long a window is. Set pair.seconds"):
        Waves().slide("2.1", 0.5)


# ---- the command: what it reads and writes ----


def test_a_folder(place, tmp_path, capsys):
    for i in (3, 1, 2):
        picture(tmp_path / "in" / "sub" / f"{i}.png", i)
    picture(tmp_path / "in" / "z.PNG", 9)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"")
    for name in ("notes.txt", "more.txt", "film.mp4", ".hidden.png"):
        (tmp_path / "in" / name).write_text("-")
    out = tmp_path / "out.parquet"
    assert command(place / "two", tmp_path / "in", "--to", out) == 0
    spoken = said(capsys)
    assert f"{tmp_path}/in: passed over: 2 .txt, 1 hidden, 1 .mp4." in spoken
    assert f"1 could not be read and are left out: {out}.bad.jsonl names them" in spoken
    assert spoken.endswith(f"embed: {out}") or f"embed: {out}" in spoken
    index = read_index(out)
    expected = [f"{tmp_path}/in/{name}" for name in ("z.PNG", "sub/1.png", "sub/2.png", "sub/3.png")]
    assert index.columns["item"].to_pylist() == expected and index.columns.column_names == ["item"]
    assert index.metadata == {
        "run": str(place / "two"),
        "name": "two",
        "branch": "a",
        "modality": "image",
        "reads": "file",
        "frame_rate": 25.0,
        "space": "representation",
        "dim": 8,
        "step": None,
        "model": vicjoint.load_encoder(place / "two").origin.model,
    }
    assert index.matrix.dtype == np.float32
    assert np.array_equal(index.matrix, vicjoint.load_encoder(place / "two").embed(expected).numpy())
    (bad,) = [json.loads(line) for line in bad_lines(out)]
    assert bad == {
        "item": f"{tmp_path}/in/broken.jpg",
        "cause": f"{tmp_path}/in/broken.jpg: the file is empty (0 bytes)",
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out.parquet", "out.parquet.bad.jsonl"]


def test_a_table_and_a_file(place, tmp_path):
    out = tmp_path / "out.parquet"
    one = paths(place, "pictures")[0]
    assert command(place / "two", place / "index.csv", one, "--to", out, "--space", "embedding") == 0
    found = rows(out)
    assert len(found) == 13 and read_index(out).metadata["dim"] == 6
    assert found[2] == {
        "item": str(place / "pictures" / "2.png"),
        "picture": "pictures/2.png",
        "words": "word 2|other 2",
        "number": "2",
    }
    assert found[12] == {"item": one, "picture": None, "words": None, "number": None}
    again = read_index(out).matrix
    assert np.array_equal(again[12], again[0])


def test_every_value_of_a_cell_is_an_item(place, tmp_path):
    out = tmp_path / "out.parquet"
    assert command(place / "two", place / "index.csv", "--to", out, "--branch", "b") == 0
    found = rows(out)
    assert [row["item"] for row in found[:4]] == ["word 0", "other 0", "word 1", "other 1"]
    assert len(found) == 24 and found[3]["number"] == "1"
    index = read_index(out)
    assert index.metadata["reads"] == "text" and index.metadata["branch"] == "b"
    y = vicjoint.load_encoder(place / "two", "b").embed([row["item"] for row in found])
    assert torch.allclose(torch.from_numpy(index.matrix), y, atol=1e-6)


def test_columns_keep_their_types_and_get_out_of_the_way(place, tmp_path):
    given = [
        {"words": "one", "item": 1, "kinds": "x", "list": ["a", "b"], "half": 1, "whole": {"a": 1}},
        {"words": "two", "item": 2, "kinds": 7, "list": [], "half": 2.5, "none": None},
        {"words": "", "item": 3},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, given)))
    out = tmp_path / "jsonl.parquet"
    assert command(place / "two", tmp_path / "t.jsonl", "--to", out, "--branch", "b") == 0
    assert rows(out) == [
        {"item": "one", "words": "one", "table_item": 1, "kinds": "x", "list": ["a", "b"], "half": 1.0,
         "whole": '{"a": 1}', "none": None},
        {"item": "two", "words": "two", "table_item": 2, "kinds": "7", "list": [], "half": 2.5,
         "whole": None, "none": None},
    ]  # fmt: skip
    (bad,) = [json.loads(line) for line in bad_lines(out)]
    assert bad == {"item": f"{tmp_path}/t.jsonl, row 3", "cause": "column 'words' is empty"}
    table = pyarrow.table({"words": ["x", "y"], "n": pyarrow.array([1, None], pyarrow.int16())})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    out = tmp_path / "parquet.parquet"
    assert command(place / "two", tmp_path / "t.parquet", "--to", out, "--branch", "b") == 0
    assert read_index(out).columns.schema.field("n").type == pyarrow.int16()
    assert [row["n"] for row in rows(out)] == [1, None]


def test_a_named_column_and_a_file_of_lines(place, tmp_path):
    (tmp_path / "t.csv").write_text("a,b\nfirst,second\n")
    (tmp_path / "t.txt").write_text("one\n\ntwo words\n")
    out = tmp_path / "out.parquet"
    where = (tmp_path / "t.csv", tmp_path / "t.txt", "--to", out, "--branch", "b", "--column", "b")
    assert command(place / "two", *where) == 0
    assert [row["item"] for row in rows(out)] == ["second", "one", "two words"]


def test_tar_files(place, tmp_path):
    with tarfile.open(tmp_path / "s-0.tar", "w") as out:
        for name in ("0.png", "1.png"):
            content = (place / "pictures" / name).read_bytes()
            label = f"class {name[0]}".encode()
            for member, of in ((name, content), (f"{name[0]}.cls", label)):
                info = tarfile.TarInfo(member)
                info.size = len(of)
                out.addfile(info, io.BytesIO(of))
    expected = [{"item": f"{tmp_path}/s-0.tar/{i}", "label": f"class {i}"} for i in range(2)]
    for number, (run, data) in enumerate((("two", "s-{0..0}.tar"), ("augment", "s-0.tar"), ("augment", ""))):
        out = tmp_path / f"{number}.parquet"
        assert command(place / run, tmp_path / data, "--to", out) == 0
        assert rows(out) == expected
        y = vicjoint.load_encoder(place / run).embed(paths(place, "pictures")[:2])
        assert np.allclose(read_index(out).matrix, y.numpy(), atol=1e-6)
        out.unlink()


@needs_audio
@pytest.mark.parametrize("branch", ["a", "b"])
def test_windows_of_a_table_of_films(place, tmp_path, branch):
    film(tmp_path / "short.mp4", 0.5)
    (tmp_path / "t.csv").write_text(
        f"film,who\n{place}/videos/0.mp4,me\nmissing.mp4,you\n{place}/videos/1.mp4,she\nshort.mp4,he\n"
    )
    out = tmp_path / "out.parquet"
    assert command(place / "films", tmp_path / "t.csv", "--to", out, "--every", 0.25, "--branch", branch) == 0
    found = rows(out)
    assert [(r["who"], r["start_seconds"]) for r in found] == [
        *(("me", start) for start in (0.0, 0.25, 0.5)),
        *(("she", 0.25 * n) for n in range(7)),
    ]
    assert all(r["end_seconds"] == r["start_seconds"] + 1.0 for r in found)
    bad = [json.loads(line) for line in bad_lines(out)]
    assert [os.path.basename(one["item"]) for one in bad] == ["missing.mp4", "short.mp4"]
    assert "is 0.50 s long, a window has 1 s" in bad[1]["cause"]
    reader = vicjoint.load_encoder(place / "films", branch).reader
    encoder = vicjoint.load_encoder(place / "films", branch)
    view = reader.modality.read(str(place / "videos" / "1.mp4"), None, (0.75, 1.0))
    assert np.allclose(read_index(out).matrix[6], encoder.encode(view)[0].numpy(), atol=1e-4)


def test_a_window_that_cannot_be_read_is_named_alone(place, tmp_path, monkeypatch):
    monkeypatch.setattr(work, "PART_ROWS", 16)
    read = reading.ItemReader.slide

    def broken(self, value, every):
        sliding = read(self, value, every)
        read_at = sliding.read

        def some(first, last):
            for number, view in zip(range(first, last), read_at(first, last)):
                if number in (1, 2):
                    raise ValueError("damaged")
                yield view

        sliding.read = some
        return sliding

    monkeypatch.setattr(reading.ItemReader, "slide", broken)
    out = tmp_path / "out.parquet"
    assert command(place / "future", place / "videos" / "0.mp4", "--to", out, "--every", 0.25) == 0
    assert [row["start_seconds"] for row in rows(out)] == [0.0, 0.75, 1.0, 1.25]
    bad = [json.loads(line) for line in bad_lines(out)]
    assert [(one["start_seconds"], one["cause"]) for one in bad] == [(0.25, "damaged"), (0.5, "damaged")]


def test_a_file_of_tokens(place, tmp_path, monkeypatch, capsys):
    """Those of embed, with their grid, over several parts; it goes on where it stopped, and is no index."""
    monkeypatch.setattr(work, "TOKEN_ROWS", 4)
    out, again = tmp_path / "out.parquet", tmp_path / "again.parquet"
    files = [str(tmp_path / "gone.png"), *paths(place, "pictures")]
    (tmp_path / "list.csv").write_text("\n".join(["picture,token_grid", *(f"{file},mine" for file in files)]))
    arguments = [place / "two", tmp_path / "list.csv", "--level", "tokens"]
    assert command(*arguments, "--to", out) == 0
    assert "12 rows of tokens" in said(capsys)
    found = pyarrow.parquet.read_table(out).to_pylist()
    expected = vicjoint.load_encoder(place / "two").embed(files[1:], level="tokens")
    assert [row["item"] for row in found] == files[1:] and len(bad_lines(out)) == 1
    assert all(
        torch.allclose(torch.tensor(row["embedding"]), x, atol=1e-5) for row, x in zip(found, expected)
    )
    assert all(row["token_grid"] == [1, 1] and row["table_token_grid"] == "mine" for row in found)

    write, calls = store.Store.write, []

    def stopped(self, *given):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(write(self, *given))

    monkeypatch.setattr(store.Store, "write", stopped)
    assert command(*arguments, "--to", again) == 75
    monkeypatch.setattr(store.Store, "write", write)
    assert command(*arguments, "--to", again) == 0 and again.read_bytes() == out.read_bytes()
    with pytest.raises(StoreError, match="holds tokens, and no vector of an item. Embed with --level pooled"):
        read_index(out)


def test_tokens_of_texts_have_no_grid(place, tmp_path):
    (tmp_path / "texts.txt").write_text("one\nanother text\n")
    out = tmp_path / "out.parquet"
    arguments = ["--branch", "b", "--level", "tokens", "--dtype", "float16"]
    assert command(place / "two", tmp_path / "texts.txt", *arguments, "--to", out) == 0
    found = pyarrow.parquet.read_table(out).to_pylist()
    assert [row["token_grid"] for row in found] == [None, None]
    expected = vicjoint.load_encoder(place / "two", "b").embed(["one", "another text"], level="tokens")
    for row, x in zip(found, expected):
        assert torch.allclose(torch.tensor(row["embedding"]), x, atol=2e-3)


def test_an_encoder_without_tokens_writes_nothing(place, tmp_path, monkeypatch, capsys):
    from vicjoint.tokens import TokenEncoder

    monkeypatch.setattr("vicjoint.tokens.TokenEncoder", type("Other", (TokenEncoder,), {}))
    out = tmp_path / "out.parquet"
    assert command(place / "two", place / "index.csv", "--level", "tokens", "--to", out) == 2
    assert "encoder ConvEncoder gives y and no tokens" in said(capsys)
    assert (
        command(place / "two", place / "index.csv", "--level", "tokens", "--space", "embedding", "--to", out)
        == 2
    )
    assert "--level: tokens are of y before it is pooled, and --space embedding is made of y" in said(capsys)
    assert not list(tmp_path.iterdir())


def test_float16(place, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.parquet"
    assert command(place / "two", place / "index.csv", "--to", out, "--dtype", "float16") == 0
    schema = pyarrow.parquet.read_schema(out)
    assert schema.field("embedding").type == pyarrow.list_(pyarrow.float16(), 8)
    y = vicjoint.load_encoder(place / "two").embed([str(place / "pictures" / f"{i}.png") for i in range(12)])
    assert np.array_equal(read_index(out).matrix, y.half().float().numpy())
    monkeypatch.setattr(
        encoders.RepresentationModel, "encode", lambda self, raw, space: torch.full((12, 8), 7e4)
    )
    big = tmp_path / "big.parquet"
    assert command(place / "two", place / "index.csv", "--to", big, "--dtype", "float16") == 2
    assert "--dtype: float16 holds numbers up to 65504, got 70000. Use float32." in said(capsys)


def test_values_that_are_no_numbers_are_bad(place, tmp_path, monkeypatch):
    encode = encoders.RepresentationModel.encode

    def poisoned(self, raw, space="representation"):
        x = encode(self, raw, space)
        x[1] = torch.nan
        return x

    monkeypatch.setattr(encoders.RepresentationModel, "encode", poisoned)
    out = tmp_path / "out.parquet"
    assert command(place / "two", place / "index.csv", "--to", out) == 0
    assert [row["number"] for row in rows(out)] == ["0", *map(str, range(2, 12))]
    (bad,) = [json.loads(line) for line in bad_lines(out)]
    assert bad["item"].endswith("1.png") and "not finite" in bad["cause"]
    with pytest.raises(ValueError, match="item 1: .*: the encoder gives values that are not finite"):
        vicjoint.load_encoder(place / "two").embed(paths(place, "pictures")[:2])


# ---- the command: stopped, killed, refused ----


def small(monkeypatch):
    monkeypatch.setattr(work, "PART_ROWS", 4)
    monkeypatch.setattr(work, "MOST_VIEWS", {"cpu": 2})


def killed_at(number: int, arguments: list[str], where: str) -> None:
    """In a process of its own: the command, which kills itself at the nth part."""
    work.PART_ROWS, work.MOST_VIEWS = 4, {"cpu": 2}
    store.GROUP_PARTS = 2
    torch.set_num_threads(1)
    original, calls = getattr(store.Store, where), [0]

    def counted(self, *given):
        calls[0] += 1
        if calls[0] == number:
            if where == "write":
                (self.folder / "0000099.parquet.tmp").write_bytes(b"half a part")
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *given)

    setattr(store.Store, where, counted)
    raise SystemExit(embed.main(arguments))


@pytest.mark.parametrize("kind", ["table", "films"])
def test_killed_and_gone_on_it_is_the_same_file(place, tmp_path, kind):
    if kind == "table":
        (tmp_path / "broken.png").write_bytes(b"-")
        lines = (place / "index.csv").read_text().replace("pictures", f"{place}/pictures").splitlines()
        lines.insert(6, f"{tmp_path}/broken.png,x,y")
        (tmp_path / "t.csv").write_text("\n".join(lines))
        given = [str(place / "two"), str(tmp_path / "t.csv")]
    else:
        given = [str(place / "future"), str(place / "videos"), "--every", "0.5"]
    made = {}
    for name, kills in (("whole", []), ("killed", [(2, "write"), (2, "write"), (1, "merge")])):
        (tmp_path / name).mkdir()
        os.chdir(tmp_path / name)
        arguments = [*given, "--to", "out.parquet"]
        for number, where in [*kills, (0, "write")]:
            process = tiny.forking().Process(target=killed_at, args=(number, arguments, where))
            process.start()
            assert tiny.finish([process]) == [-signal.SIGKILL if number else 0]
            if number:
                assert os.path.exists("out.parquet.parts/manifest.json") and not os.path.exists("out.parquet")
        made[name] = [path.read_bytes() for path in sorted((tmp_path / name).iterdir())]
    assert made["whole"] == made["killed"] and len(made["whole"]) == (2 if kind == "table" else 1)
    assert len(rows("out.parquet")) == (12 if kind == "table" else 15)


def test_parts_that_are_there_are_not_read_again(place, tmp_path, monkeypatch, capsys):
    small(monkeypatch)
    out, read, write = tmp_path / "out.parquet", [], store.Store.write
    original = reading.ItemReader.read
    monkeypatch.setattr(reading.ItemReader, "read", lambda self, v: read.append(v) or original(self, v))

    def stopped(self, number, *part):
        if number == 2:
            raise KeyboardInterrupt
        write(self, number, *part)

    monkeypatch.setattr(store.Store, "write", stopped)
    assert command(place / "two", place / "index.csv", "--to", out) == 75
    assert "stopped: the same command goes on from the last whole part." in said(capsys)
    monkeypatch.setattr(store.Store, "write", write)
    read.clear()
    assert command(place / "two", place / "index.csv", "--to", out) == 0
    assert [os.path.basename(path) for path in read[2:]] == ["8.png", "9.png", "10.png", "11.png"]
    before = out.read_bytes()
    read.clear()
    assert command(place / "two", place / "index.csv", "--to", out) == 0  # it is there
    assert not read and out.read_bytes() == before


def test_another_commands_parts_and_file_are_refused(place, tmp_path, monkeypatch, capsys):
    small(monkeypatch)
    out, merge = tmp_path / "out.parquet", store.Store.merge
    (tmp_path / "t.csv").write_text(
        (place / "index.csv").read_text().replace("pictures", f"{place}/pictures")
    )

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(store.Store, "merge", interrupted)
    assert command(place / "two", tmp_path / "t.csv", "--to", out) == 75
    monkeypatch.setattr(store.Store, "merge", merge)
    kept = sorted(p.name for p in (tmp_path / "out.parquet.parts").iterdir())
    capsys.readouterr()
    assert command(place / "two", tmp_path / "t.csv", "--to", out, "--dtype", "float16") == 2
    message = (
        f"--to: {out}.parts holds the parts of another command: it differs in dtype (float32, now float16)."
    )
    assert message in said(capsys)
    with open(tmp_path / "t.csv", "a") as file:
        file.write(f"\n{place}/pictures/0.png,more,99")
    assert command(place / "two", tmp_path / "t.csv", "--to", out) == 2
    assert "it differs in items of DATA (" in said(capsys)
    assert sorted(p.name for p in (tmp_path / "out.parquet.parts").iterdir()) == kept
    (tmp_path / "t.csv").write_text(
        (place / "index.csv").read_text().replace("pictures", f"{place}/pictures")
    )
    assert command(place / "two", tmp_path / "t.csv", "--to", out) == 0
    capsys.readouterr()
    assert command(place / "two", tmp_path / "t.csv", "--to", out, "--space", "embedding") == 2
    message = (
        "exists, and this command would make another one: it differs in space (representation, now embedding)"
    )
    assert message in said(capsys)
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "mine.parquet")
    assert command(place / "two", tmp_path / "t.csv", "--to", tmp_path / "mine.parquet") == 2
    assert "exists, and this command would make another one" in said(capsys)
    assert pyarrow.parquet.read_table(tmp_path / "mine.parquet").column_names == ["a"]


def test_two_processes_do_not_share_a_folder(place, tmp_path, capsys):
    import fcntl

    folder = tmp_path / "out.parquet.parts"
    folder.mkdir()
    with open(folder / ".lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert command(place / "two", place / "index.csv", "--to", tmp_path / "out.parquet") == 2
    assert "--to: another process is embedding in" in said(capsys)


@pytest.mark.slow
def test_processes_that_read_change_nothing(place, tmp_path):
    for workers in (0, 1):
        given = (place / "videos", "--to", tmp_path / f"{workers}.parquet", "--every", 0.5)
        assert command(place / "future", *given, "--workers", workers) == 0
    assert (tmp_path / "0.parquet").read_bytes() == (tmp_path / "1.parquet").read_bytes()


def test_memory_is_not_a_matter_of_rows(place, tmp_path, monkeypatch):
    """Items are taken from the table as they are read, a few batches ahead."""
    small(monkeypatch)
    (tmp_path / "t.csv").write_text("\n".join(["words", *(f"word {i}" for i in range(200))]))
    alive, most, post = set(), [0], items.Item.__init__

    def born(self, *given, **named):
        post(self, *given, **named)
        alive.add(id(self))
        most[0] = max(most[0], len(alive))

    monkeypatch.setattr(items.Item, "__init__", born)
    monkeypatch.setattr(items.Item, "__del__", lambda self: alive.discard(id(self)), raising=False)
    assert command(place / "two", tmp_path / "t.csv", "--to", tmp_path / "o.parquet", "--branch", "b") == 0
    assert len(rows(tmp_path / "o.parquet")) == 200 and 2 < most[0] < 40


TO = ["--to", "o.parquet"]
WRONG = {
    "no run": (["nowhere", "index.csv", *TO], "nowhere: no such folder. Expected a run folder or an export"),
    "branch": (["two", "index.csv", *TO, "--branch", "c"], "branch: 'c' is unknown. Expected 'a' or 'b'."),
    "to": (["two", "index.csv", "--to", "o.csv"], "--to: o.csv is no name of a parquet file. Expected one"),
    "every": (["future", "videos", *TO, "--every", "0"], "--every: 0.0 is no step in time. Expected seconds"),
    "no time": (
        ["two", "index.csv", *TO, "--every", "1"],
        "--every: branch a (image) has no time to slide over. Leave it out.",
    ),
    "no file": (["two", "missing.png", *TO], "missing.png: no such file or folder. Expected files, folders"),
    "no table": (
        ["two", "missing.csv", *TO],
        "missing.csv does not exist. Expected a csv, tsv, json, jsonl or parquet",
    ),
    "column": (
        ["two", "index.csv", *TO, "--column", "pictur"],
        "has no column 'pictur' (--column). Did you mean 'picture'? Columns: picture, words, number.",
    ),
    "recipe's column": (
        ["two", "films.csv", *TO],
        "has no column 'picture' (the recipe reads it). Columns: film. Name one: --column NAME.",
    ),
    "texts": (
        ["two", "videos", *TO, "--branch", "b"],
        "videos: this branch reads texts, expected a table (csv, tsv, json, jsonl or parquet) with",
    ),
    "tar": (["future", "x.tar", *TO], "x.tar: this branch reads no pictures, so no tar files of them."),
    "folder": (
        ["two", "videos", *TO],
        "videos: no file below it that this branch reads. videos: passed over: 3 .mp4.",
    ),
    "workers": (
        ["two", "index.csv", *TO, "--workers", "-1"],
        "--workers: -1. Expected a number of processes",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes(place, monkeypatch, capsys, name):
    monkeypatch.chdir(place)
    arguments, message = WRONG[name]
    assert command(*arguments) == 2
    assert message in said(capsys)
    assert not (place / "o.parquet").exists() and not (place / "o.parquet.parts").exists()


def test_nothing_can_be_read(place, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"-")
    out = tmp_path / "out.parquet"
    assert command(place / "two", tmp_path / "a.png", "--to", out) == 1
    assert "none of the 1 items can be read. The first:" in said(capsys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "out.parquet.bad.jsonl"]


def test_two_columns_that_would_have_one_name(place, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("words,item,table_item\na,b,c\n")
    assert command(place / "two", tmp_path / "t.csv", "--to", tmp_path / "o.parquet", "--branch", "b") == 2
    assert "has columns 'item' and 'table_item', and the first would be called as the second" in said(capsys)


# ---- pieces ----


def test_batches_are_rows_whatever_the_files():
    given = [items.Item(f"v{i}", f"n{i}") for i in range(5)]
    counts = np.array([3, 0, 5, -1, 1], np.int32)
    total = int(work.nominal(counts).sum())
    assert total == 10
    whole = work.Places(given, counts, 4, total, 0)
    batches = [[(p.number, p.first, p.last) for p in whole[i]] for i in range(len(whole))]
    assert batches == [[(0, 0, 3), (2, 0, 1)], [(2, 1, 5)], [(3, 0, -1), (4, 0, 1)]]
    later = work.Places(given, counts, 4, total, 4)
    assert (
        len(later) == 2 and [[(p.number, p.first, p.last) for p in later[i]] for i in range(2)] == batches[1:]
    )
    assert set(whole.take(0)) == {0, 2}
    with pytest.raises(KeyError):
        whole.take(0)


def test_a_large_matrix_is_mapped(place, tmp_path, monkeypatch):
    out = tmp_path / "out.parquet"
    assert command(place / "two", place / "index.csv", "--to", out) == 0
    plain = read_index(out).matrix
    monkeypatch.setattr(store, "IN_MEMORY", 100)
    mapped = read_index(out).matrix
    assert isinstance(mapped, np.memmap) and np.array_equal(mapped, plain) and len(read_index(out)) == 12


def test_what_is_no_index_says_so(tmp_path):
    with pytest.raises(StoreError, match="no such file. Expected a file written by python -m vicjoint.embed"):
        read_index(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(StoreError, match="has no embeddings of vicjoint, columns: a."):
        read_index(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("no parquet")
    with pytest.raises(StoreError, match="Expected a parquet file."):
        read_index(tmp_path / "b.parquet")


def test_encoding_goes_on_beside_reading():
    """The first batch is encoded until the second one has been read."""
    second_is_read = threading.Event()

    def chunks():
        for number in range(10):
            if number:
                second_is_read.set()
            yield reading.Chunk(torch.zeros(1, 1), [reading.Row(0, None)], [])

    encode = encoders.Beside(lambda raw: time.sleep(0.01) or second_is_read.wait(60))
    assert [found for _, found in encode(chunks())] == [True] * 10
    assert encode.seconds >= 0.1


def test_an_error_of_the_encoder_comes_out():
    chunks = [reading.Chunk(torch.zeros(1, 1), [reading.Row(0, None)], [])] * 9

    def fails(raw):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        list(encoders.Beside(fails)(chunks))


def test_names_that_are_not_utf8_become_escapes():
    assert items.encodable("caf\udce9.png") == "caf\\udce9.png"


def test_source_errors_of_columns():
    columns = items.Columns()
    columns.add("n", pyarrow.int8())
    with pytest.raises(SourceError, match="column 'n': .*Its cells are int8: correct the table"):
        columns.arrays([{"n": 1000}])
