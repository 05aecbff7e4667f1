"""Image and video models of the transformers library: view [B, C, H, W] or [B, C, T, H, W] float, normalised
-> y [B, dim]; and what its models of any kind are built, read and written by.

encoder: {name: transformers, model: vit, config: {image_size: 64, patch_size: 8}}  # random weights
encoder: {name: transformers, weights: facebook/dinov2-small}  # a hub id (online), or a local folder
# the vision tower of a model of pictures and texts
encoder: {name: transformers, weights: /models/clip-vit-base-patch32}
encoder: {name: transformers, weights: /models/vjepa2-vitl-fpc64-256}  # of clips
"""

# B batch, C channels, T frames, H height, W width, D representation

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vicjoint.library import LibraryPart, ask_hub, how_to_fetch
from vicjoint.registry import ComponentError, nearest, register_encoder
from vicjoint.tokens import TokenEncoder, Tokens, of_patches, on_grid


def made_by(model: str | None, weights: str | None, config: dict | None, encoder: str, example: str):
    """(the model that an encoder's options describe, names of the parameters that its weights lack). Raises
    ComponentError."""
    if (model is None) == (weights is None) or (weights and config):
        raise ComponentError(
            f"encoder '{encoder}' takes either model: a type such as '{example}' (with config: overrides), or"
            " weights: a local folder or a hub id."
        )
    if weights:
        return load_transformer(weights, encoder)
    return random_transformer(model, config or {}, encoder), []


@register_encoder("image", "transformers")
class TransformersEncoder(LibraryPart, TokenEncoder, nn.Module):
    """A vision model of the transformers library: `model`, a type such as 'vit', 'dinov2', 'resnet',
    'convnext', with random weights and `config` overrides; or `weights`, a local folder or a hub id (online).
    Of a model of pictures and texts (CLIP, SigLIP) the vision tower. y is the pooled output where the model
    has one, else its first token, or the mean of its map.

    Raises ComponentError for an unknown model, an unknown config key, and weights that cannot be found."""

    def __init__(self, model: str | None = None, weights: str | None = None, config: dict | None = None):
        super().__init__()
        made, missing = made_by(model, weights, config, "transformers", "vit")
        self.model = tower_of(made, "vision")
        # a checkpoint without its pooler would get a random one here: read the first token instead
        self.pooled = not any("pooler" in key for key in missing)
        if self.model.main_input_name != "pixel_values":
            raise ComponentError(
                f"encoder 'transformers': {type(self.model).__name__} takes {self.model.main_input_name}, "
                "not images. "
                "Choose a vision model, e.g. 'vit', 'dinov2', 'resnet', 'clip_vision_model'."
            )
        settings = self.model.config
        self.dim = getattr(settings, "hidden_size", None) or settings.hidden_sizes[-1]
        self.by_patches = settings.model_type == "siglip2_vision_model"

    def forward(self, view: Tensor) -> Tensor:
        return self._pooled(self._out(view))

    def forward_tokens(self, view: Tensor) -> Tokens:
        return self._tokens(view, self._out(view))

    def forward_both(self, view: Tensor) -> tuple[Tensor, Tokens]:
        out = self._out(view)
        return self._pooled(out), self._tokens(view, out)

    def _pooled(self, out) -> Tensor:
        pooled = getattr(out, "pooler_output", None)
        if self.pooled and pooled is not None:
            return pooled.flatten(1)
        hidden = out.last_hidden_state
        return hidden[:, 0] if hidden.ndim == 3 else hidden.mean((2, 3))

    def _tokens(self, view: Tensor, out) -> Tokens:
        return of_patches(out.last_hidden_state, view, getattr(self.model.config, "patch_size", None))

    def _out(self, view: Tensor):
        given = patches_of(view, self.model.config.patch_size) if self.by_patches else {"pixel_values": view}
        return self.model(**given)

    def save(self, folder: Path) -> None:
        """A pooler that nothing was read from stays out, so that it is not read from the folder either."""
        state = self.model.state_dict()
        save_transformer(
            self.model, folder, {k: x for k, x in state.items() if self.pooled or "pooler" not in k}
        )


def patches_of(view: Tensor, side: int) -> dict[str, Tensor]:
    """[B, C, H, W] as SigLIP 2 takes pictures of any shape: patches [B, h w, side side C], row by row, their
    mask, and [h, w]. Raises ValueError where `side` does not divide the view."""
    B, C, H, W = view.shape
    if H % side or W % side:
        raise ValueError(f"a view of {H} x {W} pixels is not made of patches of {side}. Use multiples of it.")
    h, w = H // side, W // side
    patches = view.reshape(B, C, h, side, w, side).permute(0, 2, 4, 3, 5, 1).reshape(B, h * w, -1)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(B, h * w, dtype=torch.int32, device=view.device),
        "spatial_shapes": torch.tensor([[h, w]]).repeat(B, 1).to(view.device),
    }


