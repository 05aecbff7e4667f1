"""The sample world's molecules: real structures put together by rule from ring systems and groups, with a
sentence about each.

    molecules = make_molecules(train=1024, test=256, seed=0)    # the same list each time; no structure twice
    SampleMolecules()  # as a source: records with smiles, description and numbers

A molecule is a ring system with one group at each of its three places, so what is learned about parts carries
over to molecules that were never seen: train and test share parts, but no structure. The description names
the parts and their places; log_p (Crippen's estimate) and polar_area (in square angstroms) are rdkit's.
"""

from dataclasses import asdict, dataclass

import numpy as np

from vicjoint.options import Count, Natural
from vicjoint.parts import Source
from vicjoint.registry import need, register
from vicjoint.sources.base import SourceError

RINGS = {  # three places each: no symmetry of a ring system maps them onto each other
    "benzene": "c1({0})c({1})cc({2})cc1",
    "pyridine": "c1({0})c({1})ncc({2})c1",
    "pyrimidine": "c1({0})nc({1})c({2})cn1",
    "thiophene": "c1({0})sc({1})c({2})c1",
    "furan": "c1({0})oc({1})c({2})c1",
    "cyclohexane": "C1({0})CC({1})C({2})CC1",
    "cyclopentene": "C1({0})=C({1})C({2})CC1",
    "piperidine": "N1({0})CC({1})C({2})CC1",
    "naphthalene": "c1({0})c({1})cc2cc({2})ccc2c1",
    "indole": "[nH]1c({0})c({1})c2cc({2})ccc12",
    "quinoline": "c1({0})nc2cc({1})ccc2c({2})c1",
    "biphenyl": "c1({0})cc({1})ccc1-c2cc({2})ccc2",
}
GROUPS = {
    "methyl": "C",
    "hydroxy": "O",
    "fluoro": "F",
    "chloro": "Cl",
    "bromo": "Br",
    "amino": "N",
    "methoxy": "OC",
    "cyano": "C#N",
    "carboxy": "C(=O)O",
    "trifluoromethyl": "C(F)(F)F",
    "acetyl": "C(C)=O",
    "tert-butyl": "C(C)(C)C",
    "carbamoyl": "C(N)=O",
    "phenyl": "c9ccccc9",
}
PLACES = ("first", "second", "third")


@dataclass(frozen=True)
class Made:
    """One molecule: its parts and what follows from them."""

    smiles: str
    ring: str
    groups: tuple[str, str, str]
    description: str
    log_p: float
    polar_area: float
    acid: int  # 1 with a carboxy group


def make_molecules(
    train: int, test: int, seed: int, rings: int = len(RINGS), groups: int = len(GROUPS)
) -> tuple[list[Made], list[Made]]:
    """(train, test) molecules of the first `rings` ring systems and `groups` groups. Raises SourceError where
    there are not enough, and ComponentError without rdkit."""
    need(["rdkit.Chem"], "source 'sample_molecules'", "molecule")
    choices = rings * groups**3
    found: dict[str, Made] = {}
    for choice in np.random.default_rng(seed).permutation(choices):
        ring, a, b, c = np.unravel_index(choice, (rings, groups, groups, groups))
        made = _make(list(RINGS)[ring], tuple(list(GROUPS)[i] for i in (a, b, c)))
        found.setdefault(made.smiles, made)
        if len(found) == train + test:
            break
    else:
        raise SourceError(
            f"sample molecules: {train} for training and {test} for testing are more than the {len(found)}"
            f" that {rings} rings and {groups} groups make. Ask for fewer, or use more parts."
        )
    molecules = list(found.values())
    return molecules[:train], molecules[train:]


def _make(ring: str, groups: tuple[str, str, str]) -> Made:
    from rdkit import Chem
    from rdkit.Chem import Crippen, rdMolDescriptors

    molecule = Chem.MolFromSmiles(RINGS[ring].format(*(GROUPS[g] for g in groups)))
    parts = ", ".join(f"{_article(g)} {g} group at its {place} place" for g, place in zip(groups, PLACES))
    kind = " It is a carboxylic acid." if "carboxy" in groups else ""
    return Made(
        Chem.MolToSmiles(molecule),
        ring,
        groups,
        f"The molecule is {_article(ring)} {ring} that carries {parts}.{kind}",
        round(Crippen.MolLogP(molecule), 4),
        round(rdMolDescriptors.CalcTPSA(molecule), 4),
        int("carboxy" in groups),
    )


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


@register("source", "sample_molecules")
class SampleMolecules(Source):
    """Rule-made molecules; records have smiles, description, ring, log_p, polar_area and acid, all as text
    like a table's, and the id."""

    def __init__(self, train: Count = 1024, test: Count = 256, seed: Natural = 0):
        parts = dict(zip(("train", "test"), make_molecules(train, test, seed)))
        self.train, self.test = (
            [record(f"{split}_{i:05d}", made, split) for i, made in enumerate(parts[split])]
            for split in ("train", "test")
        )

    def describe(self) -> str:
        return f"sample_molecules: {len(self.train):,} train, {len(self.test):,} test molecules"


def record(name: str, made: Made, split: str) -> dict:
    fields = {
        key: value if isinstance(value, str) else str(value)
        for key, value in asdict(made).items()
        if key != "groups"
    }
    return {"id": name, "split": split, **fields}
