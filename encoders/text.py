"""Encoders of text: view (ids [B, L] int64, mask [B, L] bool) -> y [B, dim]. Padding is masked everywhere: y
depends on the tokens alone.

    encoder: {name: bytes_cnn, width: 64}  # convolutions over bytes: quick on a CPU
    encoder: {name: transformer, width: 128, layers: 2}  # a small transformer, of bytes or of any tokens
    encoder: {name: words}  # hashed bag of words: what a simple method reaches
    encoder: {name: word_gru}                                         # the same words in their order
    encoder: {name: transformers, model: bert, config: {vocab_size: 384, hidden_size: 64}}
    # a hub id (online), or a local folder
    encoder: {name: transformers, weights: sentence-transformers/all-MiniLM-L6-v2}
"""

# B batch, L tokens, C channels, D representation

import math
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from encoders.transformers_models import made_by, save_transformer, tower_of
from vicjoint.facts.hashing import BYTE_VOCABULARY, buckets_of, word_codes
from vicjoint.library import LibraryPart
from vicjoint.options import Count
from vicjoint.registry import ComponentError, need, register_encoder
from vicjoint.tokens import TokenEncoder


class Tokens(nn.Module):
    """Embedding of ids [B, L] -> [B, L, C]; says in words when the ids are not of this vocabulary."""

    def __init__(self, vocabulary: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)

    def forward(self, ids_BL: Tensor) -> Tensor:
        check_vocabulary(ids_BL, self.embedding.num_embeddings, "the encoder's vocabulary")
        return self.embedding(ids_BL)


def check_vocabulary(ids_BL: Tensor, vocabulary: int, option: str) -> None:
    # on a GPU the look would cost a wait in every step
    if not ids_BL.is_cuda and ids_BL.numel() and ids_BL.max() >= vocabulary:
        raise ValueError(
            f"token id {int(ids_BL.max())} is outside a vocabulary of {vocabulary}. "
            f"Set {option} to the number of tokens that the modality's tokenizer has."
        )


