"""Molecules: what a SMILES string becomes, what is refused and why, and what encoders may not depend on."""

import csv
import logging
import sys

import numpy as np
import pytest
import torch
from wrong import refused

from vicjoint import registry
from vicjoint.batch import concatenate, to_device
from vicjoint.facts.graphs import ATOM_CATEGORIES, BOND_CATEGORIES
from vicjoint.registry import ComponentError

pytest.importorskip("rdkit")
pytest.importorskip("torch_geometric.data", exc_type=ImportError)
from rdkit import Chem  # noqa: E402

from vicjoint.modalities.molecule import Graphs, Molecule, parse, to_graphs  # noqa: E402

ASPIRIN, CAFFEINE = "CC(=O)Oc1ccccc1C(=O)O", "Cn1cnc2c1c(=O)n(C)c(=O)n2C"
ERYTHROMYCIN = (
    "CC[C@@H]1[C@@]([C@@H]([C@H](C(=O)[C@@H](C[C@@]([C@@H]([C@H]([C@@H]([C@H](C(=O)O1)C)O[C@H]2C[C@@]([C@H]([C@@H](O2)C)O)(C)OC)C)"
    "O[C@H]3[C@@H]([C@H](C[C@H](O3)C)N(C)C)O)(C)O)C)C)O)(C)O"
)
BENZALKONIUM, CYCLOSPORIN = (
    "CCCCCCCCCCCC[N+](C)(C)Cc1ccccc1.[Cl-]",
    (
        "CC[C@H]1C(=O)N(CC(=O)N([C@H](C(=O)N[C@H](C(=O)N([C@H](C(=O)N[C@H](C(=O)N[C@@H](C(=O)N([C@H](C(=O)N([C@H](C(=O)N([C@H](C(=O)N([C@H](C(=O)N1)"
        "[C@@H]([C@H](C)C/C=C/C)O)C)C(C)C)C)CC(C)C)C)CC(C)C)C)C)C)CC(C)C)C)C(C)C)CC(C)C)C)C"
    ),
)
MOLECULES = [
    ASPIRIN,
    CAFFEINE,
    ERYTHROMYCIN,
    BENZALKONIUM,
    CYCLOSPORIN,
    "[Na+]",
    "O",
    "[Na+].[Cl-]",
    "C/C=C/C",
    "N[C@@H](C)C(=O)O",
    "[H][H]",
]


def column(graphs: Graphs, name: str) -> list[int]:
    return graphs.atoms[:, list(ATOM_CATEGORIES).index(name)].tolist()


def bond_column(graphs: Graphs, name: str) -> list[int]:
    """Of one direction of each bond."""
    return graphs.kinds[::2, list(BOND_CATEGORIES).index(name)].tolist()


def test_the_features_of_a_known_molecule():
    graphs = Molecule().read("O=C([O-])c1cccnc1")  # nicotinate
    assert column(graphs, "atomic_number") == [8, 6, 8, 6, 6, 6, 6, 7, 6]
    assert column(graphs, "degree") == [1, 3, 1, 3, 2, 2, 2, 2, 2]
    assert column(graphs, "charge") == [5, 5, 4, 5, 5, 5, 5, 5, 5]  # 5 is neutral
    assert column(graphs, "hydrogens") == [0, 0, 0, 0, 1, 1, 1, 0, 1]
    assert column(graphs, "aromatic") == column(graphs, "in_ring") == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert set(column(graphs, "hybridisation")) == {2}  # all sp2
    assert bond_column(graphs, "kind") == [1, 0, 0, 3, 3, 3, 3, 3, 3]
    assert bond_column(graphs, "in_ring") == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert graphs.bonds.tolist()[:4] == [[0, 1], [1, 0], [1, 2], [2, 1]]


def test_every_category_lies_inside_its_column():
    odd = [
        "F[P-](F)(F)(F)(F)F",
        "*CC*",
        "[U]",
        "[Og]",
        "N->[Pt](Cl)Cl",
        "O=[Os](=O)(=O)=O",
        "[Th+4]",
        "[2H]O[2H]",
        "[Fe-7]",
        "[CH6+7]",
    ]
    for smiles in [*MOLECULES, *odd]:
        try:
            graphs = Molecule(mask_atoms=0.5).read(smiles, np.random.default_rng(0))
        except ValueError:
            assert smiles == "[CH6+7]"
            continue
        assert (graphs.atoms.long() < torch.tensor(list(ATOM_CATEGORIES.values()))).all(), smiles
        assert (graphs.kinds.long() < torch.tensor(list(BOND_CATEGORIES.values()))).all(), smiles
    assert bond_column(Molecule().read("N->[Pt](Cl)Cl"), "kind") == [4, 0, 0]


