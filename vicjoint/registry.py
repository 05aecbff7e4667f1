"""Name -> class or function, per family. Recipes speak in names; this is where a name finds its code.

    @register("source", "video_folder")           # any family
    class VideoFolder: ...

    @register_encoder("clip", "conv_gru")         # encoders are keyed by (modality, name)
    class ConvGRU(nn.Module): ...

A component's options are the keyword parameters of its constructor; nothing else declares them.
"""

import difflib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Collection
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from vicjoint.options import nearest, options_of, show
from vicjoint.parts import Modality, Objective, Pair, Predictor, Probe, Source

FAMILIES = (
    "modality",
    "source",
    "pair",
    "transform",
    "objective",
    "encoder",
    "predictor",
    "optimizer",
    "schedule",
    "probe",
)

# The modules and packages whose import fills the registry. Order is layer order.
BUILT_IN = (
    "vicjoint.transforms",
    "vicjoint.modalities",
    "vicjoint.sources",
    "vicjoint.samples",
    "vicjoint.objectives",
    "vicjoint.model",
    "vicjoint.predictors",
    "vicjoint.optim",
    "vicjoint.pairs",
    "vicjoint.probes",
)

# What a component of a family has to inherit; encoders, transforms, optimizers and schedules are called for
# what they give.
CONTRACTS = {
    "source": Source,
    "modality": Modality,
    "pair": Pair,
    "objective": Objective,
    "predictor": Predictor,
    "probe": Probe,
}

MOST_NAMES = 20  # in a message

_components: dict[str, dict[str, Callable]] = {family: {} for family in FAMILIES}


class ComponentError(ValueError):
    """A name that is unknown, registered twice, or an option that its component does not take."""


def some(known: list[str]) -> str:
    """Names for a message; of very many only the first."""
    more = (
        f", ... ({len(known)} in all: python -m vicjoint.run --list)" if len(known) > MOST_NAMES + 3 else ""
    )
    return ", ".join(known[:MOST_NAMES] if more else known) + more or "none"


def register(family: str, name: str) -> Callable:
    """Decorator: make a class or function known as `name` in `family`. Encoders: name is 'modality/name'."""
    if family not in _components:
        raise ComponentError(
            f"no family '{family}'.{nearest(family, FAMILIES)} Families: {', '.join(FAMILIES)}"
        )

    def add(component: Callable) -> Callable:
        known = _components[family].get(name)
        if known is not None and _origin(known) != _origin(component):
            raise ComponentError(
                f"{family} '{name}' is registered twice: by {_origin(known)} and by {_origin(component)}."
                " Rename one of them."
            )
        if inspect.isclass(component):
            check_contract(family, name, component, component)
        _components[family][name] = component
        return component

    return add


def check_contract(family: str, name: str, component: Callable, given: type) -> None:
    """Raises ComponentError where a class, registered or returned by a registered function, is not what its
    family has to inherit (vicjoint/parts.py)."""
    contract = CONTRACTS.get(family)
    if contract and not issubclass(given, contract):
        raise ComponentError(
            f"{family} '{name}' ({_origin(component)}) is a {given.__name__}, which does not inherit"
            f" vicjoint.parts.{contract.__name__}. Write class {given.__name__}({contract.__name__}): its"
            " docstrings say what a part of this family has, and its defaults serve for the rest."
        )


def register_encoder(modality: str, name: str) -> Callable:
    """Decorator for an encoder class, or a function that returns a module.

    The module states its representation's width as `dim` (set in `__init__`) and maps the modality's view to
    y [B, dim]. One that also gives what it pools inherits vicjoint.tokens.TokenEncoder. Raises
    ComponentError when (modality, name) is taken by other code.
    """
    return register("encoder", f"{modality}/{name}")


def any_of_main() -> bool:
    """Whether a component is defined in the program's main module, a user's script."""
    return any(c.__module__ == "__main__" for known in _components.values() for c in known.values())


def _origin(component: Callable) -> str:
    return f"{inspect.getsourcefile(inspect.unwrap(component))}:{component.__qualname__}"


