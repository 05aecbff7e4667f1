"""Microscope images: what is in a file of many channels, how channels are stretched, and what is refused."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from omes import metadata
from PIL import Image
from pngs import chunk, png
from wrong import refused

from vicjoint import registry
from vicjoint.registry import ComponentError

tifffile = pytest.importorskip("tifffile")

from vicjoint.modalities.microscope import Microscope, MicroscopeError, read_channels, stretch  # noqa: E402


def field(channels: int = 5, height: int = 60, width: int = 80, dtype=np.uint16, seed: int = 0) -> np.ndarray:
    """[C, H, W] of noise whose level differs from channel to channel."""
    rng = np.random.default_rng(seed)
    top = np.iinfo(dtype).max
    return np.stack([rng.integers(0, top // (c + 2), (height, width)) for c in range(channels)]).astype(dtype)


PIXELS = field()
WRITERS = {
    "pages": lambda path: tifffile.imwrite(path, PIXELS, photometric="minisblack"),
    "one page after the other": lambda path: [
        tifffile.imwrite(path, page, append=True, photometric="minisblack") for page in PIXELS
    ],
    "last axis": lambda path: tifffile.imwrite(path, np.moveaxis(PIXELS, 0, -1), photometric="minisblack"),
    "planar": lambda path: tifffile.imwrite(path, PIXELS, photometric="minisblack", planarconfig="separate"),
    "interleaved": lambda path: tifffile.imwrite(
        path, np.moveaxis(PIXELS, 0, -1), photometric="minisblack", planarconfig="contig"
    ),
    "imagej": lambda path: tifffile.imwrite(path, PIXELS, imagej=True, metadata={"axes": "CYX"}),
    "ome": lambda path: tifffile.imwrite(path, PIXELS[:, None], ome=True, metadata={"axes": "CZYX"}),
    "lzw": lambda path: tifffile.imwrite(path, PIXELS, compression="lzw", photometric="minisblack"),
    "zlib": lambda path: tifffile.imwrite(
        path, PIXELS, compression="zlib", predictor=True, photometric="minisblack"
    ),
    "big-endian": lambda path: tifffile.imwrite(path, PIXELS, byteorder=">", photometric="minisblack"),
    "pillow": (
        lambda path: Image.fromarray(PIXELS[0]).save(
            path, save_all=True, append_images=[Image.fromarray(p) for p in PIXELS[1:]]
        )
    ),
}


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_of_tiff_gives_the_stored_values(form, tmp_path):
    path = tmp_path / ("field.ome.tif" if form == "ome" else "field.tif")
    WRITERS[form](path)
    read = read_channels(path, 5)
    assert read.shape == PIXELS.shape and np.array_equal(read, PIXELS)


@pytest.mark.parametrize("suffix", ["tif", "png"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_one_file_per_channel(suffix, dtype, tmp_path):
    names, pixels = ["DNA", "ER", "Mito"], field(3, dtype=dtype)
    for name, channel in zip(names, pixels):
        Image.fromarray(channel).save(tmp_path / f"B02_{name}.{suffix}")
    raw = Microscope(channels=names, size=60, low=0, high=100).read(
        str(tmp_path / f"B02_{{channel}}.{suffix}")
    )
    tifffile.imwrite(tmp_path / "all.tif", pixels, photometric="minisblack")
    assert torch.equal(raw, Microscope(channels=3, size=60, low=0, high=100).read(str(tmp_path / "all.tif")))


def test_colour_pictures_and_single_channels(tmp_path):
    rgb = field(3, dtype=np.uint8)
    Image.fromarray(np.moveaxis(rgb, 0, -1)).save(tmp_path / "rgb.png")
    assert np.array_equal(read_channels(tmp_path / "rgb.png", 3), rgb)
    Image.fromarray(np.moveaxis(rgb, 0, -1)).save(tmp_path / "rgb.tif")
    assert np.array_equal(read_channels(tmp_path / "rgb.tif", 3), rgb)
    Image.fromarray(PIXELS[0]).save(tmp_path / "grey.png")
    assert np.array_equal(read_channels(tmp_path / "grey.png", 1), PIXELS[:1])  # all 16 bits
    tifffile.imwrite(tmp_path / "float.tif", PIXELS.astype(np.float32) / 7, photometric="minisblack")
    assert np.array_equal(read_channels(tmp_path / "float.tif", 5), PIXELS.astype(np.float32) / 7)


@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_colours_keep_every_level(tmp_path, channels):
    ramp = np.moveaxis(field(channels, 8, 1024), 0, -1)
    (tmp_path / "ramp.png").write_bytes(png(ramp, chunk(b"pHYs", b"damaged")))
    assert np.array_equal(read_channels(tmp_path / "ramp.png", channels), np.moveaxis(ramp, -1, 0))
    if channels == 3:
        tifffile.imwrite(tmp_path / "tiff.png", ramp, photometric="rgb")  # its name does not decide
        assert np.array_equal(read_channels(tmp_path / "tiff.png", 3), np.moveaxis(ramp, -1, 0))
        (tmp_path / "ramp.ppm").write_bytes(b"P6 1024 8 65535\n" + ramp.astype(">u2").tobytes())
        with pytest.raises(MicroscopeError, match="ramp.ppm: colours of more than 8 bits"):
            read_channels(tmp_path / "ramp.ppm", 3)
        Image.fromarray((ramp >> 8).astype(np.uint8)).save(tmp_path / "ramp.sgi")
        with pytest.raises(MicroscopeError, match="ramp.sgi: a file of the format SGI, of which more than 8"):
            read_channels(tmp_path / "ramp.sgi", 3)


def write_part(folder: Path, name: str, pixels: np.ndarray, images: list) -> None:
    """A file that says in its metadata where all of `images` lie."""
    text = metadata(name, pixels.shape[-2:], images)
    tifffile.imwrite(folder / name, pixels, description=text, metadata=None, photometric="minisblack")


@pytest.mark.parametrize("missing", [False, True])
def test_of_a_series_over_several_files_only_the_one_asked_for_is_read(tmp_path, missing):
    """As Micro-Manager saves positions: each file's metadata name all of them."""
    wells = {f"Pos{i}.ome.tif": field(2, seed=i) for i in range(3)}
    for name, pixels in wells.items():
        write_part(tmp_path, name, pixels, [[(well, 0), (well, 1)] for well in wells])
    if missing:
        (tmp_path / "Pos0.ome.tif").unlink()
    for name in list(wells)[1:]:
        assert np.array_equal(read_channels(tmp_path / name, 2), wells[name])


