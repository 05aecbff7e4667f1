"""Pretrained models by name: a tiny random model of each class, in a folder as its library writes it, is
trained for two steps and embeds a file. What it needs of its view (normalisation, size, rate, tokenizer) is
read from the folder."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image as Picture

import vicjoint
from vicjoint.modalities.image import Image
from vicjoint.modalities.processors import processing_of
from vicjoint.modalities.text import Text
from vicjoint.registry import ComponentError, build_encoder
from vicjoint.video.write import write_mp4

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

ROWS = 10
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "thing", *map(str, range(ROWS))]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VISION = SMALL | {"image_size": 16, "patch_size": 8}
LETTERS = SMALL | {"vocab_size": 64, "max_position_embeddings": 40, "pad_token_id": 0}
MARKS = {"bos_token_id": 2, "eos_token_id": 3}
WAVES = SMALL | {**{"conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}}
WHISPER = {
    **{
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "vocab_size": 64,
    },
    **{"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "num_mel_bins": 8},
    **{"max_source_positions": 50, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0},
    "decoder_start_token_id": 0,
}
JEPA = {
    **{"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "crop_size": 16, "patch_size": 8},
    **{
        "frames_per_clip": 4,
        "pred_hidden_size": 24,
        "pred_num_attention_heads": 2,
        "pred_num_mask_tokens": 1,
    },
    "pred_num_hidden_layers": 1,
}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """A second of plots, which no test here looks at."""
    monkeypatch.setattr("vicjoint.training.loop.write_report", lambda folder: folder / "report.html")


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """A row for each modality's file or text."""
    soundfile = pytest.importorskip("soundfile")
    folder, rng, rows = tmp_path_factory.mktemp("data"), np.random.default_rng(0), []
    for i in range(ROWS):
        frames = rng.integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)
        Picture.fromarray(frames[0]).save(folder / f"{i}.png")
        write_mp4(folder / f"{i}.mp4", frames)
        soundfile.write(folder / f"{i}.wav", rng.normal(0, 0.1, 8000), 16000)
        row = {"picture": f"{i}.png", "film": f"{i}.mp4", "sound": f"{i}.wav", "text": f"a thing {i}"}
        rows.append(row | {"smiles": "C" * (i + 1) + "O", "protein": "MKV" + "ACDEFGHIKL"[i] * 3})
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "t.jsonl"


def saved(kind: str, folder: Path, **config) -> str:
    """A random model of a type, in a folder."""
    torch.manual_seed(0)
    settings = transformers.AutoConfig.for_model(kind, **config)
    transformers.AutoModel.from_config(settings).save_pretrained(folder)
    return str(folder)


