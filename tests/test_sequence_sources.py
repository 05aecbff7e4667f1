"""FASTA files, plain and compressed, their headers and splits; proteins made by rule."""

import gzip
from collections import Counter

import pytest
from wrong import refused

from vicjoint.modalities.protein import Protein
from vicjoint.registry import build
from vicjoint.samples.proteins import MOTIFS, PLACES, SampleProteins
from vicjoint.sources.base import SourceError
from vicjoint.sources.sequences import Fasta


def fasta(folder, text: str, name: str = "p.fasta") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def made(numbers, split: str = "") -> str:
    return "".join(f">p{i} protein {i}{split}\nMK{'A' * i}\nTT\n" for i in numbers)


def test_records_and_headers(tmp_path):
    text = (
        ";a comment\n>sp|P1|X Kinase of yeast OS=Homo sapiens OX=9606 place=cell"
        " membrane\nMKTA\nYIAK*\n\n>P2\nmk\n>P3 id=7 location=nucleus\tsplit_hint=x\n"
    )
    source = Fasta(fasta(tmp_path, text), test_fraction=0.3)
    records = {r["id"]: r for r in source.train + source.test}
    assert records["sp|P1|X"] == {
        "id": "sp|P1|X",
        "description": "Kinase of yeast",
        "OS": "Homo sapiens",
        "OX": "9606",
        "place": "cell membrane",
        "sequence": "MKTAYIAK*",
    }
    assert records["P2"] == {"id": "P2", "description": "", "sequence": "mk"}
    assert records["P3"] == {
        "id": "P3",
        "description": "",
        "header_id": "7",
        "location": "nucleus",
        "split_hint": "x",
        "sequence": "",
    }
    # when read: one bad sample does not stop the source
    with pytest.raises(ValueError, match="protein sequence is empty"):
        Protein().read(records["P3"]["sequence"])


def test_split_by_hash_of_the_sequence(tmp_path):
    text = made(range(40))
    doubled = text + "".join(f">copy{i}\nMK{'A' * i}TT\n" for i in range(40))
    source, twice = Fasta(fasta(tmp_path, text), 0.25), Fasta(fasta(tmp_path, doubled, "q.fa"), 0.25)
    assert (len(source.train), len(source.test)) == (30, 10) and (len(twice.train), len(twice.test)) == (
        60,
        20,
    )
    assert not {r["sequence"] for r in twice.train} & {r["sequence"] for r in twice.test}
    assert {r["sequence"] for r in twice.test} == {r["sequence"] for r in source.test}
    assert source.describe() == f"fasta {tmp_path}/p.fasta: 30 train, 10 test sequences"


def test_marked_splits_and_gzip(tmp_path):
    text = made(range(5), " split=train") + made(range(5, 7), " split=Val") + made([7], " split=test")
    (tmp_path / "p.fa.gz").write_bytes(gzip.compress(text.encode()))
    for root in (str(tmp_path / "p.fa.gz"), fasta(tmp_path, text)):
        source = build("source", {"name": "fasta", "root": root})
        assert [r["id"] for r in source.train] == [f"p{i}" for i in range(5)] and [
            r["id"] for r in source.test
        ] == ["p5", "p6", "p7"]


