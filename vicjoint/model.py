"""Branches: view -> modality -> encoder -> representation y -> expander -> embedding z.

z_a, z_b = model(view_a, view_b, task)          # a task trains two of the model's branches, by number
two = model.between("video", "audio")           # any two of them, for evaluation
y_BD = two.represent("a", raw)
"""

# B batch, D representation, E embedding, K latents

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.profiler import record_function

from vicjoint.agreeing import (
    begin_as,
    check_horizon,
    check_widths,
    conditions_of,
    local_expanders,
    predictor_of,
    width_of,
)
from vicjoint.batch import Boxed, Conditioned, Crops, Encoded, Following, Futures, WithCells, unconditioned
from vicjoint.conditions import Conditioning
from vicjoint.latents import Choice, check_latents
from vicjoint.optim import Rate, Rated
from vicjoint.parts import Modality, Predictor, Side
from vicjoint.recipe import BranchSpec, Learning, Recipe
from vicjoint.registry import build, shared_options
from vicjoint.tokens import Tokens, each_step, steps_of, token_encoder, tokens_of, y_and_map_of
from vicjoint.towers import add_adapters, depths, merge_adapters

ALL = Learning()


class Branch(Rated):
    """`modality` and `encoder` are modules; `expander` lists the widths of its layers, the last is the
    embedding's. learning: what of it learns, and how fast. What does not stays in evaluation mode, whatever
    `train` says, and has no gradient. local_expander: likewise, for each cell of the encoder's map, where the
    objective compares cells. Raises ValueError where the encoder has none."""

    def __init__(
        self,
        modality: Modality,
        encoder: nn.Module,
        expander: list[int],
        learning: Learning = ALL,
        local_expander: list[int] | None = None,
    ):
        super().__init__()
        self.modality = modality
        self.encoder = encoder
        self.expander = make_expander(encoder.dim, expander)
        self.local_expander = None
        if local_expander:
            self.local_expander = make_expander(token_encoder(encoder).token_dim, local_expander)
        self.learning = learning
        if learning.train == "lora":
            add_adapters(encoder, learning.lora_rank)
        for module in self.fixed():
            module.requires_grad_(False).eval()

    def expanders(self) -> list[nn.Module]:
        """That of y, and of cells where there is one."""
        return [self.expander] + ([] if self.local_expander is None else [self.local_expander])

    def fixed(self) -> list[nn.Module]:
        """What training leaves as it is."""
        if self.learning.train == "frozen":
            return [self.encoder, *self.expanders()]
        if self.learning.train == "lora":  # beside what has no gradient: running statistics
            return [module for module in self.encoder.modules() if isinstance(module, _BatchNorm)]
        return [self.encoder] if self.learning.encoder_is_fixed else []

    def merge(self) -> None:
        """After training, for use: adapters become part of the weights."""
        if self.learning.train == "lora":
            merge_adapters(self.encoder)

    def train(self, mode: bool = True) -> "Branch":
        super().train(mode)
        for module in self.fixed():
            module.eval()
        return self

    def rates(self) -> Iterator[tuple[nn.Parameter, Rate]]:
        """Those of the encoder: the expander, which begins at random, learns at the full rate."""
        own = self.learning
        depth = dict(depths(self.encoder)) if own.layer_decay != 1 else {}
        for p in self.encoder.parameters():
            yield p, Rate(own.lr_factor * own.layer_decay ** depth.get(p, 0), own.weight_decay)

    def represent(self, raw) -> Tensor:
        """The representation y [B, D] of a raw view, which is what users keep; or of what was encoded
        already. It knows nothing of a condition."""
        raw = unconditioned(raw)
        if isinstance(raw, Encoded):
            return raw.y
        with without_gradient(self.learning.encoder_is_fixed):
            return self.encoder(self.modality(raw))

    def steps(self, raw) -> Tensor:
        """y of each step of time, [B, T, D]. Raises ValueError where the encoder does not give them."""
        with without_gradient(self.learning.encoder_is_fixed):
            return steps_of(self.encoder, self.modality(unconditioned(raw)))

    def tokens(self, raw) -> Tokens:
        """y before it is pooled, float32 and with a mask. Raises ValueError where the encoder gives none."""
        return tokens_of(self.encoder, self.modality(unconditioned(raw)))

    def with_cells(self, raw: Boxed) -> WithCells:
        """Embeddings of a view and of the cells of its map. Raises ValueError where the encoder gives no map
        of rows and columns."""
        if self.local_expander is None:
            raise ValueError("this branch has no expander for cells: its objective compares whole views.")
        with without_gradient(self.learning.encoder_is_fixed):
            y, cells, grid = y_and_map_of(self.encoder, self.modality(raw.view))
        if cells.shape[2] != (width := self.local_expander[0].in_features):
            raise ValueError(
                f"encoder {type(self.encoder).__name__}: its map has {cells.shape[2]} channels, expected"
                f" {width}, its token_dim (which is its dim where it states none). Choose an encoder whose y"
                " is the mean of its map, such as resnet18, or state token_dim."
            )
        with without_gradient(self.learning.train == "frozen"):
            embedded = self.local_expander(cells.flatten(0, 1)).unflatten(0, cells.shape[:2])
            return WithCells(self.expander(y), embedded, raw.places(grid))

    def forward(self, raw, steps: bool = False) -> Tensor | WithCells:
        if isinstance(raw, Boxed):
            return self.with_cells(raw)
        if isinstance(raw, Crops):
            # z [B crops, E], sample by sample; each size goes through batch norm by itself
            return torch.stack([self(crop, steps) for crop in raw], 1).flatten(0, 1)
        raw = raw.rows() if isinstance(raw, Following) else raw
        y = self.steps(raw) if steps else self.represent(raw)
        with without_gradient(self.learning.train == "frozen"):
            return each_step(self.expander, y)


