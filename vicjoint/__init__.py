"""vicjoint: pretrain encoders by joint embedding, from pairs of views of one or two modalities, with VICReg.

import vicjoint

@vicjoint.register_encoder("clip", "mine")
class Mine(torch.nn.Module): ...

folder = vicjoint.train("recipes/video_next_frame.yaml", ["train.steps=100"])
encoder = vicjoint.load_encoder(folder, branch="a")
"""

import importlib
from typing import TYPE_CHECKING, Any

from vicjoint.parts import Modality
from vicjoint.registry import build_encoder, list_encoders, register, register_encoder

if TYPE_CHECKING:
    from vicjoint.export import load_encoder
    from vicjoint.hub import from_pretrained, push_to_hub
    from vicjoint.training.loop import train

__version__ = "0.2.0.dev0"

__all__ = [
    "Modality",
    "build_encoder",
    "from_pretrained",
    "list_encoders",
    "load_encoder",
    "push_to_hub",
    "register",
    "register_encoder",
    "train",
]

# imported on first use: `import vicjoint` in an encoder file stays light and free of circles
LATER = {
    "from_pretrained": "vicjoint.hub",
    "load_encoder": "vicjoint.export",
    "push_to_hub": "vicjoint.hub",
    "train": "vicjoint.training.loop",
}


def __getattr__(name: str) -> Any:
    if name in LATER:
        return getattr(importlib.import_module(LATER[name]), name)
    raise AttributeError(f"module 'vicjoint' has no attribute '{name}'")
