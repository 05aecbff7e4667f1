"""One recipe with several seeds, and what their results have in common.

    folder = train_seeds("video_next_frame", ["train.steps=100"], parse_seeds("0-4"))

Runs are made one after another in FOLDER/seed-0, ...; seeds.json holds {seeds, results: {probe: {row:
{metric: {mean, spread, values}}}}}, the spread being the standard deviation of the seeds (n - 1).
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from vicjoint.files.write import write_json
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.report.tables import table, together, with_spread
from vicjoint.training.folder import launcher, next_number
from vicjoint.training.loop import train
from vicjoint.training.stopping import Stopped


def parse_seeds(text: str) -> list[int]:
    """Of "0-4", "3" or "0,2,7-9". Raises RecipeError."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if low > high:
            raise RecipeError(
                f"--seeds: {text} is not known. Expected numbers and ranges, such as 0-4 or 0,3."
            )
        seeds += range(low, high + 1)
    return list(dict.fromkeys(seeds))


def train_seeds(recipe: str, overrides: Sequence[str], seeds: list[int]) -> Path:
    """Train with each seed, print every row's mean and spread, write both; returns the folder of all runs.
    Runs that a folder given by `out` holds already go on, or are only evaluated again. Raises as `train`
    does."""
    if launcher() is not None:
        raise RecipeError("--seeds: runs one process at a time. Start a run for each seed with torchrun.")
    first = load_recipe(recipe, [*overrides, f"train.seed={seeds[0]}"])
    if not first.evaluate.last:
        raise RecipeError("--seeds: compares evaluations. Set evaluate.last: true.")
    folder = Path(first.out) if first.out else next_number(Path("runs") / f"{first.name}-seeds")
    runs = []
    for place, seed in enumerate(seeds, 1):
        print(f"seed {seed}, {place} of {len(seeds)}", flush=True)
        of_seed = [*overrides, f"train.seed={seed}", f"out={folder / f'seed-{seed}'}"]
        try:
            runs.append(train(recipe, of_seed))
        except Stopped as error:
            raise Stopped(
                f"{error}\nWith the other seeds: the same --seeds with out={folder} goes on."
            ) from None
    summarise(folder, seeds, runs)
    return folder


def summarise(folder: Path, seeds: list[int], runs: list[Path]) -> None:
    """Print and write what the evaluations of all seeds say."""
    found = [json.loads((run / "evaluation.json").read_text(encoding="utf-8")) for run in runs]
    environment = json.loads((runs[0] / "environment.json").read_text(encoding="utf-8"))
    results = together(found)
    write_json(folder / "seeds.json", {"seeds": seeds, "results": results})
    for probe, rows in results.items():
        cells = {
            row: {name: with_spread(of) for name, of in metrics.items()} for row, metrics in rows.items()
        }
        branches = environment["probes"][probe]
        print(f"\n{probe}: mean and spread of {len(seeds)} seeds\n{table(cells, branches)}")
