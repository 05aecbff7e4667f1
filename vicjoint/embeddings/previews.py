"""Items -> what a page shows of them: a small picture, a short clip, a short sound.

with Previews("media", modality="clip", reads="file") as previews:
    # Preview(picture="17.jpg", clip="17.mp4"), and both files in the folder
    previews.write("17", {"item": "a.mp4", "start_seconds": 2.0, "end_seconds": 4.0})

What a file is, its modality or its name says: a picture, a film, a sound. Of a molecule its formula is drawn.
Of a text there is nothing to show but itself.
"""

# T frames, H height, W width, C channels

import functools
import glob
import os
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image

from vicjoint.data import READ_ERRORS, cause_of
from vicjoint.files import images
from vicjoint.files.films import TIFF_SUFFIXES
from vicjoint.files.sound import Sound, SoundError
from vicjoint.modalities.drawing import draw, place
from vicjoint.modalities.image import duration
from vicjoint.modalities.microscope import read_channels, stretch
from vicjoint.modalities.molecule import parse
from vicjoint.registry import ComponentError, need
from vicjoint.sources.places import pictures_of
from vicjoint.video import FRAME_RATE, VIDEO_SUFFIXES, Video
from vicjoint.video.frames import is_frames
from vicjoint.video.write import RATE_FPS, write_mp4

