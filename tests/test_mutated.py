"""Damaged inputs of every format are read, or refused by one message: no traceback, no hang, and the same in
a second run.

    python -m pytest tests/test_mutated.py -m slow       # 2,000 inputs; MUTATED_SEED: other ones
"""

import gzip
import io
import itertools
import json
import os
import random
import struct
import tarfile
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow
import pytest
import soundfile
import tifffile
import torch
from faults import SMILES, encoded, jpg, mp4, tif, wav
from PIL import Image as Picture
from pngs import png
from pyarrow import parquet

import vicjoint
from vicjoint.data.errors import READ_ERRORS, cause_of
from vicjoint.data.time_limit import SampleTimeout, TimeLimit
from vicjoint.modalities.audio import Audio
from vicjoint.modalities.image import Clip, Image
from vicjoint.modalities.microscope import Microscope
from vicjoint.modalities.molecule import Molecule
from vicjoint.modalities.protein import Protein
from vicjoint.modalities.text import Text
from vicjoint.parts import Source
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.sources.sequences import Fasta
from vicjoint.sources.shards import WebDataset
from vicjoint.sources.table import Table

ROOT = Path(__file__).resolve().parents[1]
MANY = 2000
LIMIT = TimeLimit(20.0)
SQUARES = np.kron(
    np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8)
)
DEEP = SQUARES.astype(np.uint16) * 257
ROWS = [{"id": f"r{i}", "caption": f'{i} dogs, "big" ones', "size": i / 3} for i in range(12)]
EXTREMES = (0, 1, 127, 128, 255, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


# ---- good inputs ----


def film(container: str, codec: str) -> bytes:
    target = io.BytesIO()
    with av.open(target, "w", format=container) as file:
        stream = file.add_stream(codec, rate=8)
        stream.width = stream.height = 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for i in range(10):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(SQUARES, 4 * i, 1))))
        file.mux(stream.encode(None))
    return target.getvalue()


def sound(kind: str, subtype: str) -> bytes:
    target = io.BytesIO()
    soundfile.write(target, np.sin(np.arange(16000) / 20) / 2, 16000, format=kind, subtype=subtype)
    return target.getvalue()


def animation() -> bytes:
    target = io.BytesIO()
    frames = [Picture.fromarray(np.roll(SQUARES, i, 1)) for i in range(3)]
    frames[0].save(target, "GIF", save_all=True, append_images=frames[1:])
    return target.getvalue()


def tiff(pixels: np.ndarray, **options) -> bytes:
    target = io.BytesIO()
    tifffile.imwrite(target, pixels, **options)
    return target.getvalue()


def separated(mark: str) -> bytes:
    quoted = [
        [json.dumps(r["id"]), '"' + r["caption"].replace('"', '""') + '"', str(r["size"])] for r in ROWS
    ]
    return "\n".join(mark.join(cells) for cells in [["id", "caption", "size"], *quoted]).encode()


def arrow() -> bytes:
    target = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), target)
    return target.getvalue()


