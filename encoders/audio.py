"""Encoders of sound: view [B, T] float in [-1, 1], mono, at `rate_hz`, of any length -> y [B, dim].

    encoder: {name: conv_mel, width: 32}  # a small CNN on the log-mel spectrogram, quick on a CPU
    # convolutions over time, parts of time kept apart: a sentence
    encoder: {name: conv_time, slots: 12, mel: {n_mels: 40}}
    encoder: {name: resnet18_mel, stem: small, mel: {n_mels: 40}}     # torchvision's ResNet-18 on the log-mel
    # patches of the log-mel, as the Audio Spectrogram Transformer
    encoder: {name: transformer_mel, width: 192, layers: 4}
    encoder: {name: resnet1d18}  # ResNet-18 of 1-D convolutions on the waveform
    # any audio model of the transformers library: audio_transformers.py
    encoder: {name: transformers, model: wav2vec2}

`rate_hz` is the modality's: in a recipe the encoder takes it from there. Those on the log-mel take `mel`,
options of LogMel: mel: {n_mels: 64, window_ms: 25, hop_ms: 10, mask_bands: 8, mask_frames: 20}.
"""

# B batch, T samples, M mel bands, F frames of the spectrogram, N tokens, W width, D representation

import math
import warnings
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn

from encoders.clip import OverTime, over_time
from encoders.image import ConvTrunk, remove_head, torchvision_tokens
from vicjoint.options import Count, Natural, NotNegative, Positive, RateHz, ShareBelowOne, options_of
from vicjoint.registry import ComponentError, register_encoder
from vicjoint.tokens import TokenEncoder, Tokens, flat

RANGE_DB = 80.0  # what lies further below the loudest cell of a sound is as good as silence
FIXED_DB = (-40.0, 20.0)  # mean and spread of speech at normal level, for normalise: fixed


