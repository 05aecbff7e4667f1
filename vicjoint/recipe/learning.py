"""How a branch learns, as its keys say: all of it, its expander alone, adapters (LoRA), or nothing."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from vicjoint.options import show

How = Literal["full", "expander", "lora", "frozen"]


@dataclass(frozen=True)
class Learning:
    """The keys of a branch of these names. lr_factor, weight_decay, layer_decay: of its encoder alone."""

    train: How = "full"
    lora_rank: int = 8
    lr_factor: float = 1.0
    weight_decay: float | None = None
    layer_decay: float = 1.0
    cache: Literal["features"] | None = None

    @property
    def encoder_is_fixed(self) -> bool:
        """Whether training leaves the encoder as it is: evaluation mode, no gradient, no optimizer state."""
        return self.train in ("expander", "frozen")


DEFAULTS = {field.name: field.default for field in fields(Learning)}
OF_ENCODER = ("lr_factor", "weight_decay", "layer_decay")


def check_learning(data: dict, follows: bool) -> list[str]:
    """Mistakes in how the branches of a recipe learn. `follows`: branch b has weights same or ema, and learns
    as a."""
    named = data.get("branches") if isinstance(data.get("branches"), dict) else {}
    branches = {f"branches.{name}": spec for name, spec in named.items()}
    branches |= {side: data[side] for side in ("a", "b") if isinstance(data.get(side), dict)}
    found = []
    for key, branch in branches.items():
        if not isinstance(branch, dict):
            continue
        given = {
            name: branch[name] for name in DEFAULTS if branch.get(name, DEFAULTS[name]) != DEFAULTS[name]
        }
        if follows and key == "b":
            found += [
                f"b.{name}: {show(value)} is for a branch with weights of its own; b follows a (weights:"
                f" {branch.get('weights')}). Set a.{name}, or b.weights=own."
                for name, value in given.items()
            ]
        else:
            found += check_branch(key, branch.get("train", "full"), given)
    return found + check_something_learns(data, follows)


def check_branch(key: str, train: str, given: dict[str, Any]) -> list[str]:
    found = []
    if train in ("expander", "frozen"):
        found += [
            f"{key}.{name}: {show(given[name])} is of an encoder that learns, and {key}.train is {train}."
            " Leave it out."
            for name in OF_ENCODER
            if name in given
        ]
    elif "cache" in given:
        found.append(
            f"{key}.cache: {show(given['cache'])} keeps what the encoder gives, which training changes"
            f" ({key}.train: {train}). Set {key}.train=expander, or leave it out."
        )
    if "lora_rank" in given and train != "lora":
        found.append(f"{key}.lora_rank: only used with {key}.train=lora. Leave it out.")
    return found


def check_something_learns(data: dict, follows: bool) -> list[str]:
    """Pairs of two frozen branches, of which nothing could be trained."""
    still = lambda branch: isinstance(branch, dict) and branch.get("train") == "frozen"
    a, b, branches = data.get("a"), data.get("b"), data.get("branches")
    if still(a) and (follows or still(b)) and not data.get("predictor"):
        other = (
            f"b follows it (weights: {b.get('weights')})" if follows and isinstance(b, dict) else "b is too"
        )
        return [f"a.train: frozen, and {other}: nothing is left to train. Set a.train=expander."]
    pairs = data.get("pairs") if isinstance(branches, dict) and isinstance(data.get("pairs"), list) else []
    return [
        f"pairs.{number}: branches {pair['a']} and {pair['b']} are frozen: nothing is left to train. Set"
        f" branches.{pair['a']}.train=expander."
        for number, pair in enumerate(pairs or ())
        if isinstance(pair, dict)
        and still(branches.get(pair.get("a")))
        and still(branches.get(pair.get("b")))
    ]
