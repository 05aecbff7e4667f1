"""Encoders of images, which a next frame may use too: a small one for the CPU, and torchvision's and transformers' models by name.

A view is [B, 3, H, W] float, normalised; y is [B, dim].
"""

from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from vicjoint.registry import ComponentError, register_encoder

# googlenet and inception_v3 return a tuple while training; squeezenet has no linear head to take off
LEFT_OUT = ("googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1")
MAP = 4  # side of the feature map that is flattened: where things are stays in y


@register_encoder("image", "conv")
class ConvEncoder(nn.Module):
    """Four strided 3x3 convolutions of width, 2, 2 and 4 times width, a 4x4 map, and a linear layer from all its places: small,
    fast on a CPU, and y says where things are. Any H, W of at least 16; `channels` is 3 for RGB."""

    def __init__(self, width: int = 32, dim: int = 256, channels: int = 3):
        super().__init__()
        self.dim = dim
        widths = [channels, width, 2 * width, 2 * width, 4 * width]
        self.trunk = nn.Sequential(*(_halve(i, o) for i, o in zip(widths, widths[1:])), nn.AdaptiveAvgPool2d(MAP), nn.Flatten())
        self.project = nn.Linear(widths[-1] * MAP * MAP, dim)

    def forward(self, view: Tensor) -> Tensor:
        # channels last: 1.5 times as fast on a CPU
        return self.project(self.trunk(view.contiguous(memory_format=torch.channels_last)))


def _halve(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class WithoutHead(nn.Module):
    """A torchvision model whose last linear layer is taken off; `dim` is what that layer took in."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.dim = take_off_head(model)
        self.model = model

    def forward(self, view: Tensor) -> Tensor:
        return self.model(view)


def take_off_head(model: nn.Module) -> int:
    """Replace a classifier's last linear layer by the identity; returns the width it took in."""
    for attribute in ("fc", "classifier", "head", "heads"):
        head = getattr(model, attribute, None)
        if isinstance(head, nn.Linear):
            setattr(model, attribute, nn.Identity())
            return head.in_features
        if isinstance(head, nn.Sequential) and isinstance(head[-1], nn.Linear):
            width = head[-1].in_features
            head[-1] = nn.Identity()
            return width
    raise ComponentError(f"{type(model).__name__} has no linear head to take off (looked at fc, classifier, head, heads).")


def torchvision_model(name: str, weights: str | None, **options) -> nn.Module:
    """torchvision's model `name`, random, or with `weights`: a local state dict (.pth, .pt, .safetensors), with or without the
    head, or the name of pretrained weights that torchvision downloads (e.g. IMAGENET1K_V1)."""
    if weights is None:
        return torchvision.models.get_model(name, weights=None, **options)
    if Path(weights).is_file():
        model = torchvision.models.get_model(name, weights=None, **options)
        load_state(model, Path(weights))
        return model
    known = [w.name for w in torchvision.models.get_model_weights(name)]
    if weights != "DEFAULT" and weights not in known:
        raise ComponentError(
            f"weights: '{weights}' for {name} is neither a file nor a pretrained set of torchvision. Expected a path to a state dict, "
            f"or one of: {', '.join(known)}."
        )
    try:
        return torchvision.models.get_model(name, weights=weights, **options)
    except OSError as error:
        raise ComponentError(f"weights: '{weights}' for {name} cannot be downloaded ({error}). Give the path of a local state dict.") from None


def load_state(model: nn.Module, path: Path) -> None:
    """Load a local state dict (never code). Everything but the head must be there and fit."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        missing, unexpected = model.load_state_dict(state, strict=False)
    except Exception as error:  # torch and safetensors raise many types for a foreign file
        raise ComponentError(f"weights: {path} is not a state dict of {type(model).__name__}: {error}") from None
    wrong = [key for key in [*missing, *unexpected] if key.split(".")[0] not in ("fc", "classifier", "head", "heads")]
    if wrong:
        raise ComponentError(f"weights: {path} does not fit {type(model).__name__}: {len(wrong)} keys differ, e.g. '{wrong[0]}'.")


def _register_torchvision(name: str) -> None:
    if name.startswith(("resnet", "resnext", "wide_resnet")):
        def build(weights: str | None = None, zero_init_residual: bool = False, small_images: bool = False) -> nn.Module:
            encoder = WithoutHead(torchvision_model(name, weights, zero_init_residual=zero_init_residual))
            if small_images:  # the stem for 32-pixel images: no early halving
                encoder.model.conv1, encoder.model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
            return encoder
    elif name.startswith("vit_"):
        def build(weights: str | None = None, image_size: int = 224) -> nn.Module:
            return WithoutHead(torchvision_model(name, weights, image_size=image_size))
    else:
        def build(weights: str | None = None) -> nn.Module:
            return WithoutHead(torchvision_model(name, weights))
    build.__doc__ = f"torchvision's {name} without its head; see `torchvision_model` for `weights`."
    build.__qualname__ = f"torchvision {name}"
    register_encoder("image", name)(build)


for _name in torchvision.models.list_models(module=torchvision.models):
    if _name not in LEFT_OUT:
        _register_torchvision(_name)


@register_encoder("image", "transformers")
class TransformersImage(nn.Module):
    """Any image model of the transformers library. `model`: its type (vit, dinov2, convnext, resnet, ...), built at random with the
    entries of `config` changed; or `weights`: a local folder or, when online, a hub name. y is the pooled output where the model
    gives one, else the mean over its tokens."""

    def __init__(self, model: str = "vit", config: dict | None = None, weights: str | None = None):
        super().__init__()
        from transformers import AutoConfig, AutoModel  # seconds to import: only when used
        try:
            if weights is not None:
                self.model = AutoModel.from_pretrained(weights)
            else:
                self.model = AutoModel.from_config(AutoConfig.for_model(model, **(config or {})))
        except (OSError, ValueError) as error:
            what = f"weights '{weights}'" if weights is not None else f"model type '{model}'"
            raise ComponentError(f"transformers: {what} cannot be used: {str(error).splitlines()[0]}") from None
        settings = self.model.config
        self.dim = getattr(settings, "hidden_size", None) or settings.hidden_sizes[-1]

    def forward(self, view: Tensor) -> Tensor:
        out = self.model(pixel_values=view)
        if getattr(out, "pooler_output", None) is not None:
            return out.pooler_output.flatten(1)
        return out.last_hidden_state.mean(1)