def test_single_atoms_salts_and_hydrogens():
    sodium = Molecule().read("[Na+]")
    assert (
        column(sodium, "atomic_number") == [11] and column(sodium, "charge") == [6] and len(sodium.bonds) == 0
    )
    salt = Molecule().read("CC(=O)[O-].[Na+]")
    assert column(salt, "atomic_number") == [6, 6, 8, 8, 11] and len(salt) == 1 and len(salt.bonds) == 6
    assert column(Molecule(largest_fragment=True).read("CC(=O)[O-].[Na+]"), "atomic_number") == [6, 6, 8, 8]
    assert column(Molecule(largest_fragment=True).read("[Na+].CC(=O)[O-]"), "atomic_number") == [6, 6, 8, 8]
    written, implied = (Molecule().read(s) for s in ("[H]C([H])([H])O[H]", "CO"))
    assert torch.equal(written.atoms, implied.atoms) and column(implied, "hydrogens") == [3, 1]
    assert column(Molecule().read("[H][H]"), "atomic_number") == [1, 1]


def test_mirror_images_and_cis_trans_differ():
    left, right = (column(Molecule().read(s), "chirality") for s in ("N[C@@H](C)C(=O)O", "N[C@H](C)C(=O)O"))
    assert left == [0, 2, 0, 0, 0, 0] and right == [0, 1, 0, 0, 0, 0]  # L-alanine is S, D-alanine R
    assert [bond_column(Molecule().read(s), "stereo")[1] for s in ("C/C=C/C", "C/C=C\\C", "CC=CC")] == [
        1,
        2,
        0,
    ]
    assert sum(c > 0 for c in column(Molecule().read(ERYTHROMYCIN), "chirality")) == 18


@pytest.mark.parametrize("smiles", [ASPIRIN, ERYTHROMYCIN, CYCLOSPORIN, BENZALKONIUM, "C/C=C/C=C\\C"])
def test_the_graph_does_not_depend_on_the_order_of_atoms(smiles):
    molecule = parse(smiles)
    plain = to_graphs(molecule)
    order = np.random.default_rng(0).permutation(molecule.GetNumAtoms())
    other = to_graphs(Chem.RenumberAtoms(molecule, order.tolist()))
    assert torch.equal(other.atoms, plain.atoms[order])
    edges = lambda g, number: sorted(
        (number[i], number[j], tuple(k)) for (i, j), k in zip(g.bonds.tolist(), g.kinds.tolist())
    )
    assert edges(other, order) == edges(plain, np.arange(len(order)))


@pytest.mark.parametrize(
    "smiles, cause",
    [
        ("", "the SMILES string is empty, expected at least one atom"),
        ("   ", "the SMILES string is empty"),
        ("CC(", r"'CC\(' is not a valid SMILES: syntax error around position 3$"),
        ("C(C)(C)(C)(C)C", "Explicit valence for atom # 0 C, 5, is greater than permitted"),
        ("c1cccc1", "Can't kekulize mol"),
        ("C1CC", "unclosed ring"),
        ("[Xx]", "syntax error around position 2"),
        ("CCO ethanol", "'CCO ethanol' is not a valid SMILES"),
        ("aspirin", "'aspirin' is not a valid SMILES"),
        (
            "C" * 2000,
            (
                r"'C{120}\.\.\. \(2,000 characters\)' has 2000 atoms, max_atoms is 1024. Leave it out, or"
                r" raise max_atoms"
            ),
        ),
        ("C(" * 200, r"\.\.\. \(400 characters\)' is not a valid SMILES: syntax error around position 400"),
    ],
)
def test_bad_smiles_name_their_cause(smiles, cause, capfd):
    with pytest.raises(ValueError, match=cause):
        Molecule().read(smiles)
    assert capfd.readouterr() == ("", "")


def test_rdkit_logs_as_before_afterwards(capfd):
    before = logging.getLogger("rdkit").handlers[:]
    with pytest.raises(ValueError):
        Molecule().read("CC(")
    capfd.readouterr()
    assert logging.getLogger("rdkit").handlers[: len(before)] == before
    assert Chem.MolFromSmiles("CC(") is None  # a user's own call
    assert "syntax error" in capfd.readouterr().err


def test_a_large_molecule_is_read_where_allowed():
    graphs = Molecule(max_atoms=3000).read("C" * 2500)
    assert len(graphs.atoms) == 2500 and len(graphs.bonds) == 2 * 2499


