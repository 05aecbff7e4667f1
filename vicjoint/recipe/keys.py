"""Recipes: YAML and key=value overrides -> a strict, typed Recipe. Every mistake comes out at once, before
anything is built.

    recipe = load_recipe("recipes/video_next_frame.yaml", ["train.steps=100", "source.name=video_folder",
    "source.root=/data"]) recipe.train.steps, recipe.source.name, recipe.announcement print(to_yaml(recipe))
    # the resolved recipe; load_recipe reads it back to the same thing

The sections below are the keys. A component, `{name: ..., option: ...}`, takes the options of the constructor
that the registry finds under its name. recipe/file.py reads and writes text, recipe/check.py finds mistakes,
recipe/schema.py describes the keys.
"""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic_core import PydanticCustomError

from vicjoint.recipe.check import (
    check_components,
    check_form,
    check_together,
    in_words,
    load_imports,
    places,
    root_is_a_path,
)
from vicjoint.recipe.file import (
    RecipeError,
    apply,
    dump_yaml,
    find_recipe,
    parse_overrides,
    parse_yaml,
    plain,
    read_recipe,
    show,
)
from vicjoint.recipe.schema import with_components

__all__ = ["Recipe", "RecipeError", "differences", "json_schema", "load_recipe", "parse_yaml", "to_yaml"]


# ---- the keys ----


def _number(value):
    if isinstance(value, bool):  # Python, and so pydantic, counts true as 1
        raise PydanticCustomError("float_type", "a number")
    return value


def _whole(value):
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "a whole number")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
TEXT, MAPPING = "<text>", "<mapping>"  # in pydantic's error paths; not part of a key


class Component(BaseModel):
    """A registered component by name, with its options."""

    model_config = ConfigDict(extra="allow")
    name: str = Field(description="registered name")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Branch(Section):
    modality: Annotated[
        Annotated[str, Tag(TEXT)] | Annotated[Component, Tag(MAPPING)],
        Discriminator(lambda value: MAPPING if isinstance(value, (dict, Component)) else TEXT),
    ] = Field(description="how views are read and batched: a name, or a component with options")
    encoder: Component = Field(description="an encoder registered for the modality")
    expander: list[Annotated[Whole, Field(gt=0)]] = Field(
        min_length=1, description="widths of the expander's layers; the last is the embedding's"
    )
    weights: Literal["own", "same", "ema"] = Field(
        "own", description="of b only: its own, a's (same), or a moving average of a's (ema)"
    )
    momentum: Number = Field(0.996, ge=0, le=1, description="of the moving average, with weights: ema")


class PairOfBranches(Section):
    a: str = Field(description="name of the branch that sees view a")
    b: str = Field(description="name of the branch that sees view b")
    pair: Component = Field(description="how two views are made of a sample")
    objective: Component | None = Field(None, description="the loss of this pair; null: the recipe's")
    source: Component | None = Field(None, description="where this pair's samples are; null: the recipe's")
    weight: Number = Field(1.0, gt=0, description="factor of this pair's loss")


class Optim(Component):
    schedule: Component = Field(description="factor of the learning rate at each step")
    clip: Number | None = Field(None, gt=0, description="largest norm of the gradient; null: not clipped")


class Train(Section):
    steps: Whole | None = Field(None, gt=0, description="optimizer steps; wins over epochs")
    epochs: Whole | None = Field(None, gt=0, description="passes over the source")
    batch_size: Whole = Field(
        gt=0, description="samples in a global batch, over all processes and accumulated parts"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the model; objectives always use fp32")
    seed: Whole = Field(0, ge=0, lt=2**32, description="of the weights, the order, crops and time windows")
    accumulate: Whole = Field(1, gt=0, description="parts in which a batch is computed")
    exact: bool = Field(
        True,
        description=(
            "with parts: the objective sees the whole batch, for one more forward pass; false: each part"
        ),
    )
    compile: bool = Field(False, description="use torch.compile")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="at a loss or gradient that is not finite: stop, or leave out the step"
    )
    nonfinite_limit: Whole = Field(
        10, ge=0, description="with skip: steps that a run may leave out in all, before it stops"
    )
    timeout: Number = Field(
        600,
        gt=0,
        description="seconds that a process waits for the others in a step, where there are several",
    )
    tensorboard: bool = Field(False, description="also write TensorBoard files into the run folder")


class Data(Section):
    workers: Whole = Field(
        2, ge=0, description="processes that read data; 0: none beside the training process"
    )
    max_bad_fraction: Number = Field(
        0.01, ge=0, le=1, description="share of bad samples above which a run stops"
    )
    video_backend: Literal["auto", "decord", "pyav", "torchcodec"] = Field(
        "auto", description="reader of video files"
    )
    timeout: Number | None = Field(
        300,
        gt=0,
        description="seconds after which a sample that is still being read counts as bad; null: no limit",
    )