def test_ids_that_come_again_are_numbered(tmp_path):
    """As in >ESMFOLD V0 PREDICTION FOR MGYP1, where the first word says nothing."""
    source = Fasta(fasta(tmp_path, "".join(f">MODEL no {i}\nMK{'A' * i}\n" for i in range(12))))
    records = sorted(source.train + source.test, key=lambda r: len(r["sequence"]))
    assert [r["id"] for r in records] == ["MODEL", *(f"MODEL ({i})" for i in range(2, 13))]
    assert [r["description"] for r in records] == [f"no {i}" for i in range(12)]
    assert source.describe().endswith(
        "10 train, 2 test sequences; ids that came again have a number after them: 11 sequences"
    )


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "has 0 sequences, expected two or more"),
        (">a\nMK\n", "has 1 sequences"),
        ("id,sequence\na,MK\n", "line 1 is 'id,sequence', expected a header"),
        (">a\nMK\n> \nMK\n", "line 3: a header without an id"),
        (">a\nMK\n>b\nMK\n", "all 2 sequences are equal"),
        (made([1, 2], " split=train") + made([3]), "2 of 3 headers have split=, 'p3' has none"),
        (made([1, 2], " split=train"), "no header says split=test"),
        (
            made([1, 2], " split=train") + made([3], " split=holdout"),
            "split of 'p3' is 'holdout', expected one of train, training, test, testing, val,",
        ),
        (
            made([1, 2], " split=train") + ">x split=test\nMKATT\n",
            "the sequence of 'p1' is in train and in test",
        ),
    ],
)
def test_wrong_files(tmp_path, text, message):
    with pytest.raises(SourceError, match=message):
        Fasta(fasta(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SourceError, match="root .*absent.fa does not exist. Expected a FASTA file"):
        Fasta(str(tmp_path / "absent.fa"))
    fasta(tmp_path, made(range(3)))
    with pytest.raises(SourceError, match="is a folder, expected a FASTA file. Found there: p.fasta"):
        Fasta(str(tmp_path))
    (tmp_path / "latin.fa").write_bytes(">é\nMK\n".encode("latin-1"))
    with pytest.raises(SourceError, match="is not UTF-8: .* at byte 1"):
        Fasta(str(tmp_path / "latin.fa"))
    whole = gzip.compress(made(range(50)).encode())
    for name, data in (("cut.fa.gz", whole[:-20]), ("bad.fa.gz", whole[:20] + b"\0\0\0\0" + whole[24:])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SourceError, match=f"cannot read .*{name}: .*plain or compressed by gzip"):
            Fasta(str(tmp_path / name))
    refused("source", "fasta", {"root": fasta(tmp_path, made(range(3))), "test_fraction": 2})


def test_sample_proteins():
    source = build("source", {"name": "sample_proteins", "train": 700, "test": 70})
    again, other = SampleProteins(700, 70), SampleProteins(700, 70, seed=1)
    assert source.train == again.train and source.train[0]["sequence"] != other.train[0]["sequence"]
    assert Counter(r["place"] for r in source.train) == {place: 100 for place in PLACES}
    sequences = [r["sequence"] for r in source.train + source.test]
    assert len(set(sequences)) == 770 and all(Protein(unknown="error").read(s) for s in sequences)
    assert all(
        r["place"] in r["text"] and r["family"] in r["text"] and r["label"] == r["place"] for r in source.test
    )
    ends = Counter(r["place"] for r in source.train if r["sequence"].endswith("SKL"))
    assert ends["peroxisome"] > 75 and sum(ends.values()) - ends["peroxisome"] < 5
    found = [MOTIFS[r["family"]] in r["sequence"] for r in source.train]
    assert 0.5 < sum(found) / len(found) < 0.8  # one residue in twenty is replaced: 0.95 ** 8 = 0.66
    assert source.describe() == "sample_proteins: 700 train, 70 test proteins of 7 places, made by rule"


def test_sample_molecules_are_molecules():
    chem = pytest.importorskip("rdkit.Chem")
    records = SampleProteins(200, 50).train
    molecules = [chem.MolFromSmiles(r["smiles"]) for r in records]
    assert all(molecules) and len({chem.MolToSmiles(m) for m in molecules}) > 150
    scaffold = chem.MolFromSmarts("c1ccc2ncncc2c1")
    assert [m.HasSubstructMatch(scaffold) for m in molecules] == [r["family"] == "kinase" for r in records]


@pytest.mark.parametrize(
    "options, message",
    [({"train": 1}, "train is 1, expected 2 or more"), ({"seed": -1}, "seed is -1, expected 0 or more")],
)
def test_wrong_sample_numbers(options, message):
    refused("source", "sample_proteins", options, message)
