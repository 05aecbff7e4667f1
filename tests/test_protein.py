"""Proteins: ESM-2's ids, windows, unknown residues, padding that never shows, composition."""

import csv
import sys

import numpy as np
import pytest
import torch
from wrong import refused

from vicjoint import build_encoder
from vicjoint.modalities.protein import ALPHABET, Protein, clean
from vicjoint.registry import ComponentError

ENCODERS = {
    "cnn": {"width": 16, "dim": 12},
    "transformer": {"width": 16, "dim": 12},
    "esm": {
        "config": {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        }
    },
}
SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "MLAAA", "ACDEFGHIKLMNPQRSTVWYXBUZO" * 3]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def padded(views, extra: int = 0, filler: int = 0):
    """A batch of views of different lengths, `filler` where the mask is False."""
    longest = max(ids.shape[1] for ids, _ in views)
    pad = lambda row, value: torch.nn.functional.pad(row, (0, longest + extra - row.shape[1]), value=value)
    return torch.cat([pad(ids, filler) for ids, _ in views]), torch.cat(
        [pad(mask, False) for _, mask in views]
    )


def letters(view) -> list[str]:
    return [ALPHABET[i] for i in view[0][0].tolist()]


# ---- reading ----


def test_ids_are_esm2s(tmp_path):
    from transformers import EsmTokenizer
    from transformers.models.esm.configuration_esm import get_default_vocab_list

    assert list(ALPHABET) == list(get_default_vocab_list())
    (tmp_path / "vocab.txt").write_text("\n".join(get_default_vocab_list()))
    tokenizer = EsmTokenizer(str(tmp_path / "vocab.txt"))
    for sequence in SEQUENCES:
        ids, mask = Protein().read(sequence)
        assert ids[0].tolist() == tokenizer(sequence)["input_ids"] and mask.all() and mask.shape == ids.shape
        assert ids.dtype == torch.int64 and mask.dtype == torch.bool


def test_padding_is_esms_and_the_mask_decides():
    modality = Protein()
    views = [modality.read(s) for s in SEQUENCES[:2]]
    ids, mask = modality(padded(views, filler=0))  # 0 is <cls>, which a batch may hold on padding
    assert ids[1].tolist() == views[1][0][0].tolist() + [1] * 17 and mask.sum(1).tolist() == [24, 7]


def test_lower_case_white_space_stop_and_gaps():
    expected = Protein().read("MKTA")[0]
    for text in ("mkta", " MK\nTA ", "MKTA*", "mk ta *"):
        assert torch.equal(Protein().read(text)[0], expected)
    assert letters(Protein().read("MK-.A")) == ["<cls>", "M", "K", "-", ".", "A", "<eos>"]


def test_unknown_residues():
    assert letters(Protein().read("MJXB")) == ["<cls>", "M", "X", "X", "B", "<eos>"]
    for text, message in (
        ("MJK", "unknown residue J at place 2"),
        ("MKTX", "unknown residue X at place 4. Remove it, or set the modality's unknown=x"),
    ):
        with pytest.raises(ValueError, match=message):
            Protein(unknown="error").read(text)
    # selenocysteine and pyrrolysine are known
    assert Protein(unknown="error").read("MUOK")[0].shape == (1, 6)


@pytest.mark.parametrize(
    "value, message",
    [
        ("", "protein sequence is empty"),
        (" *", "protein sequence is empty"),
        ("--", "protein sequence is empty"),
        ("MK1A", "protein MK1A... has '1', which is no residue, at place 3. Expected one-letter residues"),
        ("MK*TA", "has a stop inside it at place 3"),
        ("MKÄ", "'Ä', which is no residue"),
        (12, "expected a protein sequence as text, got int 12"),
    ],
)
def test_bad_sequences(value, message):
    with pytest.raises(ValueError, match=message):
        Protein().read(value)