class Evaluate(Section):
    every: Whole | None = Field(
        None, ge=0, description="steps between evaluations; null or 0: at the end only"
    )
    probes: list[Component] = Field([], description="what is measured")


class Checkpoint(Section):
    every: Whole = Field(200, gt=0, description="steps between checkpoints")
    keep: Whole = Field(2, gt=0, description="newest checkpoints that are kept")
    best: str | None = Field(
        None,
        description=(
            "PROBE/METRIC: the checkpoint with the model's largest value while training is kept too; "
            "-PROBE/METRIC: with the smallest"
        ),
    )


class Recipe(Section):
    name: str = Field(
        pattern=r"^\w[\w.+-]*$", description="names the folder below runs/: letters, digits and . _ + -"
    )
    imports: list[str] = Field([], description="modules to import first: they register components")
    out: str | None = Field(None, description="run folder; null: runs/<name>/<number>")
    source: Component | None = Field(None, description="where samples are")
    pair: Component | None = Field(None, description="how two views are made of a sample")
    a: Branch | None = Field(None, description="branch a")
    b: Branch | None = Field(
        None, description="branch b; with weights same or ema it may leave out what is a's"
    )
    branches: dict[str, Branch] | None = Field(
        None, min_length=1, description="branches by name, for several pairs; instead of a and b"
    )
    pairs: list[PairOfBranches] | None = Field(
        None, min_length=1, description="pairs of branches, trained in turn; instead of pair"
    )
    predictor: Component | None = Field(None, description="maps a's embedding to b's")
    objective: Component | None = Field(None, description="the loss")
    optim: Optim = Field(description="the optimizer, with its schedule and clip")
    train: Train = Field(description="length, batch and precision")
    data: Data = Field(Data(), description="reading")
    evaluate: Evaluate = Field(Evaluate(), description="probes, and when")
    checkpoint: Checkpoint = Field(Checkpoint(), description="saving")
    without_data: dict[str, Any] = Field(
        {}, description="overrides that apply where source.root is not given; used up by that"
    )
    announcement: str | None = Field(
        None, description="written by the program where without_data was applied"
    )

    def dump(self) -> dict:
        """Every key and value, in YAML's plain types; without the keys of the form (one pair, or several)
        that this recipe does not have."""
        optional = ("source", "pair", "a", "b", "branches", "pairs", "objective")
        data = {
            key: value
            for key, value in plain(self.model_dump()).items()
            if key not in optional or value is not None
        }
        for pair in data.get("pairs", []):
            for key in [key for key, value in pair.items() if value is None]:
                del pair[key]
        return data

    def named_branches(self) -> dict[str, Branch]:
        """The branches by name; those of a recipe of one pair are called a and b."""
        return self.branches or {"a": self.a, "b": self.b}

    def listed_pairs(self) -> list[PairOfBranches]:
        """The pairs in the order of their turns, each with its source and objective; one pair is a list of
        one."""
        pairs = self.pairs or [PairOfBranches(a="a", b="b", pair=self.pair)]
        return [
            pair.model_copy(
                update={"source": pair.source or self.source, "objective": pair.objective or self.objective}
            )
            for pair in pairs
        ]


# ---- loading ----


class ImportsError(RecipeError):
    """A recipe that is not the user's own names modules to import."""


def load_recipe(
    recipe: str | Path | dict,
    overrides: list[str] | dict = (),
    check_paths: bool = True,
    imports: Collection[str] | None = None,
) -> Recipe:
    """The recipe of a file, a bare name among the shipped ones, or a mapping, with overrides
    (`["train.steps=10"]` or a mapping).

    check_paths=False skips the check that source.root exists, for uses that need no data. imports: modules
    that may be imported; null: all that the recipe names, for the one that the user runs. A recipe that lies
    in a run folder or an export may come from anybody: of its modules only these are imported, and those that
    this process has already. Raises RecipeError with all mistakes, ImportsError for other modules.
    """
    if isinstance(recipe, dict):
        label, data = "(given as a mapping)", plain(recipe)
    else:
        path = find_recipe(recipe)
        label, data = str(path), read_recipe(path)
    changes, mistakes = parse_overrides(overrides)
    changed = apply(plain(data), changes, mistakes)
    # a source that the command line chooses stands: saying that sample data stand in for it would not be true
    chosen = any(keys in (["source"], ["source", "name"]) for keys, _ in changes)
    block = data.get("without_data")
    if isinstance(block, dict) and block and not chosen and _root(changed) is None:
        del data[
            "without_data"
        ]  # used up: a resolved recipe must not apply it over the command line's values again
        data = apply(data, [(str(key).split("."), value) for key, value in block.items()], mistakes)
        changed = apply(data, changes, [])
        changed["announcement"] = (
            f"SAMPLE DATA: source.root is not given, so recipe '{changed.get('name')}' runs on the embedded"
            f" sample, changed by its without_data block ({', '.join(map(str, block))}). Its numbers say"
            " nothing about real data; give source.root=FOLDER."
        )
    elif any(keys[0] == "source" for keys, _ in changes):
        changed.pop("announcement", None)
    if imports is not None:
        refuse_imports(changed.get("imports"), imports, label)
    return check(changed, label, mistakes, check_paths)


