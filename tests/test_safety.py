"""Data, tables, archives, recipes and run folders from elsewhere cannot run code, steer the terminal or the
page, reach other files, or hang."""

import html
import io
import json
import os
import pickle
import re
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import jpg, pipe, png
from PIL import Image

import vicjoint
from vicjoint import evaluate, export, run
from vicjoint.files import guard, images
from vicjoint.files.sound import Sound, SoundError
from vicjoint.recipe import ImportsError, RecipeError, load_recipe, parse_yaml
from vicjoint.sources.sequences import Fasta
from vicjoint.sources.shards import WebDataset
from vicjoint.sources.table import Table
from vicjoint.training import checkpoint
from vicjoint.video import Video, VideoError

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted(
    [
        *(ROOT / "vicjoint").rglob("*.py"),
        *(ROOT / "encoders").glob("*.py"),
        *(ROOT / "benchmarks").glob("*.py"),
    ]
)
CONV = {"encoder": {"name": "conv", "width": 4, "dim": 8}, "expander": [8]}
RECIPE = {
    "name": "safe",
    "source": {"name": "image_folder", "root": "pictures"},
    "pair": {"name": "augment", "size": 16},
    "a": {"modality": "image", **CONV},
    "b": {"weights": "same"},
    "objective": {"name": "vicreg"},
    "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "constant"}},
    "train": {"steps": 10, "batch_size": 4},
    "data": {"workers": 0, "max_bad_fraction": 0.5},
    "evaluate": {"probes": []},
}
NASTY = [
    "<script>alert(1)<!--",
    "\x1b[2J\x1b[31mred",
    "\u202egnp.exe",
    "a\nb\r",
    "&lt;img src=x onerror=1>",
    "\x07\x9b5n",
    "half\udce9",
    "\u2066x\u200b",
]


def pictures(place: Path, names=()) -> None:
    (place / "pictures").mkdir()
    for i in range(24):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(
            place / "pictures" / f"{i}.png"
        )
    for name in names:
        (place / "pictures" / f"{name}.png").write_bytes(b"broken " + name.encode("utf-8", "surrogateescape"))


# ---- terminal and page ----


def harmless(text: str) -> bool:
    return all(c.isprintable() or c in "\n" for c in re.sub(r"[\r\t]", "", text))


def test_a_run_over_nasty_names_says_and_shows_them_escaped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path, [n.replace("/", "") for n in NASTY])
    Path("r.yaml").write_text(json.dumps(RECIPE))
    assert run.main(["r.yaml", "out=run"]) == 0
    said = capsys.readouterr()
    assert harmless(said.out) and "\x1b[2J" not in said.err and "\u202e" not in said.err
    bad = [json.loads(line) for line in Path("run/bad_samples.jsonl").read_text().splitlines()]
    assert len(bad) >= 5 and any("<script>" in b["sample"] for b in bad)
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert "<script" not in page and harmless(page) and "onerror=1>" not in page
    for sample in (b["sample"] for b in bad):
        assert html.escape(guard.printable(sample)) in page

    assert run.main(["r.yaml", "out=strict", "data.max_bad_fraction=0.01"]) == 1
    said = capsys.readouterr().err
    assert (
        "cannot be read; data.max_bad_fraction=0.01 allows 1" in said
        and "\x1b[2J" not in said
        and "\u202e" not in said
    )


