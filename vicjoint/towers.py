"""Encoders that learn less than all, or not all of it alike: the layers of a transformer, for learning rates
that fall from its top to its bottom, and adapters (LoRA).

for parameter, depth in depths(encoder):  # 0: above all blocks; n + 1: below the n blocks
    ...
"""

from collections.abc import Iterator

import torch
from torch import nn

from vicjoint.registry import ComponentError, need


def depths(encoder: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """Each parameter, and how many layers lie above it: 0 for what follows the last of n blocks, 1 to n for
    the blocks from the top, n + 1 for what comes before the first (Bao et al. 2022, BEiT). Raises
    ComponentError where the encoder is not one row of blocks."""
    name, blocks = row_of_blocks(encoder)
    prefix, outside = f"{name}." if name else "", len(blocks) + 1
    for of, p in encoder.named_parameters():
        if of.startswith(prefix):
            yield p, len(blocks) - int(of.removeprefix(prefix).split(".")[0])
            outside = 0  # what is registered behind the blocks comes after them
        else:
            yield p, outside


def row_of_blocks(encoder: nn.Module) -> tuple[str, nn.Module]:
    """The longest list of modules of one class, and its name in the encoder. Raises ComponentError where
    there is none, or where blocks of this class stand elsewhere, too: a network in stages."""
    rows = [
        (name, row)
        for name, row in encoder.named_modules()
        if isinstance(row, nn.ModuleList | nn.Sequential) and len(row) > 1 and len(set(map(type, row))) == 1
    ]
    name, row = max(rows, key=lambda found: len(found[1]), default=("", None))
    if row is None or sum(type(m) is type(row[0]) for m in encoder.modules()) != len(row):
        raise ComponentError(
            f"layer_decay: the layers of {type(encoder).__name__} are not one row of equal blocks, as a"
            " transformer's are. Leave it out, or set lr_factor."
        )
    return name, row


# ---- adapters ----


def add_adapters(encoder: nn.Module, rank: int) -> None:
    """Put a low-rank adapter beside every linear layer of the encoder's model of the transformers library (Hu
    et al. 2022, LoRA; alpha is twice the rank). Nothing but they has a gradient then, and y is as it was.
    Raises ComponentError where there is no such layer."""
    (peft, transformers) = need(["peft", "transformers"], "train: lora", "lora")
    models = [n for n, m in encoder.named_modules() if isinstance(m, transformers.PreTrainedModel)]
    inside = lambda name: any(not model or name.startswith(model + ".") for model in models)
    # no subclasses: torch's attention takes the weight of one of them without calling it
    targets = [name for name, m in encoder.named_modules() if type(m) is nn.Linear and inside(name)]
    if not targets:
        raise ComponentError(
            "train: lora puts adapters beside the linear layers of a model of the transformers library, which"
            f" {type(encoder).__name__} does not have. Set train: full, or expander."
        )
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    peft.inject_adapter_in_model(config, encoder.requires_grad_(False))


@torch.no_grad()
def merge_adapters(encoder: nn.Module) -> None:
    """Add the adapters to the weights beside them, which then stand alone again."""
    (layers,) = need(["peft.tuners.tuners_utils"], "train: lora", "lora")
    for name, module in list(encoder.named_modules()):
        if isinstance(module, layers.BaseTunerLayer):
            module.merge()
            parent, _, own = name.rpartition(".")
            setattr(encoder.get_submodule(parent), own, module.get_base_layer())
