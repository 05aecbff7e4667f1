"""A run's folder on disk: which one, what stands in it, and the lines written while training (file, terminal,
TensorBoard)."""

import contextlib
import fcntl
import json
import os
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch
from tqdm import tqdm

from vicjoint import distributed, metrics
from vicjoint.recipe import ImportsError, Recipe, RecipeError, differences, load_recipe, to_yaml
from vicjoint.files.guard import printable
from vicjoint.registry import need


def open_run(recipe: Recipe) -> Path:
    """The folder of this run: `out`, or the next free runs/<name>/<number>. Raises RecipeError where `out`
    holds another recipe's run."""
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
                changed = differences(
                    load_recipe(folder / "recipe.yaml", check_paths=False, imports=recipe.imports), recipe
                )
            except ImportsError as error:
                changed = [f"imports: {error}"]
            if changed:
                raise RecipeError(
                    f"out: {folder} holds a run of a different recipe. It differs in:\n  "
                    + "\n  ".join(changed)
                    + "\nGive another out=FOLDER, or the recipe that started this run."
                )
            return folder
        (folder / "recipe.yaml.tmp").unlink(missing_ok=True)  # of a process killed while it began this run
        if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
            raise RecipeError(
                f"out: {folder} holds files but no run (no recipe.yaml). Give an empty or a new folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "recipe.yaml", to_yaml(recipe))
    return folder


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
def only_one(folder: Path):
    """Hold a run folder while writing in it; the system frees it when the process ends in any way. Raises
    RecipeError where another process has it. A file system that knows no locks goes without."""
    with open(folder / LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(
                f"out: another process is training in {folder}. Wait for its end, or stop it; or give another"
                " out=FOLDER."
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


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name and rename: the file is whole or absent."""
    with replaced(path) as file:
        file.write(text.encode("utf-8"))


@contextlib.contextmanager
def replaced(path: Path):
    """A binary file, open for writing, that takes `path`'s place when it is whole and on the disk."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=1))


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


class MetricsLog:
    """metrics.jsonl, evaluation.jsonl, the progress bar and TensorBoard, on the first process alone. Lines
    after the step that a run resumes from are cut off. `options`: the recipe's `train` section. `branches`:
    {pair: names of its two}.
    """

    def __init__(self, folder: Path, start: int, steps: int, options, branches: dict[str, tuple[str, str]]):
        self.folder, self.batch_size, self.branches = folder, options.batch_size, branches
        self.verdicts, self.losses = {}, {}  # the last of each pair
        self.active = distributed.rank() == 0
        if not self.active:
            return
        for name in ("metrics.jsonl", "evaluation.jsonl"):
            keep_lines_to(folder / name, start)
        self.file = open(folder / "metrics.jsonl", "a", encoding="utf-8")
        self.bar = tqdm(
            total=steps, initial=start, unit="step", desc=folder.name, mininterval=0.5, dynamic_ncols=True
        )
        self.board = _tensorboard(folder, start) if options.tensorboard else None

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        if self.active:
            self.bar.close()
            self.file.close()
            if self.board:
                self.board.close()

    def step(
        self, step: int, pair: str, loss, terms: dict, rates: dict[str, float], embeddings=None, usage=None
    ) -> None:
        """One line for a step that was taken (1-based) on the pair of that name. `rates`: lr, seconds, and
        `waited`, the part of `seconds` spent waiting for data. `embeddings` (z_a, z_b) are given where health
        is due, and there `usage` counts, of a model's latents.
        """
        if not self.active:
            return
        values = {"loss": float(loss), **{name: float(value) for name, value in terms.items()}}
        speed = self.batch_size / rates["seconds"]
        line = {"step": step, "pair": pair, **values, **rates, "samples_per_second": speed}
        if embeddings is not None:
            line["health"] = metrics.health(*embeddings)
            line["verdict"] = metrics.verdict(
                line["health"], *embeddings[0].shape, "variance" in terms, self.branches[pair]
            )
            line |= {} if usage is None else {"latents": metrics.latent_usage(usage)}
            self._say(step, pair, line["verdict"])
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        self.bar.update()
        self.losses[pair] = values["loss"]
        shown = self.losses if len(self.losses) > 1 else values
        self.bar.set_postfix(
            {name: f"{value:.3g}" for name, value in shown.items()} | {"samples/s": f"{speed:.0f}"}
        )
        if self.board:
            self._to_board(step, line)

    def skipped(self, step: int, pair: str, terms: dict, rates: dict[str, float], why: str) -> None:
        """One line for a step (1-based) that was left out: no loss, no terms, and `skipped`, the reason."""
        if not self.active:
            return
        line = {"step": step, "pair": pair, "loss": None, **dict.fromkeys(terms), **rates, "skipped": why}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        self.bar.update()
        tqdm.write(printable(why))

    def _say(self, step: int, pair: str, verdict: str) -> None:
        """A health line on the terminal, when the verdict's kind changes: every one is in metrics.jsonl."""
        kind = verdict.split(":")[0]
        if kind != self.verdicts.get(pair):
            tqdm.write(f"step {step}: {pair + ': ' if len(self.losses) > 1 else ''}{verdict}")
        self.verdicts[pair] = kind

    def _to_board(self, step: int, line: dict) -> None:
        flat = {k: v for k, v in line.items() if isinstance(v, float)}
        for branch, values in line.get("health", {}).items():
            flat |= (
                {f"health_{branch}/{k}": v for k, v in values.items()}
                if isinstance(values, dict)
                else {f"health/{branch}": values}
            )
        flat |= {f"latents/{name}": value for name, value in line.get("latents", {}).items()}
        for name, value in flat.items():
            self.board.add_scalar(f"{line['pair']}/{name}" if len(self.losses) > 1 else name, value, step)

    def evaluation(self, step: int, results: dict) -> None:
        if not self.active:
            return
        with open(self.folder / "evaluation.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "results": results}) + "\n")
        for probe, rows in results.items():
            shown = " ".join(f"{metric}={value:.3f}" for metric, value in rows.get("model", {}).items())
            tqdm.write(f"step {step}: {probe}: {shown}")


def keep_lines_to(path: Path, step: int) -> None:
    """Drop the lines of a jsonl file that are later than `step` (written after the checkpoint that a run
    resumes from)."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            break  # the line being written when the run was killed
    write_text(path, "".join(line + "\n" for line in kept))


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


def _tensorboard(folder: Path, start: int):
    need(["tensorboard"], "train.tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(
        str(folder / "tensorboard"), purge_step=start + 1
    )  # a killed run's later points are not shown


DIRECTIONS = {"a_to_b_": "{0} to {1}", "b_to_a_": "{1} to {0}"}


def told_apart(a: str, b: str) -> tuple[str, str]:
    """The names of a pair's two branches, of a branch with itself too."""
    return (a, b) if a != b else (f"{a} (a)", f"{b} (b)")


def of_direction(metric: str, branches: tuple[str, str]) -> tuple[str, str]:
    """(direction of retrieval between two branches of these names, or nothing; the metric's name in it)."""
    prefix = next((prefix for prefix in DIRECTIONS if metric.startswith(prefix)), "")
    return DIRECTIONS.get(prefix, "").format(*branches), metric.removeprefix(prefix)


def directions(rows: dict[str, dict], branches: tuple[str, str] = ("a", "b")) -> dict[str, dict[str, str]]:
    """{title: {metric: its name below that title}} of a probe's rows: retrieval has many metrics and is read
    one direction at a time."""
    found: dict[str, dict[str, str]] = {}
    for metric in dict.fromkeys(metric for row in rows.values() for metric in row):
        title, name = of_direction(metric, branches)
        found.setdefault(title, {})[metric] = name
    return found


def table(rows: dict[str, dict[str, float]], branches: tuple[str, str] = ("a", "b")) -> str:
    """{row: {metric: number}} as aligned text, retrieval in one block for each direction between the
    `branches`."""
    blocks = directions(rows, branches)
    width = max(map(len, (*rows, *blocks))) + 2
    lines = []
    for title, columns in blocks.items():
        lines.append(
            f"{title:<{width}}" + "".join(f"{name:>{max(9, len(name) + 2)}}" for name in columns.values())
        )
        for row, values in rows.items():
            cells = (number(values[c]) if c in values else "-" for c in columns)
            lines.append(
                f"{row:<{width}}"
                + "".join(f"{cell:>{max(9, len(name) + 2)}}" for name, cell in zip(columns.values(), cells))
            )
    return "\n".join(lines)


def number(value: float) -> str:
    """Three decimals, or for a small setting such as a penalty its power of ten."""
    return f"{value:.0e}" if 0 < abs(value) < 5e-4 else f"{value:.3f}"
