"""Models that were never trained, as the exports that version 0.1.0 wrote: recipe.yaml and model.safetensors.
From them the command writes today's."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from vicjoint.export import main
from vicjoint.model import build_model
from vicjoint.recipe import load_recipe, to_yaml

TINY_VIT = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def recipe(encoder: dict, modality="image", pair=None, **changes) -> dict:
    return {
        "name": "small",
        "source": {"name": "sample_images"},
        "pair": pair or {"name": "augment", "size": 16},
        "a": {"modality": modality, "encoder": encoder, "expander": [8]},
        "b": {"weights": "same"},
        "objective": {"name": "vicreg"},
        "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "cosine"}},
        "train": {"steps": 400, "batch_size": 16},
        **changes,
    }


def untrained(folder: Path, described: dict) -> Path:
    checked = load_recipe(described, check_paths=False)
    torch.manual_seed(0)
    model = build_model(checked).eval()
    for module in model.modules():  # as after training: not their first values
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
    folder.mkdir(parents=True)
    state = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "recipe.yaml").write_text(to_yaml(checked))
    return folder


def exported(folder: Path, described: dict, *arguments: str) -> Path:
    """An export beside `folder`/from of an untrained model."""
    assert main([str(untrained(folder / "from", described)), "--to", str(folder / "to"), *arguments]) == 0
    return folder / "to"


def pixels(size: int = 16, count: int = 3) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