def without_gradient(fixed: bool) -> contextlib.AbstractContextManager:
    return torch.no_grad() if fixed else contextlib.nullcontext()


def make_expander(dim: int, widths: list[int]) -> nn.Sequential:
    """Linear, batch norm, ReLU for each width but the last, which is linear without bias (VICReg, section
    4.2)."""
    layers: list[nn.Module] = []
    for width in widths[:-1]:
        layers += [nn.Linear(dim, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        dim = width
    return nn.Sequential(*layers, nn.Linear(dim, widths[-1], bias=False))


class Model(nn.Module):
    """Branches by name, and the tasks (name of a, name of b) that train two of them each. One module under
    two names shares its weights.

    ema: {name of a branch: (the branch that it follows, momentum)}; it has no gradient and moves after each
    step. predictor: maps z_a [B, E] to [B, E]; one with `latents` above 1 to [B, latents, E], of which the
    model chooses. conditions: see `vicjoint.parts.Pair`; the predictor is then called with a condition, too.
    prior: scores [B, latents] of z_a, the logarithms of the predictions' probabilities up to a constant.
    """

    def __init__(
        self,
        branches: dict[str, Branch],
        tasks: list[tuple[str, str]],
        ema: dict[str, tuple[str, float]] | None = None,
        predictor: Predictor | None = None,
        conditions: Sequence[bool] = (),
        prior: nn.Module | None = None,
    ):
        super().__init__()
        self.branches, self.tasks, self.ema = nn.ModuleDict(), tasks, ema or {}
        for name, branch in branches.items():
            try:
                self.branches[name] = branch
            except KeyError:
                raise ValueError(
                    f"branches.{name}: torch has another meaning for this name in a module. Choose another"
                    f" one, such as {name}_1."
                ) from None
        for name in self.ema:
            self.branches[name].requires_grad_(False)
        self.predictor = predictor
        self.conditioning = Conditioning(conditions) if conditions else None
        self.latents = 1 if predictor is None else predictor.latents
        self.looks_back = predictor is not None and predictor.looks_back
        check_latents(self.latents)
        self.choice, self.prior = None, None
        if predictor is not None and self.latents > 1:
            self.choice = Choice(self.latents, predictor.choice == "annealed")
            self.prior = prior
        self.several = self.choice is not None and (self.choice.annealed or self.prior is not None)
        """Whether in training it gives `Futures` for z_a."""

    @property
    def usage(self) -> Tensor | None:
        """Share of the samples that chose each latent, [K]; None without a latent."""
        return None if self.choice is None else self.choice.usage

    def between(self, a: str, b: str) -> "Two":
        """Two branches, whether or not they are trained together."""
        return Two(self, a, b)

    def forward(
        self, view_a, view_b, task: int = 0
    ) -> tuple[Tensor | WithCells | Futures, Tensor | WithCells]:
        """Embeddings z_a (after the predictor, where there is one; of several predictions the nearest to z_b,
        or all, as `Futures`) and z_b, [B, E] each; of `Boxed` views those of cells, too. Of K targets that
        are `Following`, [B K, E], sample by sample, z_a the predictions of each."""
        a, b = self.tasks[task]
        condition = view_a.condition if isinstance(view_a, Conditioned) else None
        clip, after = unconditioned(view_a), view_b.view if isinstance(view_b, Following) else view_b
        films = isinstance(clip, Tensor) and isinstance(after, Tensor)
        if self.looks_back and self.branches[a] is self.branches[b] and films:
            # targets are further frames of the clip: batch norm sees them together, as one space needs it
            after = after if isinstance(view_b, Following) else after[:, :, None]
            with record_function("forward a"):
                z = self.branches[a](torch.cat([clip, after], 2), True)
            z_a, z_b = z[:, : clip.shape[2]], z[:, clip.shape[2] :].flatten(0, 1)
        else:
            with record_function("forward a"):
                z_a = self.branches[a](view_a, self.looks_back)
            with torch.set_grad_enabled(torch.is_grad_enabled() and b not in self.ema):
                with record_function("forward b"):
                    z_b = self.branches[b](view_b)
        if isinstance(view_a, Crops):
            z_b = z_b.repeat_interleave(len(view_a), 0)
        if isinstance(view_b, Following):
            steps = self.rollout(z_a, view_b.horizon, condition)
            return steps[:, -view_b.targets :].flatten(0, 1), z_b
        if isinstance(z_a, WithCells):
            return z_a._replace(z=self._predicted(z_a.z, z_b.z, condition)), z_b
        return self._predicted(z_a, z_b, condition), z_b

    def _predicted(self, z_a: Tensor, z_b: Tensor, condition: Tensor | None) -> Tensor | Futures:
        if self.choice is None:
            return self.predict(z_a, condition)
        predictions = self.predictions(z_a, condition)
        if not self.several:
            return self.choice(predictions, z_b)
        weights = self.choice.weigh(predictions, z_b)
        z = (weights.to(predictions.dtype)[:, :, None] * predictions).sum(1)
        return Futures(z, predictions, weights, self.scores(z_a.detach()))

    def scores(self, z_a: Tensor) -> Tensor:
        """Logarithms of the predictions' probabilities up to a constant, [B, K]; 0 without a prior. Of z_a
        [B, T, E], where the predictor looks back, the last step counts."""
        if self.prior is None:
            return z_a.new_zeros(len(z_a), self.latents)
        return self.prior(z_a[:, -1] if self.looks_back else z_a)

    @torch.no_grad()
    def probabilities(self, z_a: Tensor) -> Tensor:
        """Of each prediction from z_a [B, E]: those of the prior, or else how often each latent was used in
        training; [B, K] float32."""
        if self.choice is None:
            return torch.ones(len(z_a), 1, device=z_a.device)
        if self.prior is None:
            return self.choice.usage.float().expand(len(z_a), -1)
        return self.scores(z_a).float().softmax(1)

    def futures(self, view_a, task: int = 0) -> tuple[Tensor, Tensor]:
        """What may come of a view of branch a: predictions [B, K, E], and their probabilities [B, K]."""
        z_a = self.branches[self.tasks[task][0]](view_a, self.looks_back)
        condition = view_a.condition if isinstance(view_a, Conditioned) else None
        return self.predictions(z_a, condition), self.probabilities(z_a)

    def begin_step(self, done: float) -> None:
        """Before a step of training: which share of the run is over."""
        if self.choice is not None:
            self.choice.begin_step(done)

    def predict(self, z_a: Tensor, condition: Tensor | None = None) -> Tensor:
        """One prediction [B, E] from z_a (of a predictor that looks back [B, T, E]) and, where there is one,
        the condition [B, C]; with a latent, the best guess among them."""
        if self.choice is not None:
            return self.choice.guess(self.predictions(z_a, condition), self.probabilities(z_a))
        if self.predictor is None:
            return z_a
        z = self._call(self.predictor, z_a, condition)
        return z[:, 0] if self.predictor.at_once else z

    def rollout(self, z_a: Tensor, steps: int, conditions: Tensor | None = None) -> Tensor:
        """Predictions of so many steps [B, steps, E], each but the first from the one before it, which takes
        the place of z_a, or where the predictor looks back of the oldest in it; conditions: [B, steps, C],
        where there are such. Raises ValueError where all are predicted at once, and these are fewer."""
        if self.predictor is not None and self.predictor.at_once:
            z = self._call(self.predictor, z_a, conditions)
            if steps > z.shape[1]:
                raise ValueError(
                    f"{steps} steps are asked for, and the predictor gives {z.shape[1]} (pair.horizon). Ask"
                    f" for {z.shape[1]} or fewer, or train with a longer horizon."
                )
            return z[:, :steps]
        found = []
        for step in range(steps):
            found.append(self.predict(z_a, None if conditions is None else conditions[:, step]))
            z_a = torch.cat([z_a[:, 1:], found[-1][:, None]], 1) if self.looks_back else found[-1]
        return torch.stack(found, 1)

    def _call(self, predictor: Predictor, z_a: Tensor, condition: Tensor | None) -> Tensor:
        """Raises ValueError where there is a condition and none is given, or the other way."""
        if self.conditioning is None and condition is None:
            return predictor(z_a)
        if self.conditioning is None or condition is None:
            raise ValueError(
                "the predictor "
                + ("takes no condition, and the pair gives one." if condition is not None else WITHOUT)
            )
        return predictor(z_a, self.conditioning(condition))

    def predictions(self, z_a: Tensor, condition: Tensor | None = None) -> Tensor:
        """Every prediction, [B, K, E]."""
        if self.choice is None:
            return self.predict(z_a, condition)[:, None]
        found = self._call(self.predictor, z_a, condition)
        expected = [len(z_a), self.latents, z_a.shape[-1]]
        if list(found.shape) != expected:
            raise ValueError(
                f"predictor {type(self.predictor).__name__} states latents={self.latents} and gave"
                f" {list(found.shape)} for z_a {list(z_a.shape)}. Expected {expected}: a prediction for each"
                " latent."
            )
        return found

    @torch.no_grad()
    def after_step(self, taken: float | Tensor = 1.0) -> None:
        """Let the usage of latents and the ema branches follow: parameters b <- momentum b + (1 - momentum)
        a; buffers are copied. taken: 0 leaves the parameters as they are; a tensor [] on their device."""
        if self.choice is not None:
            self.choice.after_step()
        for name, (leader, momentum) in self.ema.items():
            branch, led = self.branches[name], self.branches[leader]
            share = (1 - momentum) * taken
            for target, source in zip(branch.parameters(), led.parameters()):
                target.lerp_(source, share.to(target.dtype) if isinstance(share, Tensor) else share)
            for target, source in zip(branch.buffers(), led.buffers()):
                target.copy_(source)


PRIOR_WIDTH = 256  # of the one hidden layer between z_a and the scores of predictions
WITHOUT = "was trained with a condition (pair.condition), without which there is no prediction."


class Two:
    """Branches a and b of a model, as evaluations see them: raw view -> y -> z."""

    def __init__(self, model: Model, a: str, b: str):
        self.model, self.a, self.b = model, model.branches[a], model.branches[b]
        self.latents = model.latents

    def side(self, side: Side) -> Branch:
        return self.a if side == "a" else self.b

    def represent(self, side: Side, raw) -> Tensor:
        """y [B, D]."""
        return self.side(side).represent(raw)

    def steps(self, side: Side, raw) -> Tensor:
        """What `embed` takes: y [B, D], or of each step of a, where the predictor looks back, [B, T, D]."""
        looks_back = side == "a" and self.model.looks_back
        return self.side(side).steps(raw) if looks_back else self.represent(side, raw)

    def embed(self, side: Side, y: Tensor, condition: Tensor | None = None) -> Tensor:
        """z [B, E] of what `steps` gives; of branch a after the predictor, where there is one, which may need
        a condition [B, C]."""
        z = each_step(self.side(side).expander, y)
        return self.model.predict(z, condition) if side == "a" else z

    def rollout(self, y_a: Tensor, steps: int, conditions: Tensor | None = None) -> Tensor:
        """Predictions [B, steps, E] from what `steps` gives of a; see Model."""
        return self.model.rollout(each_step(self.a.expander, y_a), steps, conditions)

    def predictions(self, y_a: Tensor, condition: Tensor | None = None) -> Tensor:
        """Every prediction [B, K, E] from what `steps` gives of a."""
        return self.model.predictions(each_step(self.a.expander, y_a), condition)

    def probabilities(self, y_a: Tensor) -> Tensor:
        """Of every prediction, [B, K]."""
        return self.model.probabilities(each_step(self.a.expander, y_a))

    def simple(self, side: Side, raw) -> Tensor | None:
        """What the branch's modality calls simple features, [B, K], or None."""
        return self.side(side).modality.simple_features(unconditioned(raw))

    def baseline(self, side: Side) -> str:
        """What the modality calls them."""
        return self.side(side).modality.baseline


def build_model(recipe: Recipe, given: Mapping[str, dict[str, Tensor]] | None = None) -> Model:
    """The model a recipe describes, initialised from torch's current random state. given: {branch: the
    tensors `encoder...` and `modality...` that its encoder begins with}. Raises ValueError where they do not
    fit."""
    for task in recipe.tasks:
        check_widths(recipe.branches[task.a], recipe.branches[task.b])
    local = local_expanders(recipe)
    branches: dict[str, Branch] = {}
    ema: dict[str, tuple[str, float]] = {}
    for name, spec in recipe.branches.items():
        if spec.weights == "own":
            branches[name] = build_branch(spec, (given or {}).get(name), local.get(name))
            continue
        leader = recipe.branches["a"]
        if leader.modality["name"] != spec.modality["name"]:
            raise ValueError(
                f"{spec.key}.weights: {spec.weights} needs one modality on both branches, got"
                f" '{leader.modality['name']}' on a and '{spec.modality['name']}' on b. Use b.weights=own."
            )
        branches[name] = branches["a"] if spec.weights == "same" else copy.deepcopy(branches["a"])
        if spec.weights == "ema":
            ema[name] = "a", spec.momentum
    conditions = conditions_of(recipe)
    check_horizon(recipe)
    predictor, prior = predictor_of(recipe, len(conditions)), None
    if predictor is not None and predictor.prior and predictor.latents > 1:
        prior = make_expander(width_of(recipe), [PRIOR_WIDTH, predictor.latents])
    tasks = [(task.a, task.b) for task in recipe.tasks]
    return Model(branches, tasks, ema, predictor, conditions, prior)


def build_branch(
    spec: BranchSpec, given: dict[str, Tensor] | None, local_expander: list[int] | None
) -> Branch:
    options = {**spec.encoder, "name": f"{spec.modality['name']}/{spec.encoder['name']}"}
    options = shared_options(spec.modality, options) | options
    modality, encoder = build("modality", spec.modality), build("encoder", options)
    if given is not None:
        begin_as(modality, encoder, given, spec.key)
    return Branch(modality, encoder, spec.expander, spec.learning, local_expander)


def current_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's tensors by today's names: before 0.2, those of a recipe of one pair were `a...` and
    `b...`."""
    return {f"branches.{name}" if name.startswith(("a.", "b.")) else name: x for name, x in state.items()}


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
