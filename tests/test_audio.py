"""The modality audio: windows, augmentations and its floor; the encoders on the log-mel and on the
waveform."""

import sys

import numpy as np
import pytest
import torch
from wrong import refused

from vicjoint import registry
from vicjoint.model import build_model
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.registry import ComponentError, build, build_encoder

soundfile = pytest.importorskip("soundfile")
RATE = 16000


@pytest.fixture
def ramp(tmp_path):
    """A sound of 3 s whose value is its time in tens of seconds: every sample says where it is from."""
    path = tmp_path / "ramp.wav"
    soundfile.write(path, np.arange(3 * RATE) / RATE / 10, RATE, subtype="FLOAT")
    return str(path)


def audio(**options):
    return build("modality", {"name": "audio", **options})


def rng(seed: int = 0):
    return np.random.default_rng(seed)


# ---- windows ----


def test_windows_are_random_in_training_and_in_the_middle_in_evaluation(ramp):
    modality = audio(seconds=1.0)
    assert modality.timed and modality.reads == "file" and modality.seconds(ramp) == 3.0
    view = modality.read(ramp)
    assert view.shape == (1, RATE) and view.dtype == torch.float32 and torch.equal(modality(view), view)
    np.testing.assert_allclose(view[0].numpy(), 0.1 + np.arange(RATE) / RATE / 10, atol=1e-6)
    starts = np.array([10 * modality.read(ramp, rng(seed))[0, 0].item() for seed in range(200)])
    assert starts.min() >= 0 and starts.max() <= 2.0 and abs(starts.mean() - 1) < 0.15 and starts.std() > 0.4
    assert torch.equal(modality.read(ramp, rng(7)), modality.read(ramp, rng(7)))


