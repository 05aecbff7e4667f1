"""Recipes: YAML and key=value overrides -> a strict, typed Recipe. Every mistake comes out at once, before anything is built.

    recipe = load_recipe("recipes/video_next_frame.yaml", ["train.steps=100", "source.name=video_folder", "source.root=/data"])
    recipe.train.steps, recipe.source.name, recipe.announcement
    print(to_yaml(recipe))          # the resolved recipe; load_recipe reads it back to the same thing

The sections below are the keys. A component, `{name: ..., option: ...}`, takes the options of the constructor that the registry
finds under its name.
"""

import enum
import importlib.util
import inspect
import re
import traceback
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, PydanticUserError, Tag, TypeAdapter,
                      ValidationError)
from pydantic_core import PydanticCustomError

from vicjoint import registry
from vicjoint.registry import ComponentError, nearest


class RecipeError(ValueError):
    """A wrong recipe or command line. The message is all that a user needs."""


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
        min_length=1, description="widths of the expander's layers; the last is the embedding's")
    weights: Literal["own", "same", "ema"] = Field(
        "own", description="of b only: its own, a's (same), or a moving average of a's (ema)")
    momentum: Number = Field(0.996, ge=0, le=1, description="of the moving average, with weights: ema")


class Optim(Component):
    schedule: Component = Field(description="factor of the learning rate at each step")
    clip: Number | None = Field(None, gt=0, description="largest norm of the gradient; null: not clipped")


class Train(Section):
    steps: Whole | None = Field(None, gt=0, description="optimizer steps; wins over epochs")
    epochs: Whole | None = Field(None, gt=0, description="passes over the source")
    batch_size: Whole = Field(gt=0, description="samples in a global batch, over all processes and accumulated parts")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the model; objectives always use fp32")
    seed: Whole = Field(0, ge=0, lt=2**32, description="of the weights, the order, crops and time windows")
    accumulate: Whole = Field(1, gt=0, description="parts in which a batch is computed")
    compile: bool = Field(False, description="use torch.compile")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    tensorboard: bool = Field(False, description="also write TensorBoard files into the run folder")


class Data(Section):
    workers: Whole = Field(2, ge=0, description="processes that read data; 0: none beside the training process")
    max_bad_fraction: Number = Field(0.01, ge=0, le=1, description="share of bad samples above which a run stops")
    video_backend: Literal["auto", "decord", "pyav", "torchcodec"] = Field("auto", description="reader of video files")


class Evaluate(Section):
    every: Whole | None = Field(None, ge=0, description="steps between evaluations; null or 0: at the end only")
    probes: list[Component] = Field([], description="what is measured")


class Checkpoint(Section):
    every: Whole = Field(200, gt=0, description="steps between checkpoints")
    keep: Whole = Field(2, gt=0, description="newest checkpoints that are kept")


class Recipe(Section):
    name: str = Field(pattern=r"^\w[\w.+-]*$", description="names the folder below runs/: letters, digits and . _ + -")
    imports: list[str] = Field([], description="modules to import first: they register components")
    out: str | None = Field(None, description="run folder; null: runs/<name>/<number>")
    source: Component = Field(description="where samples are")
    pair: Component = Field(description="how two views are made of a sample")
    a: Branch = Field(description="branch a")
    b: Branch = Field(description="branch b; with weights same or ema it may leave out what is a's")
    predictor: Component | None = Field(None, description="maps a's embedding to b's")
    objective: Component = Field(description="the loss")
    optim: Optim = Field(description="the optimizer, with its schedule and clip")
    train: Train = Field(description="length, batch and precision")
    data: Data = Field(Data(), description="reading")
    evaluate: Evaluate = Field(Evaluate(), description="probes, and when")
    checkpoint: Checkpoint = Field(Checkpoint(), description="saving")
    without_data: dict[str, Any] = Field({}, description="overrides that apply where source.root is not given; used up by that")
    announcement: str | None = Field(None, description="written by the program where without_data was applied")

    def dump(self) -> dict:
        """Every key and value, in YAML's plain types."""
        return plain(self.model_dump())


FAMILY = {"source": "source", "pair": "pair", "a.modality": "modality", "a.encoder": "encoder", "b.modality": "modality",
          "b.encoder": "encoder", "predictor": "predictor", "objective": "objective", "optim": "optimizer", "optim.schedule": "schedule"}
OWN_KEYS = {"optim": ("schedule", "clip")}  # keys inside a component that are the recipe's


# ---- YAML ----

