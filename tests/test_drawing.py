"""Drawings of molecules as images."""

import time

import numpy as np
import pytest
import torch
from wrong import refused

from vicjoint import registry

pytest.importorskip("rdkit")

from vicjoint.modalities.drawing import Drawing  # noqa: E402

ALANINE, SALT, MACROCYCLE = "N[C@@H](C)C(=O)O", "[Na+].[O-]C(=O)c1ccccc1", "O=C1CCCCCCCCCCCCCCO1"


@pytest.mark.parametrize("smiles", ["[Na+]", "C", SALT, MACROCYCLE, ALANINE, "[2H]O[2H]", "C" * 300])
def test_a_drawing(smiles):
    drawing = Drawing(size=96)
    raw = drawing.read(smiles)
    assert raw.dtype == torch.uint8 and raw.shape == (1, 3, 96, 96)
    assert (raw == 255).float().mean() > 0.5 and raw.min() < 140  # something is drawn on white
    assert torch.equal(raw, drawing.read(smiles))
    white = drawing(torch.full((1, 3, 4, 4), 255, dtype=torch.uint8))[0, :, 0, 0]
    torch.testing.assert_close(white, (1 - drawing.mean.view(3)) / drawing.std.view(3))


def test_training_turns_and_mirrors_the_structure():
    drawing = Drawing(size=128)
    seen = [drawing.read(ALANINE, np.random.default_rng(seed)) for seed in range(8)]
    assert torch.equal(seen[3], drawing.read(ALANINE, np.random.default_rng(3)))
    assert all(not torch.equal(seen[0], other) for other in seen[1:])
    still = Drawing(size=128, rotate=0, flip=0)
    assert torch.equal(still.read(ALANINE, np.random.default_rng(0)), still.read(ALANINE))
    # a plain hexagon with one methyl group: its mirror image in pixels
    benzene = Drawing(size=128, rotate=0, flip=1.0)
    mirrored, plain = (
        benzene.read("Cc1ccccc1", np.random.default_rng(0)).float(),
        benzene.read("Cc1ccccc1").float(),
    )
    assert (mirrored.flip(-1) - plain).abs().mean() < 0.5 * (mirrored - plain).abs().mean()


def test_a_mirrored_drawing_is_the_same_enantiomer():
    """rdkit reads the drawn structure back: wedges follow the mirrored atoms."""
    from rdkit import Chem

    from vicjoint.modalities.drawing import place
    from vicjoint.modalities.molecule import parse

    for turn, mirrored in ((0, False), (0, True), (77, True), (-130, False)):
        for smiles in (ALANINE, "C/C=C/[C@H](O)F"):
            block = Chem.MolToMolBlock(place(parse(smiles), turn, mirrored))
            assert Chem.MolToSmiles(Chem.MolFromMolBlock(block)) == Chem.CanonSmiles(smiles)


@pytest.mark.parametrize(
    "smiles, cause",
    [
        ("", "is empty"),
        ("C1CC", "'C1CC' is not a valid SMILES: unclosed ring"),
        ("C" * 2000, "has 2000 atoms, max_atoms is 1024"),
    ],
)
def test_bad_smiles_name_their_cause(smiles, cause, capfd):
    with pytest.raises(ValueError, match=cause):
        Drawing().read(smiles)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "options, cause",
    [
        ({"size": 8}, "size is 8, expected a number from 16 to 4096"),
        ({"rotate": 200}, "rotate is 200"),
        ({"flip": 2}, "flip is 2"),
        ({"max_atoms": 0}, "max_atoms is 0"),
    ],
)
def test_wrong_options(options, cause):
    refused("modality", "drawing", options, cause)


def test_encoders_of_images_take_drawings():
    assert {"conv", "resnet18"} <= set(registry.list_encoders("drawing"))
    drawing = Drawing(size=64)
    raw = torch.cat([drawing.read(s) for s in (ALANINE, SALT)])
    y = registry.build_encoder("drawing", "conv", width=8, dim=16)(drawing(raw))
    assert y.shape == (2, 16)
    features = drawing.simple_features(raw)
    assert (
        features.shape == (2, 3 * 32 * 32)
        and 0 <= features.min()
        and features.max() < 1.001
        and not torch.equal(*features)
    )


def test_drawing_is_quick():
    drawing = Drawing(size=64)
    drawing.read(ALANINE)
    started = time.perf_counter()
    for seed in range(20):
        drawing.read(
            "COC(=O)C1=CO[C@H](O[C@@H]2O[C@H](CO)[C@@H](O)[C@H](O)[C@H]2O)[C@@H]2[C@H]1C=C[C@]2(O)CO",
            np.random.default_rng(seed),
        )
    assert (time.perf_counter() - started) / 20 < 0.05
