"""Runs side by side.

python -m vicjoint.compare runs/video_next_frame/1 runs/video_next_frame/2
# with curves, on one page that opens anywhere; a folder of --seeds stands for all of its runs
python -m vicjoint.compare runs/tiny/1 runs/tiny-seeds/1 --to page.html

Runs that differ in nothing but train.seed are shown as their mean and spread. Nothing of a run is executed.
Exit code 0: done; 2: folders that are no runs, or too few of them.
"""

import argparse
import sys
from pathlib import Path

from vicjoint.files.guard import printable_lines
from vicjoint.files.paths import user_path
from vicjoint.recipe import RecipeError
from vicjoint.report.comparison import (
    announcements,
    described,
    differences,
    measured_otherwise,
    missing,
    tables_of,
    write_comparison,
)
from vicjoint.report.runs import Group, Run, grouped, names_of, read_run
from vicjoint.report.tables import aligned, printed, table
from vicjoint.run import show
from vicjoint.training.folder import check_run

MOST = 32  # characters of a recipe's value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vicjoint.compare", description="Show runs side by side.")
    parser.add_argument(
        "runs", nargs="+", type=user_path, metavar="RUN", help="run folder, or folder of --seeds"
    )
    parser.add_argument("--to", type=user_path, metavar="page.html", help="write a page with curves there")
    options = parser.parse_args(arguments)
    try:
        groups = grouped(read_runs(options.runs))
        if options.to:
            write_comparison(groups, options.to)
        show(printable_lines(text(groups)) + (f"\npage: {options.to}" if options.to else ""))
    except (RecipeError, OSError) as error:
        print(printable_lines(error), file=sys.stderr)
        return 2
    return 0


def read_runs(folders: list[Path]) -> list[Run]:
    """The runs that the command line names. Raises RecipeError."""
    runs: list[Run] = []
    for given, name in zip(folders, names_of(folders)):
        if seeds := runs_below(given, "seed-*"):
            runs += [read_run(folder, f"{name}/{folder.name}", name) for folder in seeds]
            continue
        check(given)
        runs.append(read_run(given, name))
    for number, run in enumerate(runs):
        if any(run.folder.samefile(other.folder) for other in runs[:number]):
            raise RecipeError(f"{run.folder}: given twice. Expected each run once.")
    if len(runs) < 2:
        raise RecipeError(f"only one run: {runs[0].folder}. Expected two or more, or a folder of --seeds.")
    return runs


def check(folder: Path) -> None:
    """Raises RecipeError where the folder is not a run's, with those that lie in it."""
    inner = runs_below(folder, "*")
    if inner and not (folder / "recipe.yaml").exists():
        raise RecipeError(f"{folder} is not a run, but holds some. Name them: {' '.join(map(str, inner))}")
    check_run(folder)


def runs_below(folder: Path, pattern: str) -> list[Path]:
    """In the order of their numbers."""
    found = [path.parent for path in folder.glob(f"{pattern}/recipe.yaml")]
    return sorted(found, key=lambda path: (len(path.name), path.name))


# ---- the terminal ----


def text(groups: list[Group]) -> str:
    """What differs, and the tables."""
    names = [group.name for group in groups]
    changed, tables = differences(groups), tables_of(groups)
    lines = [*announcements(groups), runs_text(groups), ""]
    if changed:
        rows = [[key, *map(short, values)] for key, values in changed.items()]
        lines += [aligned([["what differs", *names], *rows])]
    else:
        lines += ["The recipes are the same."]
    if tables and measured_otherwise(changed):
        lines += ["", "Data or options of probes differ, so not all numbers were measured alike."]
    branches = described(groups, "probes")
    for probe, rows in tables.items():
        lines += ["", probe, table(texts_of(rows), branches.get(probe, ("a", "b")))]
        if others := missing(probe, groups):
            lines += [f"not measured in {', '.join(others)}"]
    if not tables:
        lines += ["", "No run is evaluated yet."]
    return "\n".join(lines)


def texts_of(rows: dict[str, dict]) -> dict[str, dict]:
    """The rows with the means of several seeds as text."""
    return {
        row: {
            metric: value if isinstance(value, float) else printed(value) for metric, value in found.items()
        }
        for row, found in rows.items()
    }


def short(value: str) -> str:
    return value if len(value) <= MOST else value[: MOST - 3] + "..."


def runs_text(groups: list[Group]) -> str:
    rows = [[run.name, str(run.seed), run.state, health_text(run)] for group in groups for run in group.runs]
    notes = [note for group in groups for note in group.notes]
    return "\n".join([aligned([["run", "seed", "state", "health"], *rows]), *notes])


def health_text(run: Run) -> str:
    return ", ".join(f"{pair}: {badge}" if pair else badge for pair, badge, _ in run.health)


if __name__ == "__main__":
    sys.exit(main())
