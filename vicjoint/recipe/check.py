"""What pydantic cannot see in a recipe: components, their options, and keys that depend on each other; and
all messages in words.

    mistakes = load_imports(data.get("imports")) + check_components(data) + check_form(data, Written)
    mistakes += check_together(data, follows=False)
    in_words(("train", "steps"), pydantic_error, Written)  # "expected a whole number, got 'many'."

Components and their options are the registry's: `vicjoint.registry.check`.
"""

import inspect
import re
import traceback
import typing

from pydantic import BaseModel, PydanticUserError, TypeAdapter

from vicjoint import registry
from vicjoint.options import nearest, options_of, refused, show
from vicjoint.recipe.file import FAMILY, OWN_KEYS, family_of, plain
from vicjoint.recipe.keys import Written
from vicjoint.registry import ComponentError


def load_imports(modules) -> list[str]:
    """Import the recipe's modules, so that they register components; what is not a list of text is left to
    the typed check."""
    modules = modules if isinstance(modules, list) and all(isinstance(m, str) for m in modules) else []
    registry.load_built_in()  # what fails here is not the recipe's doing
    try:
        registry.load_imports(modules)
    except ComponentError as error:
        return [str(error)]
    except (Exception, SystemExit) as error:  # the user's module may fail in any way
        last = traceback.extract_tb(error.__traceback__)[-1]
        return [
            f"imports: {', '.join(modules)} failed at {last.filename}:{last.lineno}: {type(error).__name__}:"
            f" {error}"
        ]
    return []


ONE_PAIR, SEVERAL_PAIRS = ("pair", "a", "b"), ("branches", "pairs")


def check_together(data: dict, follows: bool) -> list[str]:
    """Mistakes that lie between two keys. `follows`: branch b has weights same or ema."""
    found = []
    a, b, train = data.get("a"), data.get("b"), data.get("train")
    if isinstance(a, dict) and a.get("weights", "own") in ("same", "ema"):
        found.append(f"a.weights: {a['weights']} is for branch b only. Leave it out.")
    for name, branch in (("a", a), ("b", b)):
        # a resolved recipe carries the default
        if (
            isinstance(branch, dict)
            and branch.get("weights") != "ema"
            and branch.get("momentum", 0.996) != 0.996
        ):
            found.append(f"{name}.momentum: only used with weights: ema on branch b. Leave it out.")
    if follows:
        spec = lambda value: {"name": value} if isinstance(value, str) else value
        found += [
            f"b.{key}: differs from a.{key}, but weights: {b['weights']} makes b use a's. "
            "Leave it out, or set b.weights=own."
            for key in ("modality", "encoder", "expander")
            if plain(spec(b.get(key))) != plain(spec(a.get(key)))
        ]
    objective = data.get("objective")
    if isinstance(b, dict) and b.get("weights") != "ema" and (key := needs_slow_branch(objective)):
        found.append(
            f"objective.{key}: {objective[key]} compares with embeddings of earlier batches, so branch b must"
            " change slowly. Set b.weights=ema."
        )
    if isinstance(train, dict) and train.get("steps") is None and train.get("epochs") is None:
        found.append("train: missing its length. Set train.steps or train.epochs.")
    return found


def check_form(data: dict, recipe: type[BaseModel]) -> list[str]:
    """Mistakes in which keys there are: one pair (pair, a, b), or several over named branches (branches,
    pairs)."""
    given = lambda keys: [key for key in keys if data.get(key) is not None]
    missing = lambda key: f"{key}: missing. Expected {recipe.model_fields[key].description}."
    pairs = data["pairs"] if isinstance(data.get("pairs"), list) else []
    everywhere = lambda key: pairs and all(isinstance(p, dict) and p.get(key) is not None for p in pairs)
    found = [missing(key) for key in ("source", "objective") if data.get(key) is None and not everywhere(key)]
    if not given(SEVERAL_PAIRS):
        return [missing(key) for key in ONE_PAIR if data.get(key) is None] + found
    if mixed := given(ONE_PAIR):
        found.append(
            f"{', '.join(mixed)}: for a recipe of one pair, but this one has"
            f" {' and '.join(given(SEVERAL_PAIRS))}. Give pair, a and b, or else branches and pairs."
        )
    else:
        found += [missing(key) for key in SEVERAL_PAIRS if data.get(key) is None]
    if data.get("predictor") is not None:
        found.append(
            "predictor: only in a recipe of one pair, where it maps a's embedding to b's. Leave it out."
        )
    branches = data["branches"] if isinstance(data.get("branches"), dict) else {}
    return found + _check_branches(branches, pairs) + _check_pairs(branches, pairs, data.get("objective"))


