"""Windows of videos through both branches of a row, as the probes of the pair next_frame look at them."""

# F frames, T context frames, B batch, D representation, E embedding, C condition

from collections.abc import Sequence

import torch
from torch import Tensor

from vicjoint.parts import EvaluationData, Features

EMBED_AT_ONCE = 256  # frames, or clips' frames, in one forward pass


def too_short(data: EvaluationData) -> str | None:
    """Why there is nothing that goes straight on to a frame after it, or None."""
    if data.pair.frames < 2 or not data.pair.gap:
        return "it needs two context frames or more, and a frame after them (pair.frames, pair.gap)"
    return None


def of_frames(features: Features, row: str, frames: list[Tensor]) -> list[Tensor]:
    """z_b [F, E] of each video's frames [F, 3, size, size]."""
    together = torch.cat(frames).split(EMBED_AT_ONCE)
    z_b = features.embed(row, "b", features.represent(row, "b", together)).cpu()
    return list(z_b.split([len(of) for of in frames]))


def of_clips(
    features: Features, row: str, clips: list[Tensor], conditions: Sequence[Tensor | None]
) -> tuple[list[Tensor], Sequence[Tensor]]:
    """(y_a [B, ...], conditions [B, ...] or none) of clips [T, 3, size, size], some at once; conditions:
    those of each video's clips, where there are such."""
    at_once = max(1, EMBED_AT_ONCE // len(clips[0]))
    parts = [torch.stack(clips[i : i + at_once]).transpose(1, 2) for i in range(0, len(clips), at_once)]
    told = [some for some in conditions if some is not None]
    return features.represent(row, "a", parts), torch.cat(told).split(at_once) if told else ()
