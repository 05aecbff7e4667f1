"""How a run goes on from a checkpoint, on any number of processes, whole or sharded."""

from pathlib import Path

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from vicjoint import distributed
from vicjoint.model import current_names
from vicjoint.recipe import Recipe
from vicjoint.recipe.compare import by_kind, shortly
from vicjoint.training import checkpoint
from vicjoint.training.build import Parts
from vicjoint.training.checkpoint import CheckpointError
from vicjoint.training.fitting import share_fitted
from vicjoint.training.folder import cut_to
from vicjoint.training.going_on import say_length, take_over
from vicjoint.training.saving import APPENDED

# of an optimizer's groups: how this machine computes, whatever another one did
KERNELS = ("foreach", "fused", "capturable")


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
    given, own = current_names(state["model"]), parts.model.state_dict()
    parts.model.load_state_dict({name: share_of(x, own.get(name)) for name, x in given.items()})
    for task, objective in zip(parts.tasks, [state["objective"], *state["further_objectives"]]):
        task.objective.load_state_dict(objective)
    trained = [p for group in parts.optimizer.param_groups for p in group["params"]]
    numbers = [number for group in state["optimizer"]["param_groups"] for number in group["params"]]
    parameter = dict(zip(numbers, trained))
    states = {
        number: {name: share_of(x, parameter[number]) for name, x in of_one.items()}
        for number, of_one in state["optimizer"]["state"].items()
    }
    groups = [
        given | {name: own[name] for name in KERNELS if name in own}
        for given, own in zip(state["optimizer"]["param_groups"], parts.optimizer.param_groups)
    ]
    parts.optimizer.load_state_dict({"state": states, "param_groups": groups})
    share_fitted(parts)


def share_of(given, own: Tensor | None):
    """What this process keeps of a tensor, or of an optimizer's state of it: a share where it has one of
    `own`."""
    if not isinstance(own, DTensor) or not isinstance(given, Tensor) or given.shape != own.shape:
        return given
    given = given.to(own.device)
    return distribute_tensor(given, own.device_mesh, own.placements, src_data_rank=None).clone()


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