def test_an_image_whose_channels_lie_in_several_files_is_what_lies_in_this_one(tmp_path):
    for name, pixels in zip("ab", field(2)):
        write_part(tmp_path, f"{name}.ome.tif", pixels, [[("a.ome.tif", 0), ("b.ome.tif", 0)]])
        assert np.array_equal(read_channels(tmp_path / f"{name}.ome.tif", 1)[0], pixels)
    with pytest.raises(MicroscopeError, match=r"1 channel\(s\) of 80 x 60, the modality expects 2"):
        Microscope(channels=2).read(str(tmp_path / "b.ome.tif"))


def test_in_one_file_the_metadata_say_which_page_is_which_channel(tmp_path):
    write_part(tmp_path, "a.ome.tif", field(2), [[("a.ome.tif", 1), ("a.ome.tif", 0)]])
    assert np.array_equal(read_channels(tmp_path / "a.ome.tif", 2), field(2)[::-1])


def test_a_tiff_without_pixels_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="zero-size"):
        tifffile.imwrite(tmp_path / "none.tif", PIXELS[:, :0], photometric="minisblack")
    with pytest.raises(
        MicroscopeError, match=r"none.tif: an array of shape \[5, 0, 80\], which has no pixel"
    ):
        Microscope().read(str(tmp_path / "none.tif"))


def test_percentiles_against_a_float64_reference():
    rng = np.random.default_rng(0)
    channel = rng.gamma(2.0, 900.0, (50, 70)).astype(np.uint16)
    ordered = np.sort(channel.ravel().astype(np.float64))
    at = lambda share: np.interp(share * (len(ordered) - 1), np.arange(len(ordered)), ordered)
    expected = np.clip((channel - at(0.02)) / (at(0.995) - at(0.02)), 0, 1)
    np.testing.assert_allclose(stretch(channel, 2.0, 99.5, "x"), expected, atol=2e-6)


