"""Text: ids equal to ByT5's, cuts, dropped words, padding that never shows, causes of bad text, hashed
counts."""

import csv
import sys

import numpy as np
import pytest
import torch
from wrong import refused

from vicjoint import build_encoder
from vicjoint.facts import hashing
from vicjoint.modalities.text import Text, drop_words
from vicjoint.registry import ComponentError

TEXTS = [
    "bin blue at f two now",
    "A 'quoted' word, and £3.50.",
    "naïve café — Übergröße",
    "日本語のテキスト",
    "🙂 emoji",
    "tabs\tand\nlines",
    " spaced  out ",
    "x" * 300,
]
TINY_BERT = {
    "vocab_size": 384,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
ENCODERS = {
    "bytes_cnn": {"width": 16, "dim": 12},
    "transformer": {"width": 16, "dim": 12, "layers": 2},
    "words": {"width": 16, "dim": 12},
    "word_gru": {"width": 16, "dim": 12},
    "transformers": {"model": "bert", "config": TINY_BERT},
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def padded(views, extra: int = 0, filler: int = 0):
    """A batch of views of different lengths, `filler` where the mask is False."""
    length = max(ids.shape[1] for ids, _ in views) + extra
    ids = torch.full((len(views), length), filler)
    mask = torch.zeros(len(views), length, dtype=torch.bool)
    for i, (row, kept) in enumerate(views):
        ids[i, : row.shape[1]], mask[i, : row.shape[1]] = row[0], kept[0]
    return ids, mask


# ---- reading ----


@pytest.mark.parametrize("length", [8, 128, 512])
def test_bytes_are_byt5s_ids(length):
    from transformers import ByT5Tokenizer

    tokenizer, modality = ByT5Tokenizer(), Text(length=length)
    for text in TEXTS:
        ids, mask = modality.read(text)
        assert (
            ids.dtype == torch.int64 and mask.dtype == torch.bool and mask.all() and ids.shape == mask.shape
        )
        assert ids[0].tolist() == tokenizer(text, truncation=True, max_length=length)["input_ids"]
        assert ids[0].max() < hashing.BYTE_VOCABULARY


def test_text_that_looks_like_a_special_token_stays_text():
    assert Text().read("</s>")[0].shape == (1, 5)


def test_lower_case():
    assert torch.equal(Text(lower=True).read("ÄRGER Now")[0], Text().read("ärger now")[0])


def test_words_are_dropped_in_training_only():
    text, modality = " ".join(f"w{i}" for i in range(1000)), Text(length=10000, drop=0.3)
    assert torch.equal(modality.read(text)[0], Text(length=10000).read(text)[0])
    kept = drop_words(text, 0.3, np.random.default_rng(0)).split()
    assert kept == sorted(kept, key=lambda w: int(w[1:])) and 650 < len(kept) < 750
    one, again, other = (modality.read(text, np.random.default_rng(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert all(drop_words("a b", 0.99, np.random.default_rng(seed)) for seed in range(50))


@pytest.mark.parametrize(
    "value, message",
    [
        ("", "the text is empty"),
        (" \n", "the text is empty"),
        ("a\0b", "NUL character at place 1"),
        (3.5, "expected text, got float 3.5"),
        (
            b"abc".decode() + "\udce9",
            "is not UTF-8: surrogates not allowed at place 3. Save its file as UTF-8",
        ),
        (None, "expected text, got NoneType"),
    ],
)
def test_bad_text(value, message):
    with pytest.raises(ValueError, match=message):
        Text().read(value)


@pytest.fixture
def bert_folder(tmp_path):
    """A word-piece tokenizer in a folder, as save_pretrained leaves it; its padding id is not 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel({"[UNK]": 0, "bin": 1, "blue": 2, "now": 3, "[PAD]": 4}, unk_token="[UNK]")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(
        tmp_path / "tokenizer"
    )
    return str(tmp_path / "tokenizer")


def test_a_transformers_tokenizer_from_a_folder(bert_folder):
    modality = Text(tokenizer=bert_folder, length=3)
    views = [modality.read(t) for t in ("bin blue soon now", "now")]
    assert views[0][0].tolist() == [[1, 2, 0]] and views[1][0].tolist() == [[3]]
    ids, mask = modality(padded(views))
    assert ids.tolist() == [[1, 2, 0], [3, 4, 4]] and mask.tolist() == [[True] * 3, [True, False, False]]
    counts = modality.simple_features((ids, mask))[:, :1024]
    assert (counts > 0).sum(1).tolist() == [3, 1] and torch.allclose(counts.norm(dim=1), torch.ones(2))
    y = build_encoder("text", "words", unit="token", width=8, dim=4)((ids, mask))
    assert y.shape == (2, 4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"length": 1}, "length is 1, expected 2 or more"),
        ({"drop": 1.0}, "drop is 1.0, expected a share"),
        (
            {"tokenizer": "./nowhere"},
            "tokenizer './nowhere' was not found: no folder /.*nowhere. Expected bytes, a folder",
        ),
    ],
)
def test_wrong_options(options, message):
    refused("modality", "text", options, message)


def test_a_broken_tokenizer_folder(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ComponentError, match="cannot be read: looked for the folder .*give a local folder"):
        Text(tokenizer=str(tmp_path))


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ComponentError,
        match=r"tokenizer '/models/bert' needs transformers .*: pip install 'vicjoint\[text\]'",
    ):
        Text(tokenizer="/models/bert")
    with pytest.raises(
        ComponentError,
        match=r"encoder 'text/transformers' needs transformers .*: pip install 'vicjoint\[text\]'",
    ):
        build_encoder("text", "transformers", model="bert")
    assert Text().read("bytes need none of it")[0].shape == (1, 22)


def test_a_tokenizer_that_needs_another_package(monkeypatch, tmp_path):
    import transformers

    def missing(name, **options):
        raise ImportError("sentencepiece is required\nmore")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", missing)
    with pytest.raises(
        ComponentError,
        match=r"needs another package \(sentencepiece is required\): pip install 'vicjoint\[text\]'",
    ):
        Text(tokenizer=str(tmp_path))


# ---- hashed words ----


def test_words_are_found_whatever_stands_around_them():
    modality = Text()
    texts = ["now, now: it's 5!", "it's 5 now", "café", "cafe", "wno now"]
    ids, mask = padded([modality.read(t) for t in texts], extra=3, filler=100)
    codes, valid = hashing.word_codes(ids, mask)
    first, second, accent, plain, letters = (codes[i][valid[i]].tolist() for i in range(5))
    assert len(first) == 4 and first[0] == first[1] == second[2] == letters[1] != letters[0]
    assert first[2:] == second[:2] and len(accent) == len(plain) == 1 and accent != plain
    assert not hashing.word_codes(*modality.read("...!"))[1].any()


def test_word_hashes_spread_evenly():
    modality = Text(length=20)
    ids, mask = padded([modality.read(f"{w}{i}") for w in ("word", "a") for i in range(5000)])
    codes, valid = hashing.word_codes(ids, mask)
    assert len(codes[valid].unique()) == 10000
    filled = hashing.counts(codes[valid][None], torch.ones(1, 10000, dtype=torch.bool), 1024)
    assert filled.sum() == 10000 and filled.max() < 25 and filled.min() > 0  # 9.8 each on average, Poisson


def test_simple_features_are_the_counts():
    modality = Text()
    batch = padded([modality.read(t) for t in ("now now blue", "blue", "?")], extra=2, filler=77)
    features = modality.simple_features(batch)
    assert features.shape == (3, 2048) and torch.equal(features, modality.simple_features(modality(batch)))
    words = features[:2, :1024]
    expected = torch.log1p(torch.tensor([2.0, 1.0]))
    assert torch.allclose(words[0].sort().values[-2:], (expected / expected.norm()).sort().values)
    assert words[1].max() == 1 and words[0, words[1].argmax()] > 0 and not features[2, :1024].any()
    assert (features[1, 1024:] > 0).sum() == 4  # bl lu ue e<end>


def test_simple_features_tell_real_sentences(shared_data):
    """A linear map from the counts finds the colour word in sentences that it has not seen."""
    with open(shared_data / "grid_av" / "index.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    modality, colours = Text(length=64), sorted({r["color"] for r in rows})
    x = modality.simple_features(padded([modality.read(r["text"]) for r in rows]))
    y = torch.nn.functional.one_hot(torch.tensor([colours.index(r["color"]) for r in rows])).float()
    train = torch.tensor([r["split"] == "train" for r in rows])
    weights = torch.linalg.solve(x[train].T @ x[train] + 0.1 * torch.eye(x.shape[1]), x[train].T @ y[train])
    assert ((x[~train] @ weights).argmax(1) == y[~train].argmax(1)).all()


# ---- encoders ----


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_never_shows(name):
    """Training mode too: other texts of the batch, the amount of padding and what stands in it change
    nothing."""
    encoder, modality = build_encoder("text", name, **ENCODERS[name]), Text()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    views = [modality.read(t) for t in TEXTS[:4]]
    for mode in (True, False):
        encoder.train(mode)
        alone = torch.cat([encoder(view) for view in views])
        for extra, filler in ((0, 0), (37, 0), (5, 99)):
            assert torch.allclose(encoder(padded(views, extra, filler)), alone, atol=2e-6), (
                mode,
                extra,
                filler,
            )
    assert (alone[0] - alone[1]).norm() > 1e-3


@pytest.mark.parametrize("name", ENCODERS)
def test_width_and_gradients(name):
    encoder = build_encoder("text", name, **ENCODERS[name])
    y = encoder(padded([Text().read(t) for t in TEXTS[:3]]))
    assert y.shape == (3, encoder.dim)
    y.square().sum().backward()
    assert not [n for n, p in encoder.named_parameters() if p.grad is None]


@pytest.mark.parametrize("name", ["bytes_cnn", "transformer", "word_gru", "transformers"])
def test_order_is_seen(name):
    encoder = build_encoder("text", name, **ENCODERS[name]).eval()
    one, other = (encoder(Text().read(t)) for t in ("bin blue now", "now blue bin"))
    assert not torch.allclose(one, other, atol=1e-4)
    words = build_encoder("text", "words").eval()
    assert torch.allclose(*(words(Text().read(t)) for t in ("bin blue now", "now blue bin")), atol=1e-6)


def test_learned_positions_have_an_end():
    encoder = build_encoder("text", "transformer", width=16, positions="learned", length=10)
    assert encoder(Text().read("nine char")).shape == (1, 256)
    with pytest.raises(
        ValueError,
        match="a view of 11 tokens is longer than the 10 learned positions. Set the encoder's length",
    ):
        encoder(Text().read("ten charac"))


def test_sinusoids():
    from encoders.text import sinusoids

    table = sinusoids(50, 8, None).double()
    for p in (0, 1, 49):
        for k in range(4):
            angle = p / 10000 ** (k / 3)
            assert table[p, k] == pytest.approx(np.sin(angle), abs=1e-5) and table[p, 4 + k] == pytest.approx(
                np.cos(angle), abs=1e-5
            )


@pytest.mark.parametrize(
    "model, config",
    [
        ("t5", {"vocab_size": 384, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}),
        ("distilbert", {"vocab_size": 384, "dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2}),
        ("gpt2", {"vocab_size": 384, "n_embd": 16, "n_layer": 1, "n_head": 2}),
    ],
)
def test_other_transformers(model, config):
    encoder = build_encoder("text", "transformers", model=model, config=config).eval()
    views = [Text().read(t) for t in TEXTS[:3]]
    y = encoder(padded(views))
    assert y.shape == (3, 16) and torch.allclose(y, torch.cat([encoder(v) for v in views]), atol=2e-6)


def test_weights_from_a_folder_and_the_first_token(tmp_path):
    made = build_encoder("text", "transformers", **ENCODERS["transformers"]).eval()
    made.model.save_pretrained(tmp_path)
    loaded = build_encoder("text", "transformers", weights=str(tmp_path)).eval()
    view = padded([Text().read(t) for t in TEXTS[:2]])
    assert torch.equal(loaded(view), made(view))
    first = build_encoder("text", "transformers", weights=str(tmp_path), pool="cls").eval()
    hidden = made.model(input_ids=view[0], attention_mask=view[1].long()).last_hidden_state
    assert torch.equal(first(view), hidden[:, 0])
    assert torch.allclose(made(view)[0], hidden[0][view[1][0]].mean(0), atol=1e-6)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("bytes_cnn", {"kernel": 4}, "kernel is 4, expected an odd number"),
        (
            "transformer",
            {"width": 20, "heads": 4},
            "width 20 cannot be shared by 4 heads. Expected a multiple of 8",
        ),
        ("transformer", {"positions": "none"}, "positions is 'none', expected sinusoidal or learned"),
        ("words", {"unit": "byte"}, "unit is 'byte', expected word or token"),
        ("transformers", {}, "takes either model: a type such as 'bert'"),
        ("transformers", {"model": "bert", "pool": "max"}, "pool is 'max', expected mean or cls"),
        ("transformers", {"model": "brt"}, "no model type 'brt'. Did you mean 'bert'"),
        ("transformers", {"model": "vit"}, "takes pixel_values, not token ids of one text"),
        ("transformers", {"weights": "./nowhere"}, "'./nowhere' were not found: no folder"),
    ],
)
def test_wrong_encoder_options(name, options, message):
    refused("encoder", f"text/{name}", options, message)


@pytest.mark.parametrize(
    "name, options",
    [
        ("bytes_cnn", {"vocabulary": 100}),
        ("transformers", {"model": "bert", "config": TINY_BERT | {"vocab_size": 100}}),
    ],
)
def test_ids_outside_the_vocabulary(name, options):
    with pytest.raises(
        ValueError, match="token id 1[0-9][0-9] is outside a vocabulary of 100. Set .*vocab.* to the number"
    ):
        build_encoder("text", name, **options)(Text().read("xyz"))
