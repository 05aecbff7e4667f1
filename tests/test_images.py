"""Reading images: equal to Pillow where Pillow is the reference, by rule where it has none, and named where
it cannot be."""

import io
import tarfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from pngs import chunk, png

from vicjoint.files import images
from vicjoint.files.images import ImageError, read, read_record

RNG = np.random.default_rng(0)


def picture(height=20, width=30, channels=3) -> np.ndarray:
    return np.kron(
        RNG.integers(0, 256, (height // 5, width // 5, channels), dtype=np.uint8),
        np.ones((5, 5, 1), np.uint8),
    ).squeeze()


def save(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def by_pillow(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def pixels(path) -> np.ndarray:
    found = read(path)
    assert found.dtype == torch.uint8 and found.shape[0] == 3
    return found.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    "name, mode, options",
    [
        ("a.jpg", None, {"quality": 80}),
        ("b.jpg", None, {"quality": 90, "subsampling": 0}),
        ("c.jpg", None, {"progressive": True}),
        ("grey.jpg", "L", {}),
        ("cmyk.jpg", "CMYK", {}),
        ("a.png", None, {}),
        ("grey.png", "L", {}),
        ("palette.png", "P", {}),
        ("bits.png", "1", {}),
        ("a.webp", None, {"lossless": True}),
        ("a.bmp", None, {}),
        ("a.tif", None, {}),
        ("cmyk.tif", "CMYK", {}),
    ],
)
def test_equal_to_pillow(tmp_path, name, mode, options):
    path = save(tmp_path / name, picture(), mode, **options)
    assert np.array_equal(pixels(path), by_pillow(path))


def test_one_pixel(tmp_path):
    assert pixels(save(tmp_path / "one.png", np.array([[[7, 8, 9]]], np.uint8))).tolist() == [[[7, 8, 9]]]


def test_transparency_lies_on_white(tmp_path):
    array = np.zeros((4, 4, 4), np.uint8)
    # the upper half opaque red, the lower one clear with hidden red
    array[..., 0], array[:2, :, 3] = (200, 255)
    array[0, 0, 3] = 128
    found = pixels(save(tmp_path / "a.png", array))
    assert found[1, 1].tolist() == [200, 0, 0] and found[3, 3].tolist() == [255, 255, 255]
    assert np.abs(found[0, 0].astype(int) - [227, 127, 127]).max() <= 1


def test_sixteen_bits_keep_their_range(tmp_path):
    values = np.array([[0, 257], [32896, 65535]], np.uint16)
    assert pixels(save(tmp_path / "a.png", values))[..., 0].tolist() == [[0, 1], [128, 255]]
    assert pixels(save(tmp_path / "a.tif", values.astype(np.int32)))[..., 0].tolist() == [[0, 1], [128, 255]]


RAMP = np.arange(64 * 48 * 3, dtype=np.uint16).reshape(48, 64, 3) * 7  # 9,216 levels up to 64,505


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_of_sixteen_bit_colours_the_upper_eight_are_kept(tmp_path, channels):
    ramp = RAMP[..., [0, 0, 0] if channels < 3 else [0, 1, 2]]
    alpha = np.full_like(ramp[..., :1], 65535)
    stored = np.concatenate([ramp[..., : (channels - 1) | 1], alpha], 2)[..., :channels]
    (tmp_path / "a.png").write_bytes(png(stored))
    assert np.abs(pixels(tmp_path / "a.png") - ramp / 257).max() <= 1


@pytest.mark.parametrize(
    "values", [RAMP // 64, RAMP // 16, RAMP // 256], ids=["10 bits", "12 bits", "8 bits"]
)
def test_sixteen_bits_of_which_eight_would_keep_nothing_are_refused(tmp_path, values):
    (tmp_path / "rgb.png").write_bytes(png(values))
    (tmp_path / "grey.png").write_bytes(png(values[..., :1]))
    save(tmp_path / "grey.tif", values[..., 0])
    (tmp_path / "rgb.pgm").write_bytes(b"P5 64 48 65535\n" + values[..., 0].astype(">u2").tobytes())
    for path in tmp_path.iterdir():
        with pytest.raises(ImageError, match=f"{path.name}: 16-bit values that use at most a sixteenth"):
            read(path)


def test_sixteen_bit_colours_of_a_tiff(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    for order in "<>":
        tifffile.imwrite(tmp_path / "a.tif", RAMP, photometric="rgb", byteorder=order)
        assert np.array_equal(pixels(tmp_path / "a.tif"), RAMP >> 8)
    tifffile.imwrite(tmp_path / "b.tif", RAMP // 64, photometric="rgb")
    with pytest.raises(ImageError, match="at most a sixteenth"):
        read(tmp_path / "b.tif")
    planes = np.moveaxis(RAMP, -1, 0)  # Pillow reads bytes as values
    tifffile.imwrite(tmp_path / "c.tif", planes, photometric="rgb", planarconfig="separate")
    with pytest.raises(ImageError, match="c.tif: 16-bit colours in separate planes"):
        read(tmp_path / "c.tif")


@pytest.mark.parametrize(
    "note",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 22))),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(1 << 22))),
        chunk(b"tEXt", b"Comment\0" + b"x" * 1000) * 70_000,
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(1 << 22))),
        chunk(b"iCCP", b"profile\0\5" + b"of another compression"),
        chunk(b"pHYs", b"1"),
        chunk(b"acTL", b""),
        chunk(b"tIME", b"1234567")[:-1] + b"?",
    ],
    ids=[
        "text",
        "international text",
        "many texts",
        "profile",
        "compression",
        "short",
        "animation",
        "checksum",
    ],
)
def test_metadata_does_not_decide_over_a_png(tmp_path, note):
    shown = picture()
    (tmp_path / "a.png").write_bytes(png(shown, note))
    assert np.array_equal(pixels(tmp_path / "a.png"), shown)


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (10, 200)]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(
            tmp_path / name,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if name == "a.webp" else {}),
        )
        assert np.abs(pixels(tmp_path / name).astype(int) - 10).max() <= 1


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