def test_sources_and_recipes_with_nasty_names_are_escaped_in_messages(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("\x1b[31mx", "\u202ex"):
        assert run.main([f"{name}.yaml"]) == 2
        assert harmless(capsys.readouterr().err)
    Path("r.yaml").write_text(
        json.dumps({**RECIPE, "\x1b[2Jkey": 1, "source": {"name": "image_folder", "root": "\x1b[2J"}})
    )
    assert run.main(["r.yaml"]) == 2
    assert harmless(said := capsys.readouterr().err) and "\\x1b[2J" in said


def test_printable_keeps_text_and_escapes_the_rest():
    assert guard.printable("Grüße, 写真.png") == "Grüße, 写真.png"
    assert [guard.printable(c) for c in "\x1b\n\u202e\udce9\0"] == [
        "\\x1b",
        "\\n",
        "\\u202e",
        "\\udce9",
        "\\x00",
    ]
    assert (
        guard.printable_lines("a\nb\x1b") == "a\nb\\x1b"
        and guard.printable("x" * 30, 10) == "x" * 10 + "... (30 characters)"
    )


# ---- recipes, pickles, imports ----


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch owned']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/object/new:str ['x']",
    ],
)
def test_yaml_never_builds_objects(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        RecipeError, match="could not determine a constructor for the tag 'tag:yaml.org,2002:python"
    ) as error:
        parse_yaml(f"name: {text}\n", "recipe x.yaml")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
    with pytest.raises(RecipeError, match="could not determine a constructor"):
        load_recipe(RECIPE, [f"pair={text}"])


def test_no_file_is_unpickled_anywhere():
    for path in CODE:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            where = f"{path}:{number}"
            assert "torch.load(" not in line or "weights_only=True" in line, where
            assert "np.load(" not in line or "allow_pickle=False" in line, where
            assert not re.search(
                r"pickle\.loads?\(|joblib|\bdill\b|trust_remote_code=True|(?<!\.)\beval\(|(?<!\.)\bexec\(|os\.system|shell=True|yaml\.(unsafe_|full_)",
                line,
            ), where
            assert "yaml.load(" not in line or "_Loader" in line, where


class Touches:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_a_pickle_among_the_data_is_a_bad_sample_or_a_refused_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps(Touches())
    for name in ("x.png", "x.npy", "x.wav", "x.mp4"):
        Path(name).write_bytes(content)
    with pytest.raises(images.ImageError):
        images.read("x.png")
    with pytest.raises(SoundError):
        Sound("x.wav")
    with pytest.raises(VideoError):
        Video("x.mp4")
    pictures(tmp_path)
    folder = vicjoint.train(RECIPE, ["out=run"])
    for path in sorted((folder / "checkpoints").rglob("*")):
        if path.is_file():
            path.write_bytes(content)
    Path("pictures.npz").write_bytes(content)
    with pytest.raises((RecipeError, checkpoint.CheckpointError)):
        vicjoint.load_encoder(folder)
    assert evaluate.main(["run"]) == 2
    assert not Path("owned").exists()


MODULE = """
import os, torch, vicjoint
os.makedirs("owned", exist_ok=True)

@vicjoint.register_encoder("image", "theirs")
class Theirs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dim = 4
        self.net = torch.nn.Conv2d(3, 4, 3)

    def forward(self, view):
        return self.net(view).mean((2, 3))
"""


def test_a_run_or_export_imports_nothing_by_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    pictures(tmp_path)
    Path("their_module.py").write_text(MODULE)
    theirs = {
        **RECIPE,
        "imports": ["their_module"],
        "a": {"modality": "image", "encoder": {"name": "theirs"}, "expander": [8]},
        "train": {"steps": 2, "batch_size": 4},
    }

    def forget() -> None:
        """As in a new process."""
        sys.modules.pop("their_module", None)
        if Path("owned").exists():
            Path("owned").rmdir()

    vicjoint.train(theirs, ["out=run"])
    assert Path("owned").exists()  # the recipe that the user runs may
    forget()
    assert (
        evaluate.main(["run"]) == 2
        and export.main(["run", "--to", "out"]) == 2
        and export.main(["run", "--to", "x.safetensors"]) == 2
    )
    said = capsys.readouterr().err
    assert (
        said.count(
            "wants to import their_module. A recipe that comes with a run or an export runs no code of its"
            " own."
        )
        == 3
    )
    with pytest.raises(ImportsError, match="their_module"):
        vicjoint.load_encoder("run")
    with pytest.raises(
        RecipeError,
        match=(
            "holds a run of a different recipe. It differs in:\n  imports: recipe run/recipe.yaml wants to"
            " import their_module"
        ),
    ):
        vicjoint.train(RECIPE, ["out=run"])  # the user's own recipe, in a folder from elsewhere
    assert not Path("owned").exists()

    assert vicjoint.load_encoder("run", imports=["their_module"]).dim == 4 and Path("owned").exists()
    for command in (export.main, ["run", "--to", "out"]), (evaluate.main, ["run"]):
        forget()
        assert command[0]([*command[1], "--allow-imports"]) == 0 and Path("owned").exists()
    forget()
    with pytest.raises(ImportsError):
        vicjoint.load_encoder("out")
    assert vicjoint.load_encoder("out", imports=None).dim == 4


