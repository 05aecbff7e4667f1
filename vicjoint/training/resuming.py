"""What a checkpoint of a run holds, and how a run goes on from one.

Model, optimizer and objectives are states that training changes. The rest of a run is a function of the step:
the order of the samples and their random numbers, those of the training step, the learning rate. So nothing
else needs saving, but how far the run's files had got.
"""

from pathlib import Path

from vicjoint import distributed
from vicjoint.model import current_names
from vicjoint.recipe import Recipe
from vicjoint.recipe.compare import by_kind, shortly
from vicjoint.training import checkpoint
from vicjoint.training.build import Parts
from vicjoint.training.checkpoint import CheckpointError
from vicjoint.training.fitting import share_fitted
from vicjoint.training.folder import best_step, cut_to
from vicjoint.training.going_on import say_length, take_over

APPENDED = ("bad_samples.jsonl",)  # with no step in their lines: their length is saved


def save(parts: Parts, folder: Path, step: int) -> None:
    """Write the checkpoint after `step` steps, on the first process. Raises CheckpointError where it cannot
    be written."""
    if distributed.rank() > 0:
        return
    # what the checkpoint relies on is on the disk before it
    for name in ("metrics.jsonl", "evaluation.jsonl", *APPENDED):
        if (folder / name).exists():
            checkpoint.synchronise(folder / name)
    first, *further = (t.objective.state_dict() for t in parts.tasks)
    state = {
        "step": step,
        "model": parts.model.state_dict(),
        "objective": first,
        "further_objectives": further,
        "optimizer": parts.optimizer.state_dict(),
        "recipe": parts.recipe.dump(),
        "data": parts.fingerprints,
        "bytes": {
            name: (folder / name).stat().st_size if (folder / name).exists() else 0 for name in APPENDED
        },
    }
    options = parts.recipe.checkpoint
    best = best_step(folder, options.best) if options.best else None
    checkpoint.save(folder / "checkpoints", step, state, options.keep, best)


def resume(parts: Parts, folder: Path) -> int:
    """Load the last checkpoint of the folder that can be used, where there is one, and cut off what a killed
    process wrote after it. Returns the step to go on from. Raises CheckpointError where there are
    checkpoints and none can be used, RecipeError where something has changed that may not.
    """
    state = None

    def find() -> int | None:
        nonlocal state
        state = load_fitting(parts, folder, parts.recipe)
        take_over(parts, folder, state)
        checkpoint.tidy(folder / "checkpoints", state["step"] if state else 0)
        for name in APPENDED:
            cut_to(folder / name, state["bytes"][name] if state else 0)
        return state and state["step"]

    step = distributed.from_first(find)
    if step is None:
        return 0
    if distributed.rank() > 0:
        try:
            state = checkpoint.load(checkpoint.path_of(folder / "checkpoints", step))
        except CheckpointError as error:
            raise CheckpointError(
                f"process {distributed.rank()} of {distributed.world_size()}: {error} The run folder has to"
                " be on a file system that all processes see."
            ) from error
    restore(parts, state)
    if distributed.rank() == 0:
        print(f"going on from step {step} of {parts.steps} in {folder}")
        say_length(parts, state)
    return step


def load_fitting(parts: Parts, folder: Path, recipe: Recipe) -> dict | None:
    """The state of the newest checkpoint that is this run's, whose recipe is given, or None where there is
    none at all."""
    return checkpoint.load_last(folder / "checkpoints", lambda state: misfit(parts, state, recipe))


def restore(parts: Parts, state: dict) -> None:
    parts.model.load_state_dict(current_names(state["model"]))
    for task, objective in zip(parts.tasks, [state["objective"], *state["further_objectives"]]):
        task.objective.load_state_dict(objective)
    parts.optimizer.load_state_dict(state["optimizer"])
    share_fitted(parts)


def misfit(parts: Parts, state: dict, recipe: Recipe) -> str | None:
    """Why a checkpoint is not one of the run of a recipe, or does not fit the parts, or None. Looked at
    before anything is loaded: half a state would be worse than none."""
    if changed := by_kind(state["recipe"], recipe.dump())["other"]:
        return "it is of another recipe, which differs in " + "; ".join(shortly(changed))
    own, given = parts.model.state_dict(), current_names(state["model"])
    for name in dict.fromkeys([*own, *given]):
        shapes = [list(tensors[name].shape) if name in tensors else "absent" for tensors in (own, given)]
        if shapes[0] != shapes[1]:
            return (
                f"the model's {name} is {shapes[1]} in it and {shapes[0]} in this run (has an encoder's code"
                " changed?)"
            )
    groups = [
        [len(group["params"]) for group in optimizer["param_groups"]]
        for optimizer in (parts.optimizer.state_dict(), state["optimizer"])
    ]
    if groups[0] != groups[1]:
        return f"its optimizer has groups of {groups[1]} parameters, this run's {groups[0]}"
    return None
