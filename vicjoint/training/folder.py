"""A run's folder on disk: which one, and what stands in it."""

import contextlib
import json
import os
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

try:
    import fcntl
except ImportError:  # Windows: nothing stops two commands in one folder
    fcntl = None

from vicjoint.files.write import write_json, write_text
from vicjoint.recipe import ImportsError, Recipe, RecipeError, load_recipe, to_yaml
from vicjoint.recipe.compare import by_kind, shortly


@contextlib.contextmanager
def wrong_place(folder: Path, option: str = "out"):
    """Inside, what the system has against a folder is a RecipeError."""
    try:
        yield
    except OSError as error:
        raise RecipeError(
            f"{option}: {folder} cannot be written ({error.strerror or error}). Give another {option}=FOLDER."
        ) from error


def open_run(recipe: Recipe) -> Path:
    """The folder of this run: `out`, or the next free runs/<name>/<number>. Raises RecipeError where `out`
    holds another recipe's run, or cannot be written."""
    with wrong_place(Path(recipe.out or "runs")):
        return _open_run(recipe)


def _open_run(recipe: Recipe) -> Path:
    if recipe.out is None:
        if folder := started_before(Path("runs") / recipe.name):
            return folder
        folder = next_number(Path("runs") / recipe.name)
    else:
        folder = Path(recipe.out)
        if folder.exists() and not folder.is_dir():
            raise RecipeError(f"out: {folder} is a file. Expected a folder, or a name that is free.")
        if (folder / "recipe.yaml").exists():
            try:
                before = load_recipe(folder / "recipe.yaml", check_paths=False, imports=recipe.imports)
            except ImportsError as error:
                raise RecipeError(different(folder, [f"imports: {error}"])) from None
            check_recipe(folder, before, recipe)
            return folder
        (folder / "recipe.yaml.tmp").unlink(missing_ok=True)  # of a process killed while it began this run
        if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
            raise RecipeError(
                f"out: {folder} holds files but no run (no recipe.yaml). Give an empty or a new folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "recipe.yaml", to_yaml(recipe))
    return folder


def check_recipe(folder: Path, before: Recipe, now: Recipe) -> None:
    """Raises RecipeError where the run in the folder is another one, or of another length than may change."""
    changed = by_kind(before.dump(), now.dump())
    if changed["other"]:
        raise RecipeError(different(folder, changed["other"]))
    if changed["length"] and "length" not in now.checkpoint.may_change:
        raise RecipeError(
            f"out: {folder} holds a run of another length ({'; '.join(changed['length'])}). To go on with it,"
            " add 'checkpoint.may_change=[length]': from its last step on, the learning rate follows the"
            " schedule of the new length. Or give another out=FOLDER."
        )


def different(folder: Path, changed: list[str]) -> str:
    return (
        f"out: {folder} holds a run of a different recipe. It differs in:\n  "
        + "\n  ".join(shortly(changed))
        + "\nGive another out=FOLDER, or the recipe that started this run."
    )


def launcher() -> str | None:
    """What stays the same when torchrun starts its processes again (--max-restarts), or None without
    torchrun."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return run and f"{run} on {platform.node()} by process {os.getppid()}"


def started_before(parent: Path) -> Path | None:
    """The folder in which processes that torchrun has had to replace began this run."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return None
    for path in sorted(
        parent.glob("*/environment.json"), key=lambda path: path.stat().st_mtime, reverse=True
    ):
        with contextlib.suppress(ValueError):
            if json.loads(path.read_text(encoding="utf-8")).get("launcher") == launcher():
                return path.parent
    return None


LOCK = ".lock"


@contextlib.contextmanager
def only_one(folder: Path, option: str = "out", doing: str = "training"):
    """Hold a run folder while writing in it; the system frees it when the process ends in any way. Raises
    RecipeError where another process has it. A file system that knows no locks goes without. option, doing:
    how messages call the folder and the work."""
    with wrong_place(folder, option):
        file = open(folder / LOCK, "a")
    with file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(
                f"{option}: another process is {doing} in {folder}. Wait for its end, or stop it; or give"
                f" another {option}=FOLDER."
            ) from None
        except OSError:
            pass
        yield


def next_number(parent: Path) -> Path:
    """Make parent/<1 + the highest number there>; safe when two runs start at once."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(p.name) for p in parent.iterdir() if p.name.isdigit()), default=0)
    while True:
        try:
            (parent / str(number)).mkdir()
            return parent / str(number)
        except FileExistsError:
            number += 1


def write_environment(folder: Path, recipe: Recipe, trained: dict) -> None:
    """What ran and where: versions, device, and whether sample data stood in for the real ones. `trained`:
    source, parameters per branch, terms of the objectives, and the two branches of all pairs and probes by
    name."""
    write_json(
        folder / "environment.json",
        {
            "command": " ".join(sys.argv),
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "system": platform.platform(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
            "launcher": launcher(),
            **trained,
            "announcement": recipe.announcement,
        },
    )


def check_run(folder: Path, what: str = "run folder") -> None:
    """Raises RecipeError where the folder cannot be that of a run."""
    if not folder.exists():
        raise RecipeError(f"{folder}: no such folder. Expected a {what}, such as runs/video_next_frame/1.")
    if not (folder / "recipe.yaml").exists():
        raise RecipeError(f"{folder} has no recipe.yaml. Expected a {what}, such as runs/video_next_frame/1.")


def cut_to(path: Path, size: int) -> None:
    """Cut a file to the bytes it had when a checkpoint was saved."""
    if path.exists() and path.stat().st_size > size:
        os.truncate(path, size)


def best_step(folder: Path, wanted: str, last: int | None = None) -> int | None:
    """The step of evaluation.jsonl with the model's best value, the earliest of equals. `wanted`:
    PROBE/METRIC, the largest is best; with a - before it the smallest. `last`: evaluation.json counts too, as
    of this step. Raises KeyError, with the metrics there are, where the probe does not give it."""
    probe, _, metric = wanted.removeprefix("-").rpartition("/")
    values, path, final = [], folder / "evaluation.jsonl", folder / "evaluation.json"
    evaluations = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )
    if last is not None and final.exists():
        evaluations.append({"step": last, "results": json.loads(final.read_text(encoding="utf-8"))})
    for evaluation in evaluations:
        measured = evaluation["results"][probe]["model"]
        if metric not in measured:
            raise KeyError(
                f"checkpoint.best: {wanted}: {probe} does not measure '{metric}' of the model. Expected one"
                f" of {', '.join(measured)}."
            )
        values.append((measured[metric] * (-1 if wanted.startswith("-") else 1), -evaluation["step"]))
    return -max(values)[1] if values else None
