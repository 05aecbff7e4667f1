"""Branches: view -> modality -> encoder -> representation y -> expander -> embedding z.

JointModel has two, a and b, and an optional predictor a -> b; SharedBranches has named ones, which several
pairs share. Both are called with two views and the number of their pair, and give any two of their branches
as a JointModel: `model.between("video", "audio")`.
"""

# B batch, D representation, E embedding, K latents

import copy

import torch
from torch import Tensor, nn

from vicjoint.batch import Crops
from vicjoint.latents import Choice, check_latents
from vicjoint.options import Count
from vicjoint.parts import Predictor
from vicjoint.registry import build, register, shared_options


class Branch(nn.Module):
    """`modality` and `encoder` are modules; `expander` lists the widths of its layers, the last is the
    embedding's."""

    def __init__(self, modality: nn.Module, encoder: nn.Module, expander: list[int]):
        super().__init__()
        self.modality = modality
        self.encoder = encoder
        self.expander = make_expander(encoder.dim, expander)

    def represent(self, view) -> Tensor:
        """The representation y [B, D] of a raw view, which is what users keep."""
        return self.encoder(self.modality(view))

    def forward(self, view) -> Tensor:
        if isinstance(
            view, Crops
        ):  # z [B crops, E], sample by sample; each size goes through batch norm by itself
            return torch.stack([self(crop) for crop in view], 1).flatten(0, 1)
        return self.expander(self.represent(view))


