"""What pretrained models of images and clips were given: normalisation and size, as their libraries say it.

found = processing_of("/models/clip-vit-base-patch32")    # a folder, or a hub id
found = processing_of("timm/vit_small_patch16_224.augreg_in21k")    # known without a network
"""

import json
from pathlib import Path
from typing import NamedTuple

from vicjoint.files.paths import user_path
from vicjoint.library import ask_hub, how_to_fetch
from vicjoint.registry import ComponentError, need

TIMM = "timm/"
VIDEO = "video_preprocessor_config.json"


class Processing(NamedTuple):
    """mean, std: one number per channel; size: side of the view in pixels, None where the model takes any;
    centre: the side of the square that is cut out, of an image's shorter side."""

    mean: list[float]
    std: list[float]
    size: int | None
    centre: float

    def save(self, folder: Path) -> None:
        """Write it so that it, and transformers' AutoImageProcessor, are read from the folder."""
        size = {} if self.size is None else {"crop_size": {"height": self.size, "width": self.size}}
        short = {} if self.size is None else {"size": {"shortest_edge": round(self.size / self.centre)}}
        config = {
            "image_processor_type": "CLIPImageProcessor",
            "image_mean": self.mean,
            "image_std": self.std,
            "do_center_crop": self.size is not None,
            "do_resize": self.size is not None,
            **size,
            **short,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def processing_of(name: str) -> Processing:
    """Of a folder with a preprocessor_config.json of the transformers library or a config.json of timm, or of
    a hub id. Raises ComponentError with what was looked for."""
    folder = user_path(name)
    if name.startswith(TIMM) and not folder.is_dir():
        return of_timm(timm_config(name.removeprefix(TIMM)))
    if (folder / "config.json").is_file() and not list(folder.glob("*processor_config.json")):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if isinstance(config.get("pretrained_cfg"), dict):
            return of_timm(config["pretrained_cfg"])
    return of_transformers(name, folder)


def of_transformers(name: str, folder: Path) -> Processing:
    (transformers,) = need(["transformers"], f"modality with processor '{name}'", "text")
    ask_hub(folder)
    clips = (folder / VIDEO).is_file()
    kinds = [transformers.AutoImageProcessor, transformers.AutoVideoProcessor]
    causes = []
    for kind in reversed(kinds) if clips else kinds:
        try:
            made = kind.from_pretrained(str(folder) if folder.is_dir() else name, trust_remote_code=False)
        except Exception as error:  # each kind of processor has its own ways to be missing or broken
            causes.append((str(error).strip().splitlines() or [type(error).__name__])[0][:200])
            continue
        return of_processor(made.to_dict(), name)
    raise ComponentError(
        f"modality: processor '{name}' was not found or cannot be read: looked for a preprocessor_config.json"
        f" in the folder {folder.absolute()}, then for that id on the hub ({causes[0]})."
        f" {how_to_fetch(name)}"
    )


def of_processor(config: dict, name: str) -> Processing:
    """Of the values of one of transformers' image or video processors."""
    scale = config.get("rescale_factor") or 1 / 255
    if config.get("do_rescale") is False or abs(scale * 255 - 1) > 1e-3:
        raise ComponentError(
            f"modality: processor '{name}' does not bring pixels to 0..1 (do_rescale:"
            f" {config.get('do_rescale')}, rescale_factor: {scale:g}). Leave it out, and set mean and std."
        )
    normal = config.get("do_normalize", True) and config.get("image_mean") is not None
    mean, std = (config["image_mean"], config["image_std"]) if normal else ([0.0] * 3, [1.0] * 3)
    short, crop = side_of(config.get("size")), None
    if config.get("do_center_crop"):
        crop = side_of(config.get("crop_size"))
    size = crop or short
    centre = min(1.0, crop / short) if crop and short else 1.0
    return Processing(list(map(float, mean)), list(map(float, std)), size, centre)


def side_of(size) -> int | None:
    """The shorter side in pixels of a size as processors write it."""
    if isinstance(size, dict):
        found = [size.get(key) for key in ("shortest_edge", "height", "width")]
        return min((int(side) for side in found if side), default=None)
    return int(size) if size else None


def timm_config(model: str) -> dict:
    (timm,) = need(["timm"], f"modality with processor 'timm/{model}'", "timm")
    found = timm.get_pretrained_cfg(model, allow_unregistered=False) if timm.is_model(model) else None
    if found is None:
        raise ComponentError(
            f"modality: processor 'timm/{model}' is unknown. timm.list_pretrained() lists all names."
        )
    return found.to_dict()


def of_timm(config: dict) -> Processing:
    size = config["input_size"][-1] if config.get("input_size") else None
    mean, std = list(map(float, config["mean"])), list(map(float, config["std"]))
    return Processing(mean, std, size, float(config.get("crop_pct") or 1.0))