class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars (1e-3 is a number, `no` and dates are text); refuses a key given twice."""

    def construct_whole_mapping(self, node):
        if isinstance(node, yaml.MappingNode):
            seen = {}
            for key, _ in node.value:
                if key.value.__hash__ and key.tag != "tag:yaml.org,2002:merge" and seen.setdefault(key.value, key) is not key:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key '{key.value}' is given twice, first on line {seen[key.value].start_mark.line + 1}", key.start_mark)
        return self.construct_mapping(node, deep=True)  # deep: an alias inside its own anchor is refused


class _Dumper(yaml.SafeDumper):
    """Also quotes text that _Loader would read as a number."""


_INT = r"[-+]?[0-9]+$"
_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
_TAG = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag in (_TAG + "null", _TAG + "merge")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_TAG + "bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_TAG + "int", re.compile(_INT), list("-+0123456789"))
_Loader.add_implicit_resolver(_TAG + "float", re.compile(_FLOAT), list("-+.0123456789"))
_Dumper.add_implicit_resolver(_TAG + "float", re.compile(_FLOAT), list("-+.0123456789"))
_Loader.yaml_constructors = {
    tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (_TAG + "null", _TAG + "bool", _TAG + "float", _TAG + "str", None)
}
_Loader.add_constructor(_TAG + "int", lambda loader, node: int(loader.construct_scalar(node)))
_Loader.add_constructor(_TAG + "map", _Loader.construct_whole_mapping)
_Loader.add_constructor(_TAG + "seq", lambda loader, node: loader.construct_sequence(node, deep=True))


def parse_yaml(text: str, what: str):
    """The value of a YAML text. Raises RecipeError, in one line that begins with `what` and says where the text is broken."""
    try:
        return plain(yaml.load(text, _Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise RecipeError(f"{what}{where}: {error.problem or error.context}.") from None
    except (yaml.YAMLError, ValueError, KeyError) as error:
        raise RecipeError(f"{what}: not YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise RecipeError(f"{what}: nested too deeply for a recipe.") from None


def plain(value):
    """A copy in YAML's types: no tuples, paths or enums, and nothing shared between two places."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, enum.Enum):
        return plain(value.value)
    return str(value) if isinstance(value, Path) else value


# ---- loading ----

