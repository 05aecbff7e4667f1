"""Augmentations of sound, for the option `augment` of the modality audio: each has a chance `p`, draws from
the sample's own generator, and turns a waveform [T] in [-1, 1] into another one of the same length; the
modality clips the result.

    modality: {name: audio, seconds: 1.0, augment: [{name: gain}, {name: equalise, p: 0.3}, {name: noise, snr:
    [10, 40]}]}

They are registered in the family `transform` as audio/gain, audio/noise, ...; a recipe leaves `audio/` out.
Each takes the rate in Hz first, from the modality. Masks on a spectrogram (SpecAugment) are options of the
encoders on the log-mel, `mask_bands` and `mask_frames`.
"""

# T samples, F frequencies

import math
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from vicjoint.options import Ascending, Count, NotNegative, Share
from vicjoint.registry import register

Tilt = Annotated[float, Field(ge=-4, le=4)]
Echo = Annotated[float, Field(ge=0.01, le=10)]  # seconds
Factor = Annotated[float, Field(ge=0.5, le=2)]


class SoundTransform:
    """What all of them share: the chance `p`."""

    def __init__(self, rate_hz: int, p: float):
        self.rate_hz, self.p = rate_hz, p

    def __call__(self, wave: Tensor, rng: np.random.Generator) -> Tensor:
        return self.change(wave, rng) if rng.random() < self.p else wave

    def change(self, wave: Tensor, rng: np.random.Generator) -> Tensor:
        raise NotImplementedError


@register("transform", "audio/gain")
class Gain(SoundTransform):
    """Louder or softer by a number of decibels, uniform in `decibels`."""

    def __init__(
        self,
        rate_hz: int,
        /,
        decibels: Annotated[tuple[float, float], Ascending] = (-6.0, 6.0),
        p: Share = 1.0,
    ):
        super().__init__(rate_hz, p)
        self.decibels = decibels

    def change(self, wave, rng):
        return wave * 10 ** (rng.uniform(*self.decibels) / 20)


@register("transform", "audio/polarity")
class Polarity(SoundTransform):
    """Upside down: nothing that an ear hears, but another waveform."""

    def __init__(self, rate_hz: int, /, p: Share = 0.5):
        super().__init__(rate_hz, p)

    def change(self, wave, rng):
        return -wave


