"""A search gives the same from the command, from Python, from an exported folder, and from the encoder as an
ONNX program: texts find pictures, and sounds find films."""

import json
import shutil

import numpy as np
import pytest
from indexes import wav
from test_embed import film, picture

import vicjoint
from vicjoint import embed, export, search
from vicjoint.embeddings.neighbours import neighbours
from vicjoint.embeddings.store import read_index

pytest.importorskip("pyarrow")

WORDS = ("red circle", "blue square", "green star", "white ring")


def recipe(root, a: dict, b: dict, columns: tuple[str, str]) -> dict:
    return {
        "name": "pairs",
        "source": {"name": "table", "root": str(root / "index.csv")},
        "pair": {"name": "cross_modal", "a": columns[0], "b": columns[1]},
        "a": a | {"expander": [8]},
        "b": b | {"expander": [8], "weights": "own"},
        "objective": {"name": "vicreg"},
        "optim": {"name": "adamw", "lr": 1e-2, "schedule": {"name": "cosine"}},
        "train": {"steps": 3, "batch_size": 8},
        "data": {"workers": 0, "video_backend": "pyav"},
        "evaluate": {"last": False},
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A table of pictures and their words, a run of three steps, its export, and an index of the pictures."""
    root = tmp_path_factory.mktemp("search")
    lines = [f"{picture(root / 'pictures' / f'{i}.png', i)},{WORDS[i % 4]} {i}" for i in range(16)]
    (root / "index.csv").write_text("\n".join(["picture,words", *lines]))
    image = {
        "modality": {"name": "image", "size": 16},
        "encoder": {"name": "pooled_conv", "widths": [4, 8], "strides": [2, 2]},
    }
    text = {"modality": "text", "encoder": {"name": "bytes_cnn", "width": 4, "layers": 1, "dim": 5}}
    vicjoint.train(recipe(root, image, text, ("picture", "words")), [f"out={root / 'run'}"])
    assert export.main([str(root / "run"), "--to", str(root / "export")]) == 0
    for name, space in (("z", "embedding"), ("y", "representation")):
        made = ["--to", str(root / f"{name}.parquet"), "--space", space]
        assert embed.main([str(root / "run"), str(root / "pictures"), *made]) == 0
    return root


def found_by_command(place, *arguments: str) -> list[dict]:
    given = ["--index", str(place / "z.parquet"), "--json", str(place / "found.json"), *arguments]
    assert search.main([str(place / "run"), *given]) == 0
    return json.loads((place / "found.json").read_text())["hits"]


@pytest.mark.parametrize("query", ["red circle 3", "a green star", "../pictures/5.png"])
def test_the_command_python_and_the_export_find_the_same(query, place):
    branch = "b"
    if query.endswith(".png"):
        branch, query = "a", str(place / "pictures" / "5.png")
    hits = found_by_command(place, "--query", query, "--branch", branch, "--k", "12")
    assert len(hits) == 12
    # a copy of the export stands for another machine: the run is not beside it
    shutil.copytree(place / "export", place / "elsewhere" / query.replace("/", " "), dirs_exist_ok=True)
    for folder in (place / "run", place / "export", place / "elsewhere" / query.replace("/", " ")):
        again = search.search(folder, place / "z.parquet", query, branch, k=12)
        assert [hit.item for hit in again] == [hit["item"] for hit in hits]
        assert [hit.similarity for hit in again] == pytest.approx(
            [hit["similarity"] for hit in hits], abs=1e-6
        )
    # and by hand, from the vectors
    z = vicjoint.load_encoder(place / "export", branch).embed([query], space="embedding").numpy()
    index = read_index(place / "z.parquet")
    similarity, numbers = neighbours(z, index.matrix, 12)
    assert [index.columns["item"][int(n)].as_py() for n in numbers[0]] == [hit["item"] for hit in hits]
    assert similarity[0].tolist() == pytest.approx([hit["similarity"] for hit in hits], abs=1e-5)
    if branch == "a":
        assert hits[0]["item"] == query and hits[0]["similarity"] == pytest.approx(1, abs=1e-5)


def test_the_run_and_its_export_give_one_index(place):
    for space, name in (("embedding", "z"), ("representation", "y")):
        to = place / f"{name}_of_export.parquet"
        made = ["--to", str(to), "--space", space]
        assert embed.main([str(place / "export"), str(place / "pictures"), *made]) == 0
        one, other = read_index(place / f"{name}.parquet"), read_index(to)
        assert np.abs(one.matrix - other.matrix).max() <= 1e-4 * np.abs(one.matrix).max()
        assert one.columns["item"].equals(other.columns["item"])


def test_the_onnx_program_gives_the_same_vectors_and_neighbours(place):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    given = [str(place / "run"), "--to", str(place / "export"), "--format", "onnx"]
    assert export.main(given) == 0
    session = onnxruntime.InferenceSession(
        place / "export" / "a" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    encoder, index = vicjoint.load_encoder(place / "run"), read_index(place / "y.parquet")
    raw = np.concatenate([encoder.modality.read(item.as_py()).numpy() for item in index.columns["item"]])
    (y,) = session.run(["y"], {"view": raw})
    assert np.abs(y - index.matrix).max() <= 1e-4 * np.abs(index.matrix).max()
    (_, own), (_, others) = (neighbours(matrix, matrix, 6) for matrix in (index.matrix, y))
    assert np.array_equal(own, others)


def test_a_sound_finds_films(place, tmp_path):
    pytest.importorskip("soundfile")
    lines = [
        f"{film(tmp_path / f'{i}.mp4', 1.0, i, sound=False)},{wav(tmp_path / f'{i}.wav', 1.0 + i / 10)}"
        for i in range(10)
    ]
    (tmp_path / "index.csv").write_text("\n".join(["film,sound", *lines]))
    clip = {
        "modality": {"name": "clip", "frames": 2, "size": 16},
        "encoder": {"name": "conv_stack", "frames": 2, "width": 4, "dim": 8},
    }
    sound = {
        "modality": {"name": "audio", "rate_hz": 8000, "seconds": 0.5},
        "encoder": {"name": "conv_mel", "width": 4, "dim": 8},
    }
    run = vicjoint.train(recipe(tmp_path, clip, sound, ("film", "sound")), [f"out={tmp_path / 'run'}"])
    films = [str(tmp_path / f"{i}.mp4") for i in range(10)]
    assert embed.main([str(run), *films, "--to", str(tmp_path / "z.parquet"), "--space", "embedding"]) == 0
    assert export.main([str(run), "--to", str(tmp_path / "export")]) == 0
    query = str(tmp_path / "3.wav")
    hits, again = (
        search.search(folder, tmp_path / "z.parquet", query, branch="b")
        for folder in (run, tmp_path / "export")
    )
    assert [hit.item for hit in hits] == [hit.item for hit in again] and {hit.item for hit in hits} == set(
        films
    )
    assert [hit.similarity for hit in hits] == pytest.approx([hit.similarity for hit in again], abs=1e-6)
