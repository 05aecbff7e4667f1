"""Run folders as a comparison sees them: what each holds, and which of them are seeds of one recipe.

groups = grouped([read_run(folder, name) for folder, name in zip(folders, names_of(folders))])
groups[0].name, groups[0].results["knn"]["model"]["top1"]
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vicjoint.recipe import differing, read_written
from vicjoint.report.curves import by_pair
from vicjoint.report.page import part, read_json, read_steps, verdict
from vicjoint.report.tables import together

SEED = "train.seed"


def read_results(path: Path) -> dict[str, dict]:
    """{probe: {row: {metric: value}}}. ValueError: it is something else."""
    results = read_json(path)
    rows = [row for of in results.values() for row in (of.values() if isinstance(of, dict) else [None])]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("it is not {probe: {row: {metric: number}}}")
    return results


FILES = {
    "environment": ("environment.json", read_json),
    "steps": ("metrics.jsonl", read_steps),
    "progress": ("evaluation.jsonl", read_steps),
    "results": ("evaluation.json", read_results),
}
LINES = ("steps", "progress")


@dataclass
class Run:
    """of_seeds: the name of the folder of --seeds that it lies in. recipe: as written. steps, progress: the
    lines of metrics.jsonl and evaluation.jsonl. trained: whether it has reached its last step. broken: what
    is wrong with its files."""

    name: str
    folder: Path
    of_seeds: str | None
    recipe: dict
    environment: dict
    steps: list[dict]
    progress: list[dict]
    results: dict[str, dict]
    trained: bool
    broken: list[str]

    @property
    def seed(self) -> int:
        return self.recipe["train"]["seed"]

    @cached_property
    def pairs(self) -> dict[str, list[dict]]:
        """{pair, empty where it is the only one: its lines of metrics.jsonl}"""
        return {heading: rows for _, heading, rows in by_pair(self.steps)}

    @property
    def state(self) -> str:
        """How far it is, in words."""
        if not self.steps:
            return "not begun: no step is written down"
        at, of = self.steps[-1]["step"], self.recipe["train"]["steps"]
        if not self.trained:
            return f"unfinished: {at:,} steps" + (f" of {of:,}" if of else "")
        evaluated = "" if self.results else f", not evaluated: python -m vicjoint.evaluate {self.folder}"
        return f"{at:,} steps{evaluated}"

    @property
    def health(self) -> list[tuple[str, str, str]]:
        """(pair, badge, verdict) of each pair."""
        return [(pair, *verdict(rows)) for pair, rows in self.pairs.items()]


def read_run(folder: Path, name: str, of_seeds: str | None = None) -> Run:
    """Raises RecipeError where its recipe cannot be read; what else is missing or broken is told."""
    parts = {key: part(folder / file, read) for key, (file, read) in FILES.items()}
    written = lambda file: (folder / file).exists() and (folder / file).stat().st_size > 0
    shown: dict[str, Any] = {
        key: found["shown"] or ([] if key in LINES else {}) for key, found in parts.items()
    }
    return Run(
        name=name,
        folder=folder,
        of_seeds=of_seeds,
        recipe=read_written(folder / "recipe.yaml"),
        trained=(folder / "spectrum.json").exists(),
        broken=[
            f"{name}: {p['file']} {p['reason']}" for p in parts.values() if p["reason"] and written(p["file"])
        ],
        **shown,
    )


def names_of(folders: list[Path]) -> list[str]:
    """As short as tells folders apart: without what is above all of them, but never only a number."""
    paths = [folder.resolve() for folder in folders]
    above = Path(os.path.commonpath([path.parent for path in paths]))
    names = [path.relative_to(above).as_posix() for path in paths]
    return [f"{path.parent.name}/{name}" if name.isdecimal() else name for path, name in zip(paths, names)]


class Group:
    """Runs of one recipe that differ in nothing but their seed, or a single run."""

    def __init__(self, run: Run):
        self.runs, self.recipe = [run], run.recipe

    def takes(self, run: Run) -> bool:
        """Whether a run is one more seed. The same seed again is not: who names it wants to see both."""
        of_seeds = run.of_seeds == self.runs[0].of_seeds and run.seed not in self.seeds
        return of_seeds and list(differing([self.recipe, run.recipe])) == [SEED]

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    @property
    def name(self) -> str:
        first, *others = self.runs
        return first.of_seeds or first.name + (f" and {len(others)} more" if others else "")

    @cached_property
    def evaluated(self) -> list[Run]:
        return [run for run in self.runs if run.results]

    @cached_property
    def results(self) -> dict[str, dict]:
        """{probe: {row: {metric: number}}}, of several seeds {mean, spread, values} for each number."""
        first, *others = [run.results for run in self.evaluated] or [{}]
        return together([first, *others]) if others else first

    @property
    def environment(self) -> dict:
        return next((run.environment for run in self.runs if run.environment), {})

    @property
    def notes(self) -> list[str]:
        """What a reader of its numbers has to know."""
        found = [line for run in self.runs for line in run.broken]
        if 0 < len(self.evaluated) < len(self.runs):
            found.append(
                f"{self.name}: {len(self.evaluated)} of {len(self.runs)} seeds are evaluated, and only they"
                " are in its numbers"
            )
        left_out = {probe for run in self.evaluated for probe in run.results if probe not in self.results}
        return found + [
            f"{self.name}: {probe} is not shown, since not every seed has it" for probe in sorted(left_out)
        ]


def grouped(runs: list[Run]) -> list[Group]:
    groups: list[Group] = []
    for run in runs:
        group = next((group for group in groups if group.takes(run)), None)
        if group:
            group.runs.append(run)
        else:
            groups.append(Group(run))
    return groups