def load_recipe(recipe: str | Path | dict, overrides: list[str] | dict = (), check_paths: bool = True) -> Recipe:
    """The recipe of a file, a bare name among the shipped ones, or a mapping, with overrides (`["train.steps=10"]` or a mapping).

    check_paths=False skips the check that source.root exists, for uses that need no data. Raises RecipeError with all mistakes.
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
        del data["without_data"]  # used up: a resolved recipe must not apply it over the command line's values again
        data = apply(data, [(str(key).split("."), value) for key, value in block.items()], mistakes)
        changed = apply(data, changes, [])
        changed["announcement"] = (
            f"SAMPLE DATA: source.root is not given, so recipe '{changed.get('name')}' runs on the embedded sample, changed by its "
            f"without_data block ({', '.join(map(str, block))}). Its numbers say nothing about real data; give source.root=FOLDER."
        )
    elif any(keys[0] == "source" for keys, _ in changes):
        changed.pop("announcement", None)
    return check(changed, label, mistakes, check_paths)


def _root(data: dict):
    source = data.get("source")
    return source.get("root") if isinstance(source, dict) else None


def find_recipe(recipe: str | Path) -> Path:
    """The file `recipe`, or `recipe`.yaml, or the shipped recipe of that bare name."""
    beside = [Path(__file__).resolve().parents[1] / "recipes"]
    package = importlib.util.find_spec("recipes")  # in a checkout, an installation, and the user's own ./recipes
    folders = beside + [Path(p) for p in (package.submodule_search_locations or [] if package else [])]
    tried = [Path(recipe), Path(f"{recipe}.yaml")]
    if Path(recipe).name == str(recipe):
        tried += [folder / file for folder in folders for file in (f"{recipe}.yaml", str(recipe))]
    for path in tried:
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):  # too long, or with a null character
            continue
    shipped = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise RecipeError(f"no recipe '{recipe}': no such file (nor {recipe}.yaml).{nearest(Path(recipe).stem, shipped)} "
                      f"Shipped recipes: {', '.join(shipped) or 'none'}.")


def read_recipe(path: Path) -> dict:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} cannot be read as UTF-8 text: {error}.") from None
    data = parse_yaml(text, f"recipe {path}")
    if not isinstance(data, dict):
        raise RecipeError(f"recipe {path} is not a mapping of keys such as `name: ...`; it holds {show(data)}.")
    return data


# ---- overrides ----

def parse_overrides(overrides: list[str] | dict) -> tuple[list[tuple[list[str], Any]], list[str]]:
    """([(keys, value)], mistakes). Parents come before their parts and names before options, whatever their order."""
    changes, mistakes = [], []
    for item in overrides.items() if isinstance(overrides, dict) else overrides:
        key, equals, value = (item[0], "=", plain(item[1])) if isinstance(item, tuple) else str(item).partition("=")
        if not equals or not all(str(key).split(".")):
            mistakes.append(f"argument '{item}': expected key=value, such as train.steps=100.")
            continue
        try:
            value = value if isinstance(item, tuple) else parse_yaml(value, f"argument '{item}'")
        except RecipeError as error:
            mistakes.append(f"{error} Put the value into quotes if it is text.")
            continue
        changes.append((str(key).split("."), value))
    return sorted(changes, key=lambda change: (len(change[0]), change[0][-1] != "name")), mistakes


def apply(data: dict, changes: list[tuple[list[str], Any]], mistakes: list[str]) -> dict:
    """Put each value in its place, whole. A component that gets another name loses the options of the old one."""
    data = plain(data)
    for keys, value in changes:
        inner = data
        for depth, key in enumerate(keys[:-1], 1):
            if isinstance(inner.get(key), str) and FAMILY.get(".".join(keys[:depth])) == "modality":
                inner[key] = {"name": inner[key]}
            if inner.get(key) is None:
                inner[key] = {}
            if not isinstance(inner[key], dict):
                mistakes.append(f"{'.'.join(keys)}: '{'.'.join(keys[:depth])}' is {show(inner[key])}, which has no keys. Replace it whole.")
                break
            inner = inner[key]
        else:
            component = ".".join(keys[:-1])
            if keys[-1] == "name" and component in FAMILY and inner.get("name") != value:
                for option in [k for k in inner if k not in OWN_KEYS.get(component, ())]:
                    del inner[option]
            inner[keys[-1]] = plain(value)
    return data


# ---- checking ----

def check(data: dict, label: str, mistakes: list[str], check_paths: bool = True) -> Recipe:
    """The typed recipe, with options converted to their types. Raises RecipeError with all mistakes."""
    mistakes = list(mistakes)
    _import(data.get("imports"), mistakes)
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
        locs = [(tuple(p for p in e["loc"] if p not in (TEXT, MAPPING)), e) for e in error.errors()]
        mistakes += [f"{'.'.join(map(str, loc))}: {in_words(loc, e)}" for loc, e in locs if not (loc[0] == "b" and loc[1:2] and loc[1] in taken)]
    mistakes += of_components + check_together(data, follows)
    if check_paths and isinstance(root := _root(data), str) and not Path(root).expanduser().exists():
        mistakes.append(f"source.root: {root} does not exist (seen from {Path.cwd()}). Give the path of your data.")
    if mistakes:
        count = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}"
        raise RecipeError(f"recipe {label} has {count}:\n" + "\n".join(f"  {m}" for m in mistakes))
    return recipe


def _import(modules, mistakes: list[str]) -> None:
    modules = modules if isinstance(modules, list) and all(isinstance(m, str) for m in modules) else []
    try:
        registry.load_imports(modules)
    except ComponentError as error:
        mistakes.append(str(error))
    except Exception as error:  # the user's module may fail in any way
        if not modules:
            raise  # not the recipe's doing
        last = traceback.extract_tb(error.__traceback__)[-1]
        mistakes.append(f"imports: {', '.join(modules)} failed at {last.filename}:{last.lineno}: {type(error).__name__}: {error}")


def check_together(data: dict, follows: bool) -> list[str]:
    """Mistakes that lie between two keys."""
    found = []
    a, b, train = data.get("a"), data.get("b"), data.get("train")
    if isinstance(a, dict) and a.get("weights", "own") in ("same", "ema"):
        found.append(f"a.weights: {a['weights']} is for branch b only. Leave it out.")
    for name, branch in (("a", a), ("b", b)):
        # a resolved recipe carries the default
        if isinstance(branch, dict) and branch.get("weights") != "ema" and branch.get("momentum", 0.996) != 0.996:
            found.append(f"{name}.momentum: only used with weights: ema on branch b. Leave it out.")
    if follows:
        spec = lambda value: {"name": value} if isinstance(value, str) else value
        found += [f"b.{key}: differs from a.{key}, but weights: {b['weights']} makes b use a's. Leave it out, or set b.weights=own."
                  for key in ("modality", "encoder", "expander") if plain(spec(b.get(key))) != plain(spec(a.get(key)))]
    if isinstance(train, dict) and train.get("steps") is None and train.get("epochs") is None:
        found.append("train: missing its length. Set train.steps or train.epochs.")
    return found


def check_components(data: dict) -> list[str]:
    """Mistakes in the names and options of all components; converts the options in `data` to their types."""
    found, unknown_modality = [], set()
    for path, family in FAMILY.items():
        spec = data
        for key in path.split("."):
            spec = spec.get(key) if isinstance(spec, dict) else None
        if family == "modality" and isinstance(spec, str):
            spec = {"name": spec}
        if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
            continue
        name, branch = spec["name"], path[0]
        if family == "encoder":
            modality = data[branch].get("modality", data["a"].get("modality") if isinstance(data.get("a"), dict) else None)
            modality = modality.get("name") if isinstance(modality, dict) else modality
            if not isinstance(modality, str) or modality in unknown_modality:
                continue  # nothing to look the encoder up with
            name = f"{modality}/{name}"
        mistakes = check_component(path, family, name, spec)
        if family == "modality" and name not in registry.names("modality"):
            unknown_modality.add(name)
        found += mistakes
    evaluate = data.get("evaluate")
    probes = evaluate.get("probes") if isinstance(evaluate, dict) else None
    seen = set()
    for i, spec in enumerate(probes if isinstance(probes, list) else []):
        if isinstance(spec, dict) and isinstance(spec.get("name"), str):
            found += check_component(f"evaluate.probes.{i}", "probe", spec["name"], spec)
            if spec["name"] in seen:
                found.append(f"evaluate.probes.{i}: '{spec['name']}' is listed twice. Its results would replace each other.")
            seen.add(spec["name"])
    return found


def check_component(path: str, family: str, name: str, spec: dict) -> list[str]:
    try:
        component = registry.find(family, name)
    except ComponentError as error:
        return [f"{path}.name: {error}"]
    known, types, found = recipe_options(component), option_types(component), []
    for key in [k for k in spec if k != "name" and k not in OWN_KEYS.get(path, ())]:
        if key in known:
            try:
                spec[key] = convert(spec[key], types.get(key, Any), known[key].default)
            except RecipeError as error:
                found.append(f"{path}.{key}: {error}")
        elif not registry.takes_any_option(component) or key in registry.options(component):
            found.append(f"{path}.{key}: {family} '{name}' takes no option '{key}'.{nearest(key, known)} Options: {', '.join(known) or 'none'}.")
    found += [f"{path}.{key}: missing. {family} '{name}' needs it." for key, p in known.items() if p.default is p.empty and key not in spec]
    return found


def recipe_options(component) -> dict[str, inspect.Parameter]:
    """The options that a recipe sets: those of the registry without the ones that `component.given` says come from code."""
    return {key: p for key, p in registry.options(component).items() if key not in getattr(component, "given", ())}


def option_types(component) -> dict[str, Any]:
    """Annotations by option; without those that cannot be resolved."""
    try:
        return typing.get_type_hints(component.__init__ if inspect.isclass(component) else inspect.unwrap(component), include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def convert(value, annotation, default):
    """`value` as the option's type. Raises RecipeError that says what was expected."""
    if value is None and default is None:
        return None
    try:
        adapter = TypeAdapter(annotation)
    except PydanticUserError:  # a type that YAML has no values of anyway
        return value
    try:
        converted = adapter.validate_python(value)
    except ValidationError as error:
        words = list(dict.fromkeys(expected(e) for e in error.errors()))
        raise RecipeError(f"expected {' or '.join(words)}, got {show(value)}.") from None
    if _has(value, bool) and not _has(converted, bool):
        raise RecipeError(f"expected a number, got {show(value)}.")
    if isinstance(converted, float) and converted != converted:
        raise RecipeError("expected a number, got .nan.")
    return converted