def _check_branches(branches: dict, pairs: list) -> list[str]:
    found, used = [], [p.get(side) for p in pairs if isinstance(p, dict) for side in ("a", "b")]
    for name, branch in branches.items():
        if not re.fullmatch(r"[A-Za-z]\w*", str(name)):
            found.append(
                f"branches.{name}: expected a name of letters, digits and _ that begins with a letter."
            )
        elif pairs and name not in used:
            found.append(f"branches.{name}: no pair uses it. Leave it out, or add a pair with it.")
        # a resolved recipe carries the default
        for key, default in (("weights", "own"), ("momentum", 0.996)):
            if isinstance(branch, dict) and branch.get(key, default) != default:
                found.append(
                    f"branches.{name}.{key}: only for branch b of a recipe with one pair. Leave it out; a"
                    " pair whose a and b are the same branch shares its weights."
                )
    return found


def _check_pairs(branches: dict, pairs: list, of_all) -> list[str]:
    found, shares = [], [pair.get("share", "equal") for pair in pairs if isinstance(pair, dict)]
    if "proportional" in shares and any(share != "proportional" for share in shares):
        other = next(share for share in shares if share != "proportional")
        found.append(
            f"pairs: share: proportional stands beside share: {show(other)}, and they have no common measure."
            " Make all of them proportional, or give numbers."
        )
    for i, pair in enumerate(pairs):
        if not isinstance(pair, dict):
            continue
        for side in ("a", "b"):
            if isinstance(pair.get(side), str) and branches and pair[side] not in branches:
                found.append(
                    f"pairs.{i}.{side}: no branch '{pair[side]}'.{nearest(pair[side], branches)} "
                    f"Branches: {', '.join(map(str, branches))}."
                )
        if key := needs_slow_branch(objective := pair.get("objective") or of_all):
            found.append(
                f"pairs.{i}.objective.{key}: {objective[key]} needs a branch b with weights: ema, which a"
                f" recipe of several pairs does not have. Choose another objective.{key}."
            )
    return found


def places(value, keys: list[str], path: tuple[str, ...] = (), parent=None):
    """(path, value, the mapping or list that holds it) of each place that `keys` lead to; * is every name or
    number."""
    if not keys:
        yield path, value, parent
    elif keys[0] == "*":
        entries = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for key, inner in entries:
            yield from places(inner, keys[1:], (*path, str(key)), value)
    elif isinstance(value, dict) and keys[0] in value:
        yield from places(value[keys[0]], keys[1:], (*path, keys[0]), value)


def check_components(data: dict) -> list[str]:
    """Mistakes in the names and options of all components; converts the options in `data` to their types."""
    found = []
    for pattern, family in FAMILY.items():
        for path, spec, parent in places(data, pattern.split(".")):
            key, of_a = ".".join(path), data.get("a") if path[0] == "b" else None
            if family == "modality":
                spec = component(spec)
            if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
                continue  # the typed check says so
            if family != "encoder":
                found += registry.check(key, family, spec, own=OWN_KEYS.get(pattern, ()))
                continue
            given = parent.get("modality", of_a.get("modality") if isinstance(of_a, dict) else None)
            modality = component(given)
            if modality and modality["name"] in registry.names("modality"):
                found += registry.check(key, family, spec, prefix=f"{modality['name']}/")
                found += _check_shared(key, modality, spec)
    return found + check_probes(data)


def component(spec) -> dict | None:
    """A modality as recipes write it, a name or `{name: ..., option: value}`, in the long form; None for
    anything else."""
    spec = {"name": spec} if isinstance(spec, str) else spec
    return spec if isinstance(spec, dict) and isinstance(spec.get("name"), str) else None


def part_of(family: str, spec) -> type:
    """The class that is registered under the name in `spec`; the contract's own, with its defaults, where
    there is none."""
    name = spec.get("name") if isinstance(spec, dict) else None
    try:
        found = registry.find(family, name) if isinstance(name, str) else None
    except ComponentError:  # which has a message of its own
        found = None
    return found if inspect.isclass(found) else registry.CONTRACTS[family]


