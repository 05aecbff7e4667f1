"""The rule-made molecules and cells: deterministic, apart in train and test, and true to what they say."""

import itertools
import shutil
import sys

import numpy as np
import pytest
from wrong import refused

from vicjoint import registry
from vicjoint.registry import ComponentError
from vicjoint.samples import cells
from vicjoint.sources.base import SourceError

pytest.importorskip("rdkit")
tifffile = pytest.importorskip("tifffile")
from rdkit import Chem  # noqa: E402
from rdkit.Chem import Crippen  # noqa: E402

from vicjoint.modalities.microscope import Microscope  # noqa: E402
from vicjoint.samples.cells import CHANNELS, SampleCells, expose, render, traits  # noqa: E402
from vicjoint.samples.molecules import GROUPS, RINGS, SampleMolecules, make_molecules  # noqa: E402


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path / "cache"))


def test_molecules_are_always_the_same_and_none_comes_twice():
    source, again, other = SampleMolecules(80, 20), SampleMolecules(80, 20), SampleMolecules(80, 20, seed=1)
    assert source.train == again.train and source.test == again.test and source.train != other.train
    smiles = [r["smiles"] for r in source.train + source.test]
    assert len(set(smiles)) == 100 == len({r["description"] for r in source.train + source.test})
    assert source.describe() == "sample_molecules: 80 train, 20 test molecules"
    assert len({r["ring"] for r in source.test} - {r["ring"] for r in source.train}) == 0
    assert all(isinstance(value, str) for r in source.train for value in r.values())


def test_descriptions_and_numbers_are_true():
    for r in SampleMolecules(60, 1).train:
        molecule = Chem.MolFromSmiles(r["smiles"])
        assert f" {r['ring']} that carries" in r["description"]
        acid = molecule.HasSubstructMatch(Chem.MolFromSmarts("C(=O)[OX2H]"))
        assert int(r["acid"]) == int(acid) == int("carboxylic acid" in r["description"])
        assert abs(float(r["log_p"]) - Crippen.MolLogP(molecule)) < 1e-3
        for group in ("chloro", "cyano", "phenyl"):
            pattern = {"chloro": "Cl", "cyano": "C#N", "phenyl": "c1([!#1])[cH][cH][cH][cH][cH]1"}[group]
            if f" {group} group" in r["description"]:
                assert molecule.HasSubstructMatch(Chem.MolFromSmarts(pattern))


@pytest.mark.parametrize("ring", RINGS)
def test_every_place_of_a_ring_system_is_one_of_its_own(ring):
    """So that different descriptions are different structures."""
    made = [
        Chem.CanonSmiles(RINGS[ring].format(*order)) for order in itertools.permutations(("F", "Cl", "Br"))
    ]
    assert len(set(made)) == 6
    assert all(Chem.MolFromSmiles(RINGS[ring].format(g, g, g)) is not None for g in GROUPS.values())


def test_impossible_numbers():
    refused("source", "sample_molecules", {"train": 0})
    refused("source", "sample_molecules", {"seed": -1})
    with pytest.raises(
        SourceError,
        match="7 for training and 4 for testing are more than the 8 that 1 rings and 2 groups make",
    ):
        make_molecules(7, 4, 0, rings=1, groups=2)
    refused("source", "sample_cells", {"wells": 0})


@pytest.mark.parametrize(
    "source, missing", [("sample_molecules", "rdkit.Chem"), ("sample_cells", "tifffile")]
)
def test_a_missing_library_says_how_to_get_it(source, missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ComponentError, match=f"source '{source}' needs .*: pip install 'vicjoint\\[molecule\\]'"
    ):
        registry.build("source", {"name": source})


def test_cells_are_16_bit_files_of_five_channels(capfd):
    source = SampleCells(train=6, test=3, wells=2, size=32)
    assert len(source.train) == 12 and len(source.test) == 6
    assert {r["smiles"] for r in source.train}.isdisjoint({r["smiles"] for r in source.test})
    for r in source.train + source.test:
        pixels = tifffile.imread(r["path"])
        assert pixels.dtype == np.uint16 and pixels.shape == (len(CHANNELS), 32, 32) and pixels.max() > 2000
        raw = Microscope(channels=5, size=32).read(r["path"])
        assert raw.shape == (1, 5, 32, 32)
    first, second = source.train[:2]
    assert (
        first["molecule"] == second["molecule"]
        and first["plate"] != second["plate"]
        and first["traits"] == second["traits"]
    )
    assert source.describe().endswith("12 train, 6 test images of 6 and 3 molecules")
    before = tifffile.imread(first["path"])
    assert SampleCells(train=6, test=3, wells=2, size=32).train == source.train  # from the cache
    capfd.readouterr()
    shutil.rmtree(source.root)
    assert np.array_equal(
        tifffile.imread(SampleCells(train=6, test=3, wells=2, size=32).train[0]["path"]), before
    )