def make_expander(dim: int, widths: list[int]) -> nn.Sequential:
    """Linear, batch norm, ReLU for each width but the last, which is linear without bias (VICReg, section
    4.2)."""
    layers: list[nn.Module] = []
    for width in widths[:-1]:
        layers += [nn.Linear(dim, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        dim = width
    return nn.Sequential(*layers, nn.Linear(dim, widths[-1], bias=False))


class JointModel(nn.Module):
    """Branches a and b. `weights` of b: own | same (b is a) | ema (b follows a as an exponential moving
    average, no gradient).

    A predictor maps z_a [B, E] to [B, E]; one with `latents` above 1, which it states as an attribute, to [B,
    latents, E]: the model chooses.
    """

    def __init__(
        self,
        a: Branch,
        b: Branch | None,
        weights: str = "own",
        momentum: float = 0.996,
        predictor: nn.Module | None = None,
    ):
        super().__init__()
        self.weights, self.momentum = weights, momentum
        self.a = a
        self.b = {"own": lambda: b, "same": lambda: a, "ema": lambda: copy.deepcopy(a)}[weights]()
        if weights == "ema":
            self.b.requires_grad_(False)
        self.predictor = predictor
        check_latents(self.latents)
        self.choice = Choice(self.latents) if self.latents > 1 else None

    @property
    def latents(self) -> int:
        """Predictions for one z_a; 1: the predictor, where there is one, has no latent."""
        stated = getattr(self.predictor, "latents", 1)
        return stated if isinstance(stated, int) else 1

    @property
    def usage(self) -> Tensor | None:
        """Share of the samples that chose each latent, [K]; None without a latent."""
        return self.choice.usage if self.latents > 1 else None

    @property
    def branches(self) -> dict[str, Branch]:
        return {"a": self.a, "b": self.b}

    def between(self, a: str, b: str) -> "JointModel":
        """The model of the only pair."""
        return self

    def forward(self, view_a, view_b, pair: int = 0) -> tuple[Tensor, Tensor]:
        """Embeddings z_a (after the predictor, where there is one; of several predictions the nearest to z_b)
        and z_b, [B, E] each. There is one pair, number 0."""
        z_a = self.a(view_a)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.weights != "ema"):
            z_b = self.b(view_b)
        if isinstance(view_a, Crops):
            z_b = z_b.repeat_interleave(len(view_a), 0)
        return self.predict(z_a) if self.latents == 1 else self.choice(self.predictions(z_a), z_b), z_b

    def predict(self, z_a: Tensor) -> Tensor:
        """One prediction [B, E] from z_a alone; with a latent, the best guess among them."""
        if self.latents > 1:
            return self.choice.guess(self.predictions(z_a))
        return z_a if self.predictor is None else self.predictor(z_a)

    def predictions(self, z_a: Tensor) -> Tensor:
        """Every prediction, [B, K, E]."""
        if self.latents == 1:
            return self.predict(z_a)[:, None]
        found, expected = self.predictor(z_a), [len(z_a), self.latents, z_a.shape[1]]
        if list(found.shape) != expected:
            raise ValueError(
                f"predictor {type(self.predictor).__name__} states latents={self.latents} and gave"
                f" {list(found.shape)} for z_a {list(z_a.shape)}. Expected {expected}: a prediction for each"
                " latent."
            )
        return found

    @torch.no_grad()
    def after_step(self) -> None:
        """Let the usage of latents, and an ema branch, follow: parameters b <- momentum b + (1 - momentum) a;
        buffers are copied."""
        if self.latents > 1:
            self.choice.after_step()
        if self.weights != "ema":
            return
        for target, source in zip(self.b.parameters(), self.a.parameters()):
            target.lerp_(source, 1 - self.momentum)
        for target, source in zip(self.b.buffers(), self.a.buffers()):
            target.copy_(source)


class SharedBranches(nn.Module):
    """Branches by name, and the pairs (name of a, name of b) that train them in turn. A pair of one branch
    with itself shares its weights."""

    usage = None  # there is no predictor, and so no latent

    def __init__(self, branches: dict[str, Branch], pairs: list[tuple[str, str]]):
        super().__init__()
        for name in branches:
            if hasattr(nn.ModuleDict(), name):
                raise ValueError(
                    f"branches.{name}: torch has another meaning for this name in a module. Choose another"
                    f" one, such as {name}_1."
                )
        self.branches = nn.ModuleDict(branches)
        self.pairs = [
            self.between(*two) for two in pairs
        ]  # a plain list: the weights are registered once, by branch

    def between(self, a: str, b: str) -> JointModel:
        """Two branches as a model of their own, on the same weights, whether or not they are trained
        together."""
        return JointModel(self.branches[a], self.branches[b])

    def forward(self, view_a, view_b, pair: int = 0) -> tuple[Tensor, Tensor]:
        """Embeddings z_a and z_b, [B, E] each, of the views of pair number `pair`."""
        return self.pairs[pair](view_a, view_b)

    def after_step(self) -> None:
        """Nothing follows: every branch has its own weights."""


@register("predictor", "mlp")
class MLP(Predictor):
    """z_a [B, E] -> [B, E]: `layers` linear layers of width `hidden` between, each with batch norm and ReLU.

    latents above 1: z_a [B, E] -> [B, latents, E]. Each value of the latent has a learned vector, which is
    joined to z_a: it is added behind the first linear layer, which is the same as a longer input."""

    def __init__(self, dim: int, /, hidden: Count = 512, layers: Count = 2, latents: Count = 1):
        super().__init__()
        self.net = make_expander(dim, [hidden] * (layers - 1) + [dim])
        self.latents = latents
        if latents > 1:
            self.values = nn.Parameter(torch.randn(latents, self.net[0].out_features))

    def forward(self, z_a: Tensor) -> Tensor:
        if self.latents == 1:
            return self.net(z_a)
        joined = self.net[0](z_a)[:, None] + self.values
        return self.net[1:](joined.flatten(0, 1)).unflatten(0, (len(z_a), self.latents))


def build_model(recipe) -> JointModel | SharedBranches:
    """The model a recipe describes, initialised from torch's current random state."""
    if recipe.pairs:
        for pair in recipe.pairs:
            check_widths(*((f"branches.{name}", recipe.branches[name]) for name in (pair.a, pair.b)))
        branches = {name: build_branch(spec) for name, spec in recipe.branches.items()}
        return SharedBranches(branches, [(pair.a, pair.b) for pair in recipe.pairs])
    a = build_branch(recipe.a)
    weights = recipe.b.weights
    if weights != "own" and modality_spec(recipe.a)["name"] != modality_spec(recipe.b)["name"]:
        raise ValueError(
            f"b.weights: {weights} needs one modality on both branches, got"
            f" '{modality_spec(recipe.a)['name']}' on a and '{modality_spec(recipe.b)['name']}' on b. Use"
            " b.weights=own."
        )
    b = build_branch(recipe.b) if weights == "own" else None
    if b is not None:
        check_widths(("a", recipe.a), ("b", recipe.b))
    predictor = (
        build("predictor", as_spec(recipe.predictor), recipe.a.expander[-1]) if recipe.predictor else None
    )
    return JointModel(a, b, weights, recipe.b.momentum, predictor)


def check_widths(a: tuple, b: tuple) -> None:
    """Raises ValueError where the embeddings of two (key, branch of the recipe) differ in width."""
    (key_a, spec_a), (key_b, spec_b) = a, b
    if spec_a.expander[-1] != spec_b.expander[-1]:
        raise ValueError(
            f"{key_a}.expander ends with {spec_a.expander[-1]} and {key_b}.expander with"
            f" {spec_b.expander[-1]}: the two embeddings must have one width."
        )


def build_branch(spec) -> Branch:
    modality = modality_spec(spec)
    encoder = as_spec(spec.encoder)
    encoder["name"] = f"{modality['name']}/{encoder['name']}"
    return Branch(
        build("modality", modality),
        build("encoder", shared_options(modality, encoder) | encoder),
        list(spec.expander),
    )


def modality_spec(branch) -> dict:
    return {"name": branch.modality} if isinstance(branch.modality, str) else as_spec(branch.modality)


def as_spec(component) -> dict:
    """A recipe's component as a plain `{name: ..., option: ...}`."""
    return dict(component) if isinstance(component, dict) else component.model_dump()


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
