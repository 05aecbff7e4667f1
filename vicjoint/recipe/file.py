"""Recipe files and key=value arguments as plain mappings: finding, reading, overriding, writing. Only the
form is checked here.

    data = read_recipe(find_recipe("video_next_frame"))  # a path, or the bare name of a shipped recipe
    changes, mistakes = parse_overrides(["optim.lr=1e-3", "train.steps=100"])
    text = dump_yaml(apply(data, changes, mistakes))  # parse_yaml reads it back to the same mapping
"""

import enum
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from vicjoint.options import nearest, show

# the keys that hold a component, and the registry's family of each; * is any name or number
FAMILY = {
    "source": "source",
    "pair": "pair",
    "a.modality": "modality",
    "a.encoder": "encoder",
    "b.modality": "modality",
    "b.encoder": "encoder",
    "branches.*.modality": "modality",
    "branches.*.encoder": "encoder",
    "pairs.*.pair": "pair",
    "pairs.*.source": "source",
    "pairs.*.objective": "objective",
    "predictor": "predictor",
    "objective": "objective",
    "optim": "optimizer",
    "optim.schedule": "schedule",
    "evaluate.probes.*": "probe",
}
# keys inside a component that are the recipe's
OWN_KEYS = {"optim": ("schedule", "clip"), "evaluate.probes.*": ("as",)}
_TAG = "tag:yaml.org,2002:"


class RecipeError(ValueError):
    """A wrong recipe or command line. The message is all that a user needs."""


# ---- YAML ----


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars (1e-3 is a number, `no` and dates are text); refuses anchors, aliases and a key given
    twice."""

    def compose_node(self, parent, index):
        event = self.peek_event()
        # a few lines of nested aliases stand for more values than memory holds
        if getattr(event, "anchor", None):
            sign = "*" if isinstance(event, yaml.AliasEvent) else "&"
            raise yaml.composer.ComposerError(
                None,
                None,
                f"'{sign}{event.anchor}': a recipe takes no anchors (&) or aliases (*); write the value out",
                event.start_mark,
            )
        return super().compose_node(parent, index)

    def construct_whole_mapping(self, node):
        if isinstance(node, yaml.MappingNode):
            seen = {}
            for key, _ in node.value:
                if not key.value.__hash__ or key.tag == _TAG + "merge":
                    continue
                if seen.setdefault(key.value, key) is not key:
                    first = seen[key.value].start_mark.line + 1
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key '{key.value}' is given twice, first on line {first}", key.start_mark
                    )
        return self.construct_mapping(node, deep=True)


class _Dumper(yaml.SafeDumper):
    """Also quotes text that _Loader would read as a number."""


_INT = r"[-+]?[0-9]+$"
_FLOAT = (
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag in (_TAG + "null", _TAG + "merge")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _TAG + "bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(_TAG + "int", re.compile(_INT), list("-+0123456789"))
_Loader.add_implicit_resolver(_TAG + "float", re.compile(_FLOAT), list("-+.0123456789"))
_Dumper.add_implicit_resolver(_TAG + "float", re.compile(_FLOAT), list("-+.0123456789"))
_Loader.yaml_constructors = {
    tag: yaml.SafeLoader.yaml_constructors[tag]
    for tag in (_TAG + "null", _TAG + "bool", _TAG + "float", _TAG + "str", None)
}
_Loader.add_constructor(_TAG + "int", lambda loader, node: int(loader.construct_scalar(node)))
_Loader.add_constructor(_TAG + "map", _Loader.construct_whole_mapping)
_Loader.add_constructor(_TAG + "seq", lambda loader, node: loader.construct_sequence(node, deep=True))


def parse_yaml(text: str, what: str):
    """The value of a YAML text. Raises RecipeError, in one line that begins with `what` and says where the
    text is broken."""
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


def dump_yaml(value: dict) -> str:
    """YAML of plain types, in the order of the keys."""
    return yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=130
    )


def plain(value):
    """A copy in YAML's types: no tuples, paths or enums, and nothing shared between two places."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, enum.Enum):
        return plain(value.value)
    return str(value) if isinstance(value, Path) else value


# ---- files ----


