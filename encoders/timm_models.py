"""The timm library's image models, where it is installed: view [B, 3, H, W] -> y [B, dim].

encoder: {name: timm, model: vit_small_patch16_224}                                  # random weights
# a local file in timm's keys
encoder: {name: timm, model: resnet50, weights: /path/to/resnet50.safetensors}
encoder: {name: timm, model: vit_small_patch16_224, options: {img_size: 96, dynamic_img_size: true}}
"""

from pathlib import Path

from torch import Tensor, nn

from vicjoint.library import ask_hub
from vicjoint.registry import ComponentError, nearest, need, register_encoder
from vicjoint.tokens import Tokens, flat, on_grid, with_tokens


@register_encoder("image", "timm")
def timm_encoder(model: str, weights: str | None = None, options: dict | None = None) -> nn.Module:
    """timm's `model` without its classifier; `options` go to timm. weights: a local file, or `pretrained` for
    timm's own (online). Raises ComponentError where timm is missing, the model is unknown or the weights do
    not fit."""
    (timm,) = need(["timm"], "encoder 'timm'", "timm")
    known = timm.list_models()
    if model not in known:
        raise ComponentError(
            f"encoder 'timm': no model '{model}'.{nearest(model, known)} timm.list_models() lists all"
            f" {len(known)}."
        )
    path = None if weights in (None, "pretrained") else Path(weights).expanduser()
    if path is not None and not path.is_file():
        raise ComponentError(
            f"encoder 'timm': weights '{weights}' were not found: no file {path.absolute()}. Expected a file,"
            " or pretrained."
        )
    fetched = ""
    if weights == "pretrained":
        ask_hub()
        fetched = (
            f". Without a network give a local file, fetched where there is one: hf download timm/{model}"
            f" --local-dir {model}, then weights: {model}/model.safetensors"
        )
    try:
        made = timm.create_model(
            model,
            pretrained=weights == "pretrained",
            num_classes=0,
            checkpoint_path=str(path or ""),
            **(options or {}),
        )
    except Exception as error:  # options, downloads and files fail in timm in many ways
        raise ComponentError(
            f"encoder 'timm': cannot make '{model}' with weights {weights} and options {options or {}}: "
            f"{str(error).splitlines()[0][:200]}{fetched}"
        ) from None
    made.dim = made.num_features
    return with_tokens(made, timm_tokens, timm_both)


def timm_tokens(model: nn.Module, view: Tensor) -> Tokens:
    """The class token, where there is one, and the patches; or a map, which timm gives with
    channels first or, of Swin for one, last."""
    return _as_tokens(model, view, model.forward_features(view))


def timm_both(model: nn.Module, view: Tensor) -> tuple[Tensor, Tokens]:
    """(y, tokens) of one pass."""
    x = model.forward_features(view)
    return model.forward_head(x), _as_tokens(model, view, x)


def _as_tokens(model: nn.Module, view: Tensor, x: Tensor) -> Tokens:
    from timm.layers import PatchEmbed

    if x.ndim == 3:
        embed = getattr(model, "patch_embed", None)
        known = isinstance(embed, PatchEmbed)
        return on_grid(x, embed.dynamic_feat_size(view.shape[2:])) if known else Tokens(x)
    return flat(x if x.shape[1] == model.num_features else x.movedim(3, 1))
