"""Audio models of the transformers library: view [B, T] float in [-1, 1] -> y [B, dim].

# random weights
encoder: {name: transformers, model: wav2vec2, config: {hidden_size: 128, num_hidden_layers: 4}}
encoder: {name: transformers, weights: FOLDER}  # wav2vec2, hubert, wavlm, AST, ...
"""

# B batch, T samples, F frames, N tokens, D representation

from pathlib import Path

import torch
from torch import Tensor, nn

from encoders.audio import scaled
from encoders.image import load_transformer, random_transformer, save_transformer
from vicjoint.library import LibraryPart
from vicjoint.options import RateHz
from vicjoint.registry import ComponentError, register_encoder
from vicjoint.tokens import TokenEncoder, Tokens, on_grid

# of AudioSet's filter banks: what the published Audio Spectrogram Transformers were given
AST_MEAN, AST_SPREAD = (-4.2677393, 4.5689974)
# for random weights: the objective's two branches are augmented already, and parameters that are used only
# now and then stop training on several processes
PLAIN = {"apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0}


@register_encoder("audio", "transformers")
class AudioTransformer(LibraryPart, TokenEncoder, nn.Module):
    """An audio model of the transformers library: `model`, a type such as 'wav2vec2', 'hubert', 'wavlm',
    'audio-spectrogram-transformer', with random weights and `config` overrides; or `weights`, a local folder
    or a hub id (online). y is the mean of its last hidden states; of the Audio Spectrogram Transformer its
    pooled output.

    Models of waveforms get each one at mean 0 and standard deviation 1, the Audio Spectrogram Transformer
    Kaldi's filter banks as it was trained on, cut or padded to its config's max_length. rate_hz: of the view;
    all published weights are for 16000. Raises ComponentError for an unknown model or config key, weights
    that cannot be found, and models of other inputs.
    """

    def __init__(
        self,
        model: str | None = None,
        weights: str | None = None,
        config: dict | None = None,
        rate_hz: RateHz = 16000,
    ):
        super().__init__()
        if (model is None) == (weights is None) or (weights and config):
            raise ComponentError(
                "encoder 'audio/transformers' takes either model: a type such as 'wav2vec2' (with config:"
                " overrides), or weights: a local folder or a hub id."
            )
        if weights:
            self.model = load_transformer(weights, "audio/transformers")[0]
        else:
            self.model = random_transformer(model, _plain(model) | (config or {}), "audio/transformers")
        self.spectrogram = self.model.config.model_type == "audio-spectrogram-transformer"
        if self.model.main_input_name != "input_values" or not (
            self.spectrogram or hasattr(self.model.config, "conv_kernel")
        ):
            raise ComponentError(
                f"encoder 'audio/transformers': {type(self.model).__name__} takes"
                f" {self.model.main_input_name}, not waveforms. Choose e.g. 'wav2vec2', 'hubert', 'wavlm',"
                " 'audio-spectrogram-transformer'."
            )
        self.dim, self.rate_hz = self.model.config.hidden_size, rate_hz
        if hasattr(self.model, "masked_spec_embed"):
            # only for masks that are drawn inside the model
            self.model.masked_spec_embed.requires_grad_(False)

    def forward(self, view: Tensor) -> Tensor:
        out = self._out(view)
        return out.pooler_output if self.spectrogram else out.last_hidden_state.mean(1)

    def forward_tokens(self, view: Tensor) -> Tokens:
        hidden = self._out(view).last_hidden_state
        config = self.model.config
        if not self.spectrogram:
            return Tokens(hidden, grid=(hidden.shape[1],))
        bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        return on_grid(hidden, (bands, (config.max_length - config.patch_size) // config.time_stride + 1))

    def _out(self, view: Tensor):
        if self.spectrogram:
            return self.model(input_values=self.filter_banks(view))
        if view.shape[1] < (least := self._least()):
            raise ValueError(
                f"{type(self.model).__name__}: a view of {view.shape[1]} samples is shorter than its first"
                f" frame, {least}. Use longer windows: the modality's seconds."
            )
        return self.model(input_values=scaled(view))

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
            return (made - AST_MEAN) / (2 * AST_SPREAD)

    def save(self, folder: Path) -> None:
        save_transformer(self.model, folder)


def _plain(model: str) -> dict:
    """The options of PLAIN that this model's config has."""
    from transformers import CONFIG_MAPPING, AutoConfig

    known = AutoConfig.for_model(model).to_dict() if model in CONFIG_MAPPING else {}
    return {key: value for key, value in PLAIN.items() if key in known}
