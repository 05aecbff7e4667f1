"""What README and docs print is true: every command is given, in a short form where it takes long, and every
block of Python is run, page by page and in order, among small files of the names that the pages use.

A command that no rule here covers fails. Recipes of `vicjoint.run` are resolved and not trained, benchmarks
and torchrun only read their arguments; the examples of CONTRIBUTING.md and docs/modalities.md are run by
tests/test_habits.py and tests/test_user_modality.py.
"""

import argparse
import importlib
import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tiny
import torch
from exporting import untrained
from PIL import Image

import vicjoint
from vicjoint import embed as embedding
from vicjoint import registry, run
from vicjoint.recipe import load_recipe, to_yaml
from vicjoint.training import loop
from vicjoint.training.seeds import train_seeds
from vicjoint.video.write import write_mp4

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN_ELSEWHERE = ("CONTRIBUTING.md", "modalities.md")  # their blocks of Python
OWN = ("inertial.yaml", "name: mine", "name: patches")  # a user's files, which other tests write


class Step(NamedTuple):
    """name: a module, or a program such as pip install, with its arguments in `text`; python, with a block;
    mentioned, with a module."""

    name: str
    text: str

    @property
    def arguments(self) -> list[str]:
        return shlex.split(self.text, comments=True)


def steps(page: Path) -> list[Step]:
    """In order: commands, in indented lines and as `code` in a line, and blocks of Python."""
    found: list[Step] = []
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for number, part in enumerate(re.split(r"^```", text, flags=re.M)):
        if number % 2:
            found += [Step("python", part.removeprefix("python\n"))] if part.startswith("python\n") else []
            continue
        for line in part.splitlines():
            if line.startswith("    "):
                for command in line.split(" && "):
                    found += command_of(command.strip())
            else:
                inside = [step for code in re.findall(r"`([^`]+)`", line) for step in command_of(code)]
                found += [step if step.text else Step("mentioned", step.name) for step in inside]
    return found


def command_of(text: str) -> list[Step]:
    match = re.match(r"(?:(?:\w+=\S+ )*python3? -m ([\w.]+)|(torchrun|pip install)\b) ?(.*)", text)
    return [Step(match[1] or match[2], match[3])] if match else []


# ---- rules ----

SHORT = {  # what takes long, or stands for something
    " STEP": " 3",
    " MISTAKE": "",
    '"$SMALL"': "",
    "DATA...": "DATA",
    "[--every SECONDS]": "--every 1",
    "=N": "=3",
    "--step 400": "--step 2",
    "source.test=400": "source.test=8",
    "data.workers=8": "data.workers=0",
    '.to("cuda")': '.to("cpu")',
    '"train.steps=100", "out=my_run"': (
        '"train.steps=1", "train.batch_size=16", "source={name: sample_videos, train: 3, test: 2}",'
        ' "data.workers=0", "evaluate.last=false", "out=new_run"'
    ),
}


def shortened(text: str) -> str:
    for long, short in SHORT.items():
        text = text.replace(long, short)
    return text


def run_is_a_recipe(step: Step) -> None:
    given = run.parse(step.arguments)
    if given.recipe and not given.recipe.isupper():  # RECIPE stands for any
        load_recipe(ROOT / given.recipe if "/" in given.recipe else given.recipe, given.overrides, False)


def command_succeeds(step: Step) -> None:
    assert importlib.import_module(step.name).main(step.arguments) == 0


class Parsed(Exception):
    """The arguments are right."""


def arguments_are_known(step: Step) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [step.name, *step.arguments])
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, then_stop(getattr(argparse.ArgumentParser, name)))
        with pytest.raises(Parsed):
            importlib.import_module(step.name).main()


def then_stop(parse: Callable) -> Callable:
    def stop(*given, **named):
        parse(*given, **named)
        raise Parsed

    return stop