@register_encoder("clip", "transformers")
class ClipTransformer(LibraryPart, TokenEncoder, nn.Module):
    """A video model of the transformers library: `model`, a type such as 'vjepa2', 'videomae', 'vivit',
    'timesformer', with random weights and `config` overrides; or `weights`, a local folder or a hub id
    (online). y is the mean of its last hidden states, of V-JEPA 2 those of its encoder.

    Raises ComponentError for an unknown model, an unknown config key, weights that cannot be found, and
    models of other inputs."""

    def __init__(self, model: str | None = None, weights: str | None = None, config: dict | None = None):
        super().__init__()
        self.model = made_by(model, weights, config, "clip/transformers", "vjepa2")[0]
        takes, settings = self.model.main_input_name, self.model.config
        self.alone = {"skip_predictor": True} if settings.model_type == "vjepa2" else {}
        of_frames = takes == "pixel_values" and hasattr(settings, "num_frames")
        if takes != "pixel_values_videos" and not of_frames:
            raise ComponentError(
                f"encoder 'clip/transformers': {type(self.model).__name__} takes {takes}, not clips. Choose"
                " e.g. 'vjepa2', 'videomae', 'vivit', 'timesformer'; or frames_transformer, with an image"
                " model for each frame."
            )
        if self.alone:  # nothing here reads it, so it would get no gradient
            self.model.predictor = None
        self.dim = settings.hidden_size

    def forward(self, view: Tensor) -> Tensor:
        return self.forward_tokens(view).x.mean(1)

    def forward_tokens(self, view: Tensor) -> Tokens:
        frames, settings = view.transpose(1, 2), self.model.config  # [B, T, C, H, W]
        hidden = self.model(**{self.model.main_input_name: frames}, **self.alone).last_hidden_state
        side, frame = getattr(settings, "patch_size", None), getattr(settings, "tubelet_size", None)
        if not isinstance(side, int) or not isinstance(frame, int):
            return Tokens(hidden)
        return on_grid(hidden, [n // of for n, of in zip(view.shape[2:], (frame, side, side))])

    def save(self, folder: Path) -> None:
        save_transformer(self.model, folder)


def tower_of(model: nn.Module, kind: Literal["vision", "text"]) -> nn.Module:
    """One tower of a model of two, such as CLIP and SigLIP; any other model as it is."""
    tower = getattr(model, f"{kind}_model", None)
    return model if tower is None or not hasattr(model.config, f"{kind}_config") else tower


def random_transformer(model: str, config: dict, encoder: str = "transformers") -> nn.Module:
    """A model of the transformers library by its type, with random weights; `encoder` names the caller in
    errors (ComponentError)."""
    from transformers import CONFIG_MAPPING, AutoConfig, AutoModel

    if model not in CONFIG_MAPPING:
        raise ComponentError(f"encoder '{encoder}': no model type '{model}'.{nearest(model, CONFIG_MAPPING)}")
    known = AutoConfig.for_model(model).to_dict()
    unknown = [key for key in config if key not in known]
    if unknown:
        raise ComponentError(
            f"encoder '{encoder}': the config of '{model}' has no key '{unknown[0]}'."
            f"{nearest(unknown[0], known)}"
        )
    try:
        return AutoModel.from_config(AutoConfig.for_model(model, **config))
    except ValueError as error:
        raise ComponentError(
            f"encoder '{encoder}': cannot build '{model}': {str(error).splitlines()[0]}"
        ) from None


def load_transformer(weights: str, encoder: str = "transformers") -> tuple[nn.Module, list[str]]:
    """A transformers model, of a folder or hub id; the parameters it lacks there. Raises ComponentError."""
    folder = Path(weights).expanduser()
    if not folder.is_dir() and (weights[0] in "./~" or weights.count("/") > 1):
        raise ComponentError(
            f"encoder '{encoder}': weights '{weights}' were not found: no folder {folder.absolute()}. "
            "Expected a folder made by save_pretrained, or a hub id such as 'facebook/dinov2-small'."
        )
    ask_hub(folder)
    try:
        # code that comes with weights is not run, nor does anybody get asked whether it shall
        where = {"pretrained_model_name_or_path": str(folder) if folder.is_dir() else weights}
        where |= {"trust_remote_code": False}
        model, info = class_of(where).from_pretrained(**where, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise ComponentError(
            f"encoder '{encoder}': weights '{weights}' were not found: looked for the folder"
            f" {folder.absolute()}, then for that id on the hub ({str(error).splitlines()[0]})."
            f" {how_to_fetch(weights)}"
        ) from None
    return model, list(info["missing_keys"])


def class_of(where: dict):
    """AutoModel, or the class that a config names which it does not know, such as SigLIP's text tower."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(**where)
    if type(config) in transformers.MODEL_MAPPING:
        return transformers.AutoModel
    return getattr(transformers, (config.architectures or ["AutoModel"])[0], transformers.AutoModel)


def feature_extractor(weights: str):
    """The feature extractor that comes with the weights of an audio model, or None."""
    from transformers import AutoFeatureExtractor

    folder = Path(weights).expanduser()
    try:
        return AutoFeatureExtractor.from_pretrained(
            str(folder) if folder.is_dir() else weights, trust_remote_code=False
        )
    except (OSError, ValueError):
        return None


def save_transformer(model: nn.Module, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """Write a model of the transformers library so that AutoModel.from_pretrained(folder) reads it. `state`:
    its tensors, where they are not the model's own, or have other names."""
    model.save_pretrained(folder, state_dict=model.state_dict() if state is None else state)
