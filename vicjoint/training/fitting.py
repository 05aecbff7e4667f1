"""What modalities learn from training records before the first step (vicjoint.fitted): standardisation.

fit_modalities(parts)     # of a run that begins
share_fitted(parts)       # what a checkpoint holds of it, for the model as it was before its first step
"""

from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from vicjoint import distributed
from vicjoint.data.readers import Readers
from vicjoint.data.time_limit import TimeLimit
from vicjoint.files.guard import printable
from vicjoint.fitted import Fitted
from vicjoint.parts import Modality, Raw, Side
from vicjoint.probes.reading import OfRecords
from vicjoint.recipe import RecipeError
from vicjoint.training.build import Parts, Task

MOST = 100_000  # records, drawn evenly
AT_ONCE = 64  # records that a process is given
ALONE = 1_000  # up to so many, processes that read would cost more time than they save


class OfTraining(OfRecords):
    """The raw view of a record of one branch, as in evaluation; of several values in a cell the first."""

    def __init__(self, task: Task, side: Side, timeout: float | None):
        super().__init__(task.evaluated.records("train", side), TimeLimit(timeout))
        self.pair, self.side = task.pair, side

    def of(self, number: int, epoch: int) -> Raw:
        return self.pair.views(self.records[number], self.side)[0].raw


def fit_modalities(parts: Parts) -> None:
    """Let each modality that asks for it see training records: every process does the same, and the first
    one's numbers count. Raises RecipeError where `fit` refuses them."""
    done: set[int] = set()
    for name, branch in parts.model.branches.items():
        modality, leader = branch.modality, parts.model.ema.get(name)
        if not is_fitted(modality) or id(modality) in done:
            continue
        done.add(id(modality))
        if leader is not None:
            modality.load_state_dict(parts.model.branches[leader[0]].modality.state_dict())
            continue
        try:
            said = fit(parts, name, modality)
        except ValueError as error:
            raise RecipeError(f"{parts.recipe.branches[name].key}.{error}") from None
        distributed.same_as_first(modality.buffers())
        distributed.say(f"{name}: {said}")
    share_fitted(parts)


def is_fitted(modality: Modality) -> bool:
    return isinstance(modality, Fitted) and modality.fits


def fit(parts: Parts, name: str, modality: Fitted) -> str:
    task = next(task for task in parts.tasks if name in (task.spec.a, task.spec.b))
    side: Side = "a" if task.spec.a == name else "b"
    reads = OfTraining(task, side, parts.recipe.data.timeout)
    wanted = np.array([i for i, record in enumerate(reads.records) if modality.fits_on(record)], int)
    chosen = wanted[np.arange(min(len(wanted), MOST)) * len(wanted) // max(1, min(len(wanted), MOST))]
    places = [(int(number), -1) for number in chosen]
    workers = parts.recipe.data.workers if len(places) > ALONE else 0
    bad: list[int] = []
    said = modality.fit(raws_of(reads, places, workers, bad, f"standardisation of {name}"), len(places))
    left_out = f"; {len(bad):,} that cannot be read are left out" if bad else ""
    drawn = f", {MOST:,} of {len(wanted):,} records drawn evenly" if len(chosen) < len(wanted) else ""
    return printable(f"{said}{drawn}{left_out}")


def raws_of(
    reads: OfTraining, places: list[tuple[int, int]], workers: int, bad: list[int], what: str
) -> Iterator[Raw]:
    """One after the other; numbers of records that cannot be read go to `bad`."""
    batches = [places[i : i + AT_ONCE] for i in range(0, len(places), AT_ONCE)]
    bar = tqdm(
        total=len(places),
        desc=what,
        unit="record",
        delay=1,
        leave=False,
        disable=distributed.rank() > 0,
        dynamic_ncols=True,
    )
    with bar, Readers(reads, batches, list, workers) as readers:
        for read in readers:
            yield from (found.value for found in read if found.cause is None)
            bad += [found.number for found in read if found.cause is not None]
            bar.update(len(read))


def share_fitted(parts: Parts) -> None:
    """The untrained model standardises as the trained one does."""
    for name, branch in parts.model.branches.items():
        if is_fitted(branch.modality):
            parts.untrained.branches[name].modality.load_state_dict(branch.modality.state_dict())