def test_imports_hidden_in_without_data_are_refused_too(tmp_path):
    hidden = {
        **RECIPE,
        "source": {"name": "image_folder"},
        "without_data": {"source.name": "sample_images", "imports": ["this_is_not_there"]},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(hidden))
    with pytest.raises(ImportsError, match="wants to import this_is_not_there"):
        load_recipe(tmp_path / "recipe.yaml", imports=())
    with pytest.raises(RecipeError, match="cannot import 'this_is_not_there'"):
        load_recipe(tmp_path / "recipe.yaml")
    # imported already: runs nothing
    assert load_recipe(RECIPE | {"imports": ["json"]}, imports=(), check_paths=False).imports == ["json"]


# ---- paths ----


def finished(function, seconds: float = 5):
    """What `function` raises or returns, in a thread that must not hang."""
    box = []

    def call():
        try:
            box.append(function())
        except Exception as error:
            box.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert box, "hangs"
    return box[0]


@pytest.mark.parametrize("suffix", [".png", ".wav", ".mp4", ".tif"])
def test_pipes_and_devices_do_not_hang(tmp_path, suffix):
    from vicjoint.modalities.microscope import Microscope

    read = {".png": images.read, ".wav": Sound, ".mp4": Video, ".tif": Microscope(channels=1).read}[suffix]
    fifo, link = Path(pipe(tmp_path)), tmp_path / f"link{suffix}"
    fifo.rename(tmp_path / f"fifo{suffix}")
    link.symlink_to("/dev/zero")
    for path, cause in (
        (tmp_path / f"fifo{suffix}", "a named pipe"),
        (link, "a device"),
        ("/dev/stdin", "a (device|named pipe|socket)|empty|no such|cannot be decoded"),
    ):
        error = finished(lambda: read(str(path)))
        assert isinstance(error, ValueError) and re.search(cause, str(error)), error


def test_what_the_paths_of_a_table_mean(tmp_path, monkeypatch):
    outside, folder = tmp_path / "outside", tmp_path / "table"
    for place in (outside, folder, folder / "~", tmp_path / "home"):
        place.mkdir()
    for i, path in enumerate(
        (
            folder / "in.png",
            outside / "above.png",
            outside / "absolute.png",
            outside / "target.png",
            folder / "~" / "tilde.png",
            tmp_path / "home" / "tilde.png",
        )
    ):
        path.write_bytes(png(i))
    (folder / "link.png").symlink_to(outside / "target.png")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    meant = {
        "in.png": folder / "in.png",
        "../outside/above.png": outside / "above.png",
        str(outside / "absolute.png"): outside / "absolute.png",
        "link.png": outside / "target.png",
        "~/tilde.png": folder / "~" / "tilde.png",
        "http://localhost/x.png": None,
        "file:///etc/passwd": None,
        "$HOME/tilde.png": None,
    }
    rows = "\n".join(f"{path},{'train' if i % 2 else 'test'}" for i, path in enumerate(meant))
    (folder / "t.csv").write_text(f"path,split\n{rows}\n")
    table = Table(str(folder / "t.csv"))
    found = {record["path"]: record for record in (*table.train, *table.test)}
    for written, file in meant.items():
        record = found.pop(os.path.normpath(folder / written))
        if file is None:
            # a name below the folder: nothing is fetched, no variable is filled in
            assert record["path"].startswith(str(folder))
            with pytest.raises(images.ImageError, match="no such file"):
                images.read_record(record)
        else:
            assert os.path.realpath(record["path"]) == str(file) and torch.equal(
                images.read_record(record), images.read(file)
            ), written
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {secret}\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
        "\ufeff\n<?xml version='1.0'?><MPD></MPD>",
    ],
)
def test_a_text_cannot_send_ffmpeg_to_other_files(tmp_path, text):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"")
    for suffix, read, error in ((".mp4", Video, VideoError), (".m4a", Sound, SoundError)):
        path = tmp_path / f"list{suffix}"
        path.write_text(text.format(secret=secret))
        assert isinstance(told := finished(lambda: read(str(path))), error) and "names other files" in str(
            told
        )