def _has(value, kind) -> bool:
    return any(_has(v, kind) for v in value) if isinstance(value, (list, tuple)) else isinstance(value, kind)


# ---- messages ----

WORDS = {"int": "a whole number", "float": "a number", "finite": "a finite number", "bool": "true or false", "string": "text", "list": "a list",
         "tuple": "a list", "dict": "a mapping", "model": "a mapping such as {name: ...}", "none": "null", "path": "a path"}
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def expected(error: dict) -> str:
    """What a pydantic error asked for, in plain words."""
    kind, limits = error["type"], error.get("ctx") or {}
    bounds = [f"{words} {limits[key]}" for key, words in BOUNDS.items() if key in limits]
    if kind == "literal_error":
        return f"one of {limits['expected']}"
    if kind == "string_pattern_mismatch":
        return "a name of letters, digits and . _ + -"
    if kind in ("too_short", "too_long"):
        return f"a list of {limits.get('min_length', limits.get('max_length'))} or {'more' if kind == 'too_short' else 'fewer'}"
    if bounds:
        return f"a number {bounds[0]}"
    return WORDS.get(kind.split("_")[0], error["msg"])


def in_words(loc: tuple, error: dict) -> str:
    if error["type"] == "extra_forbidden":
        section = Recipe.model_fields[loc[0]].annotation if len(loc) > 1 else Recipe
        return f"unknown key.{nearest(loc[-1], section.model_fields)} Known: {', '.join(section.model_fields)}."
    if error["type"] == "missing":
        section = Recipe if len(loc) == 1 else Recipe.model_fields[loc[0]].annotation
        field = getattr(section, "model_fields", {}).get(loc[-1])
        return f"missing. Expected {field.description if field else 'the name of a component'}."
    hint = nearest(error["input"], re.findall(r"'(\w+)'", expected(error))) if error["type"] == "literal_error" else ""
    return f"expected {expected(error)}, got {show(error['input'])}.{hint}"


