"""Decoders beside PyAV, for files that they are right about.

pyav = PyAV("clip.mp4")
decoder = OTHERS["decord"]("clip.mp4", pyav)           # VideoError where it differs from that
decoder.read([3, 5, 7], np.arange(3)), decoder.close()
"""

import contextlib
import importlib

import numpy as np
import torch

from vicjoint.files.cells import as_path
from vicjoint.files.inside import Inside
from vicjoint.video.backends import PyAV
from vicjoint.video.colours import Part
from vicjoint.video.index import OPEN, STREAMS, TURNED, VideoError, VideoInfo


class _Other:
    """A decoder beside PyAV: a subclass opens the file as `_reader`, compares it with PyAV's info and
    decodes. right_about: oddities of a file that it knows (`PyAV.odd`)."""

    name: str
    right_about: frozenset[str] = frozenset()
    module: (
        str  # imported when a file is opened and not at the top: optional, and decord must load after torch
    )
    missing: str  # what to do where that fails

    def __init__(self, path: str, pyav: PyAV):
        self.path, self._held = path, contextlib.ExitStack()
        if odd := sorted(pyav.odd - self.right_about):
            raise self._differs(f"would not be right about each frame of this file ({', '.join(odd)})")
        module = self.load()
        try:
            self._open(module, self._held.enter_context(on_disk(path)))
        except Exception as error:  # decord raises its own errors, some of them plain Exception
            self.close()
            raise self._differs(f"cannot open this file ({_brief(error)})") from None
        try:
            self._compare(pyav.info)
        except VideoError:
            self.close()
            raise

    @classmethod
    def load(cls):
        """Its module. Raises VideoError where it cannot be used."""
        try:
            return importlib.import_module(cls.module)
        # RuntimeError: torchcodec without an FFmpeg that it can load
        except (ImportError, OSError, RuntimeError):
            raise VideoError(f"video_backend '{cls.name}' {cls.missing}") from None

    def _differs(self, how: str) -> VideoError:
        return VideoError(f"{self.path}: {self.name} {how}. Use video_backend: auto.")

    def read(self, numbers: list[int], places: np.ndarray, part: Part) -> np.ndarray:
        """That part of frames of increasing, distinct numbers, uint8 [T, h, w, 3]. places: int [T], which
        one each is."""
        try:
            images = np.ascontiguousarray(part.of(self._decode(numbers)))  # and no view of whole frames
        except Exception as error:
            raise VideoError(
                f"{self.path}: {self.name} cannot decode frames {numbers[0]} to {numbers[-1]} "
                f"({_brief(error)})."
            ) from None
        return images if np.array_equal(places, np.arange(len(images))) else images[places]

    def close(self) -> None:
        self._reader = None
        self._held.close()


class _Decord(_Other):
    name = module = "decord"
    missing = "is not installed here. Run: pip install decord, or use video_backend: pyav."

    def _open(self, decord, path: str) -> None:
        decord.logging.set_level(decord.logging.QUIET)
        self._reader = decord.VideoReader(path, num_threads=1)
        self._times = self._reader.get_frame_timestamp(range(len(self._reader)))[:, 0]

    def _compare(self, info: VideoInfo) -> None:
        # decord does not know edit lists: it counts frames that are never shown and returns wrong ones,
        # without an error
        if (
            len(self._times) != info.frames
            or self._times.min() < 0
            or not _same_times(self._times, info.timestamps_seconds)
        ):
            raise self._differs(
                f"gives other frames than the {info.frames} a player shows (an edit list, most often)"
            )

    def _decode(self, numbers: list[int]) -> np.ndarray:
        return self._reader.get_batch(numbers).asnumpy()


class _TorchCodec(_Other):
    name = "torchcodec"
    module = "torchcodec.decoders"
    right_about = frozenset({OPEN, STREAMS, TURNED})
    device = "cpu"
    missing = (
        "cannot be used here. Run: pip install torchcodec, and install FFmpeg with your system's packages; "
        "or use video_backend: pyav."
    )

    def _open(self, decoders, path: str) -> None:
        self._reader = decoders.VideoDecoder(
            path, seek_mode="exact", num_ffmpeg_threads=1, dimension_order="NHWC", device=self.device
        )

    def _compare(self, info: VideoInfo) -> None:
        if len(self._reader) != info.frames:
            raise self._differs(f"counts {len(self._reader)} frames, {info.frames} exist")

    def _decode(self, numbers: list[int]) -> np.ndarray:
        return self._reader.get_frames_at(numbers).data.cpu().numpy()


class _NVDEC(_TorchCodec):
    """On the GPU, colours included, which are its own."""

    name, device = "nvdec", "cuda"

    @classmethod
    def load(cls):
        module = super().load()
        if not torch.cuda.is_available():
            raise VideoError(
                "video_backend 'nvdec' decodes on an NVIDIA GPU, and there is none here that PyTorch can use."
                " Use video_backend: auto."
            )
        return module


OTHERS = {"decord": _Decord, "torchcodec": _TorchCodec, "nvdec": _NVDEC}


def on_disk(path: str) -> contextlib.AbstractContextManager[str]:
    """A path that other libraries open."""
    return as_path(path.part) if isinstance(path, Inside) else contextlib.nullcontext(path)


def _brief(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _same_times(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two lists of timestamps in seconds agree to half the shortest gap, apart from a common
    shift."""
    gap = np.diff(b).min() if len(b) > 1 else 1.0
    return bool(np.all(np.abs((a - a[0]) - (b - b[0])) < gap / 2))
