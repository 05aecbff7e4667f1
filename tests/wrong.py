"""Wrong options, as a recipe or `registry.build` gives them to a component."""

import re

import pytest

from vicjoint.registry import ComponentError, build


def refused(family: str, name: str, options: dict, message: str = "") -> None:
    """Asserts that building says `message`, or for a value outside of what an annotation allows the option's
    key, what was expected and what was got."""
    with pytest.raises((ComponentError, ValueError)) as caught:
        build(family, {"name": name, **options})
    said = str(caught.value)
    if not (message and re.search(message, said)):
        assert any(
            re.search(rf"\b{key}\b.*: (expected .+, got|no |\w+ '.*takes no)", said) for key in options
        ), said