def test_a_batch_is_joined_cut_and_becomes_a_view():
    molecule = Molecule()
    raw = [molecule.read(s) for s in MOLECULES]
    whole = concatenate(raw)
    assert len(whole) == len(MOLECULES)
    assert to_device(whole, "cpu").atoms.data_ptr() == whole.atoms.data_ptr()
    for start, stop in ((0, 3), (3, 7), (5, 6), (7, 11), (4, 4)):
        part = whole[start:stop]
        if start == stop:
            assert len(part) == 0 and len(part.atoms) == 0
            continue
        same = concatenate(raw[start:stop])
        assert all(
            torch.equal(getattr(part, f), getattr(same, f))
            for f in ("atoms", "bonds", "kinds", "atom_counts", "bond_counts")
        )
    from torch_geometric.data import Batch, Data

    views = [molecule(g) for g in raw]
    reference = Batch.from_data_list(
        [Data(x=v.x, edge_index=v.edge_index, edge_attr=v.edge_attr) for v in views]
    )
    view = molecule(whole)
    assert isinstance(view, Batch) and view.num_graphs == len(MOLECULES)
    for name in ("x", "edge_index", "edge_attr", "batch", "ptr"):
        assert torch.equal(view[name], reference[name]) and view[name].dtype == torch.int64, name


def test_masked_atoms_and_dropped_bonds():
    plain = Molecule().read(CYCLOSPORIN)
    # none by default
    assert torch.equal(Molecule().read(CYCLOSPORIN, np.random.default_rng(0)).atoms, plain.atoms)
    changed = [
        Molecule(mask_atoms=0.25, drop_bonds=0.25).read(CYCLOSPORIN, np.random.default_rng(seed))
        for seed in range(40)
    ]
    hidden = torch.stack(
        [(g.atoms == torch.tensor([n - 1 for n in ATOM_CATEGORIES.values()])).all(1) for g in changed]
    )
    assert 0.22 < hidden.float().mean() < 0.28
    assert all(torch.equal(g.atoms[~h], plain.atoms[~h]) for g, h in zip(changed, hidden))
    kept = sum(len(g.bonds) for g in changed) / (40 * len(plain.bonds))
    assert 0.72 < kept < 0.78
    for g in changed:
        # both directions go together
        assert torch.equal(g.bonds[::2], g.bonds[1::2].flip(1)) and g.bond_counts.item() == len(g.bonds)
        assert Molecule()(g).edge_index.max() < len(g.atoms)
    again = Molecule(mask_atoms=0.25, drop_bonds=0.25).read(CYCLOSPORIN, np.random.default_rng(7))
    assert torch.equal(again.atoms, changed[7].atoms) and torch.equal(again.bonds, changed[7].bonds)
    evaluation = Molecule(mask_atoms=0.25, drop_bonds=0.25).read(CYCLOSPORIN)
    assert torch.equal(evaluation.atoms, plain.atoms) and torch.equal(evaluation.bonds, plain.bonds)


@pytest.mark.parametrize(
    "options, cause",
    [
        ({"mask_atoms": 1.0}, "mask_atoms is 1.0, expected a share from 0 to below 1"),
        ({"drop_bonds": -0.1}, "drop_bonds is -0.1"),
        ({"max_atoms": 0}, "max_atoms is 0, expected 1 or more"),
    ],
)
def test_wrong_options(options, cause):
    refused("modality", "molecule", options, cause)


def test_simple_features_count():
    molecule = Molecule()
    features = molecule.simple_features(
        concatenate([molecule.read(s) for s in (CAFFEINE, "[Na+].[Cl-]", "C#N")])
    )
    #      H B C N O F Si P S Cl Br I other, ring atoms, single double triple aromatic, ring bonds
    assert features.tolist() == [
        [0, 0, 8, 4, 2, 0, 0, 0, 0, 0, 0, 0, 0, 9, 3, 2, 0, 10, 10],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
    ]


def test_ridge_on_simple_features_reaches_the_known_floor(shared_data):
    """The data's README: RMSE 1.12 by ridge on atom counts."""
    with open(shared_data / "molecules" / "esol.csv") as file:
        rows = list(csv.DictReader(file))
    molecule = Molecule()
    x = molecule.simple_features(concatenate([molecule.read(r["smiles"]) for r in rows])).double().numpy()
    y, train = (
        np.array([float(r["log_solubility_mol_per_l"]) for r in rows]),
        np.array([r["split"] == "train" for r in rows]),
    )
    x = (x - x[train].mean(0)) / np.maximum(x[train].std(0), 1e-9)
    weights = np.linalg.solve(
        x[train].T @ x[train] + np.eye(x.shape[1]), x[train].T @ (y[train] - y[train].mean())
    )
    rmse = np.sqrt(np.mean((x[~train] @ weights + y[train].mean() - y[~train]) ** 2))
    assert 1.08 < rmse < 1.16