@register("transform", "audio/noise")
class Noise(SoundTransform):
    """Gaussian noise at a signal-to-noise ratio in decibels, uniform in `snr`; the power of the noise falls
    with frequency as f^-tilt, `tilt` uniform in its range (0 white, 1 pink, 2 brown). Silence stays silent.
    """

    def __init__(
        self,
        rate_hz: int,
        /,
        snr: Annotated[tuple[float, float], Ascending] = (10.0, 40.0),
        tilt: Annotated[tuple[Tilt, Tilt], Ascending] = (0.0, 2.0),
        p: Share = 0.5,
    ):
        super().__init__(rate_hz, p)
        self.snr, self.tilt = snr, tilt

    def change(self, wave, rng):
        snr, tilt = rng.uniform(*self.snr), rng.uniform(*self.tilt)
        noise = torch.from_numpy(rng.standard_normal(len(wave), dtype=np.float32))
        frequency = torch.arange(len(wave) // 2 + 1, dtype=torch.float32).clamp_min_(1)
        noise = torch.fft.irfft(torch.fft.rfft(noise) * frequency ** (-tilt / 2), len(wave))
        power = wave.square().mean() / noise.square().mean().clamp_min(1e-20) / 10 ** (snr / 10)
        return wave + power.sqrt() * noise


@register("transform", "audio/equalise")
class Equalise(SoundTransform):
    """Another microphone or room: each octave is raised or lowered by up to `decibels`, smoothly in
    between."""

    def __init__(self, rate_hz: int, /, decibels: NotNegative = 6.0, p: Share = 0.5):
        super().__init__(rate_hz, p)
        self.decibels = decibels

    def change(self, wave, rng):
        octaves = np.arange(5.0, math.log2(self.rate_hz / 2) + 1)  # 32 Hz, 64 Hz, ...
        gains = rng.uniform(-self.decibels, self.decibels, len(octaves))
        frequency = np.fft.rfftfreq(len(wave), 1 / self.rate_hz)
        curve = np.interp(np.log2(np.maximum(frequency, 1)), octaves, gains)
        return torch.fft.irfft(torch.fft.rfft(wave) * torch.from_numpy(10 ** (curve / 20)).float(), len(wave))


@register("transform", "audio/reverb")
class Reverb(SoundTransform):
    """A room: the sound plus an echo of noise that decays by 60 dB in `seconds` (uniform), as strong as `wet`
    (uniform) of the sound."""

    def __init__(
        self,
        rate_hz: int,
        /,
        seconds: Annotated[tuple[Echo, Echo], Ascending] = (0.1, 0.5),
        wet: Annotated[tuple[Share, Share], Ascending] = (0.1, 0.5),
        p: Share = 0.3,
    ):
        super().__init__(rate_hz, p)
        self.seconds, self.wet = seconds, wet

    def change(self, wave, rng):
        seconds, wet = rng.uniform(*self.seconds), rng.uniform(*self.wet)
        taps = max(2, round(seconds * self.rate_hz))
        echo = torch.from_numpy(rng.standard_normal(taps, dtype=np.float32)) * 10 ** (
            -3 * torch.arange(taps) / taps
        )
        size = 2 ** math.ceil(math.log2(len(wave) + taps))  # quick to transform
        tail = torch.fft.irfft(torch.fft.rfft(wave, size) * torch.fft.rfft(echo / echo.norm(), size), size)[
            : len(wave)
        ]
        return wave + wet * tail


@register("transform", "audio/speed")
class Speed(SoundTransform):
    """Faster and higher, or slower and lower, by a factor uniform in `factor`; the middle is kept, silence
    fills what is missing."""

    def __init__(
        self,
        rate_hz: int,
        /,
        factor: Annotated[tuple[Factor, Factor], Ascending] = (0.9, 1.1),
        p: Share = 0.5,
    ):
        super().__init__(rate_hz, p)
        self.factor = factor

    def change(self, wave, rng):
        size = max(1, round(len(wave) / rng.uniform(*self.factor)))
        other = torch.fft.irfft(torch.fft.rfft(wave), size) * (size / len(wave))  # band-limited
        missing = max(0, len(wave) - size)
        other = torch.nn.functional.pad(other, (missing // 2, missing - missing // 2))
        first = (len(other) - len(wave)) // 2
        return other[first : first + len(wave)]


@register("transform", "audio/time_shift")
class TimeShift(SoundTransform):
    """Earlier or later by up to `seconds`; silence comes in. For windows that a pair cuts at the same seconds
    for both of its halves."""

    def __init__(self, rate_hz: int, /, seconds: NotNegative = 0.1, p: Share = 1.0):
        super().__init__(rate_hz, p)
        self.seconds = seconds

    def change(self, wave, rng):
        most = min(round(self.seconds * self.rate_hz), len(wave))
        shift = int(rng.integers(-most, most + 1))
        out = torch.zeros_like(wave)
        out[max(shift, 0) : len(wave) + min(shift, 0)] = wave[max(-shift, 0) : len(wave) - max(shift, 0)]
        return out


@register("transform", "audio/time_mask")
class TimeMask(SoundTransform):
    """`count` stretches of up to `seconds` each, anywhere, become silent."""

    def __init__(self, rate_hz: int, /, seconds: NotNegative = 0.1, count: Count = 1, p: Share = 0.5):
        super().__init__(rate_hz, p)
        self.seconds, self.count = seconds, count

    def change(self, wave, rng):
        wave = wave.clone()
        for _ in range(self.count):
            length = int(rng.integers(0, min(round(self.seconds * self.rate_hz), len(wave)) + 1))
            first = int(rng.integers(0, len(wave) - length + 1))
            wave[first : first + length] = 0
        return wave


TRANSFORMS = {
    "gain": Gain,
    "polarity": Polarity,
    "noise": Noise,
    "equalise": Equalise,
    "reverb": Reverb,
    "speed": Speed,
    "time_shift": TimeShift,
    "time_mask": TimeMask,
}
