"""The options of components: their bounds, written into annotations, and what messages say about a wrong one.

    class Blur:
        def __init__(self, size: Size = 64, p: Share = 0.5): ...

    spec = {"size": 4, "p": 1}
    options_of(Blur).check(spec, "transform 'blur'")   # {"size": "expected a number at least 8, got 4."}
    spec                                               # {"size": 4, "p": 1.0}

A component's options are the parameters of its constructor; pydantic checks and converts each by its
annotation, and gives its JSON schema. `ComponentOf` marks options that hold components themselves.
"""

import difflib
import functools
import inspect
import operator
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

# ---- bounds ----

Natural = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=8)]
"""Side of an image."""
RateHz = Annotated[int, Field(ge=1000)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]


def _ascending(values):
    if any(low > high for low, high in zip(values, values[1:])):
        raise PydanticCustomError("ascending", "[least, most] with least <= most")
    return values


Ascending = AfterValidator(_ascending)
"""Of a range [least, most]."""


UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def bytes_in(text: str) -> int:
    """The number that "50GB", "200 MB" or "1.5TB" means. Raises ValueError."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)b", text.strip().lower())
    if not parts:
        raise ValueError(f"expected a size such as 50GB, got {show(text)}.")
    return int(float(parts[1]) * UNITS[parts[2]])


def _size(text: str) -> str:
    try:
        bytes_in(text)
    except ValueError:
        raise PydanticCustomError("size", "a size such as 50GB") from None
    return text


ByteSize = Annotated[str, AfterValidator(_size)]


@dataclass(frozen=True)
class ComponentOf:
    """Marks a mapping `{name: ..., option: value}` of an option as a component of `family`, whose registered
    name is `prefix` and that name: `list[Annotated[dict, ComponentOf("transform", prefix="audio/")]]`."""

    family: str
    prefix: str = ""

    def __get_pydantic_json_schema__(self, schema, handler) -> dict:
        return {"component": [self.family, self.prefix]}  # vicjoint/recipe/schema.py fills it in


# ---- options ----


class Options:
    """The options of one component.

    parameters: by name, with their types as a reader knows them, without bounds. adapters: pydantic's, by
    name. components: the marks of those that hold components. takes_any: whether it takes others, too.
    """

    def __init__(self, component: Callable):
        every = inspect.signature(component).parameters.values()
        self.takes_any = any(p.kind is p.VAR_KEYWORD for p in every)
        self.parameters, self.adapters, self.components = {}, {}, {}
        resolved = _annotations(component)
        for p in every:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and not p.name.startswith("_"):
                kind = resolved.get(p.name, Any)
                self.parameters[p.name] = p.replace(annotation=_without_bounds(p.annotation))
                self.adapters[p.name] = _adapter(kind | None if p.default is None else kind)
                for mark in _marks(kind):
                    self.components[p.name] = mark
        self.required = [key for key, p in self.parameters.items() if p.default is p.empty]

    def check(self, spec: dict, title: str, own: Collection[str] = ()) -> dict[str, str]:
        """{option: what is wrong with it}; converts the others in `spec`. title: what messages call the
        component; own: keys in `spec` that are not the component's."""
        found = {}
        for key in [key for key in spec if key not in own]:
            if key in self.adapters:
                try:
                    spec[key] = _converted(self.adapters[key], spec[key])
                except ValidationError as error:
                    found[key] = refused(error.errors(), spec[key])
            elif not self.takes_any:
                known = ", ".join(self.parameters) or "none"
                found[key] = (
                    f"{title} takes no option '{key}'.{nearest(key, self.parameters)} Options: {known}."
                )
        missing = [key for key in self.required if key not in spec]
        return found | {key: f"missing. {title} needs it." for key in missing}


@functools.cache
def options_of(component: Callable) -> Options:
    return Options(component)


def _annotations(component: Callable) -> dict[str, Any]:
    """Annotations by parameter; none where one of them cannot be resolved."""
    try:
        function = component.__init__ if inspect.isclass(component) else inspect.unwrap(component)
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def _adapter(annotation) -> TypeAdapter:
    try:
        return TypeAdapter(annotation)
    except PydanticUserError:  # a type that YAML has no values of anyway
        return TypeAdapter(Any)


def _marks(annotation) -> Iterator[ComponentOf]:
    if isinstance(annotation, ComponentOf):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _marks(inner)


def _without_bounds(annotation):
    """The annotation as a reader would write it who knows no bounds: `float | None`, `list[dict]`."""
    kind, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if kind is Annotated:
        return _without_bounds(inner[0])
    if kind in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, map(_without_bounds, inner))
    return kind[tuple(map(_without_bounds, inner))] if kind in (list, tuple, dict) else annotation


def _converted(adapter: TypeAdapter, value):
    """`value` as the option's type. Python, and so pydantic, counts true as 1, and .nan as a number."""
    converted = adapter.validate_python(value)
    if (_has(value, _is_bool) and not _has(converted, _is_bool)) or _has(converted, _is_nan):
        raise ValidationError.from_exception_data("", [{"type": "float_type", "input": value}])
    return converted


def _has(value, wanted: Callable) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return wanted(value) or any(_has(part, wanted) for part in parts)


def _is_bool(value) -> bool:
    return isinstance(value, bool)


def _is_nan(value) -> bool:
    return isinstance(value, float) and value != value


# ---- messages ----

WORDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a mapping such as {name: ...}",
    "none": "null",
    "path": "a path",
    "missing": "a longer list",
}
BOUNDS = {
    "gt": "above",
    "ge": "at least",
    "lt": "below",
    "le": "at most",
    "multiple_of": "that is a multiple of",
}


def expected(error: dict) -> str:
    """What a pydantic error asked for, in plain words."""
    kind, limits = error["type"], error.get("ctx") or {}
    bounds = [f"{words} {limits[key]}" for key, words in BOUNDS.items() if key in limits]
    if kind == "literal_error":
        return f"one of {limits['expected']}"
    if kind == "string_pattern_mismatch":
        return "a name of letters, digits and . _ + -"
    if kind == "too_short":
        return f"a list of {limits['min_length']} or more"
    if kind == "too_long":
        return f"a list of {limits['max_length']} or fewer"
    return f"a number {bounds[0]}" if bounds else WORDS.get(kind.split("_")[0], error["msg"])


def refused(errors: list[dict], value) -> str:
    """The message for a value with these pydantic errors."""
    words = " or ".join(dict.fromkeys(map(expected, errors)))
    known = re.findall(r"'(\w+)'", words) if errors[0]["type"] == "literal_error" else []
    return f"expected {words}, got {show(value)}.{nearest(value, known)}"


def nearest(name: str, known) -> str:
    """`" Did you mean 'x'?"` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def show(value) -> str:
    """A value as a message shows it, in YAML's words, cut at 80 characters."""
    words = {None: "nothing (null)", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