# ---- encoders ----

ENCODERS = [
    ("gine", {}),
    ("gine", {"virtual_node": True, "pooling": "sum"}),
    ("attention", {}),
    ("attention", {"virtual_node": True, "pooling": "sum"}),
]


def trained_a_little(name: str, options: dict):
    """An encoder whose weights and running statistics are not those of its start."""
    torch.manual_seed(0)
    encoder = registry.build_encoder("molecule", name, dim=32, layers=3, **options)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
    view = Molecule()(concatenate([Molecule().read(s) for s in MOLECULES]))
    for _ in range(3):
        optimizer.zero_grad()
        encoder(view).square().mean().backward()
        optimizer.step()
    return encoder.eval(), view


@pytest.mark.parametrize("name, options", ENCODERS)
def test_encoders_are_invariant(name, options):
    """A molecule alone, in a batch, and with its atoms in another order: the same y; its neighbours in the
    batch do not count."""
    encoder, view = trained_a_little(name, options)
    y = encoder(view)
    assert y.shape == (len(MOLECULES), encoder.dim) and y.isfinite().all()
    assert torch.pdist(y).min() > 1e-3  # all are told apart
    for i, smiles in enumerate(MOLECULES):
        alone = encoder(Molecule()(Molecule().read(smiles)))
        torch.testing.assert_close(alone[0], y[i], rtol=1e-4, atol=1e-4)
        molecule = parse(smiles)
        order = np.random.default_rng(i).permutation(molecule.GetNumAtoms()).tolist()
        torch.testing.assert_close(
            encoder(Molecule()(to_graphs(Chem.RenumberAtoms(molecule, order))))[0], y[i], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name, options", ENCODERS)
def test_encoders_see_every_feature(name, options):
    """Change one category of one atom or bond: y changes."""
    encoder, _ = trained_a_little(name, options)
    raw = Molecule().read(ASPIRIN)
    y = encoder(Molecule()(raw))
    for field, count in (("atoms", len(ATOM_CATEGORIES)), ("kinds", len(BOND_CATEGORIES))):
        for column in range(count):
            other = raw[0:1]
            changed = getattr(other, field).clone()
            changed[4, column] = changed[4, column] + 1 if changed[4, column] < 2 else changed[4, column] - 1
            setattr(other, field, changed)
            assert (encoder(Molecule()(other)) - y).abs().max() > 1e-4, (field, column)


@pytest.mark.parametrize("name, options", ENCODERS)
def test_encoders_train_in_bfloat16_and_use_all_parameters(name, options):
    encoder, view = trained_a_little(name, options)
    encoder.train().zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        y = encoder(view)
    assert y.dtype == torch.float32
    (y * torch.randn_like(y)).sum().backward()
    still = [
        n
        for n, p in encoder.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.abs().sum() > 0
    ]
    assert [
        n for n in still if not n.endswith("lin_key.bias")
    ] == []  # a softmax does not feel what all keys share


def test_wrong_encoder_options():
    for options, cause in (
        ({"pooling": "max"}, "pooling is 'max', expected mean or sum"),
        ({"layers": 0}, "layers is 0"),
    ):
        refused("encoder", "molecule/gine", options, cause)
    with pytest.raises(ComponentError, match="dim 30 is not a multiple of heads 8"):
        registry.build_encoder("molecule", "attention", dim=30)


@pytest.mark.parametrize(
    "missing, build, user",
    [
        (
            "rdkit.Chem",
            lambda: registry.build("modality", {"name": "molecule"}),
            "modality 'molecule' needs rdkit",
        ),
        (
            "torch_geometric.data",
            lambda: registry.build("modality", {"name": "molecule"}),
            "modality 'molecule' needs torch_geometric",
        ),
        (
            "rdkit.Chem",
            lambda: registry.build("modality", {"name": "drawing"}),
            "modality 'drawing' needs rdkit",
        ),
        (
            "tifffile",
            lambda: registry.build("modality", {"name": "microscope"}),
            "modality 'microscope' needs tifffile",
        ),
        (
            "torch_geometric.nn",
            lambda: registry.build_encoder("molecule", "gine"),
            "encoder 'molecule/gine' needs torch_geometric",
        ),
        (
            "torch_geometric.nn",
            lambda: registry.build_encoder("molecule", "attention"),
            "encoder 'molecule/attention' needs torch_geometric",
        ),
    ],
)
def test_a_missing_library_says_how_to_get_it(missing, build, user, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ComponentError, match=f"{user} .*: pip install 'vicjoint\\[molecule\\]'"):
        build()
