"""Molecules: a SMILES string -> a graph.

    molecule = Molecule()
    raw = molecule.read("CC(=O)Oc1ccccc1C(=O)O")        # Graphs of one molecule
    view = molecule(raw)  # torch_geometric.data.Batch, its categories as in vicjoint.batch

rdkit parses first: torch_geometric alone turns an invalid SMILES into an empty graph without a word. Atoms
are heavy atoms: hydrogens that a SMILES writes out become a count of their neighbour, except where they are
atoms of their own (H2, a proton, deuterium). A salt is one graph of several fragments. No feature depends on
the order of the atoms; chirality is R or S, double bonds are E or Z (rdkit's CIP labels).
"""

# B molecules, N atoms, E bonds, each counted in both directions

import logging
import re
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vicjoint.facts.graphs import ATOM_CATEGORIES, BOND_CATEGORIES
from vicjoint.files.guard import printable
from vicjoint.options import Count, ShareBelowOne
from vicjoint.parts import Modality
from vicjoint.registry import need, register

# H B C N O F Si P S Cl Br I; the other elements together are one more count
COUNTED = (1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53)
HYBRIDISATIONS = ("S", "SP", "SP2", "SP3", "SP3D", "SP3D2")
BOND_KINDS = ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC")
RING = list(ATOM_CATEGORIES).index("in_ring")
CHARACTERS_PER_ATOM = 16  # more than any: [13C@@H](%10 with its ring closures has 11
CIP_ITERATIONS = 200_000  # some tenths of a second


@dataclass
class Graphs:
    """A batch of molecules as the worker hands it over; atoms are numbered within their molecule."""

    atoms: Tensor  # uint8 [N, 8], categories
    bonds: Tensor  # int32 [E, 2], from and to
    kinds: Tensor  # uint8 [E, 4], categories
    atom_counts: Tensor  # int64 [B]
    bond_counts: Tensor  # int64 [B]

    def __len__(self) -> int:
        return len(self.atom_counts)

    def __getitem__(self, part: slice) -> "Graphs":
        """The molecules of a slice."""
        atoms, bonds = (
            self.atom_counts.cumsum(0) - self.atom_counts,
            self.bond_counts.cumsum(0) - self.bond_counts,
        )
        start, stop, _ = part.indices(len(self))
        if start >= stop:
            return Graphs(
                self.atoms[:0], self.bonds[:0], self.kinds[:0], self.atom_counts[:0], self.bond_counts[:0]
            )
        a = slice(int(atoms[start]), int(atoms[stop - 1] + self.atom_counts[stop - 1]))
        e = slice(int(bonds[start]), int(bonds[stop - 1] + self.bond_counts[stop - 1]))
        return Graphs(
            self.atoms[a],
            self.bonds[e],
            self.kinds[e],
            self.atom_counts[start:stop],
            self.bond_counts[start:stop],
        )

    def to(self, device, non_blocking: bool = False) -> "Graphs":
        return Graphs(*(getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)))

    def pin_memory(self) -> "Graphs":
        return Graphs(*(getattr(self, f.name).pin_memory() for f in fields(self)))

    @staticmethod
    def concatenate(views: list["Graphs"]) -> "Graphs":
        return Graphs(*(torch.cat([getattr(view, f.name) for view in views]) for f in fields(Graphs)))

    def owners(self) -> tuple[Tensor, Tensor]:
        """Which molecule each atom [N] and each bond [E] belongs to."""
        number = torch.arange(len(self), device=self.atoms.device)
        return (
            number.repeat_interleave(self.atom_counts, output_size=len(self.atoms)),
            number.repeat_interleave(self.bond_counts, output_size=len(self.bonds)),
        )


def parse(smiles: str, max_atoms: int | None = None):
    """rdkit's molecule of a SMILES string. Raises ValueError with rdkit's reason; rdkit's own log stays
    silent. `max_atoms`: a text too long for so many atoms is refused unread, since rdkit's time grows much
    faster than the text (a hundred thousand characters: minutes).
    """
    from rdkit import Chem, rdBase

    if not isinstance(smiles, str):
        raise ValueError(f"expected a SMILES string, got {type(smiles).__name__} {str(smiles)[:50]}")
    text = smiles.strip()
    if max_atoms is not None and len(text) > CHARACTERS_PER_ATOM * max_atoms:
        raise ValueError(
            f"'{shortened(text)}' is longer than a molecule of {max_atoms} atoms (max_atoms). Leave it out,"
            " or raise max_atoms"
        )
    if not text:
        raise ValueError("the SMILES string is empty, expected at least one atom")
    # rdkit drops a line break and all behind it, or a letter beyond ASCII at the end, without a word
    if wrong := re.search(r"[^!-~]", text):
        raise ValueError(
            f"'{shortened(text)}' is not a valid SMILES: syntax error around position {wrong.start() + 1}:"
            f" {wrong.group()!r} is no sign of SMILES"
        )
    parameters = Chem.SmilesParserParams()
    parameters.parseName = parameters.allowCXSMILES = (
        False  # what stands after a blank is a mistake here, not a name to drop
    )
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(text, parameters)
    if molecule is None:
        raise ValueError(f"'{shortened(text)}' is not a valid SMILES: {_reason(text, parameters)}")
    return molecule