def test_windows_of_a_long_protein():
    sequence = "ACDEFGHIKLMNPQRSTVWY"
    read = lambda crop, rng=None: letters(Protein(length=6, crop=crop).read(sequence, rng))
    assert read("start") == read("start", np.random.default_rng(0)) == ["<cls>", *"ACDEFG"]
    assert read("middle") == read("random") == [*"IKLMNP"]
    assert read("ends") == ["<cls>", *"ACD", "-", *"VWY", "<eos>"]
    assert letters(Protein(length=5, crop="ends").read(sequence)) == ["<cls>", *"ACD", "-", *"WY", "<eos>"]
    rng, seen = np.random.default_rng(0), set()
    for _ in range(200):
        window = read("random", rng)
        residues = "".join(r for r in window if len(r) == 1)
        start = sequence.index(residues)
        assert (
            len(residues) == 6
            and (window[0] == "<cls>") == (start == 0)
            and (window[-1] == "<eos>") == (start == 14)
        )
        seen.add(start)
    assert seen == set(range(15))
    whole = Protein(length=20, crop="random").read(sequence, rng)
    assert letters(whole) == ["<cls>", *sequence, "<eos>"]


def test_residues_are_masked_in_training_only():
    sequence, modality = "ACDEFGHIKL" * 30, Protein(mask=0.2)
    plain = Protein().read(sequence)[0]
    assert torch.equal(modality.read(sequence)[0], plain)
    one, again, other = (modality.read(sequence, np.random.default_rng(seed))[0] for seed in (0, 0, 1))
    hidden = one != plain
    assert (
        torch.equal(one, again)
        and not torch.equal(one, other)
        and (one[hidden] == ALPHABET.index("<mask>")).all()
    )
    assert 0.12 < hidden.float().mean() < 0.28
    many = Protein(mask=0.95).read(sequence, np.random.default_rng(0))
    assert (
        letters(many)[0] == "<cls>" and letters(many)[-1] == "<eos>" and letters(many).count("<mask>") > 250
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mask": 1.0}, "mask is 1.0, expected a share of the residues"),
        ({"length": 3}, "length is 3, expected 4 or more residues"),
        ({"crop": "end"}, "crop is 'end', expected one of random, start"),
        ({"unknown": "skip"}, "unknown is 'skip', expected x .* or error"),
    ],
)
def test_wrong_options(options, message):
    refused("modality", "protein", options, message)


def test_composition():
    modality = Protein(length=6, crop="ends")
    # 4 is L
    features = modality.simple_features(
        padded([modality.read(s) for s in ("LLAX", "W" * 10)], extra=3, filler=4)
    )
    assert features.shape == (2, 64)
    assert features[0, [0, 1, 20]].tolist() == [0.5, 0.25, 0.25] and features[0, :21].sum() == 1
    assert features[1, ALPHABET.index("W") - 4] == 1 and features[:, 63].tolist() == pytest.approx(
        [np.log10(4), np.log10(6)]
    )
    whole, first, last = Protein().simple_features(Protein().read("A" * 40 + "L" * 60))[0, :63].split(21)
    assert (whole[0], whole[1], first[0], first[1], last[0]) == pytest.approx((0.6, 0.4, 0, 1, 1))