def torchrun_is_a_recipe(step: Step) -> None:
    from torch.distributed.run import get_args_parser

    given = get_args_parser().parse_args([*step.arguments, *([] if "-m" in step.arguments else ["-m", "x"])])
    if given.training_script == "vicjoint.run":
        run_is_a_recipe(Step("vicjoint.run", shlex.join(given.training_script_args)))


def extras_exist(step: Step) -> None:
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M)
    assert set(re.findall(r"[\w.]+\[(\w+)\]", step.text)) <= set(known)


def module_exists(step: Step) -> None:
    assert importlib.util.find_spec(step.text)


def files_exist(step: Step) -> None:
    assert all((ROOT / a).exists() for a in step.arguments if a.startswith("tests/"))


def rule(name: str) -> Callable[[Step], None]:
    if name == "vicjoint.run":
        return run_is_a_recipe
    if name.startswith("vicjoint."):
        return command_succeeds
    if name.startswith("benchmarks."):
        return arguments_are_known
    rules = {"torchrun": torchrun_is_a_recipe, "pip install": extras_exist, "pytest": files_exist}
    rules |= {"mentioned": module_exists, "venv": lambda step: None}
    assert name in rules, f"{name}: no rule in tests/test_docs.py gives this command"
    return rules[name]


# ---- the files that the pages name ----

LEARNING = {
    "objective": {"name": "vicreg"},
    "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "cosine"}},
    "train": {"steps": 2, "batch_size": 4},
    "data": {"workers": 0, "video_backend": "pyav"},
    "evaluate": {"explorer": 0},
}
CONV = {"name": "conv", "width": 4, "dim": 8}
IMAGE = {"modality": {"name": "image", "size": 64}, "encoder": CONV, "expander": [6]}
CLIP = {"modality": "clip", "encoder": {"name": "conv_gru", "width": 4, "dim": 8}, "expander": [6]}
TEXT = {
    "modality": "text",
    "encoder": {"name": "bytes_cnn", "width": 4, "layers": 1, "dim": 5},
    "expander": [6],
}
SOUND = {"modality": "audio", "encoder": {"name": "conv_mel", "width": 4, "dim": 8}, "expander": [6]}
NEXT_FRAME = {
    "pair": {"name": "next_frame", "frames": 3, "stride": 1, "size": 16, "windows": 2},
    "a": CLIP,
    "b": {"modality": "next_frame", "encoder": CONV, "expander": [6], "weights": "own"},
}
OWN_WEIGHTS = {"weights": "own"}
LINKS = {  # files that only one page finds, and which run is RUN there
    "README.md": {"RUN": "my_run"},
    "embed.md": {"RUN": "runs/image_text/1"},
    "explore.md": {"RUN": "runs/image_text/1", "captions.parquet": "words.parquet"},
    "export.md": {"RUN": "image_clip"},
    "images.md": {"RUN": "views"},
    "probes.md": {"RUN": "views"},
    "recipes.md": {"RUN": "audio_video"},
    "reliability.md": {"RUN": "best"},
    "results.md": {"RUN": "sampled"},
}


def recipe(name: str, source: dict, **parts) -> dict:
    return {"name": name, "source": source, **LEARNING, **parts}