def names(family: str) -> list[str]:
    load_built_in()
    return sorted(_components[family])


def find(family: str, name: str) -> Callable:
    """The component registered as `name`. Raises ComponentError with the nearest known name."""
    load_built_in()
    known = _components[family]
    if name in known:
        return known[name]
    if family == "encoder" and "/" in name:
        return _find_encoder(*name.split("/", 1))
    raise ComponentError(f"no {family} '{name}'.{nearest(name, known)} Known: {some(sorted(known))}.")


def _find_encoder(modality: str, name: str) -> Callable:
    for accepted in accepted_by(modality):
        if (found := _components["encoder"].get(f"{accepted}/{name}")) is not None:
            return found
    known = list_encoders(modality)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean '{modality}/{close[0]}'?" if close else ""
    raise ComponentError(f"no encoder '{modality}/{name}'.{hint} Known for {modality}: {some(known)}.")


def accepted_by(modality: str) -> tuple[str, ...]:
    """The modalities whose encoders a branch of this one can use, its own first."""
    return (modality, *_class_of(_components["modality"].get(modality)).accepts)


def _class_of(modality: Callable | None) -> type[Modality]:
    """The class that a modality's facts stand in; those of one that a function builds are the defaults."""
    return modality if inspect.isclass(modality) and issubclass(modality, Modality) else Modality


def options(component: Callable) -> dict[str, inspect.Parameter]:
    """The options a component takes: its constructor's parameters, with their types but without bounds. Those
    before `/` or with an underscore name are given by code, not by recipes."""
    return options_of(component).parameters


def check(path: str, family: str, spec: dict, prefix: str = "", own: Collection[str] = ()) -> list[str]:
    """Mistakes in a component `{name: ..., option: value}` and in those inside of it, each with its path;
    converts its options in `spec`. Its registered name is `prefix` and the name; `own`: keys in it that are
    not the component's."""
    name = spec.get("name")
    if not isinstance(name, str):
        return [f"{path}.name: expected the name of a {family}, got {show(name)}."]
    try:
        known = options_of(find(family, prefix + name))
    except ComponentError as error:
        return [f"{path}.name: {error}"]
    wrong = known.check(spec, f"{family} '{prefix}{name}'", ("name", *own))
    found = [f"{path}.{key}: {words}" for key, words in wrong.items()]
    for key, inner in known.components.items():
        value = spec.get(key) if key not in wrong else None
        parts = {"": value} if isinstance(value, dict) else {}
        if isinstance(value, list):
            parts = {f".{i}": part for i, part in enumerate(value)}
        for place, part in parts.items():
            found += check(f"{path}.{key}{place}", inner.family, part, inner.prefix)
    return found


def build(family: str, spec: dict, *args) -> Any:
    """Build `{name: ..., option: value}`, as recipes write it; `args` come from code. Raises ComponentError
    with all that is wrong with the name and the options."""
    component, spec = find(family, spec["name"]), dict(spec)
    if mistakes := check(family, family, spec):
        raise ComponentError("\n".join(mistakes))
    name = spec.pop("name")
    made = component(*args, **spec)
    if not inspect.isclass(component):
        check_contract(family, name, component, type(made))
    return made


def shared_options(modality: dict, encoder: dict) -> dict[str, Any]:
    """Options that the encoder of a branch has in common with its modality, which names them in `shared`:
    {option: the modality's value}. Both as recipes write them, the encoder's name with the modality's before
    it. Raises ComponentError for unknown names.
    """
    of_modality = find("modality", modality["name"])
    known, common = options(of_modality), options(find("encoder", encoder["name"]))
    return {
        key: modality.get(key, known[key].default) for key in _class_of(of_modality).shared if key in common
    }


def list_encoders(modality: str) -> list[str]:
    """Names of the encoders that branch views of this modality can use, sorted."""
    load_built_in()
    accepted = accepted_by(modality)
    return sorted(
        {key.split("/", 1)[1] for key in _components["encoder"] if key.split("/", 1)[0] in accepted}
    )


