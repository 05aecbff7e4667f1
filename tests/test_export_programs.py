"""Encoders as ONNX and PyTorch programs: y of raw views; where one cannot be made, nothing is."""

import numpy as np
import pytest
import torch
from exporting import exported, pixels, recipe, untrained
from test_encoders import RUN, SMALL, make, make_view

import vicjoint
from vicjoint import export, registry
from vicjoint.embeddings.encoder import RepresentationModel
from vicjoint.exporting import programs
from vicjoint.registry import build, register_encoder

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

KINDS = ("image", "next_frame", "clip", "audio")
QUICK = ["image/pooled_conv", "clip/conv_gru", "audio/conv_time"]
SLOW = [key for key in SMALL + RUN if key.split("/")[0] in KINDS and key not in QUICK]
CONV = {"name": "pooled_conv", "widths": [4, 8], "strides": [2, 2]}


class Represented(torch.nn.Module):
    """As RepresentationModel, of an encoder without a run."""

    def __init__(self, key: str):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.modality = make(key), build("modality", {"name": key.split("/")[0]})

    forward = RepresentationModel.forward


@pytest.mark.parametrize("format", ["onnx", "pt2"])
@pytest.mark.parametrize("key", QUICK + [pytest.param(key, marks=pytest.mark.slow) for key in SLOW])
def test_a_program_gives_what_the_encoder_gives(key, format, tmp_path):
    if key.startswith("audio/"):
        pytest.importorskip("soundfile")
    dtype = "float32" if key.startswith("audio/") else "uint8"
    view = {"shape": list(make_view(key).shape[1:]), "dtype": dtype}
    encoder, file = Represented(key).eval(), tmp_path / f"model.{format}"
    said = programs.write(encoder, file, format, view, key)
    assert "y is that of the encoder within" in said and "batches of 1, 2, 5" in said
    raw = programs.sample(view, 3)  # a number that the check does not try
    with torch.no_grad():
        expected = encoder(raw)
    if format == "onnx":
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (given,), (got,) = session.get_inputs(), session.get_outputs()
        assert (given.name, given.shape) == ("view", ["batch", *view["shape"]])
        assert (got.name, got.shape) == ("y", ["batch", encoder.encoder.dim])
        y = torch.from_numpy(session.run(["y"], {"view": raw.numpy()})[0])
    else:
        y = torch.export.load(file).module()(raw)
    assert (y - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_the_command_adds_a_program_to_an_export(tmp_path, capsys):
    folder = exported(tmp_path, recipe(CONV))
    for format in ("onnx", "pt2"):
        assert export.main([str(tmp_path / "from"), "--to", str(folder), "--format", format]) == 0
        assert f"a/model.{format}: y is that of the encoder within" in capsys.readouterr().out
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert {"model.safetensors", "a/model.onnx", "a/model.pt2", "README.md", "recipe.yaml"} <= names
    card = (folder / "README.md").read_text()
    assert 'InferenceSession("FOLDER/a/model.onnx")' in card and 'load("FOLDER/a/model.pt2")' in card
    session = onnxruntime.InferenceSession(folder / "a" / "model.onnx")
    y = session.run(["y"], {"view": pixels().numpy()})[0]
    np.testing.assert_allclose(y, vicjoint.from_pretrained(folder)(pixels()).detach(), atol=1e-5)


def test_a_program_alone_in_a_file(tmp_path, capsys):
    old = untrained(tmp_path / "from", recipe(CONV))
    assert export.main([str(old), "--to", str(tmp_path / "new" / "small.pt2")]) == 0
    assert "small.pt2: y is that of the encoder" in capsys.readouterr().out
    y = torch.export.load(tmp_path / "new" / "small.pt2").module()(pixels())
    assert torch.equal(y, vicjoint.load_encoder(old)(pixels()))


# ---- where it cannot be ----


class Chooses(torch.nn.Module):
    """Its path depends on what it sees."""

    def __init__(self):
        super().__init__()
        self.dim, self.net = 4, torch.nn.Linear(3, 4)

    def forward(self, view):
        y = self.net(view.mean((2, 3)))
        return y if y.sum() > 0 else -y


def refused(capsys, tmp_path, described: dict, format: str) -> str:
    old = untrained(tmp_path / "from", described)
    for to in (tmp_path / "deep" / "to", tmp_path / f"file.{format}"):
        arguments = [] if to.suffix else ["--format", format]
        assert export.main([str(old), "--to", str(to), *arguments]) == 2
        said = capsys.readouterr()
        assert not said.out and "Traceback" not in said.err and len(said.err.splitlines()) == 1
        assert [p.name for p in tmp_path.iterdir()] == ["from"], "something half-written is left"
    return said.err


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_an_encoder_that_torch_cannot_trace(format, tmp_path, capsys):
    register_encoder("image", "chooses")(Chooses)
    try:
        said = refused(capsys, tmp_path, recipe({"name": "chooses"}), format)
    finally:
        del registry._components["encoder"]["image/chooses"]
    assert (
        f"--format {format}: encoder 'image/chooses' of branch 'a' cannot be written as a program: " in said
    )
    assert "Export it in the default format, or change what its forward does." in said


def test_views_that_are_not_one_tensor(tmp_path, capsys):
    pair = {"name": "cross_modal", "a": "x", "b": "x"}
    said = refused(capsys, tmp_path, recipe({"name": "words"}, "text", pair), "onnx")
    assert "encoder 'text/words' of branch 'a': its views are not one tensor of one shape. Expected" in said


@pytest.mark.parametrize("wrong", [lambda y: y + 1e-3, lambda y: y * torch.nan])
def test_a_program_that_gives_another_y(wrong, tmp_path, capsys, monkeypatch):
    given = programs.write_pt2

    def other(program, to):
        run = given(program, to)
        return lambda raw: wrong(run(raw))

    monkeypatch.setattr(programs, "write_pt2", other)
    said = refused(capsys, tmp_path, recipe(CONV), "pt2")
    assert "encoder 'image/pooled_conv' of branch 'a': the program gives another y, by" in said


def test_a_missing_library_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    said = refused(capsys, tmp_path, recipe(CONV), "onnx")
    assert "--format onnx needs onnxscript" in said and "pip install 'vicjoint[onnx]'" in said
