"""Where a run also shows itself while it trains: TensorBoard, W&B, trackio, by their names in
`train.trackers`.

    with Trackers(recipe, folder, start) as trackers:
        trackers.step(7, {"loss": 1.2, "lr": 1e-3})

A run that goes on repeats the steps after its checkpoint, with the same numbers. TensorBoard drops the points
that it has of them and takes them again; W&B and trackio cannot drop any, and get those that they lack.
"""

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

from vicjoint import distributed
from vicjoint.files.write import write_json
from vicjoint.recipe import Recipe, RecipeError, to_yaml
from vicjoint.registry import ComponentError, need
from vicjoint.report.tables import without_ends

KNOWN_AS = "trackers.json"  # in the run folder: {tracker: the run's id in it}
METRICS, EVALUATIONS = "metrics.jsonl", "evaluation.jsonl"


@dataclass(frozen=True)
class Beginning:
    """A run that begins, or goes on, after `start` steps. name: the folder's, with the one above it. id: no
    other run's in this tracker. known: whether the tracker has this run already."""

    recipe: Recipe
    folder: Path
    start: int
    name: str
    id: str
    known: bool


class Tracker:
    """Takes numbers. drops: whether points after a run's `start` are dropped when it goes on."""

    modules: list[str]
    drops = False

    def __init__(self, run: Beginning):
        """Raises RecipeError where it cannot begin."""
        raise NotImplementedError

    def step(self, step: int, values: dict[str, float]) -> None:
        """Numbers by name, after `step` steps."""
        raise NotImplementedError

    def close(self) -> None:
        """Wait until all numbers are written."""
        raise NotImplementedError


class TensorBoard(Tracker):
    """Event files in the run folder: `tensorboard --logdir FOLDER`."""

    modules, drops = ["tensorboard", "torch.utils.tensorboard"], True

    def __init__(self, run: Beginning):
        board = load("tensorboard")[-1]
        self.writer = board.SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.start + 1)
        self.writer.add_text("recipe", f"```yaml\n{to_yaml(run.recipe)}```", run.start + 1)

    def step(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandB(Tracker):
    """A run of the project that is called as the recipe; its own files are in the run folder."""

    modules = ["wandb"]

    def __init__(self, run: Beginning):
        (wandb,) = load("wandb")
        try:
            self.run = wandb.init(
                project=run.recipe.name,
                name=run.name,
                id=run.id,
                resume="allow" if run.known else None,
                dir=str(run.folder),
                config=run.recipe.dump(),
                settings=wandb.Settings(console="off"),  # the progress bar is not for it
            )
        except wandb.Error as error:
            raise RecipeError(
                f"train.trackers: wandb cannot begin a run: {error}. Log in (wandb login), or set"
                " WANDB_MODE=offline."
            ) from error
        self.run.define_metric("*", step_metric="step")

    def step(self, step: int, values: dict[str, float]) -> None:
        self.run.log({"step": step, **values})

    def close(self) -> None:
        self.run.finish()


class Trackio(Tracker):
    """A run of the local project that is called as the recipe: `trackio show`. trackio knows runs by name, so
    the name has the id in it."""

    modules = ["trackio"]

    def __init__(self, run: Beginning):
        (self.trackio,) = load("trackio")
        try:
            self.run = self.trackio.init(
                project=run.recipe.name,
                name=f"{run.name} {run.id}",
                resume="allow" if run.known else "never",
                config=run.recipe.dump(),
            )
        except ValueError as error:  # a project's name that it keeps for itself
            raise RecipeError(f"train.trackers: trackio cannot begin a run: {error}") from error

    def step(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step)

    def close(self) -> None:
        self.trackio.finish()  # the run's own would be done again when Python ends


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


def load(name: str) -> list:
    """The modules of a tracker. Raises ComponentError where they are not installed."""
    modules = need(TRACKERS[name].modules, f"train.trackers: {name}", name)
    if any(module.__spec__.origin is None for module in modules):  # W&B leaves a folder wandb where it ran
        raise ComponentError(
            f"train.trackers: {name} is not installed, only a folder {name}/ is here: pip install"
            f" 'vicjoint[{name}]'"
        )
    return modules


def check_trackers(names: list[str]) -> None:
    """Raises ComponentError where one is not installed."""
    for name in names:
        load(name)


class Trackers:
    """All trackers of a run, on the first process alone. Raises on every process where one cannot begin."""

    def __init__(self, recipe: Recipe, folder: Path, start: int):
        self.open: list[tuple[Tracker, dict[str, int]]] = []
        try:
            distributed.from_first(lambda: self._begin(recipe, folder, start))
        except BaseException:
            self.close()
            raise

    def _begin(self, recipe: Recipe, folder: Path, start: int) -> None:
        names = list(dict.fromkeys(recipe.train.trackers))
        if not names:
            return
        path, name = folder / KNOWN_AS, "/".join(folder.resolve().parts[-2:])
        ids = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        known = [tracker for tracker in names if tracker in ids]
        ids |= {tracker: uuid.uuid4().hex[:8] for tracker in names if tracker not in known}
        for tracker in names:
            has = tracker in known
            opened = TRACKERS[tracker](Beginning(recipe, folder, start, name, ids[tracker], has))
            shown = shown_before(folder) if has else {METRICS: 0, EVALUATIONS: 0}
            if opened.drops:
                shown = {kind: min(step, start) for kind, step in shown.items()}
            self.open.append((opened, shown))
        write_json(path, ids)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        for tracker, _ in self.open:
            tracker.close()

    def step(self, step: int, values: dict[str, float]) -> None:
        """Numbers by name, of a step that was taken (1-based)."""
        self._give(METRICS, step, values)

    def evaluation(self, step: int, results: dict[str, dict]) -> None:
        """What the probes measured of the model after `step` steps; the report has its intervals, and the
        other rows."""
        measured = {}
        for probe, rows in results.items():
            model = {
                name: float(v) for name, v in rows.get("model", {}).items() if isinstance(v, (int, float))
            }
            measured |= {f"{probe}/{name}": model[name] for name in without_ends(model)}
        self._give(EVALUATIONS, step, measured)

    def _give(self, kind: str, step: int, values: dict[str, float]) -> None:
        for tracker, shown in self.open:
            if values and step > shown[kind]:
                tracker.step(step, values)


def shown_before(folder: Path) -> dict[str, int]:
    """{METRICS, EVALUATIONS: the last step of which a run wrote such lines before it was stopped}: also those
    that its checkpoint lacks."""
    shown = {name: last_step(folder / name) for name in (METRICS, EVALUATIONS)}
    if (folder / "evaluation.json").exists():  # of the last step
        shown[EVALUATIONS] = shown[METRICS]
    return shown


def last_step(path: Path) -> int:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in reversed(lines):
        try:
            return json.loads(line)["step"]
        except json.JSONDecodeError:  # the line being written when the run was killed
            continue
    return 0
