"""Drawings of molecules: a SMILES string -> the structural formula as a picture, for any encoder of images.

drawing = Drawing(size=128)
raw = drawing.read("c1ccccc1O")                   # uint8 [1, 3, 128, 128], dark lines on white
view = drawing(raw)                               # float, normalised
"""

import io
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from vicjoint.modalities.image import Pixels
from vicjoint.modalities.molecule import parse, shortened
from vicjoint.options import Share
from vicjoint.registry import need, register


@register("modality", "drawing")
class Drawing(Pixels):
    """SMILES -> rdkit's drawing, uint8 [1, 3, size, size], then (x / 255 - mean) / std with ImageNet's
    constants.

    size: side in pixels. rotate: in training the structure is turned by up to so many degrees either way;
    flip: and mirrored with this probability. Both move the atoms, not the pixels: letters stay upright, and
    wedges are drawn anew, so the molecule stays the same one. max_atoms: a larger molecule is a bad sample.
    """

    reads = "text"
    reading = ("size", "rotate", "flip", "max_atoms")

    def __init__(
        self,
        size: Annotated[int, Field(ge=16, le=4096)] = 128,
        rotate: Annotated[float, Field(ge=0, le=180)] = 180.0,
        flip: Share = 0.5,
        max_atoms: Annotated[int, Field(ge=1, le=100_000)] = 1024,
    ):
        super().__init__()
        need(["rdkit.Chem"], "modality 'drawing'", "molecule")
        self.size, self.rotate, self.flip, self.max_atoms = size, rotate, flip, max_atoms

    def read(self, value: str, rng: np.random.Generator | None = None, window=None) -> Tensor:
        """uint8 [1, 3, size, size]. Raises ValueError for an invalid SMILES and for one that is too large."""
        molecule = parse(value, self.max_atoms)
        if molecule.GetNumAtoms() > self.max_atoms:
            raise ValueError(
                f"'{shortened(value)}' has {molecule.GetNumAtoms()} atoms, max_atoms is {self.max_atoms}. "
                "Leave it out, or raise max_atoms"
            )
        turn, mirrored = (
            (0.0, False)
            if rng is None
            else (rng.uniform(-self.rotate, self.rotate), rng.random() < self.flip)
        )
        return draw(place(molecule, turn, mirrored), self.size)[None]

    def preprocessing(self, seconds: float | None = None) -> dict[str, Any]:
        drawn = {"drawing": "rdkit MolDraw2DCairo of the SMILES", "shape": [3, self.size, self.size]}
        return super().preprocessing() | drawn


def place(molecule, turn_degrees: float, mirrored: bool):
    """The molecule with atoms in the plane, where rdkit puts them, turned and mirrored."""
    from rdkit.Chem import rdDepictor

    rdDepictor.Compute2DCoords(molecule)
    angle = np.deg2rad(turn_degrees)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * (
        [-1, 1] if mirrored else [1, 1]
    )
    places = molecule.GetConformer().GetPositions()
    places[:, :2] = places[:, :2] @ matrix.T
    molecule.GetConformer().SetPositions(places)
    return molecule


def draw(molecule, size: int) -> Tensor:
    """uint8 [3, size, size]: rdkit's drawing of a molecule whose atoms are in the plane."""
    from rdkit import rdBase
    from rdkit.Chem.Draw import rdMolDraw2D

    with rdBase.BlockLogs():
        canvas = rdMolDraw2D.MolDraw2DCairo(size, size)
        canvas.DrawMolecule(molecule)
        canvas.FinishDrawing()
        png = canvas.GetDrawingText()
    return (
        torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("RGB"))).permute(2, 0, 1).contiguous()
    )
