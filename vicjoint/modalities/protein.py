"""Proteins: a string of one-letter residues -> token ids of ESM-2 and their mask.

a: {modality: {name: protein, length: 512}, encoder: {name: cnn}}
a: {modality: {name: protein, length: 1022, crop: ends}, encoder: {name: esm, weights:
/models/esm2_t6_8M_UR50D}}
"""

# B batch, L tokens

import re
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vicjoint.options import ShareBelowOne
from vicjoint.parts import Modality
from vicjoint.registry import register

# the order of ESM-2's tokenizer; ids are places in it
ALPHABET = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
ID_OF = {token: i for i, token in enumerate(ALPHABET)}
CLS, PAD, EOS, X, DOT, GAP, MASK = (
    ID_OF[token] for token in ("<cls>", "<pad>", "<eos>", "X", ".", "-", "<mask>")
)
AMINO_ACIDS = "LAGVSERTIDPKQNFYMHWC"  # ids 4 .. 23
LEAST = 4  # residues of the shortest window
# residues whose composition simple_features gives for each end, where signals of the place in the cell are
END = 30
SHOWN = 20  # residues of a sequence in a message


@register("modality", "protein")
class Protein(Modality):
    """Raw view: (ids [1, L] int64, mask [1, L] bool, True on tokens). In batches, shorter proteins are padded
    at the end; the mask says where, and `forward` puts ESM's padding id 1 there (0 is <cls>).

    length: most residues of a view. crop: which of a longer protein: `random`, a window anywhere in training
    and the middle one in evaluation; `start`, `middle`; `ends`, half from the start and half from the end
    with a gap token between, for what is written in the ends (signals of the place in the cell), so the view
    has at most length + 3 tokens. As in ESM, <cls> stands only before a protein's true start and <eos> only
    after its true end. mask: share of the residues that training hides behind <mask>, drawn anew each time,
    so that no single one is relied on. unknown: what stands for no known residue (X, B, Z, J): `x` takes them
    (J as X), `error` refuses the protein. White space and a final stop `*` are left out; lower case is read
    as upper case; '-' and '.' are gap tokens.
    """

    reads = "text"
    baseline = "composition"
    reading = ("length", "crop", "mask", "unknown")

    def __init__(
        self,
        length: Annotated[int, Field(ge=LEAST)] = 512,
        crop: Literal["random", "start", "middle", "ends"] = "random",
        mask: ShareBelowOne = 0.0,
        unknown: Literal["x", "error"] = "x",
    ):
        super().__init__()
        self.length, self.crop, self.mask, self.unknown = length, crop, mask, unknown

    def read(self, value: str, rng: np.random.Generator | None = None, window=None) -> tuple[Tensor, Tensor]:
        """(ids [1, L], mask [1, L]). Raises ValueError for an empty sequence and for signs that are no
        residues."""
        residues = [ID_OF.get(letter, X) for letter in clean(value, strict=self.unknown == "error")]
        n = len(residues)
        if n <= self.length:
            ids = [CLS, *residues, EOS]
        elif self.crop == "ends":
            head = (self.length + 1) // 2
            ids = [CLS, *residues[:head], GAP, *residues[n - self.length + head :], EOS]
        else:
            last = n - self.length
            start = {
                "start": 0,
                "middle": last // 2,
                "random": last // 2 if rng is None else int(rng.integers(last + 1)),
            }[self.crop]
            ids = [CLS] * (start == 0) + residues[start : start + self.length] + [EOS] * (start == last)
        ids = torch.tensor([ids])
        if rng is not None and self.mask:
            hidden = torch.from_numpy(rng.random(ids.shape) < self.mask)
            ids[hidden & (ids > EOS)] = MASK
        return ids, torch.ones_like(ids, dtype=torch.bool)

    def forward(self, raw: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The same, with ESM's padding id where the mask is False."""
        ids_BL, mask_BL = raw
        return ids_BL.masked_fill(~mask_BL, PAD), mask_BL

    def simple_features(self, raw: tuple[Tensor, Tensor]) -> Tensor:
        """[B, 64]: share of each of the 20 amino acids in ESM's order and of all other residues, in the whole
        view, in its first and in its last 30 residues; log10 of the number of residues."""
        ids_BL, mask_BL = raw
        residue = mask_BL & (ids_BL > EOS) & (ids_BL < DOT)
        kind = torch.nn.functional.one_hot(
            (ids_BL - ID_OF["L"]).clamp(0, len(AMINO_ACIDS)), len(AMINO_ACIDS) + 1
        ).float()
        place, number = residue.cumsum(1), residue.sum(1, keepdim=True)
        parts = [residue, residue & (place <= END), residue & (place > number - END)]
        shares = [(kind * part[..., None]).sum(1) / part.sum(1, keepdim=True).clamp(min=1) for part in parts]
        return torch.cat([*shares, number.clamp(min=1).log10()], 1)

    def preprocessing(self, seconds: float | None = None) -> dict[str, Any]:
        crop = "middle" if self.crop == "random" else self.crop
        return {"tokenizer": "ESM-2", "residues": self.length, "crop": crop, "pad_token_id": PAD}


def clean(value: str, strict: bool = False) -> str:
    """A sequence in upper case without white space and final stop. Raises ValueError for an empty one, for
    signs that are no residues, and if `strict` for residues that are not known."""
    if not isinstance(value, str):
        raise ValueError(
            f"expected a protein sequence as text, got {type(value).__name__} {value!r:.{SHOWN}}."
        )
    text = "".join(value.split()).upper()
    text = text.removesuffix("*")
    if not text.strip("-."):
        raise ValueError("the protein sequence is empty.")
    if wrong := re.search(r"[^A-Z.-]", text):
        sign, place = wrong.group(), wrong.start() + 1
        what = "a stop inside it" if sign == "*" else f"{sign!r}, which is no residue,"
        raise ValueError(
            f"protein {text[:SHOWN]}... has {what} at place {place}. Expected one-letter residues such as"
            " MKTAYIAK."
        )
    if strict and (wrong := re.search("[XBZJ]", text)):
        raise ValueError(
            f"protein {text[:SHOWN]}... has the unknown residue {wrong.group()} at place {wrong.start() + 1}."
            " Remove it, or set the modality's unknown=x."
        )
    return text