def build_encoder(modality: str, name: str, **options):
    """An encoder module by name, e.g. `build_encoder("clip", "conv_gru", width=16)`; its `dim` is the width
    of y [B, dim]."""
    return build("encoder", {"name": f"{modality}/{name}", **options})


# ---- loading: the project's own modules, every file of every encoders/ folder, and a recipe's `imports:`
# ----

_loaded = False


def load_built_in() -> None:
    """Import everything that registers itself: once, on first use (and in each spawned worker)."""
    global _loaded
    if _loaded:
        return
    _loaded = True  # set first: a component's module may ask the registry while it loads
    try:
        for module in BUILT_IN:
            importlib.import_module(module)
        load_encoder_folders()
    except BaseException:
        _loaded = False
        raise


OWN_ENCODERS = Path(__file__).resolve().parents[1] / "encoders"
# what a file has that registers something; others in a folder of this name are not vicjoint's business
REGISTERS = re.compile(
    r"^[ \t]*(from|import)[ \t]+vicjoint\b.*^[ \t]*@?[\w.]*\bregister(_encoder)?\(", re.M | re.S
)


def load_encoder_folders() -> None:
    """Import the files that register something of the shipped folder `encoders` and of the user's own
    ./encoders, as one package. A project may have such a folder for other ends: its other files, and its
    __init__.py, are not run. Raises ComponentError for a file that fails."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        # `python script.py` and pytest do not put the working folder on the path
        sys.path.append(str(Path.cwd()))
    # a checkout beside an installation: only one of the two runs
    others = [
        Path(entry).resolve() for entry in sys.path if not Path(entry, "vicjoint", "registry.py").exists()
    ]
    there = dict.fromkeys([OWN_ENCODERS, *(folder / "encoders" for folder in others)])
    folders = [folder for folder in there if folder.is_dir()]
    spec = ModuleSpec("encoders", None, is_package=True)
    package = sys.modules.setdefault("encoders", importlib.util.module_from_spec(spec))
    package.__path__ = list(map(str, folders))  # the shipped ones come first
    found: dict[str, Path] = {}
    for file in (file for folder in folders for file in encoder_files(folder)):
        name = file.parent.name if file.stem == "__init__" else file.stem
        if name in found:
            raise ComponentError(
                f"{file} has the same file name as {found[name]}, so one would hide the other. Rename yours,"
                f" e.g. my_{name}.py."
            )
        found[name] = file
        load_encoder_file(name, file)


def encoder_files(folder: Path) -> list[Path]:
    """The files, and packages, of a folder that register something."""
    files = sorted([*folder.glob("[!_]*.py"), *folder.glob("*/__init__.py")])
    return [file for file in files if REGISTERS.search(file.read_text(encoding="utf-8", errors="replace"))]


def load_encoder_file(name: str, file: Path) -> None:
    try:
        importlib.import_module(f"encoders.{name}")
    except ComponentError:
        raise
    except (Exception, SystemExit) as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)
        ]
        place = f"{file}:{lines[-1]}" if lines else file
        raise ComponentError(
            f"{place}: {type(error).__name__}: {error}. vicjoint imports this file since it lies in a folder"
            " encoders/ and registers something. Mend it, or run in another folder."
        ) from error


def need(modules: list[str], user: str, extra: str) -> list:
    """Import optional libraries when they are first used. Raises ComponentError that says how to install what
    is missing."""
    found = []
    for module in modules:
        try:
            with warnings.catch_warnings():
                # what libraries say about each other while they load is not for our users
                warnings.simplefilter("ignore")
                found.append(importlib.import_module(module))
        except (
            ImportError,
            OSError,
        ) as error:  # OSError: one without its C library, as soundfile without libsndfile
            raise ComponentError(
                f"{user} needs {module.split('.')[0]} ({str(error).splitlines()[0]}): pip install"
                f" 'vicjoint[{extra}]'"
            ) from None
    return found


def load_imports(modules: list[str]) -> None:
    """Import the modules named by a recipe's `imports:` key."""
    load_built_in()
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ComponentError(
                f"imports: cannot import '{module}' ({error}). Expected an installed package or a module"
                f" below {Path.cwd()}."
            ) from None