def test_parts_act_in_the_same_way_in_every_molecule():
    """log-odds of the traits are additive in the parts, to the last digit."""
    train, _ = make_molecules(200, 1, 0, **cells.PARTS)
    parts = sorted({(place, part) for m in train for place, part in enumerate((m.ring, *m.groups))})
    x = np.array([[(m.ring, *m.groups)[place] == part for place, part in parts] for m in train], dtype=float)
    y = np.array([[np.log(v / (1 - v)) for v in traits(m, 0).values()] for m in train])
    weights = np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(x @ weights, y, atol=1e-8)
    assert y.std(0).min() > 0.5


@pytest.mark.parametrize(
    "trait, channel, measure",
    [
        ("number", 0, lambda c: c.mean()),
        ("nucleus", 0, lambda c: c.mean()),
        ("cytoplasm", 1, lambda c: c.mean()),
        ("nucleoli", 2, lambda c: (c > 0.6).mean()),
        ("mito_place", slice(3, 5), lambda c: np.corrcoef(*c.reshape(2, -1))[0, 1]),
        ("edge", 3, lambda c: c.max()),
        ("chromatin", 0, lambda c: -np.abs(np.diff(c, axis=-1)).sum() / c.sum()),
        ("er_grain", 1, lambda c: -np.abs(np.diff(c, axis=-1)).sum() / c.sum()),
    ],
)
def test_traits_are_visible(trait, channel, measure):
    middle = dict.fromkeys(cells.TRAITS, 0.5)
    low, high = (
        np.mean(
            [
                measure(render({**middle, trait: value}, 64, np.random.default_rng(seed))[0][channel])
                for seed in range(12)
            ]
        )
        for value in (0.05, 0.95)
    )
    assert high > low + 0.02 * abs(low)


def test_long_cells_are_long():
    middle = dict.fromkeys(cells.TRAITS, 0.0)

    def elongation(length: float) -> float:
        cells = render({**middle, "length": length, "nucleus": 1.0}, 64, np.random.default_rng(1))[0][0]
        gy, gx = np.gradient(cells)
        return float(np.abs(gx).sum() + np.abs(gy).sum()) / float(cells.sum())  # the border for the same area

    assert elongation(1.0) > 1.1 * elongation(0.0)


def test_a_plate_has_its_own_exposure():
    channels, _ = render(dict.fromkeys(cells.TRAITS, 0.5), 48, np.random.default_rng(0))
    first, same, other = (
        expose(channels, plate, 0, np.random.default_rng(5)).astype(float) for plate in (0, 0, 1)
    )
    assert np.array_equal(first, same)
    ratio = other.mean((1, 2)) / first.mean((1, 2))
    assert np.abs(np.log(ratio)).max() > 0.2


def test_a_group_acts_differently_at_each_place():
    ring, (one, other) = list(RINGS)[0], list(GROUPS)[:2]
    orders = [(one, other, other), (other, one, other), (other, other, one)]
    found = [list(traits(cells.Made("", ring, groups, "", 0.0, 0.0, 0), 0).values()) for groups in orders]
    assert all(np.abs(np.subtract(a, b)).max() > 0.05 for a, b in itertools.combinations(found, 2))


def test_a_well_has_its_own_cells_and_the_files_and_numbers_of_them():
    """Each file is what its molecule, well, plate and seed say, and `cells` is how many were drawn."""
    source = SampleCells(train=4, test=2, wells=2, size=32, seed=3)
    made = make_molecules(4, 2, 3, **cells.PARTS)
    for split, records in enumerate((source.train, source.test)):
        for index, r in enumerate(records):
            rng = np.random.default_rng([3, 3, split, index])
            channels, number = render(traits(made[split][index // 2], 3), 32, rng)
            assert r["cells"] == str(number) and r["smiles"] == made[split][index // 2].smiles
            assert np.array_equal(
                tifffile.imread(r["path"]), expose(channels, int(r["plate"][-1]) - 1, 3, rng)
            )
    assert len({r["cells"] for r in source.train}) > 2
    with tifffile.TiffFile(source.train[0]["path"]) as file:
        assert file.series[0].axes == "CYX"


def test_endoplasmic_reticulum_is_around_the_nucleus():
    channels, _ = render(
        {**dict.fromkeys(cells.TRAITS, 0.5), "nucleus": 1.0, "number": 0.0}, 64, np.random.default_rng(0)
    )
    nucleus = channels[0] > 0.5
    assert nucleus.sum() > 50 and channels[1][nucleus].mean() < 0.5 * channels[1][channels[1] > 0.2].mean()


def test_light_is_uneven_and_photons_are_noise():
    """On an empty field: one half is brighter, differently on each plate, and the variance is 60 signal +
    40^2 as the camera's."""
    tilts = []
    for plate in range(cells.PLATES):
        field = (
            expose(np.zeros((5, 64, 64)), plate, 0, np.random.default_rng(plate)).astype(float) - cells.OFFSET
        )
        tilts.append([field[c, :, 32:].mean() / field[c, :, :32].mean() - 1 for c in range(5)])
        steps = np.diff(field, axis=-1)  # of neighbours, so that the slope of the light hardly counts
        expected = 2 * (60 * field.mean((1, 2)) + 40**2)
        np.testing.assert_allclose(steps.var((1, 2)), expected, rtol=0.15)
    assert np.abs(tilts).max() > 0.1 and np.std(tilts, axis=0).min() > 0.01