def shortened(text: str, most: int = 120) -> str:
    return printable(text, most)


def _reason(text: str, parameters) -> str:
    """What rdkit logs when it parses `text`, as one line."""
    from rdkit import Chem, rdBase

    lines: list[str] = []
    keep = logging.Handler()
    # without the time of day
    keep.emit = lambda record: len(lines) < 3 and lines.append(record.getMessage().split("] ", 1)[-1])
    logger = logging.getLogger("rdkit")
    rdBase.LogToPythonLogger()
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [keep], False
    try:
        Chem.MolFromSmiles(text, parameters)
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        rdBase.LogToCppStreams()
    first, *others = lines or ["rdkit gives no reason"]
    cause = first.removeprefix("SMILES Parse Error: ").split(" while parsing: ")[0].split(" for input: ")[0]
    place = [
        line.rsplit("around position ", 1)[1].rstrip(":") for line in others if "around position " in line
    ][:1]
    return shortened(cause) + (f" around position {place[0]}" if place else "")


def choose_fragment(molecule):
    """The largest fragment of a salt or a mixture, by rdkit's standardisation rules (organic ones first)."""
    from rdkit import rdBase
    from rdkit.Chem.MolStandardize import rdMolStandardize

    with rdBase.BlockLogs():
        return rdMolStandardize.LargestFragmentChooser().choose(molecule)