class LogMel(nn.Module):
    """[B, T] -> log-mel spectrogram [B, M, F], computed in float32 whatever autocast says: power, in
    decibels, cut `RANGE_DB` below the loudest cell of each sound.

    rate_hz: of the view. n_mels: bands M, from low_hz to high_hz (null: half the rate). window_ms, hop_ms: of
    the frames. normalise: sample: each sound's spectrogram gets mean 0 and standard deviation 1, so that
    loudness does not count; fixed: loudness stays, at a scale that is one for all sounds. mask_bands,
    mask_frames: SpecAugment (Park et al. 2019): in training, two stretches of up to so many bands and frames
    each are replaced by the mean; 0: none."""

    def __init__(
        self,
        rate_hz: int = 16000,
        /,
        n_mels: Count = 64,
        window_ms: Positive = 25.0,
        hop_ms: Positive = 10.0,
        low_hz: NotNegative = 0.0,
        high_hz: float | None = None,
        normalise: Literal["sample", "fixed"] = "sample",
        mask_bands: Natural = 0,
        mask_frames: Natural = 0,
    ):
        super().__init__()
        high = rate_hz / 2 if high_hz is None else high_hz
        window, self.hop = round(window_ms * rate_hz / 1000), round(hop_ms * rate_hz / 1000)
        if window < 2 or self.hop < 1:
            raise ComponentError(
                f"log-mel: window_ms {window_ms} and hop_ms {hop_ms} give, at {rate_hz} Hz, a window of"
                f" {window} and a hop of {self.hop} samples. Expected a window of 2 samples or more."
            )
        if not low_hz < high <= rate_hz / 2:
            raise ComponentError(
                f"log-mel: low_hz {low_hz} and high_hz {high_hz}, expected 0 <= low_hz < high_hz <="
                f" {rate_hz / 2:g}, half of rate_hz."
            )
        if mask_bands > n_mels:
            raise ComponentError(f"log-mel: mask_bands is {mask_bands}, expected at most n_mels ({n_mels}).")
        self.normalise, self.mask_bands, self.mask_frames = normalise, mask_bands, mask_frames
        self.size, filters = _mel_filters(rate_hz, n_mels, window, low_hz, high)
        padding = self.size - window
        hann = nn.functional.pad(torch.hann_window(window), (padding // 2, padding - padding // 2))
        self.register_buffer("window", hann, persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        with torch.autocast(wave.device.type, enabled=False):
            spectrum = torch.stft(
                wave.float(),
                self.size,
                self.hop,
                window=self.window.float(),
                pad_mode="constant",
                return_complex=True,
            )
            power = spectrum.real.square() + spectrum.imag.square()  # half the time of view_as_real and a sum
            mel = self.filters.float() @ power
            x = 10 * (mel + 1e-10).log10()
            x = torch.maximum(x, x.amax((1, 2), keepdim=True) - RANGE_DB)
            if self.normalise == "sample":
                x = x - x.mean((1, 2), keepdim=True)
                x = x / (x.square().mean((1, 2), keepdim=True).sqrt() + 0.1)  # silence: 0
            else:
                x = (x - FIXED_DB[0]) / FIXED_DB[1]
        return self._mask(x) if self.training else x

    def _mask(self, x: Tensor) -> Tensor:
        fill = x.mean((1, 2), keepdim=True)
        for dimension, most in ((1, self.mask_bands), (2, min(self.mask_frames, x.shape[2]))):
            for _ in range(2 if most else 0):
                places = torch.arange(x.shape[dimension], device=x.device)
                length = torch.rand(len(x), 1, device=x.device) * most
                first = torch.rand(len(x), 1, device=x.device) * (x.shape[dimension] - length)
                hidden = (places >= first) & (places < first + length)
                x = torch.where(hidden.unsqueeze(3 - dimension), fill, x)
        return x


def _mel_filters(rate_hz: int, n_mels: int, window: int, low_hz: float, high_hz: float) -> tuple[int, Tensor]:
    """FFT size and mel filters [M, size / 2 + 1]; the FFT is made longer than the window until no band is
    empty."""
    from torchaudio.functional import melscale_fbanks

    size = 2 ** math.ceil(math.log2(window))
    for _ in range(6):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of empty bands: the next size
            filters = melscale_fbanks(size // 2 + 1, low_hz, high_hz, n_mels, rate_hz)
        if (filters.amax(0) > 0).all():
            return size, filters.T.contiguous()
        size *= 2
    raise ComponentError(
        f"log-mel: n_mels is {n_mels}, more bands than there are frequencies from {low_hz:g} to {high_hz:g}"
        " Hz. Use fewer."
    )


def log_mel(mel: dict | None, rate_hz: int) -> LogMel:
    """A LogMel with the options of a recipe's `mel:`. Raises ComponentError for wrong ones."""
    mel = dict(mel or {})
    if wrong := options_of(LogMel).check(mel, "log-mel"):
        raise ComponentError("\n".join(f"encoder.mel.{key}: {words}" for key, words in wrong.items()))
    return LogMel(rate_hz, **mel)


# ---- on the log-mel spectrogram ----


@register_encoder("audio", "conv_mel")
class ConvMel(TokenEncoder, nn.Module):
    """The small image CNN on a log-mel spectrogram of one channel; its last map is pooled to 4 x 4, which
    keeps the order of sounds."""

    def __init__(self, width: Count = 32, dim: Count = 256, rate_hz: RateHz = 16000, mel: dict | None = None):
        super().__init__()
        self.dim = dim
        self.mel = log_mel(mel, rate_hz)
        self.trunk = ConvTrunk(1, width)
        self.project = nn.Linear(self.trunk.features, dim)

    def forward(self, view: Tensor) -> Tensor:
        return self.project(self.trunk(self.mel(view).unsqueeze(1)))

    def forward_tokens(self, view: Tensor) -> Tokens:
        return flat(self.trunk.map(self.mel(view).unsqueeze(1)))


@register_encoder("audio", "conv_time")
class ConvTimeMel(TokenEncoder, nn.Module):
    """Two convolutions over time on the log-mel, its bands as channels, each of stride 2, then means over
    `slots` parts of time, which are kept apart: for sounds of a whole sentence, of any length."""

    def __init__(
        self,
        features: Count = 128,
        slots: Count = 8,
        dim: Count = 256,
        dropout: ShareBelowOne = 0.0,
        rate_hz: RateHz = 16000,
        mel: dict | None = None,
    ):
        super().__init__()
        self.dim = dim
        self.mel = log_mel(mel, rate_hz)
        self.time = nn.Sequential(
            *over_time(len(self.mel.filters), features // 2, 2), *over_time(features // 2, features, 2)
        )
        self.slots = OverTime(features, slots, dim, dropout)

    def forward(self, view: Tensor) -> Tensor:
        return self.slots(self.time(self.mel(view)))

    def forward_tokens(self, view: Tensor) -> Tokens:
        return flat(self.time(self.mel(view)))


@register_encoder("audio", "resnet18_mel")
class ResNet18Mel(TokenEncoder, nn.Module):
    """torchvision's ResNet-18 on a log-mel spectrogram of one channel. stem: imagenet, or small (3x3, no
    pooling) for sounds below about half a second."""

    def __init__(
        self,
        stem: Literal["imagenet", "small"] = "imagenet",
        zero_init_residual: bool = False,
        rate_hz: RateHz = 16000,
        mel: dict | None = None,
    ):
        super().__init__()
        self.mel = log_mel(mel, rate_hz)
        self.net = torchvision.models.resnet18(zero_init_residual=zero_init_residual)
        self.dim = remove_head(self.net)
        kernel, stride, padding = (7, 2, 3) if stem == "imagenet" else (3, 1, 1)
        self.net.conv1 = nn.Conv2d(1, 64, kernel, stride, padding, bias=False)
        nn.init.kaiming_normal_(self.net.conv1.weight, mode="fan_out", nonlinearity="relu")
        if stem == "small":
            self.net.maxpool = nn.Identity()

    def forward(self, view: Tensor) -> Tensor:
        return self.net(self.mel(view).unsqueeze(1))

    def forward_tokens(self, view: Tensor) -> Tokens:
        return torchvision_tokens(self.net, self.mel(view).unsqueeze(1))


@register_encoder("audio", "transformer_mel")
class TransformerMel(TokenEncoder, nn.Module):
    """A transformer over patches of the log-mel, after the Audio Spectrogram Transformer (Gong et al. 2021),
    small; mean of its tokens.

    patch: [bands, frames] of a patch; n_mels has to be a multiple of its bands, and frames that do not fill a
    patch at the end are left out. A band's position is learned, time is a sinusoid, so the length of a sound
    may change; nothing is padded.
    """

    def __init__(
        self,
        width: Count = 192,
        layers: Count = 4,
        heads: Count = 4,
        patch: tuple[Count, Count] = (16, 8),
        dropout: ShareBelowOne = 0.0,
        rate_hz: RateHz = 16000,
        mel: dict | None = None,
    ):
        super().__init__()
        if width % heads or width % 2:
            raise ComponentError(
                f"encoder 'transformer_mel': width {width} cannot be shared by {heads} heads; "
                "it has to be even and a multiple of them."
            )
        self.mel, self.dim, self.patch = log_mel(mel, rate_hz), width, tuple(patch)
        bands = len(self.mel.filters)
        if bands % self.patch[0]:
            raise ComponentError(
                f"encoder 'transformer_mel': patch {list(patch)} does not divide the {bands} mel bands. "
                f"Use e.g. [{math.gcd(bands, 16)}, 8]."
            )
        self.embed = nn.Conv2d(1, width, self.patch, self.patch)
        self.band = nn.Parameter(0.02 * torch.randn(bands // self.patch[0], 1, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, view: Tensor) -> Tensor:
        return self.forward_tokens(view).x.mean(1)

    def forward_tokens(self, view: Tensor) -> Tokens:
        mel = self.mel(view)
        if mel.shape[2] < self.patch[1]:
            raise ValueError(
                f"TransformerMel: a view of {view.shape[1]} samples has {mel.shape[2]} frames, a patch"
                f" {self.patch[1]}. Use longer windows (the modality's seconds), or a smaller patch."
            )
        x = self.embed(mel.unsqueeze(1)).permute(0, 2, 3, 1)
        x = x + self.band.to(x.dtype) + sinusoid(x.shape[2], self.dim, x.device).to(x.dtype)
        return Tokens(self.blocks(x.flatten(1, 2)), grid=tuple(x.shape[1:3]))


def sinusoid(length: int, width: int, device) -> Tensor:
    """Positions [length, width] of Vaswani et al. 2017."""
    frequency = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    angle = torch.arange(length, device=device).unsqueeze(1) * frequency
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1)


# ---- on the waveform ----


class Block1d(nn.Module):
    """ResNet's basic block with 1-D convolutions."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        kernel, padding = (3, 1) if stride == 1 else (2 * stride + 1, stride)
        self.main = nn.Sequential(
            nn.Conv1d(before, after, kernel, stride, padding, bias=False),
            nn.BatchNorm1d(after),
            nn.ReLU(inplace=True),
            nn.Conv1d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm1d(after),
        )
        self.short = (
            nn.Identity()
            if stride == 1 and before == after
            else nn.Sequential(nn.Conv1d(before, after, 1, stride, bias=False), nn.BatchNorm1d(after))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.main(x) + self.short(x))


@register_encoder("audio", "resnet1d18")
class ResNet1d18(TokenEncoder, nn.Module):
    """ResNet-18 with 1-D convolutions on the waveform: 17 convolutions of 64 to 512 channels, mean over time.

    The first convolution sees `kernel` samples every `stride`; `stage_stride` is what each of the last three
    stages divides time by. With 4 (as in Dai et al. 2017) an output sees 0.7 s at 16 kHz, for 0.24 G
    multiply-adds per second of sound; 2, as in an image ResNet, costs three times as much and sees less.
    width: channels of the first stage. Each waveform is scaled to a standard deviation of 1.
    """

    def __init__(self, width: Count = 64, kernel: Count = 80, stride: Count = 4, stage_stride: Count = 4):
        super().__init__()
        self.dim = 8 * width
        self.stem = nn.Sequential(
            nn.Conv1d(1, width, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool1d(4, 4, ceil_mode=True),
        )
        stages, before = [], width
        for number in range(4):
            after = width * 2**number
            stages += [Block1d(before, after, stage_stride if number else 1), Block1d(after, after, 1)]
            before = after
        self.stages = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, view: Tensor) -> Tensor:
        return self._map(view).mean(2)

    def forward_tokens(self, view: Tensor) -> Tokens:
        return flat(self._map(view))

    def _map(self, view: Tensor) -> Tensor:
        return self.stages(self.stem(scaled(view).unsqueeze(1)))


def scaled(view: Tensor) -> Tensor:
    """Each waveform with mean 0 and standard deviation 1; silence stays 0."""
    view = view.float() - view.float().mean(1, keepdim=True)
    return view / (view.square().mean(1, keepdim=True) + 1e-7).sqrt()
