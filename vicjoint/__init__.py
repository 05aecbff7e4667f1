"""vicjoint: pretrain encoders by joint embedding, from pairs of views of one or two modalities, with VICReg.

import vicjoint

@vicjoint.register_encoder("clip", "mine")
class Mine(torch.nn.Module): ...

folder = vicjoint.train("recipes/video_next_frame.yaml", ["train.steps=100"])
encoder = vicjoint.load_encoder(folder, branch="a")
"""

from vicjoint.registry import build_encoder, list_encoders, register, register_encoder

__all__ = [
    "Modality",
    "build_encoder",
    "list_encoders",
    "load_encoder",
    "register",
    "register_encoder",
    "train",
]


def __getattr__(name: str):
    # torch and the loop are imported on first use: `import vicjoint` in an encoder file stays light and free
    # of circles
    if name == "train":
        from vicjoint.training.loop import train

        return train
    if name == "load_encoder":
        from vicjoint.export import load_encoder

        return load_encoder
    if name == "Modality":
        from vicjoint.parts import Modality

        return Modality
    raise AttributeError(f"module 'vicjoint' has no attribute '{name}'")
