"""Encoders of images (and of next frames, which are images): view [B, C, H, W] float, normalised -> y [B,
dim].

    encoder: {name: conv, width: 32}                                  # small, quick on a CPU, any size
    # the same without a linear layer, for classes of small pictures
    encoder: {name: pooled_conv, strides: [2, 2, 2, 1]}
    encoder: {name: resnet18, stem: small}  # any torchvision classifier by name, random weights
    encoder: {name: resnet18, channels: 5}                            # a ResNet for other images than RGB
    # the library's pretrained name (online), or a local file
    encoder: {name: resnet50, weights: IMAGENET1K_V2}
"""

# B batch, C channels, H height, W width, D representation

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch
import torchvision
from pydantic import Field
from torch import Tensor, nn

from vicjoint.options import Count
from vicjoint.registry import ComponentError, nearest, register_encoder
from vicjoint.tokens import TokenEncoder, Tokens, flat, of_patches, with_tokens

# the small CNNs end in a map of CELLS x CELLS positions, kept apart: where a thing stands matters for the
# next frame
CELLS = 4


class ConvTrunk(nn.Module):
    """Four stride-2 convolutions, [B, C, H, W] -> [B, features]; at 64 px the last map is 4 x 4, other sizes
    are pooled to that. `coarse`: one stride-4 convolution in place of the first two, about a fifth of the
    time, for clips of many frames.
    """

    def __init__(self, channels: int, width: int, coarse: bool = False):
        super().__init__()
        steps = [(width, 6, 4)] if coarse else [(width, 3, 2), (2 * width, 3, 2)]
        steps += [(2 * width if coarse else 4 * width, 3, 2), (4 * width, 3, 2)]
        layers: list[nn.Module] = []
        before = channels
        for after, kernel, stride in steps:
            layers += [
                nn.Conv2d(before, after, kernel, stride, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
            before = after
        self.layers = nn.Sequential(*layers)
        self.features = before * CELLS * CELLS

    def forward(self, x: Tensor) -> Tensor:
        return self.after_first(self.layers[0](x.contiguous(memory_format=torch.channels_last)))

    def after_first(self, x: Tensor) -> Tensor:
        """Features [B, features] from what the first convolution gives."""
        return self.pool(self.layers[1:](x))

    def map(self, x: Tensor) -> Tensor:
        """The last map as it is, [B, C', H', W']."""
        return self.layers(x.contiguous(memory_format=torch.channels_last))

    def pool(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (CELLS, CELLS):
            x = nn.functional.adaptive_avg_pool2d(x, CELLS)
        return x.flatten(1)


@register_encoder("image", "conv")
class ConvEncoder(TokenEncoder, nn.Module):
    """ConvTrunk, then a linear layer to `dim`: about 13 M multiply-adds for a 64 x 64 RGB frame at width
    32."""

    def __init__(self, width: Count = 32, dim: Count = 256, channels: Count = 3):
        super().__init__()
        self.dim = dim
        self.trunk = ConvTrunk(channels, width)
        self.project = nn.Linear(self.trunk.features, dim)

    def forward(self, view: Tensor) -> Tensor:
        return self.project(self.trunk(view))

    @property
    def token_dim(self) -> int:
        return self.trunk.features // CELLS**2

    def forward_tokens(self, view: Tensor) -> Tokens:
        return flat(self.trunk.map(view))

    def forward_both(self, view: Tensor) -> tuple[Tensor, Tokens]:
        maps = self.trunk.map(view)
        return self.project(self.trunk.pool(maps)), flat(maps)


@register_encoder("image", "pooled_conv")
class PooledConv(TokenEncoder, nn.Module):
    """3 x 3 convolutions with batch norm and ReLU, one per width, and no linear layer after them: the
    representation is the last map, averaged over `pool` x `pool` fields, so `dim` is widths[-1] * pool^2. For
    classes of small pictures on a CPU: 6 M multiply-adds for 28 x 28 pixels by default. Where a thing stands
    matters less here than in `conv`, which keeps 4 x 4 positions.
    """

    def __init__(
        self,
        widths: Annotated[list[Count], Field(min_length=1)] = (32, 64, 128, 192),
        strides: list[Count] = (2, 1, 2, 2),
        pool: Count = 2,
        channels: Count = 3,
    ):
        super().__init__()
        if len(widths) != len(strides):
            raise ComponentError(
                f"encoder 'pooled_conv': {len(widths)} widths and {len(strides)} strides. Expected one stride"
                " per width."
            )
        layers: list[nn.Module] = []
        for before, after, stride in zip([channels, *widths], widths, strides):
            layers += [
                nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(pool), nn.Flatten())
        self.dim, self.width = widths[-1] * pool**2, widths[-1]

    def forward(self, view: Tensor) -> Tensor:
        return self.layers(view.contiguous(memory_format=torch.channels_last))

    @property
    def token_dim(self) -> int:
        return self.width

    def forward_tokens(self, view: Tensor) -> Tokens:
        return flat(self.layers[:-2](view.contiguous(memory_format=torch.channels_last)))

    def forward_both(self, view: Tensor) -> tuple[Tensor, Tokens]:
        maps = self.layers[:-2](view.contiguous(memory_format=torch.channels_last))
        return self.layers[-2:](maps), flat(maps)


# ---- torchvision: every classifier by its name, without its head ----


def torchvision_encoder(name: str, weights: str | None, **settings) -> nn.Module:
    """The torchvision model `name` whose classification layer is gone; `dim` is the width that layer took.

    The model itself is returned, so its state_dict has torchvision's own keys. Raises ComponentError for
    weights that cannot be found or do not fit."""
    builder = torchvision.models.get_model_builder(name)
    model = with_tokens(builder(**settings), torchvision_tokens, torchvision_both)
    model.dim = remove_head(model)
    if weights is not None:
        load_weights(model, name, weights)
    return model


# whose input (avgpool) or output (of the first that a model has) torchvision's models pool
BEFORE_POOLING = ("avgpool", "encoder", "norm", "conv5", "layers", "blocks", "features")


def torchvision_tokens(model: nn.Module, view: Tensor) -> Tokens:
    """Tokens of an image or video model of torchvision, a vision transformer's class token first."""
    return _seen(model, view, model)[1]


def torchvision_both(model: nn.Module, view: Tensor) -> tuple[Tensor, Tokens]:
    """(y, tokens) of one pass."""
    return _seen(model, view, model.forward)


def _seen(model: nn.Module, view: Tensor, call: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tokens]:
    where, seen = next(name for name in BEFORE_POOLING if hasattr(model, name)), []
    module = model.blocks[-1] if where == "blocks" else getattr(model, where)
    if where == "avgpool":
        hook = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    else:
        hook = module.register_forward_hook(lambda _, __, given: seen.append(given))
    with hook:
        y = call(
            view
        )  # DenseNet's ReLU, which comes after `features`, works in place: it is in what was seen
    return y, of_patches(seen[0], view, getattr(model, "patch_size", None))


def remove_head(model: nn.Module) -> int:
    """Drop the last linear (or 1x1 convolution) layer of the model's head and the dropout before it; give the
    width it took. What comes before them in the head (norms, hidden layers of VGG) and after (pooling of
    SqueezeNet) stays.
    """
    where = next(name for name in ("fc", "classifier", "head", "heads") if hasattr(model, name))
    head = getattr(model, where)
    layers = list(head) if isinstance(head, nn.Sequential) else [head]
    last = max(i for i, layer in enumerate(layers) if hasattr(layer, "weight"))
    final = layers[last]
    keep = last
    while keep and isinstance(layers[keep - 1], nn.Dropout):
        keep -= 1
    setattr(model, where, nn.Sequential(*layers[:keep], *layers[last + 1 :]))
    return final.in_features if isinstance(final, nn.Linear) else final.in_channels


def load_weights(model: nn.Module, name: str, weights: str) -> None:
    """Fill a headless torchvision model from a local file or from one of the library's pretrained names."""
    pretrained = torchvision.models.get_model_weights(name).__members__
    path = Path(weights).expanduser()
    if weights in pretrained:
        try:
            state = pretrained[weights].get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
            raise ComponentError(
                f"encoder '{name}': weights '{weights}' could not be downloaded from"
                f" {pretrained[weights].url} ({error}). Without a network give a local file instead: weights:"
                f" /path/to/{name}.pth"
            ) from None
        if hasattr(model, "transform_input"):
            model.transform_input = (
                True  # GoogLeNet and Inception were trained on another normalisation than the rest
            )
    elif path.is_file():
        state = read_state(name, path)
    else:
        raise ComponentError(
            f"encoder '{name}': weights '{weights}' were not found: no file {path.absolute()}, and no"
            f" pretrained name of torchvision.{nearest(weights, pretrained)} Pretrained names for {name}:"
            f" {', '.join(pretrained)}."
        )
    fit_state(model, name, weights, state)


def read_state(name: str, path: Path) -> dict[str, Tensor]:
    """The state_dict in a .safetensors file, or in a .pt/.pth file (read without running code from it)."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own ways to be broken; all mean the same to the user
        cause = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ComponentError(
            f"encoder '{name}': cannot read weights from {path}: {cause}. "
            "Expected a state_dict in a .pth, .pt or .safetensors file."
        ) from None
    # VICReg's full checkpoint: the distributed model with its projector
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        backbone = {
            key.removeprefix("module.backbone."): value
            for key, value in state["model"].items()
            if key.startswith("module.backbone.")
        }
        state = backbone or state["model"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ComponentError(
            f"encoder '{name}': {path} does not hold a state_dict (parameter name -> tensor). "
            "Save one with torch.save(model.state_dict(), path)."
        )
    return state


def fit_state(model: nn.Module, name: str, weights: str, state: dict[str, Tensor]) -> None:
    """Load `state` into the headless model; a head or auxiliary classifiers in it are left out, anything else
    must fit."""
    own = model.state_dict()
    position = "encoder.pos_embedding"
    if position in own and position in state and own[position].shape != state[position].shape:
        from torchvision.models.vision_transformer import interpolate_embeddings

        state = interpolate_embeddings(model.image_size, model.patch_size, state)
    extra = [
        key
        for key in state
        if key not in own
        and key.split(".")[0].rstrip("12").lower()
        not in ("fc", "classifier", "head", "heads", "aux", "auxlogits")
    ]
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    shapes = [
        f"{key} {list(state[key].shape)} for {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if extra or missing or shapes:
        problems = [
            f"{what}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''} ({len(keys)})"
            for what, keys in (("missing", missing), ("unknown", extra), ("wrong shape", shapes))
            if keys
        ]
        raise ComponentError(
            f"encoder '{name}': weights '{weights}' do not fit this model and its options; "
            f"{'; '.join(problems)}."
        )
    model.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)


def expect_size(model: nn.Module, size: tuple[int, ...], advice: str) -> nn.Module:
    """Make a model that has a fixed input size say so, instead of failing inside."""
    model.input_size, model.input_advice = size, advice
    model.register_forward_pre_hook(_check_size)
    return model


def _check_size(model: nn.Module, views: tuple) -> None:
    got = tuple(views[0].shape[-len(model.input_size) :])
    if got != model.input_size:
        raise ValueError(
            f"{type(model).__name__} was built for views of {list(model.input_size)}, got {list(got)}. "
            f"{model.input_advice}"
        )


def _register_torchvision(name: str) -> None:
    if "resn" in name:  # resnet, resnext, wide_resnet

        def build(
            weights: str | None = None,
            # small: 3x3, no pooling, for images below about 64 px
            stem: Literal["imagenet", "small"] = "imagenet",
            zero_init_residual: bool = False,
            channels: Count = 3,
        ):
            model = torchvision_encoder(name, None, zero_init_residual=zero_init_residual)
            if stem == "small" or channels != 3:
                kernel, stride = (3, 1) if stem == "small" else (7, 2)
                model.conv1 = nn.Conv2d(channels, 64, kernel, stride, padding=kernel // 2, bias=False)
                nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
            if stem == "small":
                model.maxpool = nn.Identity()
            if weights is not None:
                load_weights(model, name, weights)
            return model

    elif name.startswith("vit_"):

        def build(weights: str | None = None, image_size: Count = 224):
            model = torchvision_encoder(name, weights, image_size=image_size)
            return expect_size(
                model, (image_size, image_size), "Set the encoder's image_size to the size of the view."
            )

    elif name.startswith("maxvit"):

        def build(weights: str | None = None, image_size: Count = 224):
            model = torchvision_encoder(name, weights, input_size=(image_size, image_size))
            return expect_size(
                model,
                (image_size, image_size),
                "Set the encoder's image_size to the size of the view, a multiple of 224.",
            )

    else:
        # GoogLeNet and Inception: no auxiliary classifiers, and torchvision's own initialisation (unset, it
        # warns)
        fixed = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}

        def build(weights: str | None = None):
            return torchvision_encoder(name, weights, **fixed)

    build.__qualname__ = build.__name__ = name
    build.__doc__ = f"torchvision's {name} without its classification layer."
    register_encoder("image", name)(build)


for _name in torchvision.models.list_models(module=torchvision.models):
    _register_torchvision(_name)