def write_data(data: Path) -> None:
    rng = np.random.default_rng(0)
    table = ["image,path,video,caption,class,split"]
    for i in range(12):
        split, kind = "train" if i < 8 else "test", ("dog", "cat")[i % 2]
        for name in (f"pictures/{i}.png", f"my_videos/{split}/{i}.mp4", f"films/{i}.mp4"):
            (data / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(data / f"pictures/{i}.png")
        for folder in (f"my_videos/{split}", "films")[: 2 if i < 2 else 1]:
            write_mp4(data / folder / f"{i}.mp4", rng.integers(0, 256, (24, 32, 32, 3), np.uint8))
        table.append(
            f"pictures/{i}.png,pictures/{i}.png,my_videos/{split}/{i}.mp4,a {kind} {i},{kind},{split}"
        )
    text = "\n".join(table)
    for name in ("index.csv", "captions.csv", "pictures.csv"):
        (data / name).write_text(text)
    (data / "labelled.csv").write_text(text.replace("class", "species"))
    (data / "others").mkdir()
    (data / "others" / "index.csv").write_text(
        text.replace("class", "breed").replace("pictures/", "../pictures/")
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Data, runs of two steps, and files of other names that the pages use."""
    root = tmp_path_factory.mktemp("docs")
    data = root / "data"
    write_data(data)
    table = {"name": "table", "root": str(data / "index.csv")}
    words = {"name": "cross_modal", "a": "image", "b": "caption"}
    runs = {
        "runs/image_text/1": recipe("image_text", table, pair=words, a=IMAGE, b=TEXT | OWN_WEIGHTS),
        "my_run": recipe("videos", {"name": "video_folder", "root": str(data / "my_videos")}, **NEXT_FRAME),
        "views": recipe(
            "views",
            table | {"root": str(data / "others/index.csv")},
            pair={"name": "augment", "size": 32},
            a=IMAGE | {"modality": "image"},
            b={"weights": "same"},
            evaluate={"probes": [{"name": "knn", "label": "breed"}], "explorer": 0},
        ),
        "sampled": recipe(
            "sampled",
            {"name": "sample_videos", "train": 16, "test": 4, "frames": 8, "size": 16},
            **NEXT_FRAME,
        ),
        "best": tiny.recipe(
            train={"steps": 6, "batch_size": 8}, checkpoint={"every": 3, "best": "-tiny_probe/distance"}
        ),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VICJOINT_CACHE", str(root / "cache"))
        patch.setattr(
            loop, "write_report", lambda folder: folder / "report.html"
        )  # plots, half a second each
        for name, made in runs.items():
            vicjoint.train(made, [f"out={root / name}"])
        (root / "tiny.yaml").write_text(
            to_yaml(load_recipe(tiny.recipe(train={"steps": 3, "batch_size": 8})))
        )
        for number in (1, 2):
            out = f"out={root / 'runs' / 'video_next_frame'}"
            vicjoint.train(root / "tiny.yaml", [f"{out}/{number}", f"train.seed={number}"])
            train_seeds(root / "tiny.yaml", [f"{out}-seeds/{number}", f"optim.lr={number / 100}"], [0, 1])
    clips = {"name": "cross_modal", "a": "image", "b": "video"}
    untrained(root / "image_clip", recipe("pairs", table, pair=clips, a=IMAGE, b=CLIP | OWN_WEIGHTS))
    sounds = {"a": "audio", "b": "video", "pair": {"name": "cross_modal", "a": "sound", "b": "video"}}
    several = {"branches": {"audio": SOUND, "video": CLIP}, "pairs": [sounds]}
    untrained(root / "audio_video", recipe("sounds", table, **several))
    (root / "RECIPE").write_text(
        json.dumps(
            recipe(
                "pictures",
                {"name": "image_folder", "root": "x"},
                **{k: runs["views"][k] for k in ("pair", "a", "b")},
            )
        )
    )
    copies = {"dog.png": "pictures/0.png", "a.png": "pictures/1.png", "b.png": "pictures/2.png"}
    copies |= {"some_clip.mp4": "films/0.mp4", "x.mp4": "films/0.mp4", "y.mp4": "films/1.mp4"}
    copies |= {"table.csv": "captions.csv", "pictures.csv": "pictures.csv", "pictures": "pictures"}
    for name, of in copies.items():
        (root / name).symlink_to(data / of)
    (root / "runs" / "video_faces").mkdir()
    for name, of in {"runs/video_faces/1": "my_run", "my_other_run": "runs/image_text/1"}.items():
        (root / name).symlink_to(root / of)
    embed = [
        "--branch",
        "b",
        "--column",
        "caption",
        "--space",
        "embedding",
        "--to",
        str(root / "words.parquet"),
    ]
    assert embedding.main([str(root / "runs/image_text/1"), str(data / "captions.csv"), *embed]) == 0
    for name in ("mnist_train_20000", "mnist_test_5000", "fashion_train_10000", "fashion_test_2000"):
        np.savez(root / f"{name}.npz", images=np.zeros((2, 28, 28), np.uint8), labels=np.arange(2))
    (root / "recipes").symlink_to(ROOT / "recipes")
    return root


# ---- page by page ----


def names_of(page: str, number: int) -> dict:
    """What a block of Python takes for granted."""
    if page == "embed.md":
        return {"paths": ["a.png", "gone.png"]}
    if page == "explore.md":
        return {"embeddings": np.eye(2), "pictures": [np.zeros((8, 8, 3), np.uint8)] * 2}
    if page == "images.md":
        return {"np": np, "Image": Image, "source": Path(), "target": Path("fashion")}
    if page == "recipes.md":
        return {"vicjoint": vicjoint}
    if page != "export.md":
        return {}
    if number == 0:
        return {"raw": torch.zeros(2, 3, 4, 64, 64, dtype=torch.uint8)}
    libraries = {2: ["transformers"], 3: ["onnxruntime"]}.get(number, [])
    found = {name: pytest.importorskip(name) for name in libraries}
    return found | {
        "vicjoint": vicjoint,
        "json": json,
        "Path": Path,
        "torch": torch,
        "raw": np.zeros((2, 3, 64, 64), np.uint8),
    }


class Hub:
    """An account on the hub, as far as the pages use it."""

    def create_repo(self, name, private, exist_ok):
        return f"https://hub/{name}"

    def upload_folder(self, repo_id, folder_path, commit_message):
        assert (Path(folder_path) / "model.safetensors").exists()


@pytest.fixture
def place(world, tmp_path, monkeypatch):
    """A working folder of its own with all of these files, and no network."""
    for path in world.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VICJOINT_CACHE", str(world / "cache"))
    monkeypatch.setattr(loop, "write_report", lambda folder: folder / "report.html")
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **given: "FOLDER")
    known = {family: dict(there) for family, there in registry._components.items()}
    yield tmp_path
    for family, there in known.items():
        registry._components[family].clear()
        registry._components[family].update(there)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_true(page, place, capsys):
    pytest.importorskip("pyarrow")
    for name, of in LINKS.get(page.name, {}).items():
        (place / name).symlink_to(place / of)
    blocks = 0
    for name, text in steps(page):
        text = shortened(text).replace("/data/", f"{place}/data/").replace("=/data ", f"={place}/data ")
        if any(own in text for own in OWN):
            continue
        if name != "python":
            print(f"{page.name}: {name} {text}")
            step = Step(name, text)
            rule(name)(step)
        elif page.name not in RUN_ELSEWHERE:
            print(f"{page.name}: {text}")
            exec(compile(text, page.name, "exec"), {"__name__": page.stem} | names_of(page.name, blocks))
            blocks += 1


def test_there_are_commands():
    found = [step for page in PAGES for step in steps(page)]
    assert len([s for s in found if s.name == "vicjoint.run"]) > 30
    assert {
        f"vicjoint.{name}"
        for name in ("embed", "search", "explore", "compare", "evaluate", "export", "check", "pack")
    } <= {s.name for s in found}
    assert len([s for s in found if s.name == "python"]) > 10


def test_a_command_without_a_rule_is_not_passed_over():
    (step,) = command_of("OMP_NUM_THREADS=1 python -m paint --red")
    assert step == Step("paint", "--red")
    with pytest.raises(AssertionError, match="paint: no rule in tests/test_docs.py gives this command"):
        rule(step.name)
    with pytest.raises(SystemExit):
        rule("benchmarks.traces")(Step("benchmarks.traces", "--with what"))


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"\bdocs/[\w]+\.(?:md|jpg|png)", text):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
