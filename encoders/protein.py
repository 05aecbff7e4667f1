"""Encoders of proteins: view (ids [B, L] int64 of ESM-2's alphabet, mask [B, L] bool) -> y [B, dim]; padding
is masked everywhere.

    encoder: {name: cnn, width: 64}                                   # dilated convolutions: quick on a CPU
    encoder: {name: transformer, width: 128, layers: 2}
    encoder: {name: esm, config: {num_hidden_layers: 4}}  # ESM-2's architecture, small, random weights
    encoder: {name: esm, weights: /models/esm2_t6_8M_UR50D}  # ESM-2: a local folder, or a hub id (online)
"""

# B batch, L tokens, C channels, D representation

from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from encoders.text import (
    SequenceCNN,
    SequenceTransformer,
    Tokens,
    check_vocabulary,
    masked_mean,
    without_heads,
)
from encoders.transformers_models import load_transformer, random_transformer, save_transformer
from vicjoint.library import LibraryPart
from vicjoint.options import Count, Natural
from vicjoint.registry import ComponentError, need, register_encoder
from vicjoint.tokens import TokenEncoder

VOCABULARY = 33  # of ESM-2; ids 0, 1, 2 are <cls>, <pad>, <eos>
LAST_SPECIAL = 2
SMALL_ESM = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 1,
    "mask_token_id": 32,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "position_embedding_type": "rotary",
    "emb_layer_norm_before": False,
    "token_dropout": False,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@register_encoder("protein", "cnn")
def protein_cnn(
    width: Count = 64, layers: Natural = 5, kernel: Count = 5, dim: Count = 256, ends: Natural = 32
) -> SequenceCNN:
    """Dilated convolutions over residues: at the default size a position sees 125 of them, a small domain.
    ends: the first and the last so many positions are averaged by themselves too, where signals of the place
    in the cell are; 0: they are not."""
    return SequenceCNN(VOCABULARY, width, layers, kernel, dim, ends)


@register_encoder("protein", "transformer")
class ProteinTransformer(SequenceTransformer):
    """A small transformer over residues; `length` counts tokens, so learned positions need the modality's
    length + 3."""

    def __init__(
        self,
        width: Count = 128,
        layers: Count = 2,
        heads: Count = 4,
        dim: Count = 256,
        positions: Literal["sinusoidal", "learned"] = "sinusoidal",
        length: Count = 1026,
    ):
        tokens = Tokens(VOCABULARY, width)
        super().__init__(tokens, width, layers, heads, dim, positions, length)


@register_encoder("protein", "esm")
class ESM(LibraryPart, TokenEncoder, nn.Module):
    """ESM-2 of the transformers library (Lin et al. 2023), mean over residues without <cls> and <eos>.

    config: overrides of a small random one (3 layers of 64); or weights: a folder made by save_pretrained, or
    a hub id such as 'facebook/esm2_t6_8M_UR50D'. Raises ComponentError for wrong config keys, weights that
    cannot be found, and models that are not ESM.
    """

    def __init__(self, weights: str | None = None, config: dict | None = None):
        super().__init__()
        if weights and config:
            raise ComponentError(
                "encoder 'esm' takes either weights: a local folder or a hub id, or config: overrides of a"
                " small random model."
            )
        need(["transformers"], "encoder 'protein/esm'", "protein")
        made = (
            load_transformer(weights, "esm")[0]
            if weights
            else random_transformer("esm", SMALL_ESM | (config or {}), "esm")
        )
        if made.config.model_type != "esm":
            raise ComponentError(
                f"encoder 'esm': weights '{weights}' are of a model of type '{made.config.model_type}',"
                " expected 'esm', such as facebook/esm2_t6_8M_UR50D."
            )
        self.model = without_heads(made)
        self.dim = made.config.hidden_size

    def forward(self, view: tuple[Tensor, Tensor]) -> Tensor:
        return masked_mean(*self.forward_tokens(view))

    def forward_tokens(self, view: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        ids_BL, mask_BL = view
        check_vocabulary(ids_BL, self.model.config.vocab_size, "config.vocab_size")
        hidden_BLC = self.model(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state
        return hidden_BLC, mask_BL & (ids_BL > LAST_SPECIAL)

    def save(self, folder: Path) -> None:
        save_transformer(self.model, folder)
