"""Broken samples of every modality, made anew in a folder: what the tests inject, and the table in
docs/reliability.md.

    FAULTS["image"]["truncated"].make(folder)      # the value of the cell: a path, a text
    python tests/faults.py                        # the table, in Markdown

`cause` is what the message has to say; None: it is only odd, or this damage cannot be told from another
sample, so the sample is read and must not crash, hang, or print anything.
"""

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pngs
import soundfile
import tifffile
from omes import metadata
from PIL import Image
from pngs import chunk

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (48, 48, 3), dtype=np.uint8)
SMILES = [
    "CCO",
    "c1ccccc1O",
    "CC(=O)Oc1ccccc1C(=O)O",
    "C1CCCCC1",
    "CCN(CC)CC",
    "OCC(O)CO",
    "N#Cc1ccccc1",
    "CC(C)Cc1ccccc1",
]


@dataclass
class Fault:
    make: Callable[[Path], object]
    cause: str | None
    words: str


# ---- good files ----


def png(seed: int = 0) -> bytes:
    return encoded(np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8), "PNG")


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, kind)
    return target.getvalue()


def jpg() -> bytes:
    return encoded(np.kron(NOISE[:12, :12], np.ones((8, 8, 1), np.uint8)), "JPEG")


def wav(samples=None, rate: int = 16000, subtype: str = "PCM_16") -> bytes:
    target = io.BytesIO()
    samples = np.sin(np.arange(16000) / 20) / 2 if samples is None else samples
    soundfile.write(target, samples, rate, subtype=subtype, format="WAV")
    return target.getvalue()


def mp4(
    frames: int = 24, size: int = 32, codec: str = "libx264", seed: int = 0, title: str = "", **options: str
) -> bytes:
    target, rng = io.BytesIO(), np.random.default_rng(seed)
    with av.open(target, "w", format="mp4") as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=8, options=options)
        stream.codec_context.thread_count = 1  # the same bytes on any number of cores
        stream.width, stream.height, stream.pix_fmt = (
            size,
            size,
            "yuvj420p" if codec == "mjpeg" else "yuv420p",
        )
        for _ in range(frames):
            pixels = np.kron(
                rng.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8)
            )
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode(None))
    return target.getvalue()


def tif(pixels=None, photometric: str = "minisblack", **options) -> bytes:
    target = io.BytesIO()
    pixels = RNG.integers(0, 60000, (2, 40, 40), dtype=np.uint16) if pixels is None else pixels
    tifffile.imwrite(target, pixels, photometric=photometric, **options)
    return target.getvalue()


# ---- damage ----


def file(content: Callable[[], bytes] | bytes, name: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        path = folder / name
        path.write_bytes(content() if callable(content) else content)
        return str(path)

    return make


def flipped(content: bytes, seed: int, bits: int = 20, spared: int = 0) -> bytes:
    """The content with random bits turned, behind its first `spared` bytes."""
    out, rng = bytearray(content), np.random.default_rng(seed)
    for place in rng.integers(spared, len(out), bits):
        out[place] ^= 1 << int(rng.integers(8))
    return bytes(out)


def cut_film() -> bytes:
    """The packets of a film from its third key frame on; frames of an open group before it are not whole."""
    whole = mp4(40, g="10", bf="3", **{"x264-params": "open-gop=1:scenecut=0:b-adapt=0"})
    target = io.BytesIO()
    with av.open(io.BytesIO(whole)) as old, av.open(target, "w", format="mp4") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.size]
        first = [number for number, packet in enumerate(packets) if packet.is_keyframe][2]
        for packet in packets[first:]:
            packet.stream = stream
            new.mux(packet)
    return target.getvalue()


