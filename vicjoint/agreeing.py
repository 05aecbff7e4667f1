"""What branches, pair, objective and predictor of a recipe have to agree on before a model is built.

check_widths(recipe.branches["a"], recipe.branches["b"])
"""

import inspect

from torch import Tensor, nn

from vicjoint.fitted import Fitted
from vicjoint.parts import Modality, Predictor
from vicjoint.recipe import BranchSpec, Recipe
from vicjoint.registry import build, find


def conditions_of(recipe: Recipe) -> tuple[bool, ...]:
    """Those of the recipe's pair, which says so by its options alone. Raises ValueError where there is no
    predictor to give them to."""
    for task in recipe.tasks:
        if task.pair.get("condition") is None:
            continue
        if recipe.predictor is None:
            raise ValueError(
                f"{task.key}pair.condition: a condition is given to the predictor, and this recipe has none."
                " Set predictor={name: mlp}, or leave out the condition."
            )
        return build("pair", task.pair).conditions
    return ()


def check_widths(a: BranchSpec, b: BranchSpec) -> None:
    """Raises ValueError where the embeddings of two branches differ in width."""
    if a.expander[-1] != b.expander[-1]:
        raise ValueError(
            f"{a.key}.expander ends with {a.expander[-1]} and {b.key}.expander with {b.expander[-1]}: "
            "the two embeddings must have one width."
        )


def local_expanders(recipe: Recipe) -> dict[str, list[int]]:
    """{branch: widths of its expander of cells}, as the objectives ask for them; a branch that follows a has
    a's. Raises ValueError where two objectives want others."""
    found: dict[str, list[int]] = {}
    for task in recipe.tasks:
        widths = find("objective", task.objective["name"]).local_expander(task.objective)
        for name in (task.a, task.b) if widths else ():
            if found.setdefault(name, widths) != widths:
                raise ValueError(
                    f"{task.key}objective.expander: {widths}, but another pair of branch '{name}' has"
                    f" {found[name]}. A branch has one expander of cells: use one list."
                )
    return found


def check_horizon(recipe: Recipe) -> None:
    """Raises ValueError where a pair asks for predictions of several steps, and nothing gives such."""
    for task in recipe.tasks:
        if (horizon := task.pair.get("horizon", 1)) == 1:
            continue
        if recipe.predictor is None:
            raise ValueError(
                f"{task.key}pair.horizon: {horizon} steps are predicted one from the other, and this recipe"
                " has no predictor. Set predictor={name: residual}, or leave out the horizon."
            )
        predictor = find("predictor", recipe.predictor["name"])
        if predictor.looks_back and not predictor.at_once and not build("pair", task.pair).evenly:
            raise ValueError(
                f"{task.key}pair.horizon: predictor '{recipe.predictor['name']}' takes its predictions as"
                " further steps of the clip, and these are not as far apart. Set pair.gap to pair.stride (1"
                " where pair.seconds is set)."
            )
        if recipe.predictor.get("latents", 1) > 1:
            raise ValueError(
                f"{task.key}pair.horizon: {horizon} steps, and predictor.latents:"
                f" {recipe.predictor['latents']} predictions of each, which would be as many paths as there"
                " are choices at every step. Use latents: 1, or leave out the horizon."
            )


def width_of(recipe: Recipe) -> int:
    """Of the embedding that the predictor maps."""
    return recipe.branches[recipe.tasks[0].a].expander[-1]


def predictor_of(recipe: Recipe, conditions: int) -> Predictor | None:
    """The recipe's predictor, initialised; conditions: how many numbers it is told. Raises ValueError where
    it takes none."""
    if recipe.predictor is None:
        return None
    kind, told = find("predictor", recipe.predictor["name"]), []
    of_class = inspect.isclass(kind) and issubclass(kind, Predictor)
    if of_class and kind.takes_condition:
        told.append(conditions)
    elif conditions:
        raise ValueError(
            f"predictor: '{recipe.predictor['name']}' takes no condition, and pair.condition gives one."
            " Use predictor={name: mlp}, or leave out pair.condition."
        )
    if of_class and kind.at_once:
        told.append(max(task.pair.get("horizon", 1) for task in recipe.tasks))
    return build("predictor", recipe.predictor, width_of(recipe), *told)


def begin_as(modality: Modality, encoder: nn.Module, given: dict[str, Tensor], key: str) -> None:
    """Load an encoder's tensors, and of a modality those that it has learnt: the encoder was trained on what
    it gives."""
    parts = nn.ModuleDict({"encoder": encoder})
    if isinstance(modality, Fitted) and modality.fits:
        parts["modality"] = modality
    given = {name: x for name, x in given.items() if name.split(".")[0] in parts}
    own = {name: x.shape for name, x in parts.state_dict().items()}
    shapes = {name: x.shape for name, x in given.items()}
    if wrong := sorted(name for name in own.keys() | shapes.keys() if own.get(name) != shapes.get(name)):
        raise ValueError(
            f"{key}.weights_from: its tensors do not fit what is built here: {', '.join(wrong[:3])}"
            f" ({len(wrong)} are missing, unknown or of another shape). Has the encoder's code changed, or"
            " what the modality learns?"
        )
    parts.load_state_dict(given)
