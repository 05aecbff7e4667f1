"""Classification without a trained classifier: probe `zero_shot`. Classes are points of the other branch's
embedding space.

evaluate: {probes: [{name: zero_shot, label: group, prompts: ["a picture of {}", "{}"]}]}       # class names,
as text evaluate: {probes: [{name: zero_shot, label: digit, branch: b}]}                                 #
mean of the other branch's training samples
"""

# N samples, C classes, E embedding

import torch
from torch import Tensor

from vicjoint.batch import concatenate, to_device
from vicjoint.parts import Probe
from vicjoint.probes.classify import TOP
from vicjoint.probes.classify import chance as chance_of
from vicjoint.probes.frozen import Evaluating, Reading, embed, represent, splits
from vicjoint.probes.ranking import prototypes, ranks
from vicjoint.registry import register

OTHER = {"a": "b", "b": "a"}


@register("probe", "zero_shot")
class ZeroShot(Probe):
    """The test samples of `branch` are classified, by similarity as in retrieval, by embeddings of their
    classes from the other branch. Classes are those of the column `label` in the training split.

    prompts: texts with a {} for the class's name, for the text branch; the class is the mean embedding of its
    prompts. null: the class is the mean embedding of its training samples. Metrics: accuracy and, with more
    than five classes, top5; equal similarities get the middle rank. Rows: model; random_init: the same
    encoders before training; chance.
    """

    def __init__(self, label: str = "label", branch: str = "a", prompts: list[str] | None = None):
        if branch not in OTHER:
            raise ValueError(f"zero_shot: branch is '{branch}', expected a or b.")
        if prompts is not None and (not prompts or any("{}" not in prompt for prompt in prompts)):
            raise ValueError(
                f"zero_shot: prompts are {prompts}, expected texts that have {{}} where the class's name"
                " goes, or null."
            )
        self.label, self.branch, self.prompts = label, branch, prompts

    def misses(self, source, pair) -> str | None:
        """Why this source cannot be probed, or None. Raises ValueError for a pair of the wrong kind."""
        if not hasattr(pair, "plain_all"):
            raise ValueError(
                "evaluate.probes: 'zero_shot' compares two modalities of a record, which this pair does not"
                " give. Use pair: {name: cross_modal}, or leave it out."
            )
        other = OTHER[self.branch]
        if self.prompts and pair.modalities["ab".index(other)].reads != "text":
            raise ValueError(
                f"evaluate.probes: zero_shot: prompts need text on branch {other}, whose modality reads"
                f" files. Set branch={other}, or prompts: null for the mean of training samples."
            )
        _, test, classes = splits(source, self.label, pair.workers, self.branch)
        if len(classes) < 2 or not test.known.any():
            return (
                f"it needs two classes or more, and test samples of them, in '{self.label}' of the records;"
                f" found {len(classes)} classes."
            )
        return None

    @torch.no_grad()
    def __call__(self, model, untrained, source, pair, device):
        _, test, classes = splits(source, self.label, pair.workers, self.branch)
        models = {"model": model, "random_init": untrained}
        mine, theirs = (
            {row: embed(m, branch) for row, m in models.items()}
            for branch in (self.branch, OTHER[self.branch])
        )
        with Evaluating(model, untrained):
            queries, places = represent(mine, test.of, Reading(pair, self.branch), test.places, device)
            points, kinds = (
                self._of_prompts(theirs, pair, classes, device)
                if self.prompts
                else self._of_samples(theirs, source, pair, classes, device)
            )
        truth = test.labels[places]
        present = torch.isin(
            truth, kinds
        )  # a class of which the other branch has no training sample cannot be named
        own = truth[present][:, None] == kinds
        for row, z in queries.items():
            rank = ranks(z[present.to(z.device)], points[row], lambda part: own[part])
            yield f"{row}/accuracy", float((rank <= 1).sum()) / len(truth)
            if len(kinds) > TOP:
                yield f"{row}/top5", float((rank <= TOP).sum()) / len(truth)
        yield from (
            (f"chance/{metric}", value * float(present.double().mean()))
            for metric, value in chance_of(len(kinds)).items()
        )

    def _of_prompts(self, encoders: dict, pair, classes: list, device) -> tuple[dict[str, Tensor], Tensor]:
        """({row: points [C, E]}, class numbers [C])."""
        read = pair.modalities["ab".index(OTHER[self.branch])].read
        raw = to_device(
            concatenate(
                [read(prompt.replace("{}", str(name))) for name in classes for prompt in self.prompts]
            ),
            device,
        )
        kinds = torch.arange(len(classes))
        found = {
            row: encode(raw).float().view(len(classes), len(self.prompts), -1).mean(1)
            for row, encode in encoders.items()
        }
        return found, kinds

    def _of_samples(
        self, encoders: dict, source, pair, classes: list, device
    ) -> tuple[dict[str, Tensor], Tensor]:
        other = OTHER[self.branch]
        train, _, names = splits(source, self.label, pair.workers, other)
        z, places = represent(encoders, train.of, Reading(pair, other), train.places, device)
        number = {name: i for i, name in enumerate(classes)}
        labels = torch.tensor([number.get(names[label], -1) for label in train.labels[places].tolist()])
        found = {row: prototypes(y, labels.to(y.device)) for row, y in z.items()}
        return {row: points for row, (points, _) in found.items()}, found["model"][1].cpu()
