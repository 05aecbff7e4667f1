"""What may differ between a run and the command that goes on with it.

Where its data lie may: that they are the same is for their fingerprints to say, which every checkpoint holds.
Its length and the data themselves may where `checkpoint.may_change` says so.
"""

import json
from pathlib import Path

from vicjoint.data import fingerprint
from vicjoint.files.write import write_text
from vicjoint.optim import set_learning_rate
from vicjoint.recipe import RecipeError, to_yaml
from vicjoint.recipe.compare import by_kind, shortly
from vicjoint.training import checkpoint
from vicjoint.training.build import Parts


def changed_data(parts: Parts, state: dict) -> str | None:
    """How the data differ from those that a checkpoint was trained on, in words, or None."""
    if "data" not in state:  # of a version that did not note them
        found = by_kind(state["recipe"], parts.recipe.dump())["place"]
    else:
        found = [
            f"{name}: {line}"
            for name, now in parts.fingerprints.items()
            for line in fingerprint.differing(state["data"].get(name, {}), now)
        ]
    return "; ".join(shortly(found)) or None


def take_over(parts: Parts, folder: Path, state: dict | None) -> None:
    """Before a run goes on from the state of its last checkpoint: say how the data differ, and let the folder
    have the recipe that it goes on with. Raises RecipeError, with nothing changed, for what may not
    differ."""
    if state is not None:
        check_beginnings(parts, state)
        if state["step"] > parts.steps:
            raise RecipeError(
                f"train: {parts.steps} steps, but the run in {folder} has taken {state['step']}. Give more,"
                " or another out=FOLDER."
            )
        if changed := changed_data(parts, state):
            if "data" not in parts.recipe.checkpoint.may_change:
                raise RecipeError(
                    f"out: {folder} holds a run that was trained on other data. {changed}. Give it the data"
                    " it had, or another out=FOLDER; to go on with these, add 'checkpoint.may_change=[data]'."
                )
            print(f"going on with other data. {changed}")
        if new_length(parts, state) and checkpoint.steps(folder / "checkpoints")[-1] == state["step"]:
            keep_evaluation(folder, state["step"])
    written = folder / "recipe.yaml"
    if written.read_text(encoding="utf-8") != to_yaml(parts.recipe):
        write_text(written, to_yaml(parts.recipe))


def check_beginnings(parts: Parts, state: dict) -> None:
    """Raises RecipeError where the encoder that a branch began as is not the one that lies there now."""
    for name, begin in parts.begins.items():
        if (before := state.get("weights_from", {}).get(name)) != begin.hash:
            spec = parts.recipe.branches[name]
            raise RecipeError(
                f"{spec.key}.weights_from: {spec.learning.weights_from} holds another encoder ({begin.hash})"
                f" than the one that the run began with ({before}). Give the folder that has it."
            )


def new_length(parts: Parts, state: dict) -> list[str]:
    return by_kind(state["recipe"], parts.recipe.dump())["length"]


def keep_evaluation(folder: Path, step: int) -> None:
    """Where a run ended, its last evaluation becomes one of those while training."""
    last = folder / "evaluation.json"
    if last.exists():
        line = {"step": step, "results": json.loads(last.read_text(encoding="utf-8"))}
        with open(folder / "evaluation.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        last.unlink()


def say_length(parts: Parts, state: dict) -> None:
    """What another length, where it has one, does to the learning rate of the parts that have this state."""
    if changed := new_length(parts, state):
        before = parts.optimizer.param_groups[0]["lr"]
        now = set_learning_rate(
            parts.optimizer, parts.recipe.schedule, state["step"], parts.steps, parts.steps_per_epoch
        )
        print(
            f"{'; '.join(changed)}: the schedule is that of {parts.steps} steps from here on, so the learning"
            f" rate goes from {before:.2g} to {now:.2g}"
        )
