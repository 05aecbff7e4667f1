"""Classification without a trained classifier: probe `zero_shot`. Classes are points of the other branch's
embedding space.

    # class names, as text
    evaluate: {probes: [{name: zero_shot, label: group, prompts: ["a picture of {}", "{}"]}]}
    # mean of the other branch's training samples
    evaluate: {probes: [{name: zero_shot, label: digit, branch: b}]}
"""

# N samples, C classes, E embedding

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vicjoint.batch import concatenate
from vicjoint.parts import EvaluationData, Features, Probe, Side, Want
from vicjoint.probes.classify import ACCURACY
from vicjoint.probes.interval import with_intervals
from vicjoint.probes.labels import TOP, chance, known, labels_of, means, named
from vicjoint.probes.ranking import prototypes, ranks
from vicjoint.registry import register

ROWS = ("model", "random_init")


@register("probe", "zero_shot")
class ZeroShot(Probe):
    """The test samples of `branch` are classified, by similarity as in retrieval, by embeddings of their
    classes from the other branch. Classes are those of the column `label` in the training split.

    prompts: texts with a {} for the class's name, for the text branch; the class is the mean embedding of its
    prompts. null: the class is the mean embedding of its training samples. Metrics: accuracy and, with more
    than five classes, top5; equal similarities get the middle rank. Rows: model; random_init: the same
    encoders before training; chance.
    """

    needs = frozenset({"both"})
    scope = "branch"
    refusal = (
        "evaluate.probes: 'zero_shot' compares two modalities of a record, which this pair does not give. Use"
        " pair: {name: cross_modal}, or leave it out."
    )
    explains = ACCURACY

    def __init__(self, label: str = "label", branch: str = "a", prompts: list[str] | None = None):
        if branch not in ("a", "b"):
            raise ValueError(f"zero_shot: branch is '{branch}', expected a or b.")
        if prompts is not None and (not prompts or any("{}" not in prompt for prompt in prompts)):
            raise ValueError(
                f"zero_shot: prompts are {prompts}, expected texts that have {{}} where the class's name"
                " goes, or null."
            )
        self.label, self.branch, self.prompts = label, branch, prompts
        self.other: Side = "b" if branch == "a" else "a"

    def misses(self, data: EvaluationData) -> str | None:
        """Raises ValueError for prompts that nobody reads."""
        if self.prompts and data.pair.readers["ab".index(self.other)].reads != "text":
            raise ValueError(
                f"evaluate.probes: zero_shot: prompts need text on branch {self.other}, whose modality reads"
                f" files. Set branch={self.other}, or prompts: null for the mean of training samples."
            )
        if self.prompts and self.other == "a" and data.pair.conditions:
            return (
                "prompts on branch a have no condition (pair.condition), without which nothing is predicted"
            )
        return labels_of(data, self.label, self.branch).missing(self.label)

    def unused(self, data: EvaluationData) -> str | None:
        return labels_of(data, self.label, self.branch).unused(self.label)

    def wants(self, data: EvaluationData) -> list[Want]:
        test = known(labels_of(data, self.label, self.branch).test)
        wants = [Want(self.branch, "test", test, ROWS, "embedding")]
        if not self.prompts:
            train = known(labels_of(data, self.label, self.other).train)
            wants.append(Want(self.other, "train", train, ROWS, "embedding"))
        return wants

    def measure(self, features: Features) -> Iterator[tuple[str, float]]:
        labels = features.once("labels", lambda: labels_of(features.data, self.label, self.branch))
        queries = features.items(features.wants[0])
        points, kinds = (self._of_prompts if self.prompts else self._of_samples)(features, labels.classes)
        truth = labels.test[queries.places]
        # a class of which the other branch has no training sample cannot be named
        present = torch.isin(truth, kinds)
        own = truth[present][:, None] == kinds
        for row, z in queries.rows.items():
            rank = ranks(z[present.to(z.device)], points[row], lambda part: own[part])
            every = np.full(len(truth), np.inf)
            every[present.numpy()] = rank
            right = {"accuracy": every <= 1} | ({"top5": every <= TOP} if len(kinds) > TOP else {})
            yield from named(row, with_intervals(means(right), len(truth)))
        there = float(present.double().mean())
        yield from named("chance", {name: value * there for name, value in chance(len(kinds)).items()})

    def _of_prompts(self, features: Features, classes: list) -> tuple[dict[str, Tensor], Tensor]:
        """({row: points [C, E]}, class numbers [C])."""
        read = features.data.pair.readers["ab".index(self.other)].read
        raw = [read(prompt.replace("{}", str(name))) for name in classes for prompt in self.prompts]
        found = {}
        for row in ROWS:
            z = features.embed(row, self.other, features.represent(row, self.other, [concatenate(raw)]))
            found[row] = z.view(len(classes), len(self.prompts), -1).mean(1)
        return found, torch.arange(len(classes))

    def _of_samples(self, features: Features, classes: list) -> tuple[dict[str, Tensor], Tensor]:
        of_other = features.once("others", lambda: labels_of(features.data, self.label, self.other))
        items = features.items(features.wants[1])
        number = {name: i for i, name in enumerate(classes)}
        names = [of_other.classes[label] for label in of_other.train[items.places].tolist()]
        labels = torch.tensor([number.get(name, -1) for name in names])
        found = {row: prototypes(z, labels.to(z.device)) for row, z in items.rows.items()}
        return {row: points for row, (points, _) in found.items()}, found["model"][1].cpu()