SIDE = 224  # pixels of a picture's or a clip's longer side, at most
CLIP_SECONDS, SOUND_SECONDS = 6.0, 10.0  # at most; of longer items their middle
SOUND_HZ = 16_000  # of a sound, at most
MOST_BYTES = 256 << 20  # of all clips and sounds of an index
QUALITY, LOSS = 82, 28  # of JPEG; of H.264
DECODED_BYTES = 128 << 20  # of frames at their own size that are in memory together
MAX_ATOMS = 1024
SOUND_SUFFIXES = (".aif", ".aiff", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav")
DRAWN = ("molecule", "drawing")
OF_FILMS = ("clip", "next_frame")  # modalities that read a tiff as a film


@dataclass(frozen=True)
class Preview:
    """Names of the files that were written, in the folder; None: there is none. cause: why not all are there
    that there could be."""

    picture: str | None = None
    clip: str | None = None
    sound: str | None = None
    cause: str = ""

    def at(self, folder: str) -> "Preview":
        """The same, with the names of the files as seen from elsewhere."""
        picture, clip, sound = (name and f"{folder}/{name}" for name in (self.picture, self.clip, self.sound))
        return Preview(picture, clip, sound, self.cause)


@dataclass(frozen=True)
class Shown:
    """What is to be seen and heard. picture: uint8 [H, W, 3]. frames: uint8 [T, H, W, 3] at RATE_FPS. sound:
    float32 [samples] at rate_hz."""

    picture: np.ndarray | None = None
    frames: np.ndarray | None = None
    sound: np.ndarray | None = None
    rate_hz: int = SOUND_HZ


class Previews:
    """Writes previews of the items of an index into `folder`. `modality` and `reads`: of the branch that made
    it; `frame_rate`: of its recipe. `spent`: bytes of clips and sounds so far, a list of one that several
    writers of an index share. Use it in a `with` block: a film stays open while its windows come one after
    the other."""

    def __init__(
        self,
        folder: str | Path,
        modality: str,
        reads: str,
        frame_rate: float = FRAME_RATE,
        spent: list[int] | None = None,
    ):
        self.folder, self.modality, self.reads, self.frame_rate = Path(folder), modality, reads, frame_rate
        self.spent = [0] if spent is None else spent
        self._path: str | None = None
        self._video: Video | None = None
        self._sound: Sound | None = None

    def write(self, name: str, row: dict[str, Any], pixels: np.ndarray | None = None) -> Preview:
        """The preview of a row with `item`, and `start_seconds` and `end_seconds` where it is a window.
        pixels: uint8 [H, W, 3], to be shown instead of what the item names. An item that cannot be read has a
        cause."""
        try:
            shown = Shown(pixels) if pixels is not None else self._show(row)
            return self._written(name, shown)
        except (*READ_ERRORS, ComponentError) as error:
            return Preview(cause=cause_of(error))

    def _show(self, row: dict[str, Any]) -> Shown:
        item, window = row["item"], (row.get("start_seconds"), row.get("end_seconds"))
        if self.modality in DRAWN:
            need(["rdkit.Chem"], "a drawing of a molecule", "molecule")
            return Shown(draw(place(parse(item, MAX_ATOMS), 0.0, False), SIDE).permute(1, 2, 0).numpy())
        if self.reads == "text":
            return Shown()
        if self.modality == "microscope":
            return Shown(channels_as_colours(item))
        suffix = Path(item).suffix.lower()
        if self.modality == "audio" or suffix in SOUND_SUFFIXES:
            return self._heard(item, *window)
        of_pages = suffix in TIFF_SUFFIXES and self.modality in OF_FILMS
        film = suffix in VIDEO_SUFFIXES or of_pages or (is_frames(item) and suffix not in TIFF_SUFFIXES)
        if film and (suffix != ".gif" or self.modality != "image"):
            return self._seen(item, *window)
        if suffix in images.IMAGE_SUFFIXES or self.modality in ("image", "next_frame"):
            pixels = images.read_record(member_of_tar(item) or {"path": item})
            return Shown(pixels.permute(1, 2, 0).numpy())
        return Shown()

    # ---- reading ----

    def _open(self, path: str) -> None:
        """Make `path` the file that is open."""
        if self._path != path:
            self.close()
            self._path = path

    def _seen(self, path: str, start: float | None, end: float | None) -> Shown:
        self._open(path)
        self._video = self._video or Video(path, "pyav", self.frame_rate)
        info = self._video.info
        start, length = middle(start, end, duration(info), CLIP_SECONDS)
        times = info.start_seconds + start + (np.arange(max(1, round(length * RATE_FPS))) + 0.5) / RATE_FPS
        numbers = np.searchsorted(info.timestamps_seconds, times, side="right") - 1
        numbers = np.clip(numbers, 0, info.frames - 1)
        at_once = max(1, DECODED_BYTES // (3 * info.height * info.width))
        frames = [
            small(frame)
            for first in range(0, len(numbers), at_once)
            for frame in self._video.read(numbers[first : first + at_once])
        ]
        heard = self._sound_of_film(path, start, length)
        return Shown(frames[len(frames) // 2], np.stack(frames), heard)

    def _sound_of_film(self, path: str, start: float, length: float) -> np.ndarray | None:
        """Its sound, at SOUND_HZ; None: it has none, or the library that reads sound is not there."""
        try:
            need(["soundfile"], "the sound of a film", "audio")
            self._sound = self._sound or Sound(path)
            return self._sound.read(start, length, SOUND_HZ).numpy()
        except (SoundError, ComponentError):
            return None

    def _heard(self, path: str, start: float | None, end: float | None) -> Shown:
        need(["soundfile"], "a sound", "audio")
        self._open(path)
        self._sound = self._sound or Sound(path)
        start, length = middle(start, end, self._sound.seconds, SOUND_SECONDS)
        rate_hz = min(self._sound.rate_hz, SOUND_HZ)
        sound = self._sound.read(start, length, rate_hz).numpy()
        return Shown(spectrogram(sound), None, sound, rate_hz)

    # ---- writing ----

    def _written(self, name: str, shown: Shown) -> Preview:
        picture = clip = sound = None
        if shown.picture is not None:
            picture = f"{name}.jpg"
            Image.fromarray(small(shown.picture)).save(self.folder / picture, quality=QUALITY)
        plays = shown.frames is not None or shown.sound is not None
        if plays and self.spent[0] > MOST_BYTES:
            limit = f"The limit of {MOST_BYTES >> 20} MB for clips and sounds was reached before this one."
            return Preview(picture, cause=limit)
        if shown.frames is not None:
            clip = f"{name}.mp4"
            # H.264 halves the colours' resolution: sides are even
            frames = shown.frames[:, : shown.frames.shape[1] // 2 * 2, : shown.frames.shape[2] // 2 * 2]
            write_mp4(self.folder / clip, frames, shown.sound, shown.rate_hz, crf=LOSS)
        elif shown.sound is not None:
            sound = f"{name}.wav"
            write_wav(self.folder / sound, shown.sound, shown.rate_hz)
        self.spent[0] += sum((self.folder / made).stat().st_size for made in (clip, sound) if made)
        return Preview(picture, clip, sound)

    def close(self) -> None:
        for file in (self._video, self._sound):
            if file is not None:
                file.close()
        self._path = self._video = self._sound = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def middle(start: float | None, end: float | None, whole: float, most: float) -> tuple[float, float]:
    """(start, length) in seconds of the middle `most` seconds between start and end, or of the whole."""
    start, end = (0.0, whole) if start is None or end is None else (start, end)
    length = min(end - start, most)
    return start + (end - start - length) / 2, length


def small(pixels_HWC: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3], shrunk where a side is longer than SIDE."""
    height, width = pixels_HWC.shape[:2]
    factor = SIDE / max(height, width)
    if factor >= 1:
        return pixels_HWC
    size = max(2, round(width * factor)), max(2, round(height * factor))
    return np.asarray(Image.fromarray(pixels_HWC).resize(size, Image.Resampling.BICUBIC))


def member_of_tar(item: str) -> dict | None:
    """The record of a picture in a tar file, whose items are called shard.tar/key; None: it is another file.
    Raises ImageError where the tar file has no such picture."""
    shard, between, key = item.partition(".tar/")
    if not between or not os.path.isfile(f"{shard}.tar"):
        return None
    if (record := members(f"{shard}.tar").get(key)) is None:
        raise images.ImageError(f"{item}: no such picture in the tar file")
    return record


@functools.lru_cache(maxsize=4)
def members(shard: str) -> dict[str, dict]:
    """{key: record} of the pictures of a tar file."""
    return {record["id"]: record for record, _ in pictures_of(shard)}


def channels_as_colours(path: str) -> np.ndarray:
    """uint8 [H, W, 3] of up to three channels of a microscope image, each stretched by itself: green, red and
    blue. With {channel} in the path they are the first files in the order of their names."""
    need(["tifffile"], "a microscope image", "molecule")
    paths = sorted(glob.glob(glob.escape(path).replace("{channel}", "*")))[:3] or [path]
    channels = np.concatenate([read_channels(p, 1 if len(paths) > 1 else 3) for p in paths])[:3]
    colours = np.zeros((*channels[0].shape, 3), np.uint8)
    for place_, channel in zip((1, 0, 2), channels):
        colours[..., place_] = np.round(255 * stretch(channel, 1.0, 99.9, path))
    return colours


def spectrogram(sound: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: time to the right, frequency upwards, from dark to bright what is louder than a fifth
    of it."""
    columns, bins = 160, 256
    wave_T = torch.from_numpy(np.pad(sound, (0, max(0, bins - len(sound)))))
    power = torch.stft(
        wave_T, bins, max(1, len(wave_T) // columns), window=torch.hann_window(bins), return_complex=True
    )
    level = 20 * power.abs().clamp_min(1e-8).log10()
    low = level.quantile(0.2)
    shade = ((level - low) / (level.max() - low).clamp_min(1e-3)).clamp(0, 1).flip(0).numpy()
    pixels = (matplotlib.colormaps["magma"](shade)[..., :3] * 255).round().astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((columns, 96), Image.Resampling.BICUBIC))


def write_wav(path: Path, sound: np.ndarray, rate_hz: int) -> None:
    """Write float [samples] in [-1, 1] as 16-bit mono."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate_hz, 0, "NONE", ""))
        file.writeframes(np.round(sound * 32767).astype("<i2").tobytes())
