"""The pair `augment`: two differently augmented views of one image, after VICReg's recipe by default.

pair: {name: augment, size: 224}  # the paper's two views
pair: {name: augment, size: 32, b: [{name: random_resized_crop}, {name: gaussian_blur, p: 0.1}]}
pair: {name: augment, size: 224, colour: device}  # colour and blur batched on the training device
pair: {name: augment, size: 224, views: {global: 2, local: 6}, local_size: 96}      # multi-crop
"""

# C = 3 channels, K crops of one image

from typing import Annotated, Any

import numpy as np

from vicjoint.batch import Crops
from vicjoint.files.images import READ_SUFFIXES, read_record
from vicjoint.options import ComponentOf, Count, PositiveShare, Size
from vicjoint.pairs.by_columns import ByColumns
from vicjoint.parts import Modality, Record, Side, View
from vicjoint.registry import register
from vicjoint.transforms import images
from vicjoint.transforms.compose import TransformList, Where

# VICReg's official augmentations.py: the views differ in blur and solarization
CROP_AND_COLOUR = (
    {"name": "random_resized_crop", "area": (0.08, 1.0), "interpolation": "bicubic"},
    {"name": "horizontal_flip", "p": 0.5},
    {"name": "colour_jitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "p": 0.8},
    {"name": "greyscale", "p": 0.2},
)
VIEW_A = (
    *CROP_AND_COLOUR,
    {"name": "gaussian_blur", "p": 1.0, "sigma": (0.1, 2.0)},
    {"name": "solarize", "p": 0.0},
)
VIEW_B = (
    *CROP_AND_COLOUR,
    {"name": "gaussian_blur", "p": 0.1, "sigma": (0.1, 2.0)},
    {"name": "solarize", "p": 0.2},
)
# the multi-crop of SwAV and DINO: small crops see parts, large ones most of it
LOCAL_AREA, GLOBAL_AREA = ((0.05, 0.4), (0.4, 1.0))


@register("pair", "augment")
class Augment(ByColumns):
    """Two augmentations of one image: views a and b, uint8 [1, 3, size, size] each.

    size: side of the views in pixels. a, b: their transforms, in order; null: VICReg's. centre: in evaluation
    the short side is resized to size / centre and the centre is kept. colour: worker: the colour transforms
    run in the workers, image by image; device: batched, on the training device (same distribution; workers
    then only decode and crop). views: {global: 2, local: n}: n further crops of `local_size` pixels and 5 to
    40 % of the area join branch a, global crops then show 40 to 100 %, and the objective is the mean over the
    pairs (crop of a, global crop of b). distinct, group, per_group: columns that say what a batch holds, as
    in the pair cross_modal.
    """

    gives = frozenset({"views", "crops"})
    reads = ("path", "bytes")
    suffixes = READ_SUFFIXES

    def __init__(
        self,
        size: Size = 224,
        a: list[Annotated[dict, ComponentOf("transform")]] | None = None,
        b: list[Annotated[dict, ComponentOf("transform")]] | None = None,
        centre: PositiveShare = 0.875,
        colour: Where = "worker",
        views: dict[str, int] | None = None,
        local_size: Size = 96,
        distinct: str | None = None,
        group: str | None = None,
        per_group: Count = 1,
    ):
        super().__init__(distinct, group, per_group)
        counts = {"global": 2, "local": 0} | (views or {})
        if set(counts) != {"global", "local"} or counts["global"] != 2 or counts["local"] < 0:
            raise ValueError(
                f"pair.views: {views} is not known. Expected {{global: 2, local: n}} with n of 0 or more."
            )
        self.size, self.centre, self.local = size, centre, counts["local"]
        specs = {"a": VIEW_A if a is None else a, "b": VIEW_B if b is None else b}
        if self.local:
            self.small = TransformList("pair.a", _with_area(specs["a"], LOCAL_AREA), local_size, colour)
            specs = {branch: _with_area(spec, GLOBAL_AREA) for branch, spec in specs.items()}
        self.a, self.b = (
            TransformList(f"pair.{branch}", list(spec), size, colour) for branch, spec in specs.items()
        )
        self.probe_steps = (
            images.RandomResizedCrop(size, interpolation="bilinear"),
            images.HorizontalFlip(size),
        )
        self.crops, self.boxed = 1 + self.local, False

    def give_boxes(self) -> None:
        if self.local:
            raise ValueError(
                f"pair.views: {self.local} further crops on branch a, and the objective compares the cells of"
                " one view of each branch. Leave out pair.views, or choose an objective of whole views, such"
                " as vicreg."
            )
        for transforms in (self.a, self.b):
            transforms.check_boxes()
        self.boxed = True

    def sample(self, record: Record, rng: np.random.Generator):
        """Raw views of both branches. Raises ImageError where the image cannot be read."""
        pixels = read_record(record)
        if self.boxed:
            return self.a.boxed(pixels, rng), self.b.boxed(pixels, rng)
        a, b = self.a(pixels, rng), self.b(pixels, rng)
        if self.local:
            a = Crops([a, *(self.small(pixels, rng) for _ in range(self.local))])
        return a, b

    def views(
        self, record: Record, side: Side, rng: np.random.Generator | None = None, read: bool = True
    ) -> list[View]:
        """uint8 [1, 3, size, size], the same for both branches: the centre; with `rng` a random crop and flip
        only, as linear probes are trained. Raises ImageError."""
        pixels = None
        if read and rng is None:
            pixels = images.centre_crop(read_record(record), self.size, self.centre)[None]
        elif read:
            pixels = read_record(record)
            for step in self.probe_steps:
                pixels = step(pixels, rng)
            pixels = pixels[None]
        alone = "" if "offset" in record else record.get("path", "")  # a file that holds this image only
        return [View(pixels, record["id"], title=record["id"], item=alone)]

    def preprocessing(self, side: Side, modality: Modality) -> dict[str, Any]:
        return modality.preprocessing() | images.of_picture(self.size, self.centre)


def _with_area(specs: list[dict], area: tuple[float, float]) -> list[dict]:
    """The same transforms, with another range of areas for crops that do not state their own."""
    default = CROP_AND_COLOUR[0]["area"]
    return [
        (
            {**s, "area": area}
            if s.get("name") == "random_resized_crop" and tuple(s.get("area", default)) == default
            else s
        )
        for s in specs
    ]
