"""An image file -> pixels.

    pixels_CHW = read("photo.jpg")                       # uint8 [3, H, W], RGB
    # of a source's record: a file, bytes, or a part of a tar file
    pixels_CHW = read_record({"id": "3", "bytes": b"..."})

JPEG files of 8-bit RGB or grey are decoded by torchvision, everything else by Pillow; where both can read a
file, they give the same bytes, and torchvision is the faster. What has no 8-bit RGB form by itself is made so
by rule: transparency lies on white, 16-bit grey is divided by 257, CMYK goes through Pillow's conversion, of
an animation the first frame counts. As in torchvision's ImageFolder, an EXIF orientation is not applied.
Anything that cannot be read is an ImageError that names the file and the cause.
"""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from vicjoint.files.cells import path_of
from vicjoint.files.guard import MOST_BYTES, no_file, quiet

IMAGE_SUFFIXES = (
    *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
READ_SUFFIXES = (*IMAGE_SUFFIXES, ".tar")  # of files that `read_record` reads, as a whole or a part
MAX_PIXELS = 89_478_485  # Pillow's limit for what may be a decompression bomb: a quarter GiB of RGB


class ImageError(ValueError):
    """An image that cannot be read; the message names it and the cause."""


def read(path: str | Path) -> Tensor:
    """uint8 [3, H, W] of an image file. Raises ImageError."""
    return read_record({"path": str(path)})


def read_record(record: dict) -> Tensor:
    """uint8 [3, H, W] of a record with `bytes`, or with `path` and, for a file inside a tar file, `offset`
    and `size` in bytes. Raises ImageError."""
    name = record.get("path") or record.get("id", "image")
    name = f"{name} ({record['id']})" if "offset" in record else name
    try:
        content = _content(record, name)
        if not content:
            raise ImageError(f"{name}: is empty (0 bytes)")
        return decode(content, name)
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(f"{name}: {error.strerror or error}") from None


def _content(record: dict, name: str) -> bytes:
    if record.get("bytes") is not None:
        return record["bytes"]
    inside = "offset" in record  # a tar file may be of any size, one of its members may not
    if cause := no_file(path_of(record), "image", None if inside else MOST_BYTES):
        raise ImageError(f"{name}: {cause}")
    if inside and record["size"] > MOST_BYTES:
        raise ImageError(f"{name}: has {record['size']:,} bytes, more than the {MOST_BYTES:,} that are read")
    with open(path_of(record), "rb") as file:
        file.seek(record.get("offset", 0))
        return file.read(record.get("size", -1))


def decode(content: bytes, name: str) -> Tensor:
    """uint8 [3, H, W] of a file's content; `name` stands in errors. Raises ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # metadata that Pillow finds odd; limits are checked below
            image = Image.open(io.BytesIO(content))
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError(
                    f"{name}: claims {width} x {height} pixels, more than the {MAX_PIXELS:,} pixels that are"
                    " read. Make it smaller"
                )
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                with quiet():
                    return decode_jpeg(
                        torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB
                    )
            return torch.from_numpy(np.array(_to_rgb(image, name))).permute(2, 0, 1)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(
            f"{name}: claims far more than the {MAX_PIXELS:,} pixels that are read. Make it smaller"
        ) from None
    except (
        Exception
    ) as error:  # decoders fail on damaged files in many ways, and all mean the same to the user
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        cause = "not an image of a known format" if isinstance(error, Image.UnidentifiedImageError) else cause
        raise ImageError(f"{name}: cannot be decoded: {cause[:200]}") from None


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """The (first) picture as 8-bit RGB. Raises ImageError where its values have no known range."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(
                f"{name}: grey values from {values.min()} to {values.max()}, expected 8 or 16 bits."
                " Convert it"
            )
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageError(f"{name}: floating-point pixels have no known range. Convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