def check_probes(data: dict) -> list[str]:
    """Mistakes in the names of probes' results, and in the branches that they look at."""
    found, names = [], []
    branches = list(data["branches"]) if isinstance(data.get("branches"), dict) else ["a", "b"]
    for path, spec, _ in places(data, ["evaluate", "probes", "*"]):
        if not isinstance(spec, dict):
            continue
        key, given = ".".join(path), spec.get("as")
        name = spec.get("name") if given is None else given
        if given is not None and not (isinstance(given, str) and re.fullmatch(r"\w[\w.+-]*", given)):
            found.append(f"{key}.as: expected a name of letters, digits and . _ + -, got {show(given)}.")
        elif isinstance(name, str) and name in names:
            found.append(
                f"{key}: '{name}' is listed twice. Its results would replace each other. Name one of them,"
                f" such as as: {name}_2."
            )
        names.append(name)
        if isinstance(branch := spec.get("branch"), str) and branch not in branches:
            found.append(
                f"{key}.branch: no branch '{branch}'.{nearest(branch, branches)} Branches:"
                f" {', '.join(map(str, branches))}."
            )
    return found


def _check_shared(path: str, modality: dict, encoder: dict) -> list[str]:
    """Mistakes in the options that an encoder has in common with its modality: such as the rate of a sound,
    which a waveform does not tell."""
    try:
        common = registry.shared_options(
            modality, encoder | {"name": f"{modality['name']}/{encoder['name']}"}
        )
    except ComponentError:  # an unknown encoder, which has a message of its own
        return []
    of_modality = f"{path.removesuffix('.encoder')}.modality"
    return [
        f"{path}.{key}: {show(encoder[key])}, but {of_modality}.{key} is {show(value)}. Leave it out: the"
        " encoder takes the modality's."
        for key, value in common.items()
        if key in encoder and encoder[key] != value
    ]


def takes_text(data: dict, keys: list[str]) -> bool:
    """Whether the key of a recipe takes text and nothing else, as far as its component is known."""
    family, (_, spec, parent) = family_of(keys[:-1]), next(places(data, keys[:-1]), ((), None, None))
    try:
        if family and isinstance(spec, dict) and keys[-1] != "name":
            modality = component((parent or {}).get("modality") or (data.get("a") or {}).get("modality"))
            prefix = f"{modality['name']}/" if family == "encoder" and modality else ""
            adapter = options_of(registry.find(family, prefix + spec["name"])).adapters[keys[-1]]
        else:
            adapter = TypeAdapter(section_at(Written, tuple(keys[:-1])).model_fields[keys[-1]].annotation)
        schema = adapter.json_schema()
    except (ComponentError, LookupError, TypeError, AttributeError, PydanticUserError):
        return False
    types = {kind.get("type") for kind in schema.get("anyOf", [schema])}
    return "string" in types and types <= {"string", "null"}


def root_is_a_path(source: dict) -> bool:
    """Whether the source's `root` has to exist; False for one that may be a pattern or the id of a hub."""
    return part_of("source", source).root_is_a_path


def needs_slow_branch(objective) -> str | None:
    """The option of the objective by which it compares with embeddings of earlier batches, or None."""
    return part_of("objective", objective).needs_slow_branch(objective)


# ---- messages ----


def in_words(loc: tuple, error: dict, recipe: type[BaseModel]) -> str:
    """The message for a pydantic error at the keys `loc` of the model `recipe`."""
    if error["type"] == "extra_forbidden":
        known = section_at(recipe, loc[:-1]).model_fields
        return f"unknown key.{nearest(loc[-1], known)} Known: {', '.join(known)}."
    if error["type"] == "missing":
        field = (
            None if len(loc) > 1 and loc[-1] == "name" else section_at(recipe, loc[:-1]).model_fields[loc[-1]]
        )
        return f"missing. Expected {field.description if field else 'the name of a component'}."
    return refused([error], error["input"])


def section_at(section, keys: tuple):
    """The model of the section that `keys` lead to, through optional sections and lists and mappings of
    them."""
    for key in keys:
        inner = (
            section.model_fields[key].annotation
            if inspect.isclass(section) and issubclass(section, BaseModel)
            else typing.get_args(section)[-1]
        )
        section = (
            next((kind for kind in typing.get_args(inner) if kind is not type(None)), inner)
            if type(None) in typing.get_args(inner)
            else inner
        )
    return section
