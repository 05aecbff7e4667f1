"""An evaluation: all probes of a run on the model as it is, with what never changes kept for the next time.

evaluation = Evaluation(measures, workers=2, limit=TimeLimit(300), device=device)
print(evaluation.cost(model, untrained).words())
results, pictures = evaluation(model, untrained)        # {probe: {row: {metric: number}}}, {probe: arrays}
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from vicjoint import distributed
from vicjoint.batch import to_device
from vicjoint.data import TimeLimit
from vicjoint.model import Model, Two
from vicjoint.parts import EvaluationData, Probe, Split, Want
from vicjoint.probes.features import FeaturesOf, Reader, encoded, progress_bar
from vicjoint.probes.reading import Measure, Own, Part, Views, collate, part_of

TRIED = 8  # records that an estimate of the time reads and encodes
WORTH_TRYING = 512  # views to read or encode from which it is worth that
SPLITS: tuple[Split, ...] = ("test", "train")
QUICK_SECONDS = 5.0  # an evaluation that is estimated to take less says nothing before it starts


@dataclass
class Cost:
    """What an evaluation will take: samples to read, crops of them (epochs included), and seconds, as far as
    a few samples tell."""

    probes: list[str]
    samples: int
    epochs: int
    crops: int
    seconds: float

    def words(self) -> str:
        crops = f" and {self.epochs} epochs of random crops, {self.crops:,} in all" if self.crops else ""
        time = f"{self.seconds:.0f} s" if self.seconds < 100 else f"{self.seconds / 60:.0f} min"
        return (
            f"evaluation ({', '.join(self.probes) or 'no probes'}): {self.samples:,} samples{crops}: about"
            f" {time}"
        )


class Evaluation:
    """Built once for a run. `workers`: processes that may read, where there is much to read."""

    def __init__(self, measures: list[Measure], workers: int, limit: TimeLimit, device: torch.device):
        self.measures, self.reader = measures, Reader(workers, limit, device)
        self._parts: dict[tuple, Part] = {}
        for measure in measures:
            for want in measure.wants:
                self._part(measure.data, want).add(want)

    def _part(self, data: EvaluationData, want: Want) -> Part:
        key = key_of_part(data, want)
        if key not in self._parts:
            self._parts[key] = new_part(data, want)
        return self._parts[key]

    def __call__(self, model: Model, untrained: Model) -> tuple[dict[str, dict], dict[str, dict]]:
        """On all processes at once: they share the reading and the encoding, and then have the same features.
        Raises ValueError where a probe finds nothing to measure."""
        results: dict[str, dict] = {}
        pictures: dict[str, dict] = {}
        cost = self.cost(model, untrained, WORTH_TRYING)
        if cost.seconds > QUICK_SECONDS:
            distributed.say(cost.words())
        total = sum(part.cost + part.crops for part in self._parts.values())
        total += sum(len(own.records) for own in self._to_read())
        with evaluating(model, untrained), self._progress(total):
            for part in self._parts.values():
                part.features = {}
            for measure in self.measures:
                self.reader.bar.set_description_str(f"evaluate: {measure.name}")
                rows = results.setdefault(measure.name, {})
                for key, value in measure.probe.measure(self._features(measure, model, untrained)):
                    if key == "pictures":
                        pictures[measure.name] = value
                    else:
                        row, metric = key.split("/")
                        rows.setdefault(row, {})[metric] = value
        return results, pictures

    def check(self, model: Model, untrained: Model) -> None:
        """Before training. Raises ValueError for what a probe asks of these models in vain."""
        with evaluating(model, untrained):
            for measure in self.measures:
                measure.probe.check(self._features(measure, model, untrained))

    @contextmanager
    def _progress(self, total: int) -> Iterator[None]:
        self.reader.together = distributed.world_size() > 1
        try:
            with progress_bar(total, mininterval=0.5) as bar:
                self.reader.bar = bar
                yield
        finally:
            self.reader.bar, self.reader.together = None, False

    def after(self, probe: Probe, data: EvaluationData, model: Model, untrained: Model) -> FeaturesOf:
        """What a probe sees that looks after an evaluation of these models, in evaluation mode: what is
        encoded already, and the rest read and encoded when it asks. It wants one thing of a part."""
        measure, parts = Measure("", probe, data), {}
        for want in measure.wants:
            part = self._parts.get(key_of_part(data, want))
            if part is None or not part.holds(want):
                part = new_part(data, want)
                part.add(want)
            parts[part_of(want)] = part
        return FeaturesOf(measure, self.reader, parts, models_between(data, model, untrained))

    def _features(self, measure: Measure, model: Model, untrained: Model) -> FeaturesOf:
        parts = {part_of(want): self._part(measure.data, want) for want in measure.wants}
        models = models_between(measure.data, model, untrained)
        return FeaturesOf(measure, self.reader, parts, models)

    @torch.no_grad()
    def cost(self, model: Model, untrained: Model, least: int = 0) -> Cost:
        """Of the next evaluation. Where there are no more than `least` views, reading a few to see how long
        it takes is not worth it, and no time is counted. Nor is what a probe encodes of what it reads by
        itself."""
        cost = Cost([m.name for m in self.measures], 0, 0, 0, 0.0)
        with evaluating(model, untrained):
            for part in self._parts.values():
                cost.samples += part.views
                cost.epochs, cost.crops = cost.epochs + part.epochs, cost.crops + part.crops
                if part.cost + part.crops > least:
                    part.speed = part.speed or self._try(part, models_between(part.data, model, untrained))
                    reading, encoding = part.speed
                    views = part.views if part.kept is None else 0
                    models = 1 if part.fixed else 2
                    cost.seconds += (views + part.crops) * reading
                    cost.seconds += (part.cost + models * part.crops) * encoding
        for own in self._to_read():
            cost.samples += len(own.records)
            cost.seconds += len(own.records) * seconds_to_read(own)
        return cost

    def _to_read(self) -> list[Own]:
        """What probes have yet to read by themselves."""
        found = [
            Own(m, split, self.reader.limit)
            for m in self.measures
            for split in SPLITS
            if m.probe.reads and split not in m.values
        ]
        return [own for own in found if len(own.records)]

    def _try(self, part: Part, models: dict[str, Two]) -> tuple[float, float]:
        """Seconds for a view: to read it, and to encode it by one model."""
        places = part.places if len(part.places) else range(len(part.records))
        views, began = Views(part, self.reader.limit), time.perf_counter()
        chunk = collate([views[int(place), -1] for place in places[:TRIED]])
        reading = time.perf_counter() - began
        if chunk.raw is None:
            return reading / TRIED, 0.0
        raw = to_device(chunk.raw, self.reader.device)
        for _ in range(2):  # the first is a warm-up
            began = time.perf_counter()
            list(encoded(models, "model", part.side, raw, {"representation"}))
        return reading / (TRIED * part.windows), (time.perf_counter() - began) / len(chunk.places)

    def explained(self) -> dict[str, dict[str, list]]:
        """{probe: {metric: [words, which values are better]}}, for the report."""
        return {
            m.name: {name: list(metric) for name, metric in m.probe.explains.items()} for m in self.measures
        }


def key_of_part(data: EvaluationData, want: Want) -> tuple:
    return id(data.source), id(data.pair), data.branches, *part_of(want)


def new_part(data: EvaluationData, want: Want) -> Part:
    """With nothing in it."""
    return Part(data, want.side, want.split, data.records(want.split, want.side), want.spread)


def seconds_to_read(own: Own) -> float:
    """Of one record, by the probe itself; 0 where the first cannot be read."""
    began = time.perf_counter()
    cause = own[0, -1].cause
    return 0.0 if cause else time.perf_counter() - began


def models_between(data: EvaluationData, model: Model, untrained: Model) -> dict[str, Two]:
    return {"model": model.between(*data.branches), "random_init": untrained.between(*data.branches)}


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Models in evaluation mode while entered, and no gradients."""
    before = [m.training for m in models]
    for model in models:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for model, training in zip(models, before):
            model.train(training)
