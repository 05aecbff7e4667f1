"""What tests of probes share: models of any two encoders, and a measurement of one probe alone."""

import pytest
import torch
from torch import nn

from vicjoint.data import TimeLimit
from vicjoint.model import ALL, Branch, Model
from vicjoint.parts import EvaluationData, Modality, Pair, Predictor, Probe, Reading, Source
from vicjoint.probes.evaluation import Evaluation, Measure
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.training.build import why_not


def points(row: dict) -> dict:
    """A row's metrics without their intervals."""
    return {name: value for name, value in row.items() if not name.endswith(("_low", "_high"))}


class Bare(Branch):
    """A branch whose embedding is the representation."""

    def __init__(self, encoder: nn.Module, modality: Modality | None = None):
        nn.Module.__init__(self)
        self.learning = ALL
        self.modality, self.encoder, self.expander = modality or Modality(), encoder, nn.Identity()


class Given(Predictor):
    """A predictor that is a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z_a):
        return self.function(z_a)


class Listed(Source):
    """Records as they are given."""

    def __init__(self, train=(), test=()):
        self.train, self.test = list(train), list(test)


def model_of(a: Branch, b: Branch, predictor: Predictor | None = None) -> Model:
    return Model({"a": a, "b": b}, [("a", "b")], predictor=predictor)


def bound(pair: Pair, source: Source, readers: tuple[Modality, Modality] | None = None) -> Pair:
    pair.bind(Reading(readers or (Modality(), Modality()), source))
    return pair


def data_of(source: Source, pair: Pair, branches=("a", "b")) -> EvaluationData:
    return EvaluationData(branches, source, pair)


def missing(probe: Probe, source: Source, pair: Pair) -> str | None:
    """Why a run leaves the probe out, or None. Raises ValueError where the pair does not give what it
    needs."""
    return why_not(probe, data_of(source, pair))


def evaluation_of(probes: dict[str, Probe], data: EvaluationData, workers=0, limit=None) -> Evaluation:
    measures = [Measure(name, probe, data) for name, probe in probes.items()]
    return Evaluation(measures, workers, limit or TimeLimit(), torch.device("cpu"))


def measured(
    probe: Probe, model: Model, untrained: Model, source: Source, pair: Pair, branches=("a", "b")
) -> dict:
    """{row: {metric: number}} in the order in which the probe gives them, and its pictures under that
    name."""
    evaluation = evaluation_of({"probe": probe}, data_of(source, pair, branches))
    results, pictures = evaluation(model, untrained)
    return results["probe"] | ({"pictures": pictures["probe"]} if pictures else {})


def refused(probe: str, options: dict, message: str) -> None:
    """Asserts that a recipe in which a probe has these options is refused, in these words."""
    branch = {"modality": "image", "encoder": {"name": "conv"}, "expander": [16]}
    recipe = {
        "name": "refused",
        "source": {"name": "sample_videos"},
        "pair": {"name": "next_frame"},
        "a": branch,
        "b": branch,
        "objective": {"name": "vicreg"},
        "optim": {"name": "adamw", "lr": 1e-3, "schedule": {"name": "cosine", "warmup_steps": 1}},
        "train": {"steps": 2, "batch_size": 8},
        "evaluate": {"probes": [{"name": probe, **options}]},
    }
    with pytest.raises(RecipeError, match=rf"has 1 mistake:\s+evaluate.probes.0.{message}"):
        load_recipe(recipe)
