"""Text: a string -> token ids and their mask.

a: {modality: text, encoder: {name: bytes_cnn}}  # bytes, nothing to download
a: {modality: {name: text, length: 256, lower: true, drop: 0.1}, encoder: {name: words}}
a: {modality: {name: text, tokenizer: /models/bert}, encoder: {name: transformers, weights: /models/bert}}
"""

# B batch, L tokens

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vicjoint.facts import hashing
from vicjoint.files.paths import user_path
from vicjoint.library import LibraryPart, ask_hub, how_to_fetch
from vicjoint.options import ShareBelowOne
from vicjoint.parts import Modality
from vicjoint.registry import ComponentError, need, register

EOS = 1  # of ByT5; byte b is id b + hashing.BYTE_OFFSET, padding is 0
BUCKETS = 1024  # of each kind of count in simple_features
SHOWN = 40  # characters of a text in a message


@register("modality", "text")
class Text(Modality, LibraryPart):
    """Raw view: (ids [1, L] int64, mask [1, L] bool, True on tokens). In batches, shorter texts are padded at
    the end with the tokenizer's own padding id and mask False: encoders go by the mask.

    tokenizer: `bytes`, the ids of ByT5 (UTF-8 bytes + 3, padding 0, end 1; text such as `</s>` is plain
    bytes), or a tokenizer of the transformers library: a folder made by save_pretrained, or a hub id
    (online). length: most tokens of a view, the end token included; a longer text is cut at its end, in
    training too, since texts begin with what they are about. lower: lower-case letters first. drop: share of
    the words left out at random in training, so that no single word is relied on; one is always left.
    """

    reads = "text"
    baseline = "word_counts"
    reading = ("tokenizer", "length", "lower", "drop")
    saved = {"tokenizer": "tokenizer_config.json"}

    def __init__(
        self,
        tokenizer: str = "bytes",
        length: Annotated[int, Field(ge=2)] = 128,
        lower: bool = False,
        drop: ShareBelowOne = 0.0,
    ):
        super().__init__()
        self.length, self.lower, self.drop = length, lower, drop
        self.tokenizer = None if tokenizer == "bytes" else load_tokenizer(tokenizer)
        self.padding = 0 if self.tokenizer is None else self.tokenizer.pad_token_id or 0

    def read(self, value: str, rng: np.random.Generator | None = None, window=None) -> tuple[Tensor, Tensor]:
        """(ids [1, L], mask [1, L]). Raises ValueError for what is no text, empty, not UTF-8, or has NUL
        characters."""
        text = checked(value)
        if self.lower:
            text = text.lower()
        if rng is not None and self.drop:
            text = drop_words(text, self.drop, rng)
        if self.tokenizer is None:
            ids = [b + hashing.BYTE_OFFSET for b in text.encode()[: self.length - 1]] + [EOS]
        else:
            ids = self.tokenizer(text, truncation=True, max_length=self.length)["input_ids"]
            if not ids:
                raise ValueError(f"text '{text[:SHOWN]}' has no tokens: its tokenizer knows none of it.")
        return torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool)

    def forward(self, raw: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The same, with the tokenizer's padding id where the mask is False."""
        ids_BL, mask_BL = raw
        return ids_BL.masked_fill(~mask_BL, self.padding), mask_BL

    def simple_features(self, raw: tuple[Tensor, Tensor]) -> Tensor:
        """[B, 2048]: counts of words (with another tokenizer: of tokens) and of neighbouring tokens, hashed
        into 1024 buckets each; log(1 + n), and each half of length 1, so that long texts weigh no more than
        short ones."""
        ids_BL, mask_BL = raw
        single = hashing.word_codes(ids_BL, mask_BL) if self.tokenizer is None else (ids_BL, mask_BL)
        halves = [
            hashing.counts(*codes, BUCKETS).log1p()
            for codes in (single, hashing.neighbour_codes(ids_BL, mask_BL))
        ]
        return torch.cat([torch.nn.functional.normalize(half) for half in halves], 1)

    def preprocessing(self, seconds: float | None = None) -> dict[str, Any]:
        bytes_ = f"UTF-8 bytes + {hashing.BYTE_OFFSET}, then {EOS}"
        return {
            "tokenizer": bytes_ if self.tokenizer is None else type(self.tokenizer).__name__,
            "max_length": self.length,
            "do_lower_case": self.lower,
            "pad_token_id": self.padding,
        }

    def save(self, folder: Path) -> None:
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def checked(value: str) -> str:
    """`value`, if it is text that can be encoded. Raises ValueError with the cause."""
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {type(value).__name__} {value!r:.{SHOWN}}.")
    if not value.strip():
        raise ValueError("the text is empty.")
    if "\0" in value:
        raise ValueError(
            f"text '{value[:SHOWN]!r}' has a NUL character at place {value.index(chr(0))}: it is damaged, or"
            " not text."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text {value[:SHOWN]!r} is not UTF-8: {error.reason} at place {error.start}. Save its file as"
            " UTF-8."
        ) from None
    return value


def drop_words(text: str, share: float, rng: np.random.Generator) -> str:
    """The text with each word left out with probability `share`; at least one stays. White space becomes
    single spaces."""
    words = text.split()
    keep = rng.random(len(words)) >= share
    keep[rng.integers(len(words))] |= not keep.any()
    return " ".join(word for word, kept in zip(words, keep) if kept)


def load_tokenizer(name: str):
    """A transformers tokenizer from a folder or by hub id. Raises ComponentError with what was looked for."""
    (transformers,) = need(["transformers"], f"modality 'text' with tokenizer '{name}'", "text")
    folder = user_path(name)
    if not folder.is_dir() and (name[0] in "./~" or name.count("/") > 1):
        raise ComponentError(
            f"modality 'text': tokenizer '{name}' was not found: no folder {folder.absolute()}. Expected"
            " bytes, a folder made by save_pretrained, or a hub id such as 'google-bert/bert-base-uncased'."
        )
    ask_hub(folder)
    try:
        return transformers.AutoTokenizer.from_pretrained(
            str(folder) if folder.is_dir() else name, trust_remote_code=False
        )
    except ImportError as error:
        raise ComponentError(
            f"modality 'text': tokenizer '{name}' needs another package ({first_line(error)}): pip install"
            " 'vicjoint[text]'"
        ) from None
    except Exception as error:  # each kind of tokenizer has its own ways to be missing or broken
        raise ComponentError(
            f"modality 'text': tokenizer '{name}' was not found or cannot be read: looked for the folder"
            f" {folder.absolute()}, then for that id on the hub ({first_line(error)})."
            f" {how_to_fetch(name)}"
        ) from None


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
