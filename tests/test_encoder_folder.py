"""The folder ./encoders of a user: files that register something are imported, and nothing else is run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vicjoint import registry, run

ROOT = Path(__file__).resolve().parents[1]
MINE = """import vicjoint

@vicjoint.register_encoder("text", "mine")
def mine(width: int = 3): ...
"""
OTHERS = {  # of a project that has such a folder for other ends
    "__init__.py": "raise SystemExit('run')",
    "text.py": "raise SystemExit('run')",  # a name of vicjoint's own
    "jobs.py": "from their_queue import register\n\n@register('job')\ndef f(): ...\nraise SystemExit('run')",
    "notes.py": "def broken(:\n",
    "latin.py": "raise SystemExit('run')  # caf\udce9",
    "tools/__init__.py": "raise SystemExit('run')",
}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / "encoders" / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / "encoders" / name).write_text(text, errors="surrogateescape")


def test_only_files_that_register_something_are_run(tmp_path):
    write(tmp_path, {**OTHERS, "mine.py": MINE})
    done = subprocess.run(
        [sys.executable, "-c", "from vicjoint import list_encoders; print('mine' in list_encoders('text'))"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@pytest.fixture
def here(tmp_path, monkeypatch):
    registry.load_built_in()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(sys.modules["encoders"], "__path__", [])
    encoders = dict(registry._components["encoder"])
    monkeypatch.setitem(registry._components, "encoder", encoders)
    monkeypatch.setattr(registry, "_loaded", False)
    yield tmp_path
    sys.modules.pop("encoders.mine", None)


@pytest.mark.parametrize(
    "fault, said",
    [
        (
            "raise SystemExit(3)",
            "mine.py:6: SystemExit: 3. vicjoint imports this file since it lies in a folder",
        ),
        ("import no_such", "mine.py:6: ModuleNotFoundError: No module named 'no_such'. vicjoint imports"),
        ("x = (", "mine.py: SyntaxError: '(' was never closed (mine.py, line 6). vicjoint imports"),
    ],
)
def test_a_file_that_fails_is_named(here, fault, said, capsys):
    write(here, {"mine.py": f"{MINE}\n{fault}"})
    assert run.main(["video_next_frame", "--dry-run"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"{here}/encoders/{said}") and message.count("\n") == 1


def test_a_name_that_would_hide_one_of_vicjoint(here, capsys):
    write(here, {"clip.py": MINE})
    assert run.main(["--list"]) == 2
    said = f"{here}/encoders/clip.py has the same file name as {ROOT}/encoders/clip.py, so one would hide"
    assert capsys.readouterr().err.startswith(said)


def test_another_copy_of_vicjoint_on_the_path(here):
    """A checkout beside an installation."""
    write(here, {"clip.py": "raise SystemExit('run')"})
    (here / "vicjoint").mkdir()
    (here / "vicjoint" / "registry.py").touch()
    assert "conv_gru" in registry.list_encoders("clip")