def mp3_without_length() -> bytes:
    """A bit rate that changes, and no first frame that says how many there are."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp3", options={"write_xing": "0"}) as container:
        stream = container.add_stream("libmp3lame", rate=16000, layout="mono", options={"abr": "1"})
        wave = np.sin(np.arange(32000) ** 1.5 / 2000).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(wave[None] / 2, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target.getvalue()


def flac_from_a_pipe() -> bytes:
    target = io.BytesIO()
    soundfile.write(target, np.sin(np.arange(16000) / 20) / 2, 16000, format="FLAC")
    content = bytearray(target.getvalue())
    content[21] &= 0xF0  # the number of samples in all, 36 bits
    content[22:26] = bytes(4)
    return bytes(content)


def flipped_film(content: bytes, seed: int, bits: int) -> bytes:
    """An mp4 with random bits of its frames turned; the index behind them is whole."""
    end = content.rfind(b"moov") - 4
    return flipped(content[:end], seed, bits, spared=60) + content[end:]


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return pngs.framed(chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))))


def patched(content: bytes, before: bytes, after: bytes) -> bytes:
    assert before in content and len(before) == len(after)
    return content.replace(before, after)


def mjpeg_that_claims(side: int) -> bytes:
    """A motion-JPEG film whose container and frames claim to be so large."""
    content = mp4(codec="mjpeg")
    content = content.replace(
        bytes([0, 32, 0, 32, 0, 0x48, 0, 0]), struct.pack(">HH", side, side) + bytes([0, 0x48, 0, 0])
    )
    return content.replace(
        b"\xff\xc0\x00\x11\x08\x00\x20\x00\x20", b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", side, side)
    )


def part_of_a_series() -> bytes:
    """A position of a series; the metadata name the files of all of them."""
    names = ["part.ome.tif", "other.ome.tif"]
    return tif(description=metadata(names[0], (40, 40), [[(n, 0), (n, 1)] for n in names]), metadata=None)


def tif_that_claims(side: int) -> bytes:
    content = tif(np.zeros((40, 41), np.uint16) + np.arange(41, dtype=np.uint16))
    for tag, value in ((256, 41), (257, 40)):
        entry = [struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value) for kind in (3, 4)]
        for before in entry:
            content = content.replace(before, struct.pack("<HHII", tag, 4, 1, side))
    return content


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return str(folder / "pipe")


def subfolder(folder: Path) -> str:
    (folder / "folder").mkdir()
    return str(folder / "folder")


def unreadable(content: bytes, name: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        path = Path(file(content, name)(folder))
        path.chmod(0)
        return str(path)

    return make


def of_files(what: str, suffix: str, content: Callable[[], bytes]) -> dict[str, Fault]:
    """What can be wrong with a file of any kind."""
    return {
        "empty": Fault(file(b"", "empty" + suffix), r"empty \(0 bytes\)", "no byte"),
        "missing": Fault(
            lambda folder: str(folder / f"missing{suffix}"),
            "no such file",
            "not there, or vanished during the run",
        ),
        "unreadable": Fault(
            unreadable(content(), "secret" + suffix), "[Pp]ermission denied", "no permission to read it"
        ),
        "folder": Fault(subfolder, "a folder, not", "a folder of that name"),
        "pipe": Fault(pipe, "a named pipe, not", "a named pipe: opening it would wait for ever"),
        "device": Fault(lambda folder: "/dev/zero", "a device, not", "a device file without an end"),
        "html": Fault(
            file(b"<html>404 not found</html>" * 20, "html" + suffix),
            "cannot be decoded|not a readable|not a sound",
            "a web page under its name",
        ),
        "zeroed": Fault(
            file(lambda: bytes(len(content())), "zeroed" + suffix),
            "cannot be decoded|not a readable|not a sound|damaged",
            "all bytes are zero",
        ),
    }


IMAGE = of_files("image", ".png", png) | {
    "truncated": Fault(
        file(lambda: png()[:900], "cut.png"), "cannot be decoded", "cut off in the middle (png)"
    ),
    "truncated jpeg": Fault(
        file(lambda: jpg()[: len(jpg()) // 2], "cut.jpg"), "cannot be decoded", "cut off in the middle (jpeg)"
    ),
    "bit flips": Fault(
        file(lambda: flipped(png(), 1, spared=40), "flip.png"),
        "cannot be decoded",
        "turned bits (png: its checksums tell)",
    ),
    "bit flips jpeg": Fault(
        file(lambda: flipped(jpg(), 4, 6, spared=700), "flip.jpg"),
        None,
        "turned bits in the pixels (jpeg has no checksum)",
    ),
    "huge": Fault(
        file(png_that_claims(100_000, 100_000), "huge.png"),
        "claims far more than",
        "claims 100,000 x 100,000 pixels",
    ),
    "wrong type": Fault(
        file(lambda: wav(), "sound.png"), "not an image of a known format", "a sound under its name"
    ),
    "float": Fault(
        file(lambda: tif(np.ones((8, 8), np.float32)), "float.tif"),
        "no known range",
        "pixels without a known range",
    ),
    "10 bits": Fault(
        file(lambda: pngs.png(NOISE.astype(np.uint16) * 4), "dark.png"),
        "use at most a sixteenth of their range",
        "10 bits in values of 16",
    ),
    "planes": Fault(
        file(lambda: tif(NOISE.T.astype(np.uint16) * 257, "rgb", planarconfig="separate"), "planes.tif"),
        "16-bit colours in separate planes",
        "16-bit colours in separate planes",
    ),
    "16 bits": Fault(
        file(lambda: pngs.png(NOISE.astype(np.uint16) * 257), "deep.png"), None, "16-bit colours"
    ),
    "metadata": Fault(
        file(lambda: pngs.png(NOISE, chunk(b"iCCP", b"\0\0" + zlib.compress(bytes(1 << 22)))), "profile.png"),
        None,
        "a colour profile of 4 MB, or a damaged one",
    ),
    "thin": Fault(
        file(lambda: pngs.png(np.resize(NOISE, (1, 3_000_000, 3))), "thin.png"), None, "3,000,000 x 1 pixels"
    ),
}
VIDEO = of_files("video", ".mp4", mp4) | {
    "truncated": Fault(
        file(lambda: mp4()[: len(mp4()) // 2], "cut.mp4"),
        "not a readable|cut off|damaged",
        "cut off in the middle",
    ),
    "bit flips": Fault(
        file(lambda: flipped_film(mp4(), 3, 200), "flip.mp4"),
        "damaged",
        "many turned bits (told where the codec notices)",
    ),
    "bit flips unseen": Fault(
        file(lambda: flipped_film(mp4(), 3, 1), "pixel.mp4"), None, "one turned bit that still decodes"
    ),
    "huge": Fault(
        file(lambda: mjpeg_that_claims(30_000), "huge.mp4"),
        "claims frames of|damaged",
        "claims frames of 30,000 x 30,000 pixels",
    ),
    "too short": Fault(
        file(lambda: mp4(frames=3), "short.mp4"), "too short|are needed", "fewer frames than a clip"
    ),
    "only sound": Fault(file(lambda: wav(), "sound.mp4"), "only sound", "a sound under its name"),
    "playlist": Fault(
        file(b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/dev/zero\n#EXT-X-ENDLIST\n", "list.mp4"),
        "playlist",
        "a playlist that names other files",
    ),
    "title": Fault(
        file(lambda: mp4(title="a title").replace(b"a title", "caf\xe9 n1".encode("latin-1")), "title.mp4"),
        None,
        "a title that is not UTF-8",
    ),
    "cut": Fault(
        file(cut_film, "cut_out.mp4"), None, "leading frames that need others, which a cut left out"
    ),
}


def patched_rate(rate: int) -> bytes:
    return patched(wav(), struct.pack("<II", 16000, 32000), struct.pack("<II", rate, 32000))


AUDIO = of_files("sound", ".wav", wav) | {
    "truncated": Fault(file(lambda: wav()[:9000], "cut.wav"), "is cut off: 28%", "cut off in the middle"),
    "bit flips": Fault(
        file(lambda: flipped(wav(), 1, spared=44), "flip.wav"),
        None,
        "turned bits in the samples (wav has no checksum)",
    ),
    "nan": Fault(
        file(lambda: wav(np.full(16000, np.nan, np.float32), subtype="FLOAT"), "nan.wav"), "holds NaN", "NaN"
    ),
    "infinite": Fault(
        file(lambda: wav(np.full(16000, np.inf, np.float32), subtype="FLOAT"), "inf.wav"),
        "infinite value",
        "infinite values",
    ),
    "not scaled": Fault(
        file(lambda: wav(np.full(16000, 1e4, np.float32), subtype="FLOAT"), "loud.wav"),
        "values up to 10000",
        "values far beyond 1",
    ),
    "huge": Fault(
        file(
            lambda: patched(
                wav(), struct.pack("<4sI", b"data", 32000), struct.pack("<4sI", b"data", 0xFFFFFFF0)
            ),
            "long.wav",
        ),
        "is cut off: 0%",
        "a header that claims four gigabytes",
    ),
    "odd rate": Fault(
        file(lambda: patched_rate(999_999_937), "rate.wav"),
        "sampling rate is 999999937",
        "a sampling rate of a billion",
    ),
    "no samples": Fault(
        file(lambda: wav(np.zeros(0)), "none.wav"), "holds no sound", "a header and no sample"
    ),
    "wrong type": Fault(
        file(lambda: png(), "picture.wav"), "has no sound|not a sound", "a picture under its name"
    ),
    "counts itself": Fault(
        file(
            lambda: patched(wav(), struct.pack("<4sI", b"data", 32000), struct.pack("<4sI", b"data", 32044)),
            "header.wav",
        ),
        None,
        "a header that counts itself among the samples",
    ),
    "pipe header": Fault(
        file(flac_from_a_pipe, "pipe.flac"), None, "a header that leaves the length open (flac)"
    ),
    "no length": Fault(
        file(mp3_without_length, "rate.mp3"), None, "no length, and bit rates that change (mp3)"
    ),
    "44,099 Hz": Fault(file(lambda: wav(rate=44_099), "odd.wav"), None, "a sampling rate of 44,099 Hz"),
}
TEXT = {
    "empty": Fault(lambda _: "", "is empty", "no character"),
    "blank": Fault(lambda _: " \t\n", "is empty", "blanks only"),
    "null": Fault(lambda _: None, "is empty", "no value"),
    "NUL": Fault(lambda _: "a dog\0\0\0", "NUL character at place 5", "NUL characters"),
    "not UTF-8": Fault(lambda _: "caf\udce9", "is not UTF-8", "bytes of another encoding"),
    "mapping": Fault(lambda _: {"text": "a dog"}, "expected text, got dict", "a mapping"),
    "numbers": Fault(lambda _: [1, 2], "expected text, got list", "a list of numbers"),
    "bytes": Fault(lambda _: b"a d\xe9g", "is no text in UTF-8", "bytes"),
    "huge": Fault(lambda _: "dog " * 500_000, None, "two million letters: cut at the modality's length"),
    "controls": Fault(lambda _: "\x1b[2J\u202egod a", None, "control characters: bytes like others"),
}
MOLECULE = {
    "empty": Fault(lambda _: "", "is empty", "no character"),
    "null": Fault(lambda _: None, "is empty", "no value"),
    "truncated": Fault(lambda _: "CC(=O)Oc1ccccc1C(=O", "not a valid SMILES", "cut off inside a bracket"),
    "open ring": Fault(lambda _: "C1CCCC", "not a valid SMILES: unclosed ring", "a ring that does not close"),
    "valence": Fault(lambda _: "C(C)(C)(C)(C)C", "valence", "a carbon with five bonds"),
    "unknown element": Fault(lambda _: "C[Xx]C", "not a valid SMILES", "an element that does not exist"),
    "aromatic": Fault(lambda _: "c1cccc1", "kekulize", "a ring that cannot be aromatic"),
    "name": Fault(lambda _: "aspirin", "not a valid SMILES", "a name and no SMILES"),
    "two columns": Fault(lambda _: "CCO ethanol", "not a valid SMILES", "SMILES and name in one cell"),
    "NUL": Fault(lambda _: "CC\0O", "not a valid SMILES", "a NUL character"),
    "not ASCII": Fault(lambda _: "CCÖ", "not a valid SMILES", "letters beyond ASCII"),
    "not UTF-8": Fault(lambda _: "CC\udce9", "not a valid SMILES|surrogates", "bytes of another encoding"),
    "number": Fault(lambda _: 17.5, "not a valid SMILES", "a number"),
    "mapping": Fault(lambda _: {"smiles": "CCO"}, "expected a SMILES string, got dict", "a mapping"),
    "huge": Fault(
        lambda _: "C1CC1" * 20_000, "is longer than a molecule of 1024 atoms", "a hundred thousand characters"
    ),
    "too large": Fault(lambda _: "C" * 2000, "has 2000 atoms", "more atoms than max_atoms"),
    "deep": Fault(
        lambda _: "C(" * 5000 + "C" + ")" * 5000,
        "has 5001 atoms|not a valid|longer",
        "five thousand nested brackets",
    ),
    "flipped": Fault(lambda _: "CC(=O)Nc1ccccc1", None, "another valid molecule"),
}
PROTEIN = {
    "empty": Fault(lambda _: "", "is empty", "no character"),
    "null": Fault(lambda _: None, "is empty", "no value"),
    "gaps": Fault(lambda _: "---...", "the protein sequence is empty", "gaps only"),
    "digits": Fault(lambda _: "MKT4AYI", "'4', which is no residue, at place 4", "a digit"),
    "stop": Fault(lambda _: "MKT*AYI", "a stop inside it at place 4", "a stop in the middle"),
    "unknown residue": Fault(
        lambda _: "MKTXAYI", "the unknown residue X at place 4", "X (with unknown: error)"
    ),
    "NUL": Fault(lambda _: "MKT\0AYI", "is no residue", "a NUL character"),
    "not ASCII": Fault(lambda _: "MKTÄYI", "is no residue", "letters beyond ASCII"),
    "not UTF-8": Fault(lambda _: "MKT\udce9YI", "is no residue", "bytes of another encoding"),
    "header": Fault(lambda _: ">sp|P12345", "is no residue", "a FASTA header"),
    "mapping": Fault(
        lambda _: {"sequence": "MKT"}, "expected a protein sequence as text, got dict", "a mapping"
    ),
    "huge": Fault(
        lambda _: "MKTAYIAK" * 100_000, None, "eight hundred thousand residues: cut at the modality's length"
    ),
    "truncated": Fault(lambda _: "MKTA", None, "a shorter protein is a protein"),
}
MICROSCOPE = of_files("microscope", ".tif", tif) | {
    "truncated": Fault(
        file(lambda: tif()[:3000], "cut.tif"), "cannot be decoded|tif: ", "cut off in the middle"
    ),
    "bit flips": Fault(
        file(lambda: flipped(tif(), 1, spared=400), "flip.tif"),
        None,
        "turned bits in the pixels (tiff has no checksum)",
    ),
    "huge": Fault(
        file(lambda: tif_that_claims(100_000), "huge.tif"),
        "claims 10,000,000,000 values",
        "claims 100,000 x 100,000 pixels",
    ),
    "saturated": Fault(
        file(lambda: tif(np.full((2, 40, 40), 65535, np.uint16)), "full.tif"),
        "every pixel is 65535",
        "an empty or saturated channel",
    ),
    "nan": Fault(file(lambda: tif(np.full((2, 40, 40), np.nan, np.float32)), "nan.tif"), "not finite", "NaN"),
    "channels": Fault(
        file(lambda: tif(np.arange(4800, dtype=np.uint16).reshape(3, 40, 40)), "three.tif"),
        r"3 channel\(s\)",
        "another number of channels",
    ),
    "complex": Fault(
        file(lambda: tif(np.ones((2, 40, 40), np.complex64)), "complex.tif"),
        "pixels of type complex64",
        "complex numbers",
    ),
    "wrong type": Fault(file(lambda: wav(), "sound.tif"), "cannot be decoded", "a sound under its name"),
    "deep ppm": Fault(
        file(b"P6 40 40 1023\n" + bytes(9600), "deep.ppm"),
        "colours of more than 8 bits",
        "colours of more than 8 bits in a format that is read with 8",
    ),
    "part": Fault(
        file(part_of_a_series, "part.ome.tif"), None, "a file of a series, whose metadata name other files"
    ),
    "alpha": Fault(
        file(lambda: pngs.png(NOISE[..., :2].astype(np.uint16)), "alpha.png"),
        "colours of more than 8 bits",
        "16-bit grey and transparency in a png",
    ),
}


def loop_of_links(folder: Path) -> str:
    (folder / "loop.png").symlink_to(folder / "loop.png")
    return "loop.png"


CELL = {  # of a column whose modality reads files
    "null": Fault(lambda _: None, "column 'cell' is empty", "no value"),
    "empty": Fault(lambda _: "  ", "column 'cell' is empty", "blanks only"),
    "empty list": Fault(lambda _: [], "column 'cell' is empty", "a list without entries"),
    "mapping": Fault(lambda _: {"bytes": "0"}, "expected the path of a file, got dict", "a mapping"),
    "numbers": Fault(lambda _: [1, 2], "expected the path of a file, got list", "a list of numbers"),
    "number": Fault(lambda _: 3.5, "3.5: no such file", "a number"),
    "NUL": Fault(lambda _: "a\0.png", "NUL character", "a NUL character in the path"),
    "URL": Fault(
        lambda _: "http://localhost:9/a.png",
        "http:/localhost:9/a.png: no such file",
        "an address: nothing is fetched",
    ),
    "home": Fault(lambda _: "~/a.png", "~/a.png: no such file", "~ is a name like any other"),
    "absolute": Fault(
        lambda _: "/no/such/a.png", "/no/such/a.png: no such file", "an absolute path to nothing"
    ),
    "above": Fault(
        lambda _: "../../../../nothing.png",
        "nothing.png: no such file",
        "a path out of the folder to nothing",
    ),
    "loop": Fault(loop_of_links, "symbolic links", "a link to itself"),
    "long": Fault(lambda _: "a" * 5000, "name too long", "a name of five thousand letters"),
    "broken link": Fault(
        lambda folder: (folder / "gone.png").symlink_to("nowhere") or "gone.png",
        "no such file",
        "a link to nothing",
    ),
    "controls": Fault(lambda _: "\x1b[31m\u202e.png", "no such file", "control characters in the path"),
}
FAULTS = {
    "image": IMAGE,
    "video": VIDEO,
    "audio": AUDIO,
    "text": TEXT,
    "molecule": MOLECULE,
    "protein": PROTEIN,
    "microscope": MICROSCOPE,
    "table cell": CELL,
}
GOOD = {
    "image": lambda folder, i: file(lambda: png(i), f"good{i}.png")(folder),
    "video": lambda folder, i: file(lambda: mp4(seed=i), f"good{i}.mp4")(folder),
    "audio": lambda folder, i: file(lambda: wav(np.sin(np.arange(16000) / (10 + i)) / 2), f"good{i}.wav")(
        folder
    ),
    "text": lambda folder, i: f"{i} dogs",
    "molecule": lambda folder, i: SMILES[i % len(SMILES)] + "C",
    "protein": lambda folder, i: "MKTAYIAK" + "LAGV" * i,
    "microscope": lambda folder, i: file(lambda: tif(), f"good{i}.tif")(folder),
    "table cell": lambda folder, i: file(lambda: png(i), f"good{i}.png")(folder),
}


def table() -> str:
    """Markdown: what is injected into each modality, and what cannot be told."""
    lines = [
        (
            "| modality | faults | told, replaced, named | read without harm: only odd, or nothing tells them"
            " from good samples |"
        ),
        "| --- | --- | --- | --- |",
    ]
    for modality, faults in FAULTS.items():
        told = "; ".join(f.words for f in faults.values() if f.cause)
        unseen = "; ".join(f.words for f in faults.values() if not f.cause)
        lines.append(f"| {modality} | {len(faults)} | {told} | {unseen or 'none'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