def test_real_sequences(shared_data):
    """Every real sequence reads; ridge on the composition of the whole and of the ends finds the place as
    often as the data's own floor, 54.6 %."""
    with open(shared_data / "proteins" / "deeploc.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    modality, places = Protein(length=6000), sorted({r["location"] for r in rows})
    x = torch.cat([modality.simple_features(modality.read(r["sequence"])) for r in rows])
    y = torch.nn.functional.one_hot(torch.tensor([places.index(r["location"]) for r in rows])).double()
    train = torch.tensor([r["split"] == "train" for r in rows])
    x = (x - x[train].mean(0)) / x[train].std(0).clamp(min=1e-6)
    x = torch.cat([x.double(), torch.ones(len(x), 1)], 1)
    weights = torch.linalg.solve(x[train].T @ x[train] + 10 * torch.eye(x.shape[1]), x[train].T @ y[train])
    accuracy = ((x[~train] @ weights).argmax(1) == y[~train].argmax(1)).double().mean()
    assert 0.54 < accuracy < 0.6


# ---- encoders ----


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_never_shows(name):
    encoder, modality = build_encoder("protein", name, **ENCODERS[name]), Protein()
    views = [modality.read(s) for s in SEQUENCES]
    for mode in (True, False):
        encoder.train(mode)
        alone = torch.cat([encoder(view) for view in views])
        for extra, filler in ((0, 0), (50, 0), (3, 9)):
            assert torch.allclose(encoder(modality(padded(views, extra, filler))), alone, atol=2e-6)
    assert (alone[0] - alone[1]).norm() > 1e-3


@pytest.mark.parametrize("name", ENCODERS)
def test_width_and_gradients(name):
    encoder = build_encoder("protein", name, **ENCODERS[name])
    y = encoder(padded([Protein().read(s) for s in SEQUENCES]))
    assert y.shape == (3, encoder.dim)
    y.square().sum().backward()
    assert not [n for n, p in encoder.named_parameters() if p.grad is None]


@pytest.mark.parametrize("name", ENCODERS)
def test_order_is_seen(name):
    encoder = build_encoder("protein", name, **ENCODERS[name]).eval()
    one, other = (encoder(Protein().read(s)) for s in ("MKTAYIAKQR", "RQKAIYATKM"))
    assert not torch.allclose(one, other, atol=1e-4)


def test_esm_weights_from_a_folder_and_the_mean_over_residues(tmp_path):
    made = build_encoder("protein", "esm", **ENCODERS["esm"]).eval()
    made.model.save_pretrained(tmp_path)
    loaded = build_encoder("protein", "esm", weights=str(tmp_path)).eval()
    view = Protein().read(SEQUENCES[0])
    assert torch.equal(loaded(view), made(view)) and loaded.dim == 16
    hidden = made.model(input_ids=view[0], attention_mask=view[1].long()).last_hidden_state
    assert torch.allclose(made(view), hidden[:, 1:-1].mean(1), atol=1e-6)  # without <cls> and <eos>


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weights": "/nowhere", "config": {"hidden_size": 16}}, "either weights: .* or config"),
        ({"weights": "./nowhere"}, "encoder 'esm': weights './nowhere' were not found: no folder"),
        (
            {"config": {"hidden_sise": 16}},
            "encoder 'esm': the config of 'esm' has no key 'hidden_sise'. Did you mean 'hidden_size'",
        ),
    ],
)
def test_wrong_esm_options(options, message):
    with pytest.raises(ComponentError, match=message):
        build_encoder("protein", "esm", **options)


def test_weights_of_another_kind(tmp_path):
    other = build_encoder(
        "text",
        "transformers",
        model="bert",
        config={
            "vocab_size": 33,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        },
    )
    other.model.save_pretrained(tmp_path)
    with pytest.raises(
        ComponentError, match="of a model of type 'bert', expected 'esm', such as facebook/esm2_t6_8M_UR50D"
    ):
        build_encoder("protein", "esm", weights=str(tmp_path))


def test_esm_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ComponentError,
        match=r"encoder 'protein/esm' needs transformers .*: pip install 'vicjoint\[protein\]'",
    ):
        build_encoder("protein", "esm")
    assert build_encoder("protein", "cnn").dim == 256


def test_clean():
    assert clean("mk\tta*", strict=True) == "MKTA"


def test_the_ends_are_averaged_by_themselves():
    encoder = build_encoder("protein", "cnn", width=8, dim=5, layers=0, ends=3).double()
    views = [Protein().read(s) for s in ("MKTAYIAK", "MK")]
    for view, y in zip(views, encoder(padded(views, extra=4))):
        x = encoder.norm(encoder.tokens.embedding(view[0][0]))
        expected = encoder.project(torch.cat([x.mean(0), x.max(0).values, x[:3].mean(0), x[-3:].mean(0)]))
        assert torch.allclose(y, expected, atol=1e-12)
    assert build_encoder("protein", "cnn", width=8, ends=0).project.in_features == 16
