"""Which embeddings can be compared: those of one space.

check_space(index.metadata, {"branch": "b", "space": "embedding", "dim": 256, "model": "3f2a90"}, "a query")

Facts are those in an index's metadata: `branch`, `space` ("representation" or "embedding"), `dim`, and
`model`, a hash of the weights. Representations of one branch are a space, embeddings of all branches of a
model are another.
"""

from collections.abc import Mapping
from typing import Any


class SpaceError(ValueError):
    """Embeddings that cannot be compared; the message says why, and what to do."""


def check_space(index: Mapping[str, Any], other: Mapping[str, Any], name: str) -> None:
    """Raises SpaceError where embeddings of other facts, those of `name`, are not of the space of an
    index."""
    if index["model"] != other["model"]:
        raise SpaceError(
            f"{name}: the index was made with other weights: those of {made_by(index)}, and here are"
            f" {made_by(other)}. Take the run, or with --step the checkpoint, that made the index; or embed"
            " its items again with these."
        )
    if index["space"] != other["space"]:
        raise SpaceError(
            f"{name}: the index holds the space '{index['space']}', and here is '{other['space']}'. Embed"
            f" both with --space {index['space']}."
        )
    if index["space"] != "embedding" and index["branch"] != other["branch"]:
        raise SpaceError(
            f"{name}: the index holds representations of branch '{index['branch']}', which those of branch"
            f" '{other['branch']}' cannot be compared with. Embed with --space embedding, where branches"
            " meet."
        )
    if index["dim"] != other["dim"]:
        raise SpaceError(
            f"{name}: embeddings of width {other['dim']}, the index has width {index['dim']}. Embed its items"
            " again."
        )


def made_by(facts: Mapping[str, Any]) -> str:
    """A model, in a message: its run, step and hash, as far as they are known."""
    step = f" at step {facts['step']}" if facts.get("step") is not None else ""
    return f"{facts.get('run') or 'a run'}{step} (model {facts['model']})"