def shard() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as file:
        for i in range(4):
            for suffix, content in (("png", png(SQUARES)), ("cls", f"{i % 2}".encode())):
                member = tarfile.TarInfo(f"{i:04d}.{suffix}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return target.getvalue()


# ---- how each is read ----


def by(modality) -> Callable[[Path], Any]:
    return lambda path: modality.read(str(path), np.random.default_rng(0))


def cell(modality) -> Callable[[Path], Any]:
    """The content of the file is the value of a table's cell."""
    return lambda path: modality.read(path.read_bytes().decode("utf-8", "surrogateescape"))


def listed(source: type[Source]) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        made = source(str(path))
        return [made.describe(), [dict(r) for r in made.train], [dict(r) for r in made.test]]

    return read


def shown(path: Path) -> Any:
    """Each picture of a shard, or why there is none."""
    made, found = WebDataset(str(path)), []
    for record in itertools.chain(made.train, made.test):
        try:
            found.append((record["id"], record["label"], Image(size=16).read(record)))
        except READ_ERRORS as error:
            found.append(of_the_product(error))
    return found


IMAGE, COLOURS = by(Image(size=16)), by(Microscope(channels=3, size=16))
CHANNELS, CLIP, AUDIO = (
    by(Microscope(channels=2, size=16)),
    by(Clip(frames=4, size=16)),
    by(Audio(seconds=0.25)),
)
TABLE = listed(Table)
INPUTS: dict[str, tuple[Callable[[], bytes], Callable[[Path], Any]]] = {
    "a.png": (lambda: png(SQUARES), IMAGE),
    "palette.png": (lambda: encoded(SQUARES[..., 0], "PNG"), IMAGE),
    "deep.png": (lambda: png(DEEP), IMAGE),
    "deep grey.png": (lambda: png(DEEP[..., :1]), IMAGE),
    "a.jpg": (jpg, IMAGE),
    "a.webp": (lambda: encoded(SQUARES, "WEBP"), IMAGE),
    "a.gif": (animation, IMAGE),
    "a.tif": (lambda: tiff(SQUARES), IMAGE),
    "lzw.tif": (lambda: tiff(SQUARES, compression="lzw"), IMAGE),
    "deep.tif": (lambda: tiff(DEEP, photometric="rgb"), IMAGE),
    "a.bmp": (lambda: encoded(SQUARES, "BMP"), IMAGE),
    "a.ppm": (lambda: encoded(SQUARES, "PPM"), IMAGE),
    "microscope.tif": (tif, CHANNELS),
    "microscope.ome.tif": (
        lambda: tiff(DEEP.transpose(2, 0, 1)[:2], ome=True, metadata={"axes": "CYX"}, compression="zlib"),
        CHANNELS,
    ),
    "imagej.tif": (
        lambda: tiff(DEEP.transpose(2, 0, 1)[:2], imagej=True, metadata={"axes": "CYX"}),
        CHANNELS,
    ),
    "microscope.png": (lambda: png(DEEP), COLOURS),
    "a.mp4": (mp4, CLIP),
    "a.mkv": (lambda: film("matroska", "libx264"), CLIP),
    "a.avi": (lambda: film("avi", "mpeg4"), CLIP),
    "mjpeg.avi": (lambda: film("avi", "mjpeg"), CLIP),
    "a.wav": (wav, AUDIO),
    "a.flac": (lambda: sound("FLAC", "PCM_16"), AUDIO),
    "a.mp3": (lambda: sound("MP3", "MPEG_LAYER_III"), AUDIO),
    "a.ogg": (lambda: sound("OGG", "VORBIS"), AUDIO),
    "a.csv": (lambda: separated(","), TABLE),
    "a.jsonl": (lambda: "\n".join(map(json.dumps, ROWS)).encode(), TABLE),
    "a.tsv": (lambda: separated("\t"), TABLE),
    "a.json": (lambda: json.dumps(ROWS).encode(), TABLE),
    "a.csv.gz": (lambda: gzip.compress(separated(";")), TABLE),
    "a.parquet": (arrow, TABLE),
    "a.fasta": (
        lambda: "".join(f">p{i} words {i} OS=Homo OX={i}\nMKTAYIAK{'LAGV' * i}\n" for i in range(8)).encode(),
        listed(Fasta),
    ),
    "smiles": (lambda: SMILES[2].encode(), cell(Molecule())),
    "sequence": (lambda: b"MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ", cell(Protein())),
    "text": (lambda: "two dogs, übergroß".encode(), cell(Text())),
    "a.tar": (shard, shown),
    "recipe.yaml": (
        (ROOT / "recipes" / "image_text.yaml").read_bytes,
        lambda path: load_recipe(path, check_paths=False).dump(),
    ),
}


# ---- damage ----


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One to three wounds: bits turned, bytes cut off, cut out, inserted, doubled, zeroed, or a number of a
    header at its extreme; half of them near the beginning, where headers are."""
    out = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(min(len(out), rng.choice([100, len(out)])) or 1)
        piece = slice(place, place + rng.choice([1, 4, 30, 500]))
        match rng.randrange(7):
            case 0:
                for i in rng.choices(range(len(out)), k=rng.choice([1, 3, 20])) if out else ():
                    out[i] ^= 1 << rng.randrange(8)
            case 1:
                del out[place:]
            case 2:
                del out[piece]
            case 3:
                out[place:place] = rng.randbytes(rng.choice([1, 4, 30]))
            case 4:
                out[place:place] = out[piece]
            case 5:
                out[piece] = bytes(len(out[piece]))
            case 6:
                size, order = rng.choice([1, 2, 4, 8]), rng.choice(["big", "little"])
                out[place : place + size] = (rng.choice(EXTREMES) % 256**size).to_bytes(size, order)
    return bytes(out)


def with_checksums(content: bytes) -> bytes:
    """The same with the sums that a png and the headers of a tar file should have, so that damage which they
    would tell goes further."""
    out, place = bytearray(content), 8
    if content[1:4] == b"PNG":
        while place + 12 <= len(out):
            end = place + 8 + struct.unpack_from(">I", out, place)[0]
            out[end : end + 4] = struct.pack(">I", zlib.crc32(out[place + 4 : end]))
            place = end + 4
    elif content[257:262] == b"ustar":
        for place in range(0, len(out) - 511, 512):
            if out[place + 257 : place + 262] == b"ustar":
                out[place + 148 : place + 156] = b" " * 8
                out[place + 148 : place + 156] = b"%06o\0 " % sum(out[place : place + 512])
    return bytes(out[: len(content)])


# ---- what may become of it ----


def outcome(read: Callable[[Path], Any], path: Path) -> Any:
    """What is read, or (the error's name, its message)."""
    try:
        with LIMIT.reading(0, 0, str(path)):
            return read(path)
    except READ_ERRORS as error:
        return of_the_product(error)


def of_the_product(error: Exception) -> tuple[str, str]:
    """Asserts that an error is the product's own, with one message."""
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    assert Path(vicjoint.__file__).parent in Path(raised_in).parents, f"{raised_in}: {error!r}"
    assert not isinstance(error, SampleTimeout)
    said = cause_of(error)
    assert said and ("\n" not in said or isinstance(error, RecipeError)) and "Traceback" not in said
    return type(error).__name__, said


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and bool(torch.isfinite(a.float()).all())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if not isinstance(a, str | dict | int | float | None):
        return same(list(vars(a).values()), list(vars(b).values()))
    return repr(a) == repr(b)


def check(folder: Path, number: int, seed: int) -> bool:
    """Asserts what the file's beginning promises of one input; whether it was read."""
    name = list(INPUTS)[number % len(INPUTS)]
    make, read = INPUTS[name]
    rng = random.Random(f"{seed} {number}")
    content = mutated(make(), rng)
    path = folder / name
    path.write_bytes(with_checksums(content) if rng.random() < 0.5 else content)
    first, second = outcome(read, path), outcome(read, path)
    assert same(first, second), (first, second)
    return not (isinstance(first, tuple) and isinstance(first[0], str))


@pytest.mark.parametrize("name", INPUTS)
def test_undamaged_they_are_read(name, tmp_path):
    make, read = INPUTS[name]
    (tmp_path / name).write_bytes(make())
    read(tmp_path / name)


def test_a_hundred_damaged_inputs(tmp_path, capfd):
    read = [check(tmp_path, number, seed=0) for number in range(3 * len(INPUTS))]
    assert True in read and False in read
    assert capfd.readouterr() == ("", "")  # decoders in C print nothing either


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
def test_two_thousand_damaged_inputs(name, tmp_path, capfd):
    seed, place = int(os.environ.get("MUTATED_SEED", "1")), list(INPUTS).index(name)
    for number in range(place, MANY, len(INPUTS)):
        check(tmp_path, number, seed)
    assert capfd.readouterr() == ("", "")