def show(value) -> str:
    text = {None: "nothing (null)", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# ---- writing, comparing, describing ----

def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe; load_recipe reads it back to the same recipe."""
    return yaml.dump(recipe.dump(), Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=130)


def differences(recipe_a: Recipe, recipe_b: Recipe) -> list[str]:
    """One line for each key that differs, with both values; where a run is written and how many processes read do not count."""
    a, b = _flat(recipe_a.dump()), _flat(recipe_b.dump())
    return [f"{key}: {show(a[key]) if key in a else 'absent'} -> {show(b[key]) if key in b else 'absent'}"
            for key in dict.fromkeys([*a, *b]) if key not in ("out", "data.workers") and (key in a, a.get(key)) != (key in b, b.get(key))]


def _flat(value: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, inner in value.items():
        flat.update(_flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) and inner else {f"{prefix}{key}": inner})
    return flat


def json_schema() -> dict:
    """JSON schema of recipes, with the components that are registered now and their options."""
    schema = Recipe.model_json_schema()
    keys, sections = schema["properties"], schema["$defs"]
    for key in ("source", "pair", "objective"):
        keys[key] |= component_schema(key)
        keys[key].pop("$ref", None)
    keys["predictor"]["anyOf"] = [component_schema("predictor"), {"type": "null"}]
    sections["Optim"] = component_schema("optimizer", {"schedule": component_schema("schedule"), "clip": sections["Optim"]["properties"]["clip"]})
    sections["Evaluate"]["properties"]["probes"]["items"] = component_schema("probe")
    branch, modalities = sections["Branch"], registry.names("modality")
    branch["properties"]["modality"] = {"anyOf": [{"enum": modalities}, component_schema("modality")]}
    branch["allOf"] = [
        {"if": {"properties": {"modality": {"anyOf": [{"const": m}, {"type": "object", "properties": {"name": {"const": m}}}]}}, "required": ["modality"]},
         "then": {"properties": {"encoder": component_schema("encoder", names=registry.list_encoders(m), prefix=f"{m}/")}}}
        for m in modalities
    ]
    needed = branch.pop("required")
    keys["a"] |= {"required": needed}
    keys["b"] |= {"if": {"properties": {"weights": {"enum": ["same", "ema"]}}, "required": ["weights"]}, "else": {"required": needed}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def component_schema(family: str, own: dict = {}, names: list[str] | None = None, prefix: str = "") -> dict:
    """`{name: one of the registered, options of that one}`; `own` are further keys of the recipe's inside the component."""
    names = registry.names(family) if names is None else names
    return {"type": "object", "required": ["name"], "properties": {"name": {"enum": names}},
            "oneOf": [_one_component(name, registry.find(family, prefix + name), own) for name in names]}


def _one_component(name: str, component, own: dict) -> dict:
    known, types = recipe_options(component), option_types(component)
    properties = {"name": {"const": name}} | {key: _option_schema(types.get(key, Any), p.default) for key, p in known.items()} | own
    required = [key for key, p in known.items() if p.default is p.empty] + [key for key in own if key == "schedule"]
    return {"title": name, "properties": properties, "required": ["name", *required], "additionalProperties": registry.takes_any_option(component)}


def _option_schema(annotation, default) -> dict:
    try:
        schema = TypeAdapter(annotation).json_schema()
    except PydanticUserError:
        schema = {}
    schema = {} if "$defs" in schema else schema  # its references would not hold inside the recipe's schema
    if default is None and schema:
        schema = {"anyOf": [schema, {"type": "null"}]}
    return schema if default is inspect.Parameter.empty else schema | {"default": plain(default)}