def test_exposure_and_bit_depth_do_not_matter(tmp_path):
    """Each channel is stretched by itself: gain and offset per channel fall out."""
    dim = (field(dtype=np.uint8, seed=3) // 2).astype(np.uint16)
    for name, pixels in {
        "dim": dim,
        "bright": dim * np.array([1, 3, 9, 27, 81], np.uint16)[:, None, None] + 100,
    }.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="minisblack")
    dim, bright = (Microscope(size=32).read(str(tmp_path / f"{name}.tif")) for name in ("dim", "bright"))
    torch.testing.assert_close(dim, bright, atol=2e-3, rtol=0)
    assert dim.dtype == torch.float16 and dim.shape == (1, 5, 32, 32) and 0 <= dim.min() and dim.max() <= 1


def test_a_few_bright_pixels_are_no_empty_channel():
    channel = np.zeros((100, 100), np.uint16)
    channel[3, 4:7] = 500
    assert stretch(channel, 1, 99.9, "x").sum() == 3


def test_the_square_that_is_looked_at(tmp_path):
    tifffile.imwrite(tmp_path / "f.tif", PIXELS, photometric="minisblack")
    path, stretched = (
        str(tmp_path / "f.tif"),
        torch.from_numpy(np.stack([stretch(c, 1, 99.9, "x") for c in PIXELS])).half(),
    )
    # the largest square, in the middle
    assert torch.equal(Microscope(size=60).read(path)[0], stretched[:, :, 10:70])
    assert torch.equal(Microscope(size=20, crop=20).read(path)[0], stretched[:, 20:40, 30:50])
    plain = Microscope(size=16, crop=16, flip=False, brightness=0, contrast=0)
    places = set()
    for seed in range(24):
        part = plain.read(path, np.random.default_rng(seed))[0]
        torch.testing.assert_close(part, plain.read(path, np.random.default_rng(seed))[0], rtol=0, atol=0)
        found = (stretched.unfold(1, 16, 1).unfold(2, 16, 1) - part[:, None, None]).abs().amax(
            (0, 3, 4)
        ) < 1e-3
        assert found.sum() == 1  # pixels as they are, at one place
        places.add(tuple(found.nonzero()[0].tolist()))
    rows, columns = zip(*places)
    assert min(rows) < 10 and max(rows) > 34 and min(columns) < 14 and max(columns) > 50


def test_turned_and_mirrored_all_channels_together(tmp_path):
    tifffile.imwrite(tmp_path / "f.tif", PIXELS[:, :, :60], photometric="minisblack")
    path = str(tmp_path / "f.tif")
    microscope = Microscope(size=60, brightness=0, contrast=0)
    upright = microscope.read(path)[0]
    eight = [torch.rot90(u, k, (-2, -1)) for u in (upright, upright.flip(-1)) for k in range(4)]
    seen = set()
    for seed in range(60):
        view = microscope.read(path, np.random.default_rng(seed))[0]
        seen.add(next(i for i, turned in enumerate(eight) if torch.allclose(view, turned, atol=2e-3)))
    assert seen == set(range(8))