def test_a_pair_chooses_the_window_and_each_read_its_own_augmentation(ramp):
    modality = audio(seconds=1.0, augment=[{"name": "gain"}])
    plain = modality.read(ramp, None, (0.5, 0.25))
    np.testing.assert_allclose(plain[0].numpy(), 0.05 + np.arange(RATE // 4) / RATE / 10, atol=1e-6)
    one = rng()
    first, second = modality.read(ramp, one, (0.5, 0.25)), modality.read(ramp, one, (0.5, 0.25))
    assert not torch.equal(first, second)
    for view in (first, second):  # another gain, the same seconds
        ratio = view[0] / plain[0]
        assert torch.allclose(ratio, ratio[:1].expand_as(ratio), atol=1e-4)


def test_kept_sounds_give_the_same_views_whatever_their_windows(ramp, monkeypatch):
    options = {"seconds": 0.3, "augment": [{"name": "noise", "p": 1.0}]}
    plain, keeping = audio(**options), audio(**options, cache_mb=1)
    cases = [(0, None), (1, None), (2, (0.1, 0.5)), (None, None)]
    views = lambda of: [of.read(ramp, None if seed is None else rng(seed), window) for seed, window in cases]
    expected, first = views(plain), views(keeping)
    opened = []
    monkeypatch.setattr("vicjoint.files.sound._open", lambda *_: opened.append(1))
    assert (
        all(
            torch.equal(e, f) and torch.equal(e, again)
            for e, f, again in zip(expected, first, views(keeping))
        )
        and not opened
    )
    assert len(keeping.kept) == 1 and len(plain.kept) == 0


def test_other_rates(ramp):
    view = audio(rate_hz=8000, seconds=0.5).read(ramp)
    assert view.shape == (1, 4000)
    np.testing.assert_allclose(
        view[0, 100:-100].numpy(), (0.125 + np.arange(4000) / 8000 / 10)[100:-100], atol=1e-4
    )


def test_a_short_sound_lies_in_silence_or_is_repeated(tmp_path):
    path = str(tmp_path / "short.wav")
    soundfile.write(path, np.full(RATE // 4, 0.5), RATE, subtype="FLOAT")
    view = audio(seconds=1.0).read(path)[0]
    assert torch.equal(view.nonzero()[:, 0], torch.arange(RATE * 3 // 8, RATE * 5 // 8))  # in the middle
    places = [audio(seconds=1.0).read(path, rng(seed))[0].nonzero()[0, 0].item() for seed in range(100)]
    assert min(places) >= 0 and max(places) <= RATE * 3 // 4 and np.std(places) > 1000
    assert all(len(audio(seconds=1.0).read(path, rng(seed))[0].nonzero()) == RATE // 4 for seed in range(20))
    soundfile.write(path, np.arange(1, 101) / 200, RATE, subtype="FLOAT")
    repeated = audio(seconds=0.02, short="repeat")
    np.testing.assert_allclose(
        repeated.read(path)[0].numpy(), np.resize(np.arange(1, 101) / 200, 320), atol=1e-6
    )
    assert len({repeated.read(path, rng(seed))[0, 0].item() for seed in range(20)}) > 10
    # time has to agree with the pair's other half
    window = audio(seconds=0.02, short="repeat").read(path, None, (0.0, 0.02))[0]
    assert not window[100:].any()


# ---- augmentations ----


def change(name: str, wave: torch.Tensor, seed: int = 0, **options) -> torch.Tensor:
    return build("transform", {"name": f"audio/{name}", "p": 1.0, **options}, RATE)(wave, rng(seed))


@pytest.mark.parametrize(
    "name", [n.split("/")[1] for n in registry.names("transform") if n.startswith("audio/")]
)
def test_a_transform_keeps_the_length_the_chance_and_silence(name):
    wave = 0.3 * torch.sin(torch.arange(8001) * 0.1)
    before = wave.clone()
    changed = change(name, wave)
    assert (
        changed.shape == wave.shape
        and changed.dtype == torch.float32
        and changed.isfinite().all()
        and not torch.equal(changed, wave)
    )
    assert torch.equal(wave, before), "the input is changed"
    assert torch.equal(changed, change(name, wave))
    assert name == "polarity" or not torch.equal(changed, change(name, wave, seed=1))
    assert change(name, torch.zeros(8000)).abs().max() == 0 and change(name, torch.ones(1)).shape == (1,)
    never = build("transform", {"name": f"audio/{name}", "p": 0.0}, RATE)
    assert torch.equal(never(wave, rng()), wave)


def test_gain_and_noise_are_as_loud_as_they_say():
    wave = 0.1 * torch.randn(4 * RATE, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(change("gain", wave, decibels=[6, 6]), wave * 10**0.3)
    for tilt in (0, 2):
        added = change("noise", wave, snr=[20, 20], tilt=[tilt, tilt]) - wave
        assert 10 * (wave.square().mean() / added.square().mean()).log10() == pytest.approx(20, abs=0.01)
        power = torch.fft.rfft(added).abs().square()
        bands = [power[a : 2 * a].mean() for a in (4 * 500, 4 * 2000)]  # two octaves apart: a factor 4^tilt
        assert (bands[0] / bands[1]).item() == pytest.approx(4**tilt, rel=0.15)


def test_equalise_changes_bands_and_stays_within_its_decibels():
    wave = torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    ratio = torch.fft.rfft(change("equalise", wave, decibels=9)).abs() / torch.fft.rfft(wave).abs()
    decibels = 20 * ratio[1:-1].log10()
    assert decibels.abs().max() <= 9.01 and decibels.std() > 1


def test_speed_moves_a_tone():
    wave = torch.sin(2 * np.pi * 1000 * torch.arange(RATE) / RATE)
    for factor in (0.8, 1.25):
        spectrum = torch.fft.rfft(change("speed", wave, factor=[factor, factor])).abs()
        assert abs(spectrum.argmax().item() - 1000 * factor) <= 2


def test_reverb_adds_a_tail_and_shifts_and_masks_are_silent():
    wave = torch.zeros(RATE)
    wave[4000] = 1
    echo = change("reverb", wave, seconds=[0.2, 0.2], wet=[0.5, 0.5])
    assert not echo[:4000].abs().max() > 1e-5 and (echo - wave).norm() == pytest.approx(0.5, abs=0.01)
    assert echo[4001:4400].square().mean() > 100 * echo[6400:6800].square().mean()
    ones = torch.ones(RATE)
    for seed in range(20):
        shifted, masked = (
            change("time_shift", ones, seed, seconds=0.1),
            change("time_mask", ones, seed, seconds=0.2, count=2),
        )
        assert RATE * 0.9 <= shifted.sum() <= RATE and RATE * 0.6 <= masked.sum() <= RATE
    moved = [change("time_shift", wave, seed, seconds=0.1).argmax().item() - 4000 for seed in range(100)]
    assert min(moved) < -1000 and max(moved) > 1000 and max(map(abs, moved)) <= 1600


def test_augmentation_is_for_training_only_and_is_clipped(ramp):
    modality = audio(
        seconds=1.0, augment=[{"name": "gain", "decibels": [40, 40]}, {"name": "polarity", "p": 1.0}]
    )
    assert torch.equal(modality.read(ramp), audio(seconds=1.0).read(ramp))
    assert modality.read(ramp, rng()).min() == -1


# ---- the floor ----


def test_simple_features_tell_a_low_tone_from_a_high_one():
    t = torch.arange(RATE) / RATE
    features = audio().simple_features(torch.stack([torch.sin(2 * np.pi * f * t) for f in (200, 210, 4000)]))
    assert features.shape == (3, 320)
    assert (features[0] - features[1]).norm() < 0.5 * (features[0] - features[2]).norm()


# ---- what is wrong ----


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rate_hz": 100}, r"rate_hz is 100, expected 1000 or more"),
        ({"seconds": 0}, r"seconds is 0, expected a number above 0"),
        ({"cache_mb": -5}, "modality 'audio': cache_mb is -5, expected a number of megabytes, or 0"),
        ({"short": "loop"}, r"short is 'loop', expected 'zeros' or 'repeat'"),
        (
            {"augment": [{"name": "gains"}]},
            r"modality.augment.0.name: no transform 'audio/gains'. Did you mean 'audio/gain'",
        ),
        (
            {"augment": [{"name": "gain"}, {"name": "noise", "snt": [1, 2]}]},
            r"modality.augment.1.snt: transform 'audio/noise' takes no option 'snt'. Did you mean 'snr'",
        ),
        (
            {"augment": [{"name": "noise", "p": 2}]},
            r"transform 'noise': p is 2.0, expected a number from 0 to 1",
        ),
        (
            {"augment": [{"name": "gain", "decibels": [6, -6]}]},
            r"transform 'gain': decibels is \[6.0, -6.0\], expected \[low, high\]",
        ),
        (
            {"augment": [{"name": "speed", "factor": [0.1, 1]}]},
            r"transform 'speed': factor is \[0.1, 1.0\], expected \[low, high\], 0.5 or more and at most 2",
        ),
        (
            {"augment": [{"name": "equalise", "decibels": -1}]},
            r"transform 'equalise': decibels is -1.0, expected 0 or more",
        ),
        (
            {"augment": [{"name": "time_shift", "seconds": -1}]},
            r"transform 'time_shift': seconds is -1.0, expected 0 or more",
        ),
        (
            {"augment": [{"name": "time_mask", "seconds": -1}]},
            r"transform 'time_mask': seconds is -1.0, expected 0 or more",
        ),
        (
            {"augment": [{"name": "time_mask", "count": 0}]},
            r"transform 'time_mask': count is 0, expected 1 or more",
        ),
    ],
)
def test_wrong_options_are_named(options, message):
    refused("modality", "audio", options, message)


@pytest.mark.parametrize("missing", ["soundfile", "torchaudio"])
def test_a_missing_library_is_named_with_the_command(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ComponentError, match=rf"modality 'audio' needs {missing} .*: pip install 'vicjoint\[audio\]'"
    ):
        audio()
    assert build("modality", {"name": "image"}) is not None  # nothing else breaks


# ---- encoders ----

MEL = ["conv_mel", "conv_time", "resnet18_mel", "transformer_mel"]


def test_the_log_mel_is_torchaudios():
    from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

    from encoders.audio import LogMel

    wave = 0.1 * torch.randn(2, RATE, generator=torch.Generator().manual_seed(0))
    own = LogMel(n_mels=40, normalise="fixed")
    reference = AmplitudeToDB(top_db=None)(
        MelSpectrogram(RATE, n_fft=512, win_length=400, hop_length=160, n_mels=40, pad_mode="constant")(wave)
    )
    assert own.size == 512 and torch.allclose(20 * own(wave) - 40, reference, atol=1e-3)
    sample = LogMel(n_mels=40)(wave)
    assert sample.mean((1, 2)).abs().max() < 1e-4 and torch.allclose(
        sample.std((1, 2)), torch.ones(2), atol=0.05
    )


@pytest.mark.parametrize("rate_hz, n_mels", [(16000, 64), (8000, 64), (8000, 128), (44100, 128)])
def test_no_band_is_empty(rate_hz, n_mels):
    from encoders.audio import LogMel

    assert (LogMel(rate_hz, n_mels).filters.amax(1) > 0).all()


def test_loudness_does_not_count_unless_it_should():
    wave = 0.1 * torch.randn(2, RATE)
    for name in [*MEL, "resnet1d18"]:
        encoder = build_encoder("audio", name).eval()
        with torch.no_grad():
            assert torch.allclose(encoder(wave), encoder(0.5 * wave), atol=1e-3), name
            assert (
                torch.equal(encoder(wave), encoder(wave)) and encoder(torch.zeros(2, RATE)).isfinite().all()
            )
    keeps = build_encoder("audio", "conv_mel", mel={"normalise": "fixed"}).eval()
    assert not torch.allclose(keeps(wave), keeps(0.5 * wave), atol=1e-3)


@pytest.mark.parametrize("name", [*MEL, "resnet1d18"])
@pytest.mark.parametrize("rate_hz, seconds", [(8000, 0.25), (8000, 1.0), (16000, 0.5), (16000, 3.0)])
def test_encoders_take_any_length(name, rate_hz, seconds):
    encoder = build_encoder("audio", name, **({"rate_hz": rate_hz} if name in MEL else {}))
    y = encoder(0.1 * torch.randn(2, round(rate_hz * seconds)))
    assert y.shape == (2, encoder.dim) and y.isfinite().all()


def test_masks_hide_stretches_in_training_only():
    from encoders.audio import LogMel

    mel, wave = LogMel(mask_bands=16, mask_frames=20), 0.1 * torch.randn(8, RATE)
    plain = mel.eval()(wave)
    torch.manual_seed(0)
    masked = mel.train()(wave)
    hidden = (masked - plain).abs() > 1e-6
    bands, frames = hidden.all(2).sum(1), hidden.all(1).sum(1)
    # two stretches each, of each sound its own
    assert 0 < bands.max() <= 32 and 0 < frames.max() <= 40 and len(bands.unique()) > 2
    assert torch.allclose(
        masked[hidden], plain.mean((1, 2))[:, None, None].expand_as(plain)[hidden], atol=1e-5
    )
    torch.manual_seed(0)
    assert torch.equal(mel(wave), masked)


def test_the_spectrogram_stays_in_float32_under_autocast():
    encoder, wave = build_encoder("audio", "conv_mel").eval(), 0.1 * torch.randn(2, RATE)
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            torch.equal(encoder.mel(wave.bfloat16().float()), encoder.mel(wave.bfloat16()))
            and encoder.mel(wave).dtype == torch.float32
        )


def test_time_and_pitch_matter_to_every_encoder():
    t = torch.arange(RATE) / RATE
    up = torch.sin(2 * np.pi * (300 * t + 600 * t**2))[None]
    high = torch.sin(2 * np.pi * (600 * t + 1200 * t**2))[None]
    for name in [*MEL, "resnet1d18"]:
        torch.manual_seed(0)
        encoder = build_encoder("audio", name).eval()
        with torch.no_grad():
            y = encoder(torch.cat([up, up.flip(1), high]))
        assert (y[0] - y[1]).norm() > 1e-3 * y[0].norm() and (y[0] - y[2]).norm() > 1e-3 * y[0].norm(), name


TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
WAVE = TINY | {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}


@pytest.mark.parametrize(
    "model, config",
    [
        ("wav2vec2", WAVE),
        ("hubert", WAVE),
        ("wavlm", WAVE),
        ("audio-spectrogram-transformer", TINY | {"max_length": 64}),
    ],
)
def test_transformers_models_by_config_and_from_a_folder(tmp_path, model, config):
    encoder = build_encoder("audio", "transformers", model=model, config=config).eval()
    wave = 0.1 * torch.randn(2, 6000)
    y = encoder(wave)
    assert y.shape == (2, 16) and (
        model not in ("wav2vec2", "hubert", "wavlm") or torch.allclose(encoder(0.5 * wave), y, atol=0.01)
    )
    y.square().sum().backward()
    assert not [n for n, p in encoder.named_parameters() if p.grad is None and p.requires_grad]
    encoder.model.save_pretrained(tmp_path)
    again = build_encoder("audio", "transformers", weights=str(tmp_path)).eval()
    assert torch.allclose(again(wave), y, atol=1e-6)


def test_the_audio_spectrogram_transformer_sees_what_its_extractor_gives():
    from transformers import ASTFeatureExtractor

    encoder = build_encoder(
        "audio", "transformers", model="audio-spectrogram-transformer", config=TINY | {"max_length": 64}
    )
    for samples in (6000, 16000):  # padded, and cut
        wave = 0.1 * torch.randn(2, samples)
        given = ASTFeatureExtractor(max_length=64)(
            list(wave.numpy()), sampling_rate=RATE, return_tensors="pt"
        )["input_values"]
        assert torch.allclose(encoder.filter_banks(wave), given, atol=1e-4)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("conv_mel", {"mel": {"n_mel": 40}}, r"log-mel takes no option 'n_mel'. Did you mean 'n_mels'"),
        ("conv_mel", {"mel": {"rate_hz": 8000}}, r"log-mel takes no option 'rate_hz'"),
        ("conv_mel", {"mel": {"n_mels": "many"}}, r"log-mel: wrong type among the options"),
        (
            "conv_mel",
            {"mel": {"high_hz": 9000}},
            r"low_hz 0.0 and high_hz 9000.0, expected 0 <= low_hz < high_hz <= 8000",
        ),
        ("conv_mel", {"mel": {"normalise": "batch"}}, r"normalise is 'batch', expected 'sample' or 'fixed'"),
        ("conv_mel", {"mel": {"mask_bands": 99}}, r"mask_bands is 99, expected at most n_mels \(64\)"),
        ("conv_mel", {"mel": {"hop_ms": 0}}, r"hop_ms 0 give a window of 400 and a hop of 0 samples"),
        (
            "conv_mel",
            {"mel": {"n_mels": 64, "high_hz": 20}},
            r"n_mels is 64, more bands than there are frequencies from 0 to 20 Hz",
        ),
        ("resnet18_mel", {"stem": "tiny"}, r"stem is 'tiny', expected 'imagenet' or 'small'"),
        ("transformer_mel", {"width": 10, "heads": 4}, r"width 10 cannot be shared by 4 heads"),
        (
            "transformer_mel",
            {"mel": {"n_mels": 40}},
            r"patch \[16, 8\] does not divide the 40 mel bands. Use e.g. \[8, 8\]",
        ),
        ("resnet1d18", {"stride": 0}, r"stride 0.*expected 1 or more"),
        ("transformers", {}, r"takes either model: a type such as 'wav2vec2'"),
        (
            "transformers",
            {"model": "wav2vec3"},
            r"encoder 'audio/transformers': no model type 'wav2vec3'. Did you mean 'wav2vec2'",
        ),
        (
            "transformers",
            {"model": "bert", "config": {"num_hidden_layers": 1}},
            r"BertModel takes input_ids, not waveforms",
        ),
        ("transformers", {"weights": "./nowhere"}, r"'./nowhere' were not found: no folder"),
    ],
)
def test_wrong_encoder_options_are_named(name, options, message):
    refused("encoder", f"audio/{name}", options, message)


def test_views_that_are_too_short_are_named():
    with pytest.raises(ValueError, match=r"a view of 800 samples has 6 frames, a patch 8"):
        build_encoder("audio", "transformer_mel")(torch.zeros(1, 800))
    with pytest.raises(ValueError, match=r"a view of 399 samples is shorter than its first frame, 400"):
        build_encoder("audio", "transformers", model="wav2vec2", config=WAVE)(torch.zeros(1, 399))


# ---- one rate for the modality and its encoder ----

RECIPE = {
    "name": "rates",
    "source": {"name": "sample_table"},
    "pair": {"name": "cross_modal", "a": "sound", "b": "sound"},
    "a": {"modality": {"name": "audio", "rate_hz": 8000}, "encoder": {"name": "conv_mel"}, "expander": [8]},
    "b": {"modality": "audio", "encoder": {"name": "resnet1d18"}, "expander": [8]},
    "objective": {"name": "vicreg"},
    "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "constant"}},
    "train": {"steps": 1, "batch_size": 4},
}


def test_the_encoder_takes_the_rate_of_its_modality():
    from encoders.audio import LogMel

    model = build_model(load_recipe(RECIPE, ["b.encoder={name: transformer_mel, width: 16, layers: 1}"]))
    assert (
        torch.equal(model.branches["a"].encoder.mel.filters, LogMel(8000).filters)
        and model.branches["a"].encoder.mel.hop == 80
    )
    assert torch.equal(model.branches["b"].encoder.mel.filters, LogMel(16000).filters)
    # one on the waveform has no such option, and agreeing is no mistake
    build_model(load_recipe(RECIPE, ["a.encoder.rate_hz=8000"]))


@pytest.mark.parametrize(
    "override, message",
    [
        (
            "a.encoder.rate_hz=16000",
            (
                "a.encoder.rate_hz: 16000, but a.modality.rate_hz is 8000. Leave it out: the encoder takes"
                " the modality's."
            ),
        ),
        (
            "b.encoder={name: conv_mel, rate_hz: 8000}",
            "b.encoder.rate_hz: 8000, but b.modality.rate_hz is 16000. Leave it out",
        ),
    ],
)
def test_another_rate_in_the_encoder_is_a_mistake(override, message):
    with pytest.raises(RecipeError) as error:
        load_recipe(RECIPE, [override])
    assert message in str(error.value)


# ---- real data ----


def test_the_floor_on_spoken_digits(shared_data):
    """Ridge regression on the simple features: near the 93.2 % that a log spectrum gives."""
    import csv

    folder = shared_data / "spoken_digits"
    modality = audio(rate_hz=8000, seconds=0.6)
    with open(folder / "index.csv", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if int(r["take"]) < 15]  # 500 of training, all 250 of test
    x = modality.simple_features(torch.cat([modality.read(str(folder / r["path"])) for r in rows])).double()
    digit, train = (
        torch.tensor([int(r["digit"]) for r in rows]),
        torch.tensor([r["split"] == "train" for r in rows]),
    )
    x = torch.cat([(x - x[train].mean(0)) / x[train].std(0), torch.ones(len(x), 1)], 1)
    y = torch.nn.functional.one_hot(digit, 10).double()
    weight = torch.linalg.solve(x[train].T @ x[train] + 100 * torch.eye(x.shape[1]), x[train].T @ y[train])
    assert ((x[~train] @ weight).argmax(1) == digit[~train]).double().mean() > 0.85
