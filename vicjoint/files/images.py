"""An image file -> pixels.

    pixels_CHW = read("photo.jpg")                       # uint8 [3, H, W], RGB
    # of a source's record: a file, bytes, or a part of a tar file
    pixels_CHW = read_record({"id": "3", "bytes": b"..."})

JPEG files of 8-bit RGB or grey are decoded by torchvision, everything else by Pillow; where both can read a
file, they give the same bytes, and torchvision is the faster. What has no 8-bit RGB form by itself is made so
by rule: transparency lies on white, of 16 bits the upper 8 are kept (and a picture that does not use them is
refused), CMYK goes through Pillow's conversion, of an animation the first frame counts. As in torchvision's
ImageFolder, an EXIF orientation is not applied; no text or profile in a file decides whether its pixels are
read. Anything that cannot be read is an ImageError that names the file and the cause.
"""

import contextlib
import io
import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from vicjoint.files.cells import bytes_of, path_of
from vicjoint.files.guard import MOST_BYTES, no_file, quiet

IMAGE_SUFFIXES = (
    *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
READ_SUFFIXES = (*IMAGE_SUFFIXES, ".tar")  # of files that `read_record` reads, as a whole or a part
MAX_PIXELS = 89_478_485  # Pillow's limit for what may be a decompression bomb: a quarter GiB of RGB
LEAST_LEVELS = 16  # of the 256 that are left of 16 bits: below lie 12 bits and less, unscaled
PRINTING = ("JPEG", "TIFF")  # formats whose C library writes to the terminal
PNG = b"\x89PNG\r\n\x1a\n"


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
        raise ImageError(f"{name}: {error.strerror}" if error.strerror else str(error)) from None


def _content(record: dict, name: str) -> bytes:
    if record.get("bytes") is not None:
        return bytes_of(record)
    inside = "offset" in record  # a tar file may be of any size, one of its members may not
    if "remote" not in record and (
        cause := no_file(path_of(record), "image", None if inside else MOST_BYTES)
    ):
        raise ImageError(f"{name}: {cause}")
    if not inside:
        return Path(path_of(record)).read_bytes()
    if record["size"] > MOST_BYTES:
        raise ImageError(f"{name}: has {record['size']:,} bytes, more than the {MOST_BYTES:,} that are read")
    return bytes_of(record)


def decode(content: bytes, name: str) -> Tensor:
    """uint8 [3, H, W] of a file's content; `name` stands in errors. Raises ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # metadata that Pillow finds odd; limits are checked below
            image = opened(content)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError(
                    f"{name}: claims {width} x {height} pixels, more than the {MAX_PIXELS:,} pixels that are"
                    " read. Make it smaller"
                )
            with quiet() if image.format in PRINTING else contextlib.nullcontext():
                if image.format == "JPEG" and image.mode in ("RGB", "L"):
                    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                    return decode_jpeg(data, ImageReadMode.RGB)
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
        raise ImageError(f"{name}: cannot be decoded: {cause[:200]}") from None


def page(image: Image.Image, number: int, name: str) -> Tensor:
    """uint8 [3, H, W] of a page of an opened tiff; `name` stands in errors. Raises ImageError."""
    try:
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            image.seek(number)
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{name}: claims {image.width} x {image.height} pixels. Make it smaller")
            return torch.from_numpy(np.array(_to_rgb(image, name))).permute(2, 0, 1)
    except ImageError:
        raise
    except Exception as error:  # as in decode
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ImageError(f"{name}: cannot be decoded: {cause[:200]}") from None


def opened(content: bytes) -> Image.Image:
    """A file's content, opened by Pillow and not yet decoded. Of a png without the chunks that say nothing of
    its pixels (texts, profiles, times): one that is large or damaged would have the whole file refused."""
    if content.startswith(PNG):
        kept, place = [PNG], len(PNG)
        while place + 8 <= len(content):
            length, kind = struct.unpack_from(">I4s", content, place)
            end = place + length + 12
            if kind == b"tRNS" or not kind[0] & 32:  # the bit says that a reader may pass it over
                kept.append(content[place:end])
            place = end
        content = b"".join(kept)
    try:
        return Image.open(io.BytesIO(content))
    except Image.UnidentifiedImageError:  # whose message has an address in it
        raise ValueError("not an image of a known format") from None


def is_deep(image: Image.Image) -> bool:
    """Whether an opened file, not yet decoded, has more than 8 bits a value. Pillow keeps 16 bits of grey,
    and of colours the upper 8."""
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(BITSPERSAMPLE, (1,))) > 8
    if isinstance(image, PpmImageFile) and isinstance(args := image.tile[0][3], tuple):
        return args[1] > 255  # what white is
    return ";16" in str(image.tile)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """The (first) picture as 8-bit RGB. Raises ImageError where its values have no known range."""
    deep, colours = is_deep(image), len(image.getbands()) > 1
    if deep and colours and isinstance(image, TiffImageFile) and ";16" not in str(image.tile):
        raise ImageError(f"{name}: 16-bit colours in separate planes. Write them interleaved, or as png")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(
                f"{name}: grey values from {values.min()} to {values.max()}, expected 8 or 16 bits."
                " Convert it"
            )
        image = Image.fromarray((values // 257).astype(np.uint8))
    if image.mode == "F":
        raise ImageError(f"{name}: floating-point pixels have no known range. Convert it to 8 or 16 bits")
    if deep and max(high for _, high in image.convert("RGB").getextrema()) < LEAST_LEVELS:
        raise ImageError(
            f"{name}: 16-bit values that use at most a sixteenth of their range, so that 8 bits would keep"
            f" fewer than {LEAST_LEVELS} levels. Stretch them, or read them with the modality microscope"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