def with_words(folder: str) -> str:
    """A tokenizer of WORDS beside a model."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    ).save_pretrained(folder)
    return folder


def with_processor(folder: str, kind: str, **options) -> str:
    getattr(transformers, kind)(**options).save_pretrained(folder)
    return folder


def branch(modality: dict, **encoder) -> dict:
    return {"modality": modality, "encoder": encoder, "expander": [16, 8]}


def image(folder: str, **options) -> dict:
    return branch({"name": "image", "processor": folder, **options}, name="transformers", weights=folder)


def text(folder: str, **options) -> dict:
    return branch({"name": "text", "tokenizer": folder}, name="transformers", weights=folder, **options)


def sound(folder: str) -> dict:
    return branch({"name": "audio", "seconds": 0.4}, name="transformers", weights=folder)


WORDS_OF = branch({"name": "text"}, name="words", width=8, dim=8)


def trained(table: Path, out: Path, a: dict, b: dict, columns: tuple[str, str], **changes) -> Path:
    """Two steps of a pair of two columns; both encoders have to learn in them."""
    recipe = tiny.recipe(
        source={"name": "table", "root": str(table)},
        pair={"name": "cross_modal", "a": columns[0], "b": columns[1]},
        a=a,
        b=b,
        evaluate={"last": False, "explorer": 0},
        train={"steps": 2, "batch_size": 4},
        **changes,
    )
    return vicjoint.train(recipe, [f"out={out}"])


def embedded(run: Path, item: str, name: str = "a") -> torch.Tensor:
    y = vicjoint.load_encoder(run, name).embed([item])
    assert y.shape[0] == 1 and y.isfinite().all() and y.std() > 0
    return y


# ---- images ----


def test_clip_both_towers_with_its_normalisation_and_tokenizer(table, tmp_path):
    both = {"vision_config": VISION, "text_config": LETTERS | MARKS, "projection_dim": 8}
    folder = with_words(saved("clip", tmp_path / "clip", **both))
    side = {"shortest_edge": 20}, {"height": 16, "width": 16}
    with_processor(folder, "CLIPImageProcessor", size=side[0], crop_size=side[1])
    pooled = text(folder, pool="pooler")
    run = trained(table, tmp_path / "run", image(folder), pooled, ("picture", "text"))
    picture = str(table.parent / "0.png")
    embedded(run, picture), embedded(run, "a thing 3", "b")
    encoder = vicjoint.load_encoder(run)
    assert type(encoder.encoder.model).__name__ == "CLIPVisionModel"
    assert (encoder.modality.size, encoder.modality.centre) == (16, 0.8)
    # as the library's own processor and model do it
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(
        Picture.open(picture), return_tensors="pt"
    )["pixel_values"]
    ours = encoder.modality(encoder.modality.read(picture))
    assert float((ours - pixels).abs().mean()) < 0.15  # another resampling, the same mean and spread
    assert vicjoint.load_encoder(run, "b").encoder.model.config.model_type == "clip_text_model"


def test_siglip_2_of_patches(table, tmp_path):
    vision = SMALL | {"num_patches": 16, "patch_size": 8}
    folder = saved("siglip2", tmp_path / "siglip2", vision_config=vision, text_config=LETTERS | MARKS)
    with_words(with_processor(folder, "Siglip2ImageProcessor", patch_size=8, max_num_patches=16))
    run = trained(
        table, tmp_path / "run", image(folder, size=32), text(folder, pool="pooler"), ("picture", "text")
    )
    embedded(run, str(table.parent / "0.png")), embedded(run, "a thing 3", "b")
    # the patches are the library's
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    theirs = transformers.AutoImageProcessor.from_pretrained(folder)(
        Picture.fromarray(pixels), return_tensors="pt"
    )
    encoder = build_encoder("image", "transformers", weights=folder).eval()
    view = Image(processor=folder, size=32)(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    with torch.no_grad():
        expected = encoder.model(**theirs).pooler_output
        torch.testing.assert_close(encoder(view), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="30 x 32 pixels is not made of patches of 8"):
        encoder(view[:, :, :30])


def test_siglip_of_fixed_size_is_exported_and_read_again(table, tmp_path):
    from vicjoint.export import export

    towers = {"vision_config": VISION, "text_config": LETTERS | MARKS}
    folder = with_words(with_processor(saved("siglip", tmp_path / "m", **towers), "SiglipImageProcessor"))
    pooled = text(folder, pool="pooler")
    run = trained(table, tmp_path / "run", image(folder, size=16), pooled, ("picture", "text"))
    before = embedded(run, str(table.parent / "0.png")), embedded(run, "a thing 3", "b")
    export(run, tmp_path / "export", imports=["tiny"])
    os.rename(folder, tmp_path / "elsewhere")
    again = [
        vicjoint.load_encoder(tmp_path / "export", name).embed([item])
        for name, item in (("a", str(table.parent / "0.png")), ("b", "a thing 3"))
    ]
    for ours, theirs in zip(again, before):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_dinov3(table, tmp_path):
    folder = saved("dinov3_vit", tmp_path / "dino", **VISION, num_register_tokens=1)
    with_processor(folder, "DINOv3ViTImageProcessor", size={"height": 16, "width": 16})
    run = trained(table, tmp_path / "run", image(folder), WORDS_OF, ("picture", "text"))
    embedded(run, str(table.parent / "0.png"))
    mean = vicjoint.load_encoder(run).modality.mean
    torch.testing.assert_close(mean, torch.tensor([0.485, 0.456, 0.406]))


# ---- clips ----


def test_v_jepa_2(table, tmp_path):
    folder = saved("vjepa2", tmp_path / "jepa", **JEPA)
    with_processor(folder, "VJEPA2VideoProcessor", size={"shortest_edge": 18}, crop_size=16)
    modality = {"name": "clip", "processor": folder, "frames": 4, "stride": 1}
    a = branch(modality, name="transformers", weights=folder)
    run = trained(table, tmp_path / "run", a, WORDS_OF, ("film", "text"))
    embedded(run, str(table.parent / "0.mp4"))
    encoder = vicjoint.load_encoder(run)
    assert encoder.modality.size == 16
    whole = transformers.AutoModel.from_pretrained(folder).eval()
    clip = torch.rand(2, 3, 4, 16, 16)
    ours = build_encoder("clip", "transformers", weights=folder).eval()
    with torch.no_grad():
        expected = whole.get_vision_features(clip.transpose(1, 2))
        torch.testing.assert_close(ours.forward_tokens(clip).x, expected)


def test_videomae_takes_the_same_clips(tmp_path):
    config = VISION | {"num_frames": 4, "tubelet_size": 2}
    encoder = build_encoder("clip", "transformers", model="videomae", config=config)
    assert encoder(torch.rand(2, 3, 4, 16, 16)).shape == (2, 16)
    with pytest.raises(ComponentError, match="BertModel takes input_ids, not clips. Choose e.g. 'vjepa2'"):
        build_encoder("clip", "transformers", model="bert", config=LETTERS)


# ---- sound ----


@pytest.mark.parametrize("kind, normalise", [("wav2vec2", True), ("hubert", False)])
def test_waveforms_are_given_as_the_feature_extractor_says(kind, normalise, table, tmp_path):
    folder = saved(kind, tmp_path / kind, **WAVES)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=normalise).save_pretrained(folder)
    run = trained(table, tmp_path / "run", sound(folder), WORDS_OF, ("sound", "text"))
    embedded(run, str(table.parent / "0.wav"))
    encoder = build_encoder("audio", "transformers", weights=folder).eval()
    wave = 0.1 * torch.randn(2, 4000)
    given = transformers.AutoFeatureExtractor.from_pretrained(folder)(
        list(wave.numpy()), sampling_rate=16000, return_tensors="pt"
    )
    with torch.no_grad():
        expected = encoder.model(given["input_values"]).last_hidden_state.mean(1)
        torch.testing.assert_close(encoder(wave), expected, rtol=1e-3, atol=1e-4)


def test_whisper_s_encoder(table, tmp_path):
    folder = saved("whisper", tmp_path / "whisper", **WHISPER)
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    extractor.save_pretrained(folder)
    run = trained(table, tmp_path / "run", sound(folder), WORDS_OF, ("sound", "text"))
    embedded(run, str(table.parent / "0.wav"))
    encoder = build_encoder("audio", "transformers", weights=folder).eval()
    wave = 0.1 * torch.randn(2, 6400)
    theirs = extractor(list(wave.numpy()), sampling_rate=16000, return_tensors="pt")["input_features"]
    torch.testing.assert_close(encoder.log_mel(wave), theirs, rtol=1e-3, atol=1e-3)
    assert encoder.forward_tokens(wave).x.shape == (2, 20, 16)  # of its 0.4 s, not of the silence behind it
    with pytest.raises(ValueError, match="a view of 16001 samples is longer than Whisper's 16000"):
        encoder(torch.zeros(1, 16001))


def test_sound_of_another_rate_is_refused(tmp_path):
    folder = saved("wav2vec2", tmp_path / "w", **WAVES)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    with pytest.raises(ComponentError, match="are for sound of 16000 Hz, the view has 8000. Set the mod"):
        build_encoder("audio", "transformers", weights=folder, rate_hz=8000)


# ---- texts, molecules, proteins ----


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_texts(kind, table, tmp_path):
    marks = {"cls_token_id": 2, "sep_token_id": 3, **MARKS} if kind == "modernbert" else {}
    folder = with_words(saved(kind, tmp_path / kind, **LETTERS, **marks))
    run = trained(table, tmp_path / "run", text(folder), WORDS_OF, ("text", "text"))
    embedded(run, "a thing 3")
    assert Text(folder).read("a thing 3")[0].tolist() == [[2, 4, 5, WORDS.index("3"), 3]]


def test_chemberta_reads_smiles_as_its_tokenizer_does(table, tmp_path):
    folder = saved("roberta", tmp_path / "chemberta", **LETTERS)
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=40, special_tokens=["<pad>", "<unk>", "<s>", "</s>"])
    made.train_from_iterator(["CCO", "CCCCO", "CCCCCCO"], trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    run = trained(table, tmp_path / "run", text(folder, pool="cls"), WORDS_OF, ("smiles", "text"))
    embedded(run, "CCO")


def test_esm_2(table, tmp_path):
    config = {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary"}
    folder = saved("esm", tmp_path / "esm", **SMALL, **config)
    a = branch({"name": "protein"}, name="esm", weights=folder)
    run = trained(table, tmp_path / "run", a, WORDS_OF, ("protein", "text"))
    embedded(run, "MKVACD")


def test_a_sentencepiece_tokenizer(table, tmp_path):
    spm = pytest.importorskip("sentencepiece")
    folder = Path(
        saved("t5", tmp_path / "t5", vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([f"a thing {i} of some {i * 7}" for i in range(200)]),
        model_prefix=str(folder / "spiece"),
        vocab_size=40,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}')
    ids, mask = Text(str(folder)).read("a thing 3")
    pieces = spm.SentencePieceProcessor(model_file=str(folder / "spiece.model")).encode("a thing 3")
    assert ids.tolist() == [[*pieces, 1]] and mask.all()
    run = trained(table, tmp_path / "run", text(str(folder)), WORDS_OF, ("text", "text"))
    embedded(run, "a thing 3")


# ---- normalisation and sizes ----


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"image_mean": [0.1] * 3, "image_std": [0.2] * 3, "size": 32}, ([0.1] * 3, [0.2] * 3, 32, 1.0)),
        (
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
            (None, None, 224, 0.875),
        ),
        ({"do_normalize": False, "size": {"height": 24, "width": 24}}, ([0.0] * 3, [1.0] * 3, 24, 1.0)),
    ],
)
def test_what_a_processor_says(config, expected, tmp_path):
    kind = "BitImageProcessor" if "crop_size" in config else "ViTImageProcessor"
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"image_processor_type": kind, **config}))
    found = processing_of(str(tmp_path))
    assert found[2:] == expected[2:]
    assert expected[0] is None or found[:2] == expected[:2]
    (tmp_path / "again").mkdir()
    found.save(tmp_path / "again")
    assert processing_of(str(tmp_path / "again")) == found


def test_what_a_recipe_says_goes_before_the_processor(tmp_path):
    with_processor(str(tmp_path), "SiglipImageProcessor")
    made = Image(processor=str(tmp_path), mean=[0.0] * 3, size=48)
    assert made.mean.tolist() == [0.0] * 3 and made.std.tolist() == [0.5] * 3 and made.size == 48
    assert (Image().size, Image().centre) == (64, 1.0) and Image().mean[0] == pytest.approx(0.485)


def test_weights_with_another_normalisation_than_the_modality_are_said(table, tmp_path, capsys):
    folder = with_processor(saved("vit", tmp_path / "vit", **VISION), "SiglipImageProcessor")
    other = image(folder, processor=None, size=16)
    del other["modality"]["processor"]
    trained(table, tmp_path / "run", other, WORDS_OF, ("picture", "text"))
    assert (
        "note: a.encoder.weights were trained on pixels with mean [0.5, 0.5, 0.5] and std [0.5, 0.5, 0.5],"
        " and the modality gives [0.485, 0.456, 0.406] and [0.229, 0.224, 0.225]. Set"
        f" a.modality.processor={folder}, or mean and std."
    ) in capsys.readouterr().out
    trained(table, tmp_path / "other", image(folder, size=16), WORDS_OF, ("picture", "text"))
    assert "note: a.encoder" not in capsys.readouterr().out


def test_timm_s_models_say_what_they_were_given(tmp_path):
    pytest.importorskip("timm")
    found = processing_of("timm/vit_small_patch16_224.augreg_in21k")
    assert found == ([0.5] * 3, [0.5] * 3, 224, 0.9)
    (tmp_path / "config.json").write_text(
        json.dumps({"pretrained_cfg": {"input_size": [3, 96, 96], "mean": [0.1] * 3, "std": [0.2] * 3}})
    )
    assert processing_of(str(tmp_path)) == ([0.1] * 3, [0.2] * 3, 96, 1.0)
    with pytest.raises(ComponentError, match="processor 'timm/resnet5O' is unknown. timm.list_pretrained"):
        processing_of("timm/resnet5O")


def test_a_processor_that_scales_otherwise_is_refused(tmp_path):
    with_processor(str(tmp_path), "ViTImageProcessor", rescale_factor=1 / 127.5)
    with pytest.raises(ComponentError, match="does not bring pixels to 0..1 .*0.00784.* set mean and std"):
        processing_of(str(tmp_path))


# ---- without a network ----


@pytest.mark.parametrize(
    "ask",
    [
        lambda name: build_encoder("image", "transformers", weights=name),
        lambda name: build_encoder("clip", "transformers", weights=name),
        lambda name: build_encoder("audio", "transformers", weights=name),
        lambda name: build_encoder("text", "transformers", weights=name),
        lambda name: build_encoder("protein", "esm", weights=name),
        lambda name: Text(tokenizer=name),
        lambda name: Image(processor=name),
    ],
    ids=["image", "clip", "audio", "text", "protein", "tokenizer", "processor"],
)
def test_without_a_network_a_message_says_how_to_fetch(ask, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fetch = "hf download nobody/model-of-mine --local-dir model-of-mine"
    with pytest.raises(ComponentError, match=f"'nobody/model-of-mine' .*not found.*{fetch}"):
        ask("nobody/model-of-mine")
    with pytest.raises(ComponentError, match="'./model-of-mine' .*not found") as error:
        ask("./model-of-mine")
    assert "hf download" not in str(error.value)
