"""Sound: waveforms [B, T] float in [-1, 1], mono, at `rate_hz`, from sound files and from the sound of videos
(vicjoint/sound.py).

    a: {modality: {name: audio, rate_hz: 16000, seconds: 1.0, augment: [{name: gain}, {name: noise, snr: [10,
    40]}]}, ...}

A waveform is what every audio encoder takes: those on a spectrogram make it themselves, on the training
device.
"""

# B batch, T samples, K features

import functools
import math
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from vicjoint.files.kept import Kept
from vicjoint.files.sound import SOUND_SUFFIXES, Sound
from vicjoint.options import ComponentOf, Natural, Positive, RateHz
from vicjoint.parts import Modality
from vicjoint.registry import build, need, register
from vicjoint.sliding import Sliding, spans

BANDS, SLOTS = 40, 8  # of the simple features


@register("modality", "audio")
class Audio(Modality):
    """A sound as its waveform, mono, from sound files and from videos.

    rate_hz: of the view; files of other rates are resampled. seconds: length of the window, which is cut
    at random in training and from the middle in evaluation, unless the pair asks for the same seconds of both
    of its halves. short: what a sound shorter than the window becomes: zeros: silence around it (at a random
    place in training, in the middle in evaluation); repeat: it is repeated (from a random place on, or from
    its beginning). A pair's own window always gets zeros. augment: transforms for training, in order, such as
    {name: gain} (vicjoint/transforms/waveforms.py lists them); null: none. stream: number of the audio stream
    in files with several; null: the one that a player chooses. cache_mb: memory, in each process that reads,
    for whole sounds decoded once, at the files' rates, whatever their windows; 0: none. The first ones that
    fit stay. Views are the same with and without: mp3, and lossy sound in videos, whose bits depend on where
    decoding begins, are never kept.
    """

    timed = True
    baseline = "spectrum"
    shared = ("rate_hz",)
    suffixes = SOUND_SUFFIXES
    opens_inside = True
    reading = ("seconds", "short", "augment", "stream", "cache_mb")

    def __init__(
        self,
        rate_hz: RateHz = 16000,
        seconds: Positive = 1.0,
        short: Literal["zeros", "repeat"] = "zeros",
        augment: list[Annotated[dict, ComponentOf("transform", prefix="audio/")]] | None = None,
        stream: int | None = None,
        cache_mb: Natural = 0,
    ):
        super().__init__()
        need(["soundfile", "torchaudio"], "modality 'audio'", "audio")
        if round(seconds * rate_hz) < 1:
            raise ValueError(
                f"modality 'audio': seconds is {seconds}, shorter than a sample at {rate_hz} Hz."
            )
        self.rate_hz, self.length, self.short, self.stream = rate_hz, seconds, short, stream
        self.cache_mb, self.kept = cache_mb, Kept(cache_mb)
        self.augment = [
            build("transform", {**spec, "name": f"audio/{spec['name']}"}, rate_hz) for spec in augment or []
        ]

    def read(
        self, value: str, rng: np.random.Generator | None = None, window: tuple[float, float] | None = None
    ) -> Tensor:
        """float32 [1, T], T = round(seconds * rate_hz). Raises SoundError (a ValueError) with the file and
        the cause."""
        with Sound(value, self.stream, self.kept) as sound:
            if window is not None:
                wave = sound.read(*window, self.rate_hz)
            elif self.short == "repeat" and sound.seconds < self.length:
                wave = self._repeated(sound.read(0, sound.seconds, self.rate_hz), rng)
            else:
                spare = sound.seconds - self.length  # below 0: the window begins before the sound
                start = spare / 2 if rng is None else rng.uniform(min(0, spare), max(0, spare))
                wave = sound.read(start, self.length, self.rate_hz)
        if rng is not None and self.augment:
            for transform in self.augment:
                wave = transform(wave, rng)
            wave = wave.clamp(-1, 1)
        return wave[None]

    def _repeated(self, wave: Tensor, rng: np.random.Generator | None) -> Tensor:
        wave = wave if len(wave) else wave.new_zeros(1)
        first = 0 if rng is None else int(rng.integers(len(wave)))
        count = round(self.length * self.rate_hz)
        return wave.roll(-first).repeat(math.ceil(count / len(wave)))[:count]

    def seconds(self, value: str) -> float:
        return _seconds(value, self.stream)

    def preprocessing(self, seconds: float | None = None) -> dict[str, Any]:
        length, short = (self.length, self.short) if seconds is None else (seconds, "zeros")
        return {
            "shape": [round(length * self.rate_hz)],
            "dtype": "float32",
            "sampling_rate": self.rate_hz,
            "channels": 1,
            "range": [-1.0, 1.0],
            "seconds": length,
            "short": short,
        }

    def slide(self, value: str, every: float, length: float | None = None) -> Sliding:
        """Stretches of `length` seconds, or of the modality's own; of a sound that is shorter than its own,
        what `read` gives of it. Raises SoundError and ValueError."""
        sound = Sound(value, self.stream, self.kept)
        try:
            if length is None and sound.seconds < self.length:
                return Sliding([(0.0, sound.seconds)], lambda start: self.read(value), sound.close)
            length = self.length if length is None else length
            found = spans(value, sound.seconds, length, every)
        except BaseException:
            sound.close()
            raise
        return Sliding(found, lambda start: sound.read(start, length, self.rate_hz)[None], sound.close)

    def simple_features(self, raw: Tensor) -> Tensor:
        """Log energies of 40 mel bands in 8 equal slots of time, [B, 320]: what a ridge regression on a
        spectrum sees."""
        mel = _mel(self.rate_hz).to(raw.device)(raw.float())
        return torch.nn.functional.adaptive_avg_pool1d((mel + 1e-6).log(), SLOTS).flatten(1)


@functools.lru_cache(maxsize=2**16)  # a pair with a common window asks before each read
def _seconds(path: str, stream: int | None) -> float:
    with Sound(path, stream) as sound:
        return sound.seconds


@functools.lru_cache(maxsize=4)
def _mel(rate_hz: int):
    from torchaudio.transforms import MelSpectrogram

    size = 2 ** math.ceil(math.log2(0.064 * rate_hz))  # 64 ms: each of the bands holds a frequency
    return MelSpectrogram(rate_hz, size, hop_length=size // 4, n_mels=BANDS, pad_mode="constant")