# ---- archives ----


def tar_of(place: Path, members) -> Path:
    path = place / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content, changes in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in changes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content) if content else None)
    return path


def test_archives_are_read_in_place(tmp_path):
    (tmp_path / "inner").mkdir()
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(9))
    link = {"type": tarfile.SYMTYPE, "linkname": str(secret)}
    tar_of(
        tmp_path / "inner",
        [
            ("../../above.jpg", jpg(), {}),
            ("/etc/absolute.jpg", jpg(), {}),
            ("good.jpg", jpg(), {}),
            ("good.cls", b"dog", {}),
            ("link.jpg", b"", link),
            ("hard.jpg", b"", {"type": tarfile.LNKTYPE, "linkname": "../secret.png"}),
            ("above.cls", b"", link),
            ("pipe.jpg", b"", {"type": tarfile.FIFOTYPE}),
            ("device.jpg", b"", {"type": tarfile.CHRTYPE}),
            ("folder.jpg", b"", {"type": tarfile.DIRTYPE}),
            ("\x1b[2J.jpg", jpg(), {}),
        ],
    )
    before = sorted(tmp_path.rglob("*"))
    source = WebDataset(str(tmp_path / "inner"))
    records = [*source.train, *source.test]
    assert sorted(r["id"] for r in records) == sorted(
        ["x.tar/../../above", "x.tar//etc/absolute", "x.tar/good", "x.tar/\x1b[2J"]
    )
    for record in records:
        assert images.read_record(record).shape == (3, 96, 96) and record["path"] == str(
            tmp_path / "inner" / "x.tar"
        )
    assert {r["id"]: r["label"] for r in records}["x.tar/../../above"] is None
    assert sorted(tmp_path.rglob("*")) == before and not Path("/etc/absolute.jpg").exists()


def test_a_member_that_claims_too_much(tmp_path, monkeypatch):
    path = tar_of(tmp_path, [(f"{i}.jpg", jpg(), {}) for i in range(4)])
    source = WebDataset(str(path))
    record = {**source.train[0], "size": 1 << 50}
    with pytest.raises(
        images.ImageError, match="has 1,125,899,906,842,624 bytes, more than the 1,073,741,824 that are read"
    ):
        images.read_record(record)
    monkeypatch.setattr(images, "MOST_BYTES", 100)
    with pytest.raises(images.ImageError, match="more than the 100 that are read"):
        images.read_record(source.train[0])
    content = path.read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[:1500])
    with pytest.raises(ValueError, match="cut.tar: only one key"):  # of which a part is there
        WebDataset(str(tmp_path / "cut.tar"))


def test_a_compressed_text_does_not_fill_the_memory(tmp_path, monkeypatch):
    import gzip

    from vicjoint.sources import sequences

    monkeypatch.setattr(sequences, "MOST_BYTES", 1000)
    (tmp_path / "x.fasta.gz").write_bytes(gzip.compress(b">a\nMKT\n>b\nLAG\n"))
    assert len(Fasta(str(tmp_path / "x.fasta.gz")).train) == 1
    (tmp_path / "x.fasta.gz").write_bytes(gzip.compress(b">a\n" + b"M" * 5000))
    with pytest.raises(ValueError, match="more than 1,000 bytes when it is unpacked"):
        Fasta(str(tmp_path / "x.fasta.gz"))


def test_pictures_that_claim_too_much_are_refused_before_they_are_decoded(tmp_path):
    sparse = tmp_path / "sparse.png"
    with open(sparse, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(images.ImageError, match="1,099,511,627,776 bytes, more than"):
        images.read(sparse)
