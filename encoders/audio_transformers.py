"""Audio models of the transformers library: view [B, T] float in [-1, 1] -> y [B, dim].

# random weights
encoder: {name: transformers, model: wav2vec2, config: {hidden_size: 128, num_hidden_layers: 4}}
encoder: {name: transformers, weights: FOLDER}  # wav2vec2, hubert, wavlm, AST, Whisper's encoder, ...
"""

# B batch, T samples, F frames, N tokens, D representation

from pathlib import Path

import torch
from torch import Tensor, nn

from encoders.audio import scaled
from encoders.transformers_models import feature_extractor, made_by, save_transformer
from vicjoint.library import LibraryPart
from vicjoint.options import RateHz
from vicjoint.registry import ComponentError, register_encoder
from vicjoint.tokens import TokenEncoder, Tokens, on_grid

# of AudioSet's filter banks: what the published Audio Spectrogram Transformers were given
AST_MEAN, AST_SPREAD = (-4.2677393, 4.5689974)
AST, WHISPER = "audio-spectrogram-transformer", "whisper"
# for random weights: the objective's two branches are augmented already, and parameters that are used only
# now and then stop training on several processes
PLAIN = {"apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0}


@register_encoder("audio", "transformers")
class AudioTransformer(LibraryPart, TokenEncoder, nn.Module):
    """An audio model of the transformers library: `model`, a type such as 'wav2vec2', 'hubert', 'wavlm',
    'audio-spectrogram-transformer', 'whisper', with random weights and `config` overrides; or `weights`, a
    local folder or a hub id (online). y is the mean of its last hidden states; of the Audio Spectrogram
    Transformer its pooled output; of Whisper the mean of its encoder's states of the view's own seconds.

    What a model gets is what its feature extractor says, where its weights bring one: waveforms as they are,
    or each at mean 0 and standard deviation 1; Kaldi's filter banks, cut or padded to its config's
    max_length; Whisper's log-mel of 30 s, padded with silence. rate_hz: of the view; all published weights
    are for 16000. Raises ComponentError for an unknown model or config key, weights that cannot be found or
    are for another rate, and models of other inputs.
    """

    def __init__(
        self,
        model: str | None = None,
        weights: str | None = None,
        config: dict | None = None,
        rate_hz: RateHz = 16000,
    ):
        super().__init__()
        overrides = _plain(model) | (config or {}) if model and not weights else config
        made, _ = made_by(model, weights, overrides, "audio/transformers", "wav2vec2")
        self.kind = made.config.model_type
        self.model = made.get_encoder() if self.kind == WHISPER else made
        of_waves = made.main_input_name == "input_values" and hasattr(made.config, "conv_kernel")
        if self.kind not in (AST, WHISPER) and not of_waves:
            raise ComponentError(
                f"encoder 'audio/transformers': {type(made).__name__} takes {made.main_input_name}, not"
                " waveforms. Choose e.g. 'wav2vec2', 'hubert', 'wavlm', 'audio-spectrogram-transformer',"
                " 'whisper'."
            )
        self.dim, self.rate_hz = self.model.config.hidden_size, rate_hz
        self.extractor = feature_extractor(weights) if weights else None
        self.settings = {} if self.extractor is None else self.extractor.to_dict()
        if (rate := self.settings.get("sampling_rate", rate_hz)) != rate_hz:
            raise ComponentError(
                f"encoder 'audio/transformers': weights '{weights}' are for sound of {rate} Hz, the view has"
                f" {rate_hz}. Set the modality's rate_hz: {rate}."
            )
        if self.kind == WHISPER:
            self.log_mel = WhisperLogMel(self.model.config, self.settings, rate_hz)
        if hasattr(self.model, "masked_spec_embed"):
            # only for masks that are drawn inside the model
            self.model.masked_spec_embed.requires_grad_(False)

    def forward(self, view: Tensor) -> Tensor:
        return self._out(view).pooler_output if self.kind == AST else self.forward_tokens(view).x.mean(1)

    def forward_tokens(self, view: Tensor) -> Tokens:
        hidden = self._out(view).last_hidden_state
        config = self.model.config
        if self.kind == WHISPER:
            hidden = hidden[:, : self.log_mel.states(view.shape[1])]
        if self.kind != AST:
            return Tokens(hidden, grid=(hidden.shape[1],))
        bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        return on_grid(hidden, (bands, (config.max_length - config.patch_size) // config.time_stride + 1))

    def _out(self, view: Tensor):
        if self.kind == AST:
            return self.model(input_values=self.filter_banks(view))
        if self.kind == WHISPER:
            return self.model(input_features=self.log_mel(view))
        if view.shape[1] < (least := self._least()):
            raise ValueError(
                f"{type(self.model).__name__}: a view of {view.shape[1]} samples is shorter than its first"
                f" frame, {least}. Use longer windows: the modality's seconds."
            )
        return self.model(input_values=scaled(view) if self.settings.get("do_normalize", True) else view)

    def _least(self) -> int:
        """Samples that make one frame."""
        samples = 1
        for kernel, stride in zip(
            reversed(self.model.config.conv_kernel), reversed(self.model.config.conv_stride)
        ):
            samples = (samples - 1) * stride + kernel
        return samples

    def filter_banks(self, view: Tensor) -> Tensor:
        """[B, max_length, bands] as ASTFeatureExtractor gives."""
        from torchaudio.compliance.kaldi import fbank

        config = self.model.config
        with torch.autocast(view.device.type, enabled=False):
            options = {
                "sample_frequency": self.rate_hz,
                "window_type": "hanning",
                "num_mel_bins": config.num_mel_bins,
            }
            made = torch.stack([fbank(wave[None].float(), **options) for wave in view])[
                :, : config.max_length
            ]
            made = nn.functional.pad(made, (0, 0, 0, config.max_length - made.shape[1]))
            if not self.settings.get("do_normalize", True):
                return made
            mean, spread = self.settings.get("mean", AST_MEAN), self.settings.get("std", AST_SPREAD)
            return (made - mean) / (2 * spread)

    def save(self, folder: Path) -> None:
        """Of Whisper its encoder, by the names that it has in the whole model."""
        state = self.model.state_dict()
        state = {f"encoder.{name}": x for name, x in state.items()} if self.kind == WHISPER else state
        save_transformer(self.model, folder, state)
        if self.extractor is not None:
            self.extractor.save_pretrained(folder)


class WhisperLogMel(nn.Module):
    """Waveforms [B, T] -> log-mel energies [B, bands, frames] as WhisperFeatureExtractor gives: of the
    seconds that the encoder's positions last, with silence behind the view."""

    def __init__(self, config, settings: dict, rate_hz: int):
        super().__init__()
        from transformers.audio_utils import mel_filter_bank

        self.size, self.hop = settings.get("n_fft", 400), settings.get("hop_length", 160)
        self.samples = 2 * config.max_source_positions * self.hop
        bands = config.num_mel_bins
        filters = mel_filter_bank(
            1 + self.size // 2, bands, 0.0, 8000.0, rate_hz, norm="slaney", mel_scale="slaney"
        )
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(self.size), persistent=False)

    def states(self, samples: int) -> int:
        """How many of the encoder's states see a view of so many samples."""
        return -(-min(samples, self.samples) // (2 * self.hop))

    def forward(self, view: Tensor) -> Tensor:
        if view.shape[1] > self.samples:
            raise ValueError(
                f"a view of {view.shape[1]} samples is longer than Whisper's {self.samples}. Use shorter"
                " windows: the modality's seconds."
            )
        with torch.autocast(view.device.type, enabled=False):
            padded = nn.functional.pad(view.float(), (0, self.samples - view.shape[1]))
            spectrum = torch.stft(padded, self.size, self.hop, window=self.window, return_complex=True)
            mel = self.filters.T @ spectrum[..., :-1].abs().square()
            log = mel.clamp(min=1e-10).log10()
            return (torch.maximum(log, log.amax((1, 2), keepdim=True) - 8) + 4) / 4


def _plain(model: str) -> dict:
    """The options of PLAIN that this model's config has."""
    from transformers import CONFIG_MAPPING, AutoConfig

    known = AutoConfig.for_model(model).to_dict() if model in CONFIG_MAPPING else {}
    return {key: value for key, value in PLAIN.items() if key in known}
