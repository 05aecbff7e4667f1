"""Proteins made by rule: a sequence whose place in the cell can be told from its signals, a text that names
the place, a molecule that binds.

    record = protein(seed=0, split="train", index=3)     # id, sequence, place, family, text, smiles, label
    SampleProteins(train=2048, test=256)                 # as a source

A protein is a pure function of (seed, split, index). The body is drawn from a composition that leans to the
place's, as real ones do, and carries the motif of its family; the signals are simplified from nature's: a
hydrophobic leader for export, KDEL at the end for the endoplasmic reticulum, positive amphipathic leader for
mitochondria, a basic stretch for the nucleus, SKL at the end for peroxisomes, hydrophobic spans of 20 for
membranes. One residue in twenty is replaced at random, so no signal is always whole. The molecule has the
scaffold of the family and an end of the place, on a chain of random length.
"""

from typing import Annotated

import numpy as np
from pydantic import Field

from vicjoint.options import Natural
from vicjoint.parts import Source
from vicjoint.registry import register
from vicjoint.samples.world import SPLITS

Several = Annotated[int, Field(ge=2)]  # one protein has no other to be told from
ORDER = "ACDEFGHIKLMNPQRSTVWY"
# percent, UniProt
COMMON = dict(
    zip(
        ORDER,
        (8.3, 1.4, 5.5, 6.7, 3.9, 7.1, 2.3, 5.9, 5.8, 9.7, 2.4, 4.1, 4.7, 3.9, 5.5, 6.6, 5.3, 6.9, 1.1, 2.9),
    )
)
PLACES = {  # place -> residues that are half as frequent again in the body
    "cytoplasm": "EQ",
    "nucleus": "KSP",
    "mitochondrion": "RA",
    "outside of the cell": "CTG",
    "endoplasmic reticulum": "DN",
    "peroxisome": "HP",
    "cell membrane": "LF",
}
FAMILIES = ("kinase", "protease", "transporter", "binding protein")
MOTIFS = {
    "kinase": "HRDLKPEN",
    "protease": "GDSGGPLV",
    "transporter": "RLGRRWLIP",
    "binding protein": "GYGFVNFD",
}
SCAFFOLDS = {
    "kinase": "c1ccc2ncnc(N{})c2c1",
    "protease": "NC(=N)c1ccc({})cc1",
    "transporter": "C1CCN({})CC1",
    "binding protein": "Cn1cnc2c1c(=O)[nH]c(=O)n2{}",
}
CHAIN_ATOMS, CHAIN = "CCCCON", (2, 9)
ENDS = dict(zip(PLACES, ("C(N)=O", "C(=O)O", "[N+](C)(C)C", "S", "C#N", "c9ccccc9", "C(F)(F)F")))
TEXTS = (
    "Found in the {place}; a {family}.",
    "A {family} of the {place}.",
    "This {family} works in the {place}.",
    "Location: {place}. Kind: {family}.",
)
REPLACED = 0.05


def protein(seed: int, split: str, index: int) -> dict:
    """The record of one protein. Places come equally often; train and test draw from different random
    streams."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index, 2])
    place, family = list(PLACES)[index % len(PLACES)], str(rng.choice(FAMILIES))
    weights = np.array([COMMON[r] * (1.5 if r in PLACES[place] else 1.0) for r in ORDER])
    draw = lambda letters, n, p=None: "".join(rng.choice(list(letters), n, p=p))
    body = draw(ORDER, int(rng.integers(60, 240)), weights / weights.sum())
    body = _insert(body, MOTIFS[family], rng)
    sequence = _signals(place, body, draw, rng)
    replaced = rng.random(len(sequence)) < REPLACED
    sequence = "M" + "".join(
        draw(ORDER, 1) if changed else residue for residue, changed in zip(sequence, replaced)
    )
    text = str(rng.choice(TEXTS)).format(place=place, family=family)
    chain = "C" + "".join(atom + "C" for atom in draw(CHAIN_ATOMS, int(rng.integers(*CHAIN))))
    smiles = SCAFFOLDS[family].format(chain + ENDS[place])
    return {
        "id": f"{split}_{index:05d}",
        "sequence": sequence,
        "place": place,
        "family": family,
        "text": text,
        "smiles": smiles,
        "label": place,
    }


def _signals(place: str, body: str, draw, rng) -> str:
    if place == "nucleus":
        return _insert(body, draw("KR", 3) + "KKRK" + draw("VTA", 1), rng)
    if place == "mitochondrion":
        return draw("RLSAA", int(rng.integers(18, 28))) + "RRSY" + body
    if place in ("outside of the cell", "endoplasmic reticulum"):
        exported = draw("KR", 2) + draw("LLAVF", int(rng.integers(10, 15))) + "AQA" + body
        return exported + ("KDEL" if place == "endoplasmic reticulum" else "")
    if place == "peroxisome":
        return body + "SKL"
    if place == "cell membrane":
        for _ in range(int(rng.integers(2, 5))):
            body = _insert(body, draw("LIVFAG", 20), rng)
    return body


def _insert(body: str, part: str, rng) -> str:
    place = int(rng.integers(len(body) + 1))
    return body[:place] + part + body[place:]


@register("source", "sample_proteins")
class SampleProteins(Source):
    """Proteins made by rule: the text names the place in the cell that the sequence's signals decide.
    Columns: id, sequence, place, family, text, smiles (a molecule that binds); `label` is the place."""

    def __init__(self, train: Several = 2048, test: Several = 256, seed: Natural = 0):
        self.train, self.test = (
            [protein(seed, split, i) for i in range(number)]
            for split, number in (("train", train), ("test", test))
        )

    def describe(self) -> str:
        return (
            f"sample_proteins: {len(self.train):,} train, {len(self.test):,} test proteins of {len(PLACES)}"
            " places, made by rule"
        )