@register("modality", "molecule")
class Molecule(Modality):
    """SMILES -> graphs with categories for atoms (atomic number, degree, charge, hydrogens, aromatic, in
    ring, R/S, hybridisation) and bonds (kind, conjugated, in ring, E/Z).

    largest_fragment: keep only the largest fragment of a salt. max_atoms: a larger molecule (heavy atoms) is
    a bad sample. mask_atoms, drop_bonds: in training, the share of atoms whose categories are hidden, and of
    bonds that are left out.
    """

    reads = "text"
    baseline = "atom_counts"
    reading = ("largest_fragment", "max_atoms", "mask_atoms", "drop_bonds")

    def __init__(
        self,
        largest_fragment: bool = False,
        max_atoms: Count = 1024,
        mask_atoms: ShareBelowOne = 0.0,
        drop_bonds: ShareBelowOne = 0.0,
    ):
        super().__init__()
        need(["rdkit.Chem", "torch_geometric.data"], "modality 'molecule'", "molecule")
        self.largest_fragment, self.max_atoms, self.mask_atoms, self.drop_bonds = (
            largest_fragment,
            max_atoms,
            mask_atoms,
            drop_bonds,
        )

    def read(self, value: str, rng: np.random.Generator | None = None, window=None) -> Graphs:
        """Graphs of one molecule. Raises ValueError for an invalid SMILES and for one that is too large."""
        molecule = parse(value, self.max_atoms)
        if self.largest_fragment:
            molecule = choose_fragment(molecule)
        if molecule.GetNumAtoms() > self.max_atoms:
            raise ValueError(
                f"'{shortened(value)}' has {molecule.GetNumAtoms()} atoms, max_atoms is {self.max_atoms}. "
                "Leave it out, or raise max_atoms"
            )
        graphs = to_graphs(molecule)
        return graphs if rng is None else self._augment(graphs, rng)

    def _augment(self, graphs: Graphs, rng: np.random.Generator) -> Graphs:
        if self.mask_atoms:
            hidden = torch.from_numpy(rng.random(len(graphs.atoms)) < self.mask_atoms)
            graphs.atoms[hidden] = torch.tensor([n - 1 for n in ATOM_CATEGORIES.values()], dtype=torch.uint8)
        if self.drop_bonds:
            # both directions
            kept = torch.from_numpy(rng.random(len(graphs.bonds) // 2) >= self.drop_bonds).repeat_interleave(
                2
            )
            graphs.bonds, graphs.kinds = graphs.bonds[kept], graphs.kinds[kept]
            graphs.bond_counts = kept.sum().view(1)
        return graphs

    def forward(self, raw: Graphs):
        """A torch_geometric.data.Batch: x [N, 8], edge_index [2, E], edge_attr [E, 4], batch [N], ptr [B +
        1], all int64."""
        from torch_geometric.data import Batch

        of_atom, of_bond = raw.owners()
        ptr = torch.nn.functional.pad(raw.atom_counts.cumsum(0), (1, 0))
        edges = (raw.bonds + ptr[of_bond, None]).t().contiguous()
        view = Batch(x=raw.atoms.long(), edge_index=edges, edge_attr=raw.kinds.long(), batch=of_atom, ptr=ptr)
        view._num_graphs = len(raw)  # known on the host; from ptr it would wait for the device
        return view

    def preprocessing(self, seconds: float | None = None) -> dict[str, Any]:
        return {"largest_fragment": self.largest_fragment, "max_atoms": self.max_atoms}

    def simple_features(self, raw: Graphs) -> Tensor:
        """Counts [B, 19]: atoms by element and in rings, bonds by kind and in rings."""
        of_atom, of_bond = raw.owners()
        elements = raw.atoms[:, :1].long() == torch.tensor(COUNTED, device=raw.atoms.device)
        atoms = torch.cat([elements, ~elements.any(1, keepdim=True), raw.atoms[:, RING, None] == 1], 1)
        bonds = torch.cat(
            [
                raw.kinds[:, :1] == torch.arange(len(BOND_KINDS), device=raw.kinds.device),
                raw.kinds[:, 2:3] == 1,
            ],
            1,
        )
        # a bond stands twice
        return torch.cat(
            [
                torch.zeros(len(raw), part.shape[1], device=part.device).index_add_(
                    0, owner, part.float() * weight
                )
                for part, owner, weight in ((atoms, of_atom, 1), (bonds, of_bond, 0.5))
            ],
            1,
        )


def to_graphs(molecule) -> Graphs:
    """The graph of rdkit's molecule; its bonds stand in pairs, one for each direction."""
    from rdkit import rdBase
    from rdkit.Chem import rdCIPLabeler

    with rdBase.BlockLogs():
        try:
            rdCIPLabeler.AssignCIPLabels(molecule, maxRecursiveIterations=CIP_ITERATIONS)
        except RuntimeError:  # too symmetric to decide in time: its remaining centres have no label
            pass
    atoms = np.array([_atom(atom) for atom in molecule.GetAtoms()], dtype=np.uint8)
    ends, kinds = [], []
    for bond in molecule.GetBonds():
        i, j, categories = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), _bond(bond)
        ends += [(i, j), (j, i)]
        kinds += [categories, categories]
    bonds = np.array(ends, dtype=np.int32).reshape(-1, 2)
    kinds = np.array(kinds, dtype=np.uint8).reshape(-1, len(BOND_CATEGORIES))
    return Graphs(
        torch.from_numpy(atoms),
        torch.from_numpy(bonds),
        torch.from_numpy(kinds),
        torch.tensor([len(atoms)]),
        torch.tensor([len(bonds)]),
    )


def _atom(atom) -> list[int]:
    """Categories in the order of ATOM_CATEGORIES; values beyond a column's range take its outermost
    category."""
    hybridisation = atom.GetHybridization().name
    return [
        atom.GetAtomicNum(),
        min(atom.GetDegree(), ATOM_CATEGORIES["degree"] - 2),
        min(max(atom.GetFormalCharge(), -5), 5) + 5,
        min(atom.GetTotalNumHs(), ATOM_CATEGORIES["hydrogens"] - 2),
        int(atom.GetIsAromatic()),
        int(atom.IsInRing()),
        _label(atom, "RS"),
        HYBRIDISATIONS.index(hybridisation) if hybridisation in HYBRIDISATIONS else len(HYBRIDISATIONS),
    ]


def _bond(bond) -> list[int]:
    kind = bond.GetBondType().name
    return [
        BOND_KINDS.index(kind) if kind in BOND_KINDS else len(BOND_KINDS),
        int(bond.GetIsConjugated()),
        int(bond.IsInRing()),
        _label(bond, "EZ"),
    ]


def _label(part, letters: str) -> int:
    """0: no CIP label, else the place of the label among `letters`, from 1. Pseudo-asymmetric centres (r, s)
    count like R and S."""
    label = part.GetProp("_CIPCode").upper() if part.HasProp("_CIPCode") else ""
    return letters.index(label) + 1 if label and label in letters else 0
