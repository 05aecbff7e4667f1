"""Encoders of other libraries, read from an export by those libraries, and by this one far from where their
first weights were."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from exporting import TINY_VIT, exported, pixels, recipe, untrained
from safetensors.torch import load_file

import vicjoint
from vicjoint import export

transformers = pytest.importorskip("transformers")
TINY_BERT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
TINY_T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
TINY_BART = {
    **{"vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16},
}
TINY_WAV2VEC2 = {
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    **{"conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2},
}
COLUMNS = {"name": "cross_modal", "a": "x", "b": "x"}


def auto(folder: Path) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoModel.from_pretrained(folder).eval()


def ids(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(4, 4 + 8 * count).view(count, 8) % 30 + 4, torch.ones(count, 8, dtype=torch.bool)


# ---- transformers ----


def test_an_image_model_is_read_by_automodel(tmp_path):
    encoder = {"name": "transformers", "model": "vit", "config": TINY_VIT}
    folder, raw = exported(tmp_path, recipe(encoder)), pixels()
    ours = vicjoint.from_pretrained(folder)
    with torch.no_grad():
        theirs = auto(folder / "a")(pixel_values=ours.modality(raw)).pooler_output
    assert torch.equal(theirs, ours(raw)) and not (folder / "b").exists()  # b has the weights of a
    card = (folder / "README.md").read_text()
    assert 'transformers.AutoModel.from_pretrained("FOLDER/a")' in card


@pytest.mark.parametrize("name, config", [("bert", TINY_BERT), ("t5", TINY_T5), ("bart", TINY_BART)])
def test_a_text_model_is_read_by_automodel(name, config, tmp_path):
    encoder = {"name": "transformers", "model": name, "config": config}
    folder = exported(tmp_path, recipe(encoder, "text", COLUMNS))
    whole = auto(folder / "a")
    model = whole.get_encoder() if whole.config.is_encoder_decoder else whole
    with torch.no_grad():
        y = model(input_ids=ids()[0]).last_hidden_state.mean(1)
        torch.testing.assert_close(y, vicjoint.from_pretrained(folder)(ids()))


def test_protein_and_audio_models_are_read_by_automodel(tmp_path):
    folder = exported(tmp_path / "protein", recipe({"name": "esm"}, "protein", COLUMNS))
    with torch.no_grad():
        y = auto(folder / "a")(input_ids=ids()[0]).last_hidden_state.mean(1)
    torch.testing.assert_close(y, vicjoint.from_pretrained(folder)(ids()))
    pytest.importorskip("soundfile")
    encoder = {"name": "transformers", "model": "wav2vec2", "config": TINY_WAV2VEC2}
    folder = exported(tmp_path / "audio", recipe(encoder, "audio", COLUMNS))
    raw, ours = 0.1 * torch.randn(2, 16000), vicjoint.from_pretrained(folder)
    scaled = (raw - raw.mean(1, keepdim=True)) / raw.std(1, keepdim=True, correction=0)
    with torch.no_grad():
        y = auto(folder / "a")(input_values=scaled).last_hidden_state.mean(1)
    torch.testing.assert_close(y, ours(raw), atol=1e-3, rtol=1e-3)


def saved_vit(folder: Path, pooler: bool) -> Path:
    config = transformers.AutoConfig.for_model("vit", **TINY_VIT)
    transformers.ViTModel(config, add_pooling_layer=pooler).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pooler", [True, False])
def test_pretrained_weights_travel_with_the_export(pooler, tmp_path):
    weights = saved_vit(tmp_path / "vit", pooler)
    described = recipe({"name": "transformers", "weights": str(weights)})
    folder, raw = exported(tmp_path, described), pixels()
    expected = vicjoint.from_pretrained(tmp_path / "from")(raw)
    shutil.rmtree(weights)
    moved = shutil.move(folder, tmp_path / "elsewhere")
    assert torch.equal(vicjoint.from_pretrained(moved)(raw), expected)
    with pytest.raises(ValueError, match="were not found"):
        vicjoint.load_encoder(tmp_path / "from")
    assert export.main([str(moved), "--to", str(tmp_path / "again")]) == 0
    assert torch.equal(vicjoint.from_pretrained(tmp_path / "again")(raw), expected)


def test_an_encoder_inside_of_an_encoder_travels_too(tmp_path):
    image = {"name": "transformers", "weights": str(saved_vit(tmp_path / "vit", True))}
    pair = {"name": "next_frame", "frames": 2, "size": 16}
    encoder = {"name": "frames_transformer", "image": image, "dim": 16, "layers": 1}
    described = recipe(encoder, "clip", pair, b={"modality": "next_frame", "encoder": image, "expander": [8]})
    folder = exported(tmp_path, described)
    raw = {"a": torch.stack([pixels(), pixels()], 2), "b": pixels()}
    expected = {name: vicjoint.load_encoder(tmp_path / "from", name)(raw[name]) for name in raw}
    shutil.rmtree(tmp_path / "vit")
    for name, y in expected.items():
        assert torch.equal(vicjoint.load_encoder(folder, name)(raw[name]), y)
    assert sorted(p.parent.relative_to(folder).as_posix() for p in folder.rglob("model.safetensors")) == [
        *(".", "a/image", "b")
    ]


def test_a_tokenizer_travels_with_the_export(tmp_path):
    words = {"[PAD]": 0, "[UNK]": 1, "a": 2, "small": 3, "dog": 4}
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join([*words, "[CLS]", "[SEP]", "[MASK]"]))
    transformers.BertTokenizer(str(tmp_path / "words" / "vocab.txt")).save_pretrained(tmp_path / "words")
    modality = {"name": "text", "tokenizer": str(tmp_path / "words"), "lower": True}
    encoder = {"name": "transformers", "model": "bert", "config": TINY_BERT}
    folder = exported(tmp_path, recipe(encoder, modality, COLUMNS))
    expected = vicjoint.from_pretrained(tmp_path / "from").modality.read("A small dog")
    shutil.rmtree(tmp_path / "words")
    ours = vicjoint.from_pretrained(folder)
    assert torch.equal(ours.modality.read("A small dog")[0], expected[0])
    theirs = transformers.AutoTokenizer.from_pretrained(folder / "a")
    assert theirs("a small dog")["input_ids"] == expected[0][0].tolist()
    said = json.loads((folder / "preprocessor_config.json").read_text())["a"]
    assert said["tokenizer"] == type(theirs).__name__ and said["do_lower_case"] and said["max_length"] == 128


def test_code_in_a_folder_from_elsewhere_is_not_run(tmp_path, monkeypatch):
    weights = saved_vit(tmp_path / "vit", True)
    folder = exported(tmp_path, recipe({"name": "transformers", "weights": str(weights)}))
    config = json.loads((folder / "a" / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.C", "AutoModel": "theirs.M"}}
    (folder / "a" / "config.json").write_text(json.dumps(config))
    owned = tmp_path / "owned"
    (folder / "a" / "theirs.py").write_text(f"open({str(owned)!r}, 'w')\nC = M = None\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # nobody is asked
    with pytest.raises(ValueError):
        vicjoint.load_encoder(folder)
    assert not owned.exists()


def test_a_model_that_its_library_cannot_write_is_named(tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("shared tensors\nand more")

    monkeypatch.setattr(transformers.ViTModel, "save_pretrained", fails)
    encoder = {"name": "transformers", "model": "vit", "config": TINY_VIT}
    folder = exported(tmp_path, recipe(encoder))
    assert "a: not written in the form of transformers: shared tensors\n" in capsys.readouterr().out
    assert not (folder / "a").exists() and "AutoModel" not in (folder / "README.md").read_text()
    assert vicjoint.from_pretrained(folder)(pixels()).shape == (3, 16)


# ---- torchvision and timm ----


@pytest.mark.parametrize("name, head", [("resnet18", "fc"), ("squeezenet1_1", "classifier")])
def test_torchvision_reads_a_state_dict(name, head, tmp_path):
    import torchvision

    folder, raw = exported(tmp_path, recipe({"name": name}, pair={"name": "augment", "size": 32})), pixels(32)
    plain = torchvision.models.get_model(name)
    state = load_file(folder / "a" / "model.safetensors")
    missing, unexpected = plain.load_state_dict(state, strict=False)
    assert not unexpected and missing and all(key.startswith(f"{head}.") for key in missing)
    if name == "resnet18":
        plain.fc = torch.nn.Identity()
        plain.load_state_dict(state, strict=True)
        ours = vicjoint.from_pretrained(folder)
        with torch.no_grad():
            assert torch.equal(plain.eval()(ours.modality(raw)), ours(raw))
    assert f'torchvision.models.get_model("{name}")' in (folder / "README.md").read_text()


def test_timm_reads_a_state_dict(tmp_path):
    timm = pytest.importorskip("timm")
    folder, raw = exported(tmp_path, recipe({"name": "timm", "model": "test_resnet"})), pixels()
    plain = timm.create_model("test_resnet", num_classes=0).eval()
    plain.load_state_dict(load_file(folder / "a" / "model.safetensors"), strict=True)
    ours = vicjoint.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(plain(ours.modality(raw)), ours(raw))
    assert 'timm.create_model("test_resnet", num_classes=0)' in (folder / "README.md").read_text()


@pytest.mark.parametrize("encoder", [{"name": "resnet18"}, {"name": "timm", "model": "test_resnet"}])
def test_a_file_of_weights_travels_with_the_export(encoder, tmp_path):
    if encoder["name"] == "timm":
        pytest.importorskip("timm")
    first = untrained(tmp_path / "first", recipe(encoder))
    weights = tmp_path / "weights.safetensors"
    assert export.main([str(first), "--to", str(weights)]) == 0
    folder = exported(tmp_path, recipe(encoder | {"weights": str(weights)}))
    weights.unlink()
    expected = vicjoint.load_encoder(first).encoder.state_dict()
    found = vicjoint.from_pretrained(folder).encoder.state_dict()
    name = next(iter(expected))
    assert torch.equal(found[name], expected[name])


def test_an_encoder_that_is_more_than_its_tensors_is_refused(tmp_path, monkeypatch, capsys):
    """torchvision's pretrained GoogLeNet also changes the normalisation of its input."""
    import torchvision

    state = torchvision.models.googlenet(init_weights=False).state_dict()
    state = {name: 10 * x if x.ndim == 4 else x for name, x in state.items()}
    monkeypatch.setattr(torchvision.models.GoogLeNet_Weights, "get_state_dict", lambda *_, **__: state)
    described = recipe(
        {"name": "googlenet", "weights": "IMAGENET1K_V1"}, pair={"name": "augment", "size": 32}
    )
    old = untrained(tmp_path / "from", described)
    assert export.main([str(old), "--to", str(tmp_path / "to")]) == 2
    said = capsys.readouterr().err
    assert "encoder 'image/googlenet' of branch 'a' gives another y when it is built from the export" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["from"]