def refuse_imports(named, allowed: Collection[str], label: str) -> None:
    named = named if isinstance(named, list) else []
    if refused := [
        module
        for module in named
        if isinstance(module, str) and module not in allowed and module not in sys.modules
    ]:
        raise ImportsError(
            f"recipe {label} wants to import {', '.join(refused)}. A recipe that comes with a run or an"
            " export runs no code of its own. If you trust these modules, say so: --allow-imports, or"
            " load_encoder(folder, imports=[...])."
        )


def _root(data: dict):
    source = data.get("source")
    return source.get("root") if isinstance(source, dict) else None


def check(data: dict, label: str, mistakes: list[str], check_paths: bool = True) -> Recipe:
    """The typed recipe, with options converted to their types. Raises RecipeError with all mistakes."""
    mistakes = mistakes + load_imports(data.get("imports"))
    a, b = data.get("a"), data.get("b")
    follows = isinstance(a, dict) and isinstance(b, dict) and b.get("weights") in ("same", "ema")
    taken = [key for key in ("modality", "encoder", "expander") if b.get(key) is None] if follows else []
    for key in taken:
        b.pop(key, None)
    of_components = check_components(data)
    for key in taken:
        if key in a:
            b[key] = plain(a[key])
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        found = [(tuple(p for p in e["loc"] if p not in (TEXT, MAPPING)), e) for e in error.errors()]
        mistakes += [
            f"{'.'.join(map(str, loc)) or 'a key'}: {in_words(loc, e, Recipe)}"
            for loc, e in found
            if not (loc[:1] == ("b",) and loc[1:2] and loc[1] in taken)
        ]
    mistakes += of_components + check_form(data, Recipe) + check_together(data, follows)
    for path, root, source in [
        *places(data, ["source", "root"]),
        *places(data, ["pairs", "*", "source", "root"]),
    ]:
        if (
            check_paths
            and isinstance(root, str)
            and root_is_a_path(source)
            and not Path(root).expanduser().exists()
        ):
            mistakes.append(
                f"{'.'.join(path)}: {root} does not exist (seen from {Path.cwd()}). Give the path of your"
                " data."
            )
    if mistakes:
        count = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}"
        raise RecipeError(f"recipe {label} has {count}:\n" + "\n".join(f"  {m}" for m in mistakes))
    return recipe


# ---- writing, comparing, describing ----


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe; load_recipe reads it back to the same recipe."""
    return dump_yaml(recipe.dump())


def differences(recipe_a: Recipe, recipe_b: Recipe) -> list[str]:
    """One line for each key that differs, with both values; where a run is written, how many processes read,
    and how long to wait for them do not count."""
    return differences_of(recipe_a.dump(), recipe_b.dump())


def differences_of(a: dict, b: dict) -> list[str]:
    """`differences` of what `dump` gives: of a recipe that comes with data, which is compared but not loaded
    (it could name `imports`)."""
    a, b = _flat(a), _flat(b)
    return [
        f"{key}: {show(a[key]) if key in a else 'absent'} -> {show(b[key]) if key in b else 'absent'}"
        for key in dict.fromkeys([*a, *b])
        if key not in ("out", "data.workers", "data.timeout", "train.timeout")
        and (key in a, a.get(key)) != (key in b, b.get(key))
    ]


def _flat(value: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, inner in value.items():
        if isinstance(inner, list) and inner and all(isinstance(entry, dict) for entry in inner):
            inner = dict(enumerate(inner))
        flat.update(
            _flat(inner, f"{prefix}{key}.")
            if isinstance(inner, dict) and inner
            else {f"{prefix}{key}": inner}
        )
    return flat


def json_schema() -> dict:
    """JSON schema of recipes, with the components that are registered now and their options."""
    return with_components(Recipe.model_json_schema())