@pytest.mark.parametrize(
    "make, cause",
    [
        (lambda f: (f / "x.jpg").write_bytes(b""), r"x.jpg: the file is empty \(0 bytes\)"),
        (
            lambda f: (f / "x.jpg").write_bytes(b"<html>not found</html>"),
            "x.jpg: cannot be decoded: not an image of a known format",
        ),
        (
            lambda f: cut(save(f / "x.jpg", RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))),
            "x.jpg: cannot be decoded: ",
        ),
        (
            lambda f: cut(save(f / "x.png", RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))),
            "x.png: cannot be decoded: ",
        ),
        (
            lambda f: cut(save(f / "x.gif", RNG.integers(0, 256, (64, 64), dtype=np.uint8))),
            "x.gif: cannot be decoded: ",
        ),
        (
            lambda f: save(f / "x.tif", np.zeros((4, 4), np.float32)),
            "x.tif: floating-point pixels have no known range",
        ),
        (
            lambda f: save(f / "x.tif", np.full((4, 4), 100_000, np.int32)),
            "x.tif: grey values from 100000 to 100000, expected 8 or 16 bits",
        ),
        (lambda f: (f / "x.png").mkdir(), "x.png: a folder, not an image file"),
        (lambda f: None, "x.png: no such file"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, make, cause):
    make(tmp_path)
    path = next(tmp_path.iterdir(), tmp_path / "x.png")
    with pytest.raises(ImageError, match=cause):
        read(path)


@pytest.mark.parametrize("side", [9_500, 14_000])
def test_a_decompression_bomb_is_not_read(tmp_path, side):
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(ImageError, match="bomb.png: claims .*more than the 89,478,485 pixels"):
        read(tmp_path / "bomb.png")


def test_damage_never_gets_out_as_another_error(tmp_path):
    """Flipped bytes anywhere: an image or an ImageError."""
    outcomes = set()
    for kind, options in (
        ("JPEG", {}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("BMP", {}),
    ):
        target = io.BytesIO()
        Image.fromarray(picture()).save(target, kind, **options)
        for seed in range(60):
            rng = np.random.default_rng(seed)
            content = bytearray(target.getvalue())
            for place in rng.integers(0, len(content), 6):
                content[place] = rng.integers(256)
            try:
                outcomes.add(images.decode(bytes(content), kind).dtype)
            except ImageError as error:
                assert str(error).startswith(kind)
                outcomes.add("named")
    assert outcomes == {torch.uint8, "named"}


def test_records_with_bytes_and_with_a_place_in_a_tar_file(tmp_path):
    path = save(tmp_path / "a.png", picture())
    expected = by_pillow(path)
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        shard.add(path, "k.png")
    with tarfile.open(tmp_path / "s.tar") as shard:
        member = shard.getmember("k.png")
    inside = {"id": "k", "path": str(tmp_path / "s.tar"), "offset": member.offset_data, "size": member.size}
    for record in ({"id": "k", "bytes": path.read_bytes()}, inside):
        assert np.array_equal(read_record(record).permute(1, 2, 0).numpy(), expected)
    with pytest.raises(ImageError, match=r"s.tar \(k\): cannot be decoded"):
        read_record(inside | {"offset": member.offset_data + 3})