def test_brightness_and_contrast_are_drawn_for_each_channel(tmp_path):
    same = np.repeat(PIXELS[:1, :, :60] // 3 + 9000, 3, axis=0)
    tifffile.imwrite(tmp_path / "f.tif", same, photometric="minisblack")
    plain = dict(channels=3, size=60, flip=False, low=0, high=100)
    still = Microscope(**plain).read(str(tmp_path / "f.tif")).float()
    for options, fixed in (
        ({"brightness": 0.3, "contrast": 0}, 0.0),
        ({"brightness": 0, "contrast": 0.3}, float(still.mean())),
    ):
        view = Microscope(**plain, **options).read(str(tmp_path / "f.tif"), np.random.default_rng(0)).float()
        inside = (view > 0.001) & (view < 0.999) & ((still - fixed).abs() > 0.1)
        factors = [((view - fixed) / (still - fixed))[:, c][inside[:, c]] for c in range(3)]
        assert all(f.std() < 0.01 for f in factors)  # one factor for a channel
        means = torch.stack([f.mean() for f in factors])
        assert (means > 0.69).all() and (means < 1.31).all() and torch.pdist(means[:, None]).min() > 0.005


def test_the_view_and_simple_features(tmp_path):
    tifffile.imwrite(tmp_path / "f.tif", PIXELS, photometric="minisblack")
    microscope = Microscope(size=32)
    raw = torch.cat([microscope.read(str(tmp_path / "f.tif"))] * 2)
    view = microscope(raw)
    assert view.dtype == torch.float32 and torch.equal(view, raw.float() * 2 - 1)
    features = microscope.simple_features(raw)
    assert features.shape == (2, 30)
    values = raw[0].double().numpy()
    expected = np.concatenate(
        [
            values.mean((1, 2)),
            values.std((1, 2), ddof=1),
            *np.quantile(values, [0.1, 0.5, 0.9, 0.99], axis=(1, 2)),
        ]
    )
    np.testing.assert_allclose(features[0], expected, atol=1e-4)


def save(tmp_path, array, name="bad.tif") -> str:
    tifffile.imwrite(tmp_path / name, array, photometric="minisblack")
    return str(tmp_path / name)


def broken(tmp_path) -> str:
    path = Path(save(tmp_path, PIXELS))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return str(path)


def with_one_value(tmp_path) -> str:
    pixels = PIXELS.copy()
    pixels[2] = 17
    return save(tmp_path, pixels)


def with_nan(tmp_path) -> str:
    pixels = PIXELS.astype(np.float32)
    pixels[1, 3, 4] = np.nan
    return save(tmp_path, pixels)


def text(tmp_path) -> str:
    (tmp_path / "bad.tif").write_text("not a tiff at all")
    return str(tmp_path / "bad.tif")


def empty(tmp_path) -> str:
    (tmp_path / "bad.tif").touch()
    return str(tmp_path / "bad.tif")


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99])
def test_a_cut_file_never_passes_for_a_whole_one(form, share, tmp_path):
    path = tmp_path / ("field.ome.tif" if form == "ome" else "field.tif")
    WRITERS[form](path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    try:
        pixels = read_channels(path, 5)
    except MicroscopeError as error:
        assert "field" in str(error)
    else:  # what was cut off is no pixel, or whole pages, which the count of channels tells
        assert len(pixels) < 5 or np.array_equal(pixels, PIXELS)
        assert share > 0.1


@pytest.mark.parametrize(
    "make, cause",
    [
        (empty, r"bad.tif: the file is empty \(0 bytes\)"),
        (text, "bad.tif: cannot be decoded: not a TIFF file"),
        (broken, "bad.tif: cannot be decoded: "),
        (lambda tmp: str(tmp / "missing.tif"), "missing.tif: no such file"),
        (lambda tmp: str(tmp), ": a folder, not a microscope file"),
        (
            lambda tmp: save(tmp, PIXELS[:3]),
            r"bad.tif: 3 channel\(s\) of 80 x 60, the modality expects 5 \(option channels\)",
        ),
        (lambda tmp: save(tmp, PIXELS[0]), r"bad.tif: 1 channel\(s\) of 80 x 60, the modality expects 5"),
        (
            lambda tmp: save(tmp, np.stack([PIXELS, PIXELS])),
            r"bad.tif: an array of shape \[2, 5, 60, 80\], expected height and width and one axis",
        ),
        (
            lambda tmp: save(tmp, PIXELS.astype(np.complex64)),
            "bad.tif: pixels of type complex64, expected integers or real numbers",
        ),
        (with_one_value, "bad.tif: channel 3 of 5: every pixel is 17, an empty or a saturated channel"),
        (with_nan, "bad.tif: channel 2 of 5: has values that are not finite"),
        (
            lambda tmp: save(tmp, PIXELS[:, :20]),
            r"bad.tif: 80 x 20 pixels, smaller than the crop of 48 \(option crop\)",
        ),
    ],
)
def test_bad_files_name_their_cause(make, cause, tmp_path, capfd):
    with pytest.raises(MicroscopeError, match=cause):
        Microscope(channels=5, size=32, crop=48).read(make(tmp_path))
    assert capfd.readouterr() == ("", "")


def test_bad_files_of_one_channel_each_name_their_cause(tmp_path):
    save(tmp_path, PIXELS[0], "x_DNA.tif")
    two = Microscope(channels=["DNA", "ER"], size=32)
    with pytest.raises(MicroscopeError, match="the path has no {channel}"):
        two.read(str(tmp_path / "x_DNA.tif"))
    with pytest.raises(MicroscopeError, match="x_ER.tif: no such file"):
        two.read(str(tmp_path / "x_{channel}.tif"))
    save(tmp_path, PIXELS[0, :30], "x_ER.tif")
    with pytest.raises(
        MicroscopeError, match=r"channel 'ER' has 1 channel\(s\) of 80 x 30, expected one of 80 x 60 as 'DNA'"
    ):
        two.read(str(tmp_path / "x_{channel}.tif"))
    save(tmp_path, np.full((60, 80), 9, np.uint16), "x_ER.tif")
    with pytest.raises(MicroscopeError, match="channel 'ER': every pixel is 9"):
        two.read(str(tmp_path / "x_{channel}.tif"))


@pytest.mark.parametrize(
    "options, cause",
    [
        ({"channels": 0}, "channels is 0, expected a number from 1, or a list"),
        ({"channels": []}, "channels is"),
        ({"channels": ["a", "a"]}, "a list of different names"),
        ({"size": 4}, "size is 4"),
        ({"crop": 2}, "crop 2, expected 8 pixels"),
        ({"low": 50, "high": 20}, "low is 50.0 and high 20.0, expected percentiles"),
        ({"brightness": 1.5}, "brightness is 1.5"),
        ({"contrast": -1}, "contrast is -1"),
    ],
)
def test_wrong_options(options, cause):
    refused("modality", "microscope", options, cause)


def test_a_real_field_as_16_bit_tiff(shared_data, tmp_path):
    """BBBC039 nuclei, 8-bit png, and the same as 12-bit values in a 16-bit tiff of two channels (nuclei and
    their mask)."""
    folder = shared_data / "cell_nuclei"
    with open(folder / "index.csv") as file:
        row = next(csv.DictReader(file))
    nuclei, mask = (np.array(Image.open(folder / row[key])) for key in ("image", "mask"))
    two = np.stack(
        [
            nuclei.astype(np.uint16) * 16 + 90,
            (
                (mask > 0).astype(np.uint16) * 4000
                if mask.ndim == 2
                else (mask[..., 0] > 0).astype(np.uint16) * 4000
            ),
        ]
    )
    tifffile.imwrite(tmp_path / "field.tif", two, compression="lzw", photometric="minisblack")
    whole = Microscope(channels=2, size=128).read(str(tmp_path / "field.tif"))
    alone = Microscope(channels=1, size=128).read(str(folder / row["image"]))
    torch.testing.assert_close(whole[:, :1], alone, atol=2e-3, rtol=0)
    # nuclei are bright where the mask is
    assert np.corrcoef(whole[0, 0].numpy().ravel(), whole[0, 1].numpy().ravel())[0, 1] > 0.5
    crop = Microscope(channels=2, size=96, crop=200).read(
        str(tmp_path / "field.tif"), np.random.default_rng(0)
    )
    assert crop.shape == (1, 2, 96, 96) and crop.isfinite().all()


def test_encoders_of_images_take_any_number_of_channels():
    assert {"conv", "resnet18"} <= set(registry.list_encoders("microscope"))
    view = torch.randn(2, 5, 64, 64)
    for name, options in (("conv", {"width": 8}), ("resnet18", {}), ("resnet18", {"stem": "small"})):
        y = registry.build_encoder("microscope", name, channels=5, **options)(view)
        assert y.shape[0] == 2 and y.isfinite().all()
    torch.manual_seed(0)
    three = registry.build_encoder("image", "resnet18", channels=3)
    torch.manual_seed(0)
    usual = registry.build_encoder("image", "resnet18")
    assert all(torch.equal(a, b) for a, b in zip(three.state_dict().values(), usual.state_dict().values()))
    five = registry.build_encoder("image", "resnet18", channels=5)
    assert five.conv1.weight.shape == (64, 5, 7, 7) and five.conv1.stride == (2, 2)
    std = (2 / (64 * 49)) ** 0.5  # He initialisation by the fan out, as torchvision's
    assert abs(five.conv1.weight.std().item() / std - 1) < 0.05


def test_weights_for_three_channels_do_not_fit_five(tmp_path):
    torch.save(registry.build_encoder("image", "resnet18").state_dict(), tmp_path / "rgb.pth")
    with pytest.raises(
        ComponentError,
        match=(
            r"do not fit this model and its options; wrong shape: conv1.weight \[64, 3, 7, 7\] for \[64, 5,"
            r" 7, 7\]"
        ),
    ):
        registry.build_encoder("image", "resnet18", channels=5, weights=str(tmp_path / "rgb.pth"))
    refused("encoder", "image/resnet18", {"channels": 0})
