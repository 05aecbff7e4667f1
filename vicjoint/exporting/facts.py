"""What an export says of itself in config.json (the model and its training), preprocessor_config.json (what
is done before the model) and evaluation.json (of the same step as the weights)."""

import json
from pathlib import Path
from typing import Any

import vicjoint
from vicjoint.embeddings.encoder import hash_of
from vicjoint.model import Model, count_parameters
from vicjoint.recipe import Recipe, RecipeError
from vicjoint.registry import build
from vicjoint.report.curves import by_pair
from vicjoint.report.page import read_lines, verdict
from vicjoint.training import checkpoint

CONFIG, EVALUATION = "config.json", "evaluation.json"
OF_RUN = ("source", "started", "device", "torch", "python", "probes", "metrics")
"""What environment.json says that has a meaning elsewhere."""


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {}: there is no such file. Raises RecipeError for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read: {error}. Mend it, or delete it to go without.") from None
    if not isinstance(found, dict):
        raise RecipeError(f"{path} holds no JSON object. Mend it, or delete it to go without.")
    return found


def is_export(folder: Path) -> bool:
    return read_object(folder / CONFIG).get("library_name") == "vicjoint"


def config(run: Path, recipe: Recipe, model: Model, step: int | None) -> dict[str, Any]:
    """config.json. run: a run folder, or an export whose own is handed on."""
    branches = {
        name: {
            "modality": spec.modality,
            "encoder": spec.encoder,
            "dim": model.branches[name].encoder.dim,
            "embedding": spec.expander[-1],
            "parameters": count_parameters(model.branches[name].encoder),
            "weights": spec.weights,
        }
        for name, spec in recipe.branches.items()
    }
    trained = read_object(run / CONFIG)["training"] if is_export(run) else training(run, recipe, step)
    return {
        "library_name": "vicjoint",
        "vicjoint_version": vicjoint.__version__,
        "name": recipe.name,
        "branches": branches,
        "training": trained,
        "tensors": hash_of(model),
    }


def training(run: Path, recipe: Recipe, step: int | None) -> dict[str, Any]:
    """What is known of the training of a run, as far as its files say it."""
    environment = read_object(run / "environment.json")
    rows = read_lines(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    rows = [row for row in rows if isinstance(row.get("step"), int) and (step is None or row["step"] <= step)]
    health = {pair: verdict(of_pair)[1] for pair, _, of_pair in by_pair(rows)}
    bad = run / "bad_samples.jsonl"
    return {
        "step": step,
        "steps": recipe.train.steps,
        "epochs": recipe.train.epochs if recipe.train.steps is None else None,
        "announcement": recipe.announcement,
        "health": health,
        "bad_samples": len(read_lines(bad)) if bad.exists() else 0,
    } | {key: environment.get(key) for key in OF_RUN}


def evaluation(run: Path, step: int | None) -> dict[str, Any]:
    """{probe: {row: {metric: number}}} at this step, of a run or an export; {}: it was not evaluated there.
    evaluation.json is of a run's end, evaluation.jsonl of steps before."""
    there = checkpoint.steps(run / "checkpoints")
    if not there or step == there[-1]:
        found = read_object(run / EVALUATION)
        if found or not there:
            return found
    lines = read_lines(run / "evaluation.jsonl") if (run / "evaluation.jsonl").exists() else []
    return next((line["results"] for line in reversed(lines) if line.get("step") == step), {})


def preprocessing(recipe: Recipe, model: Model) -> dict[str, dict[str, Any]]:
    """{branch: what its modality, and the pair that it is trained with first, say of a sample}."""
    found: dict[str, dict[str, Any]] = {}
    for task in recipe.tasks:
        pair = build("pair", task.pair)
        for side, name in (("a", task.a), ("b", task.b)):
            if name not in found:
                said = pair.preprocessing(side, model.branches[name].modality)
                found[name] = {key: value for key, value in said.items() if value is not None}
    return found