def find_recipe(recipe: str | Path) -> Path:
    """The file `recipe`, or `recipe`.yaml, or the shipped recipe of that name, bare or as recipes/NAME.yaml,
    as pages print it: a user need not be in a checkout."""
    beside = [Path(__file__).resolve().parents[2] / "recipes"]
    # in a checkout, an installation, and the user's own ./recipes
    package = importlib.util.find_spec("recipes")
    folders = beside + [Path(p) for p in (package.submodule_search_locations or [] if package else [])]
    tried = [Path(recipe), Path(f"{recipe}.yaml")]
    name = Path(recipe).name
    if str(recipe) in (name, f"recipes/{name}"):
        tried += [folder / file for folder in folders for file in (f"{name}.yaml", name)]
    for path in tried:
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):  # too long, or with a null character
            continue
    shipped = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    other = "" if str(recipe).endswith(".yaml") else f" (nor {recipe}.yaml)"
    raise RecipeError(
        f"no recipe '{recipe}': no such file{other}.{nearest(Path(recipe).stem, shipped)} "
        f"Shipped recipes: {', '.join(shipped) or 'none'}."
    )


def read_recipe(path: Path) -> dict:
    """The mapping in a file. Raises RecipeError for a file that is not UTF-8, not YAML, or not a mapping."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} cannot be read as UTF-8 text: {error}.") from None
    data = parse_yaml(text, f"recipe {path}")
    if not isinstance(data, dict):
        raise RecipeError(
            f"recipe {path} is not a mapping of keys such as `name: ...`; it holds {show(data)}."
        )
    return data


# ---- overrides ----


class Typed(str):
    """A value as it was typed on the command line."""


def meant(value: Typed, is_text: bool, what: str):
    """What a typed value means: all of it, with # and :, where the key takes text (null is null), or where
    YAML would see unquoted text; else YAML's value. Raises RecipeError as parse_yaml."""
    text = value.strip()
    if text[:1] in ("'", '"'):
        return parse_yaml(text, what)
    tag = _Loader("").resolve(yaml.ScalarNode, text, (True, False))
    if is_text and tag != _TAG + "null":
        return text
    parsed = parse_yaml(value, what)
    return text if tag == _TAG + "str" and not isinstance(parsed, (dict, list)) else parsed


def parse_overrides(overrides: list[str] | dict) -> tuple[list[tuple[list[str], Any]], list[str]]:
    """([(keys, value)], mistakes); the values of texts are Typed. Parents come before their parts and names
    before options, whatever their order."""
    changes, mistakes = [], []
    for item in overrides.items() if isinstance(overrides, dict) else overrides:
        key, equals, value = (
            (item[0], "=", plain(item[1])) if isinstance(item, tuple) else str(item).partition("=")
        )
        value = value if isinstance(item, tuple) else Typed(value)
        if not equals or not all(str(key).split(".")):
            mistakes.append(f"argument '{item}': expected key=value, such as train.steps=100.")
            continue
        changes.append((str(key).split("."), value))
    return sorted(changes, key=lambda change: (len(change[0]), change[0][-1] != "name")), mistakes


def family_of(keys: list[str]) -> str | None:
    """The family of the component that these keys lead to; None where there is none."""
    for pattern, family in FAMILY.items():
        names = pattern.split(".")
        if len(names) == len(keys) and all(name in ("*", key) for name, key in zip(names, keys)):
            return family
    return None


def apply(
    data: dict,
    changes: list[tuple[list[str], Any]],
    mistakes: list[str],
    takes_text: Callable[[dict, list[str]], bool] = lambda data, keys: False,
) -> dict:
    """Put each value in its place, whole; an entry of a list is named by its number. A component that gets
    another name loses the options of the old one. takes_text(data, keys): whether a key of the mapping, as it
    is by then, takes text and nothing else."""
    data = plain(data)
    for keys, value in changes:
        if isinstance(value, Typed):
            what = f"argument '{'.'.join(keys)}={value}'"
            try:
                value = meant(value, takes_text(data, keys), what)
            except RecipeError as error:
                mistakes.append(f"{error} Put the value into quotes if it is text.")
                continue
        inner = data
        for depth, key in enumerate(keys):
            before = ".".join(keys[:depth])
            if isinstance(inner, list):
                if not (key.isdecimal() and int(key) < len(inner)):
                    mistakes.append(
                        f"{'.'.join(keys)}: '{before}' has no entry {key}. It has {len(inner)}, numbered"
                        " from 0."
                    )
                    break
                key = int(key)
            elif not isinstance(inner, dict):
                mistakes.append(
                    f"{'.'.join(keys)}: '{before}' is {show(inner)}, which has no keys. Replace it whole."
                )
                break
            if depth == len(keys) - 1:
                if key == "name" and family_of(keys[:-1]) and inner.get("name") != value:
                    for option in [k for k in inner if k not in OWN_KEYS.get(before, ())]:
                        del inner[option]
                inner[key] = plain(value)
                break
            there = inner[key] if isinstance(inner, list) else inner.get(key)
            if isinstance(there, str) and family_of(keys[: depth + 1]) == "modality":
                inner[key] = {"name": there}
            elif there is None:
                inner[key] = {}
            inner = inner[key]
    return data