def masked_mean(x_BLC: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean over the positions where the mask is True, [B, C]."""
    weight = mask_BL.to(x_BLC.dtype)
    return torch.einsum("blc,bl->bc", x_BLC.masked_fill(~mask_BL[..., None], 0), weight) / weight.sum(
        1, keepdim=True
    ).clamp(min=1)


def masked_max(x_BLC: Tensor, mask_BL: Tensor) -> Tensor:
    return x_BLC.masked_fill(~mask_BL[..., None], torch.finfo(x_BLC.dtype).min).amax(1)


class ConvBlock(nn.Module):
    """x + gelu(convolution of the normalised x). The norm is over channels of one position, so that no
    position's padding or neighbour batch changes it; the convolution sees zeros on padding, as it does beyond
    the end."""

    def __init__(self, width: int, kernel: int, dilation: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        # a convolution of pictures one pixel high: with channels last it takes half the time of Conv1d on a
        # CPU
        self.conv = nn.Conv2d(
            width, width, (1, kernel), padding=(0, dilation * (kernel - 1) // 2), dilation=(1, dilation)
        )

    def forward(self, x_BLC: Tensor, mask_BL: Tensor) -> Tensor:
        h_BLC = self.norm(x_BLC).masked_fill(~mask_BL[..., None], 0)
        h_BLC = self.conv(h_BLC.transpose(1, 2)[:, :, None])[:, :, 0].transpose(1, 2)
        return x_BLC + nn.functional.gelu(h_BLC)


class SequenceCNN(TokenEncoder, nn.Module):
    """Embedding, `layers` residual convolutions whose dilation doubles, masked mean and maximum over
    positions, and a linear layer to `dim`. A position sees (kernel - 1) * (2^layers - 1) + 1 tokens. ends:
    the means over the first and over the last so many positions go in too.
    """

    def __init__(self, vocabulary: int, width: int, layers: int, kernel: int, dim: int, ends: int = 0):
        super().__init__()
        if kernel % 2 == 0:
            raise ComponentError(
                f"encoder: kernel is {kernel}, expected an odd number, so that a position has as many"
                " neighbours on both sides."
            )
        self.dim, self.ends = dim, ends
        self.tokens = Tokens(vocabulary, width)
        self.blocks = nn.ModuleList(ConvBlock(width, kernel, 2**i) for i in range(layers))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear((4 if ends else 2) * width, dim)

    def forward_tokens(self, view: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        ids_BL, mask_BL = view
        x_BLC = self.tokens(ids_BL)
        for block in self.blocks:
            x_BLC = block(x_BLC, mask_BL)
        return self.norm(x_BLC), mask_BL

    def forward(self, view: tuple[Tensor, Tensor]) -> Tensor:
        x_BLC, mask_BL = self.forward_tokens(view)
        pooled = [masked_mean(x_BLC, mask_BL), masked_max(x_BLC, mask_BL)]
        if self.ends:
            place, number = mask_BL.cumsum(1), mask_BL.sum(1, keepdim=True)
            pooled += [
                masked_mean(x_BLC, mask_BL & part)
                for part in (place <= self.ends, place > number - self.ends)
            ]
        return self.project(torch.cat(pooled, 1))


@register_encoder("text", "bytes_cnn")
def bytes_cnn(
    width: Count = 64,
    layers: Count = 3,
    kernel: Count = 5,
    dim: Count = 256,
    vocabulary: Count = BYTE_VOCABULARY,
) -> SequenceCNN:
    """Convolutions over bytes: at the default size a position sees 29 bytes, some five words."""
    return SequenceCNN(vocabulary, width, layers, kernel, dim)


class SequenceTransformer(TokenEncoder, nn.Module):
    """`tokens`, a module that makes [B, L, width] of what a view holds, and positions, `layers` pre-norm
    transformer layers with padding masked, masked mean, and a linear layer to `dim`.

    positions: `sinusoidal` (any length) or `learned` (views of up to `length` tokens)."""

    def __init__(
        self,
        tokens: nn.Module,
        width: int,
        layers: int,
        heads: int,
        dim: int,
        positions: Literal["sinusoidal", "learned"],
        length: int,
    ):
        super().__init__()
        if width % (2 * heads):
            raise ComponentError(
                f"encoder 'transformer': width {width} cannot be shared by {heads} heads. Expected a multiple"
                f" of {2 * heads}."
            )
        self.dim = dim
        self.tokens = tokens
        self.positions = nn.Parameter(0.02 * torch.randn(length, width)) if positions == "learned" else None
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.project = nn.Linear(width, dim)

    def forward(self, view: tuple[Tensor, Tensor]) -> Tensor:
        return self.project(masked_mean(*self.forward_tokens(view)))

    def forward_tokens(self, view: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        ids_BL, mask_BL = view
        x_BLC = self.tokens(ids_BL)
        return self.layers(x_BLC + self._positions(x_BLC), src_key_padding_mask=~mask_BL), mask_BL

    def _positions(self, x_BLC: Tensor) -> Tensor:
        length, width = x_BLC.shape[1:]
        if self.positions is None:
            return sinusoids(length, width, x_BLC.device).to(x_BLC.dtype)
        if length > len(self.positions):
            raise ValueError(
                f"a view of {length} tokens is longer than the {len(self.positions)} learned positions. "
                "Set the encoder's length to it, or cut the text with the modality's length."
            )
        return self.positions[:length]


def sinusoids(length: int, width: int, device) -> Tensor:
    """[length, width]: sines, then cosines of the position at width / 2 wavelengths from 2 pi to 10000 * 2 pi
    (Vaswani et al. 2017)."""
    rates = torch.exp(torch.arange(width // 2, device=device) * (-math.log(10000) / max(width // 2 - 1, 1)))
    turn = torch.arange(length, device=device)[:, None] * rates
    return torch.cat([turn.sin(), turn.cos()], 1)


@register_encoder("text", "transformer")
class TextTransformer(SequenceTransformer):
    """A small transformer over bytes, or over any tokens with `vocabulary` set to the tokenizer's."""

    def __init__(
        self,
        width: Count = 128,
        layers: Count = 2,
        heads: Count = 4,
        dim: Count = 256,
        positions: Literal["sinusoidal", "learned"] = "sinusoidal",
        length: Count = 1024,
        vocabulary: Count = BYTE_VOCABULARY,
    ):
        super().__init__(Tokens(vocabulary, width), width, layers, heads, dim, positions, length)


class Words(nn.Module):
    """Embedding of each word's hash: view -> ([B, L, width], valid [B, L]), zero where there is no word.

    unit: `word`, runs of letters in the bytes of the default tokenizer; `token`, the ids of any other.
    buckets: of the hash.
    """

    def __init__(self, width: int, buckets: int, unit: str):
        super().__init__()
        self.unit = unit
        self.embedding = nn.Embedding(buckets, width)

    def forward(self, view: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        codes_BL, valid_BL = word_codes(*view) if self.unit == "word" else view
        x_BLC = self.embedding(buckets_of(codes_BL, self.embedding.num_embeddings))
        return x_BLC.masked_fill(~valid_BL[..., None], 0), valid_BL


@register_encoder("text", "words")
class BagOfWords(TokenEncoder, nn.Module):
    """Mean of the words' embeddings and two layers: without the order of words. `unit` and `buckets` as in
    Words."""

    def __init__(
        self,
        width: Count = 128,
        dim: Count = 256,
        buckets: Count = 8192,
        unit: Literal["word", "token"] = "word",
    ):
        super().__init__()
        self.dim = dim
        self.words = Words(width, buckets, unit)
        self.project = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, dim), nn.ReLU(inplace=True), nn.Linear(dim, dim)
        )

    def forward(self, view: tuple[Tensor, Tensor]) -> Tensor:
        return self.project(masked_mean(*self.forward_tokens(view)))

    def forward_tokens(self, view: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.words(view)


@register_encoder("text", "word_gru")
class WordGRU(TokenEncoder, nn.Module):
    """A GRU over the words' embeddings; y is its state after the last word (VSE++, Faghri et al. 2018).
    `unit` and `buckets` as in Words."""

    def __init__(
        self,
        width: Count = 128,
        dim: Count = 256,
        buckets: Count = 8192,
        unit: Literal["word", "token"] = "word",
    ):
        super().__init__()
        self.dim = dim
        self.words = Words(width, buckets, unit)
        self.gru = nn.GRU(width, dim, batch_first=True)

    def forward_tokens(self, view: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x_BLC, valid_BL = self.words(view)
        return self.gru(x_BLC)[0], valid_BL

    def forward(self, view: tuple[Tensor, Tensor]) -> Tensor:
        states_BLD, valid_BL = self.forward_tokens(view)
        last_B = (valid_BL.sum(1) - 1).clamp(min=0)  # states after it have seen padding
        return states_BLD[torch.arange(len(last_B), device=last_B.device), last_B]


@register_encoder("text", "transformers")
class PretrainedText(LibraryPart, TokenEncoder, nn.Module):
    """A text model of the transformers library: `model`, a type such as 'bert', 'distilbert', 't5', with
    random weights and `config` overrides; or `weights`, a local folder or a hub id. Of an encoder-decoder
    model the encoder is taken, of a model of pictures and texts (CLIP, SigLIP) the text tower. pool: `mean`
    over tokens, `cls`, the first token, or `pooler`, what the model itself pools, as CLIP was trained.

    Raises ComponentError for an unknown model, an unknown config key, weights that cannot be found, and
    models that take no token ids.
    """

    def __init__(
        self,
        model: str | None = None,
        weights: str | None = None,
        config: dict | None = None,
        pool: Literal["mean", "cls", "pooler"] = "mean",
    ):
        super().__init__()
        need(["transformers"], "encoder 'text/transformers'", "text")
        made, missing = made_by(model, weights, config, "transformers", "bert")
        made = tower_of(made, "text")
        if made.main_input_name != "input_ids" or not hasattr(made.config, "vocab_size"):
            raise ComponentError(
                f"encoder 'transformers': {type(made).__name__} takes {made.main_input_name}, not token ids"
                " of one text. Choose a text model, e.g. 'bert', 'distilbert', 't5', 'gpt2'."
            )
        self.pool = pool
        made = made.get_encoder() if made.config.is_encoder_decoder else made
        self.model = made if pool == "pooler" else without_heads(made)
        self.dim = self.model.config.hidden_size
        if pool == "pooler" and any("pooler" in key for key in missing):
            raise ComponentError(
                f"encoder 'transformers': weights '{weights}' have no pooler. Set pool: mean, or cls."
            )

    def forward_tokens(self, view: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self._out(view).last_hidden_state, view[1]

    def _out(self, view: tuple[Tensor, Tensor]):
        ids_BL, mask_BL = view
        check_vocabulary(ids_BL, self.model.config.vocab_size, "config.vocab_size")
        return self.model(input_ids=ids_BL, attention_mask=mask_BL.long())

    def forward(self, view: tuple[Tensor, Tensor]) -> Tensor:
        if self.pool == "pooler":
            return self._pooled(view)
        hidden_BLC, mask_BL = self.forward_tokens(view)
        return masked_mean(hidden_BLC, mask_BL) if self.pool == "mean" else hidden_BLC[:, 0]

    def _pooled(self, view: tuple[Tensor, Tensor]) -> Tensor:
        pooled = getattr(self._out(view), "pooler_output", None)
        if pooled is None:
            raise ValueError(
                f"{type(self.model).__name__} pools nothing itself. Set the encoder's pool: mean."
            )
        return pooled

    def save(self, folder: Path) -> None:
        """Of an encoder-decoder model its encoder, by the names that it has in the whole one."""
        state = self.model.state_dict()
        if self.model.config.is_encoder_decoder:
            tokens = self.model.get_input_embeddings().weight.detach().clone()
            state = {"shared.weight": tokens} | {f"encoder.{name}": x for name, x in state.items()}
        save_transformer(self.model, folder, state)


def without_heads(model: nn.Module) -> nn.Module:
    """The model without the parts behind its last hidden state: nothing here reads them, so they would get no
    gradient."""
    for head in ("pooler", "contact_head"):
        if getattr(model, head, None) is not None:
            setattr(model, head, None)
    return model
