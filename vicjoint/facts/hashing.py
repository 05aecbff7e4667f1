"""Words and neighbours in batches of token ids as hashed numbers: no vocabulary, no training, the same on
every machine.

    codes, valid = word_codes(ids, mask)              # one number per word of a batch of byte ids
    features = counts(codes, valid, buckets=1024)     # [B, 1024]: how often each bucket occurs
"""

# B batch, L tokens

import functools

import torch
from torch import Tensor

BYTE_OFFSET = 3  # ByT5: ids 0, 1, 2 are pad, eos, unk; byte b is id b + 3
BYTE_VOCABULARY = 384  # ByT5: 3 special ids, 256 bytes, 125 sentinels that its pretraining used
_FACTOR = 1_000_003
# bytes of characters beyond ASCII belong to words
_LETTERS = [chr(b).isalnum() or b >= 128 or b == ord("'") for b in range(256)]


def word_codes(ids_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """(codes [B, L] int64, valid [B, L] bool) of the words in ByT5's byte ids, in order, `valid` where there
    is one. A word is a run of letters, digits, apostrophes and non-ASCII bytes; its code depends on its bytes
    alone, not on where it stands or on the padding.
    """
    letter = _letters(ids_BL.device)[ids_BL.clamp(max=BYTE_VOCABULARY - 1)] & mask_BL
    starts = letter.clone()
    starts[:, 1:] &= ~letter[:, :-1]
    place = torch.arange(ids_BL.shape[1], device=ids_BL.device).expand_as(ids_BL)
    inside = place - torch.where(starts, place, 0).cummax(1).values  # place within the word
    value = _mix(ids_BL + BYTE_VOCABULARY * inside) * letter
    word = starts.cumsum(1) * letter  # 0: no word
    codes = torch.zeros(
        len(ids_BL), ids_BL.shape[1] + 1, dtype=torch.int64, device=ids_BL.device
    ).scatter_add_(1, word, value)
    return codes[:, 1:], place < starts.sum(1, keepdim=True)


@functools.cache  # made once on each device: a copy of what is not pinned makes a GPU wait
def _letters(device: torch.device) -> Tensor:
    """Which ids are bytes of words, [BYTE_VOCABULARY] bool."""
    letters = torch.zeros(BYTE_VOCABULARY, dtype=torch.bool)
    letters[BYTE_OFFSET : BYTE_OFFSET + 256] = torch.tensor(_LETTERS)
    return letters.to(device)


def neighbour_codes(ids_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """(codes [B, L - 1], valid) of each two tokens that stand side by side."""
    return ids_BL[:, :-1] * _FACTOR + ids_BL[:, 1:], mask_BL[:, :-1] & mask_BL[:, 1:]


def buckets_of(codes: Tensor, buckets: int) -> Tensor:
    """A bucket number in 0 .. buckets - 1 for each code."""
    return _mix(codes) % buckets


def counts(codes_BL: Tensor, valid_BL: Tensor, buckets: int) -> Tensor:
    """How often each bucket occurs among the valid codes, [B, buckets] float32."""
    empty = torch.zeros(len(codes_BL), buckets, device=codes_BL.device)
    return empty.scatter_add_(1, buckets_of(codes_BL, buckets), valid_BL.float())


def _mix(codes: Tensor) -> Tensor:
    """Well-spread int64 of int64, by two rounds of multiply and shift; overflow wraps, the same
    everywhere."""
    for factor in (-7046029254386353131, -4658895280553007687):  # odd 64-bit constants of splitmix64, signed
        codes = (codes ^ (codes >> 31)) * factor
    return codes ^ (codes >> 31)
