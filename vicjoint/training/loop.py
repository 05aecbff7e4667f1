"""The loop: recipe in, run folder out. `train(recipe, overrides)` is what `python -m vicjoint.run` calls.

Writes recipe.yaml, environment.json, metrics.jsonl, evaluation.jsonl (while training), evaluation.json,
spectrum.json, pictures.npz, bad_samples.jsonl, checkpoints/, explorer/ and report.html into the run folder.
"""

import contextlib
import ctypes
import errno
import math
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.profiler import record_function

from vicjoint import distributed, metrics
from vicjoint.batch import Batch, z_of
from vicjoint.data import BadDataError, Quarantine, ReaderError, Readers
from vicjoint.data.readers import refuse_in_a_reader
from vicjoint.data.reading import sources_of
from vicjoint.files.cache import cache_root
from vicjoint.files.write import replaced, write_json
from vicjoint.model import Model, count_parameters
from vicjoint.recipe import Recipe, RecipeError, load_recipe
from vicjoint.registry import ComponentError
from vicjoint.report.page import write_report
from vicjoint.report.tables import table, told_apart
from vicjoint.training.build import Parts, build_parts, try_one_record
from vicjoint.training.checkpoint import CheckpointError
from vicjoint.training.exploring import write_explorers
from vicjoint.training.fitting import fit_parts
from vicjoint.training.folder import best_step, only_one, open_run, write_environment
from vicjoint.training.keeping import keep_features
from vicjoint.training.log import MetricsLog
from vicjoint.training.parallel import shard, whole, wrap
from vicjoint.training.profiling import profiled
from vicjoint.training.resuming import resume
from vicjoint.training.saving import Saver, saver_of
from vicjoint.training.steps import Steps, TrainingError
from vicjoint.training.stopping import EVALUATION, Interrupted, Stopped, StopSignal, seed_everything
from vicjoint.training.trackers import Trackers, check_trackers

MALLOPT_TRIM_THRESHOLD, MALLOPT_MMAP_THRESHOLD = -1, -3  # of malloc.h

# what a process says that is stopped by another one's readers
UNREAD = "another process cannot read on, and says why; a checkpoint is saved"
OWN_ERRORS = (Stopped, TrainingError, CheckpointError, ReaderError, BadDataError)  # they say all already


def train(recipe, overrides=(), profile: int = 0) -> Path:
    """Train what a recipe (file, bare name or mapping) with overrides (`["train.steps=10"]`) describes;
    returns the run folder. A folder given by `out` that holds a run of the same recipe is resumed. `profile`:
    steps whose time is taken apart. Raises Stopped, with a checkpoint saved, where a signal asked for it.
    """
    refuse_in_a_reader()
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    keep_freed_memory()
    distributed.start(recipe.train.timeout)
    try:
        parts = build_parts(recipe)
        try_one_record(parts)
        distributed.from_first(lambda: check_trackers(recipe.train.trackers))
        folder = distributed.from_first(lambda: open_run(recipe))
        with (
            only_one(folder) if distributed.rank() == 0 else contextlib.nullcontext(),
            StopSignal() as signal,
        ):
            try:
                run_in(parts, folder, signal, profile)
            except (*OWN_ERRORS, RecipeError, ComponentError):
                raise
            except (OSError, RuntimeError, ValueError, MemoryError) as error:
                raise in_words(error, parts.recipe, folder, signal.asked) from error
    finally:
        distributed.stop()
    return folder


def keep_freed_memory() -> None:
    """Ask glibc to keep blocks of up to 32 MiB, its largest choice, that a step frees for the next step. It
    would give them back to the system and fetch them page by page in every step, which took a fifth of the
    processor time of a small model. Other C libraries go without."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((MALLOPT_MMAP_THRESHOLD, 2**25), (MALLOPT_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(option, value)


def run_in(parts: Parts, folder: Path, signal: StopSignal, profile: int) -> None:
    """From the folder's last checkpoint to the report."""
    shard(parts)
    begin = resume(parts, folder)
    if not begin:
        fit_parts(parts)
    if distributed.rank() == 0:
        describe(parts, folder)
    steps, batch_size, names = parts.steps, parts.recipe.train.batch_size, branch_names(parts)["pairs"]
    with Trackers(parts.recipe, folder, begin) as trackers, saver_of(parts, folder, begin) as saver:
        if any(spec.learning.cache for spec in parts.recipe.branches.values()):
            keep(parts, folder, begin, signal, saver)
        with (
            MetricsLog(folder, begin, steps, batch_size, names, trackers) as log,
            profiled(folder, begin, steps, profile) as stepped,
        ):
            fit(parts, folder, begin, log, signal, stepped, saver)
        try:
            with signal.at_once(), whole(parts.model, parts.untrained):
                results = finish(parts, folder, steps, parts.recipe.evaluate.last)
        except Interrupted:  # the last step's checkpoint is saved
            raise Stopped(stopped_at(steps, folder)) from None
        trackers.evaluation(steps, results)


def keep(parts: Parts, folder: Path, begin: int, signal: StopSignal, saver: Saver) -> None:
    """Compute the features that training reads. A signal does not wait for the end."""
    try:
        with signal.at_once(), whole(parts.model):
            keep_features(parts)
    except Interrupted:  # what is written is kept
        saver.save_now(begin)
        raise Stopped(stopped_at(begin, folder)) from None
    except OSError as error:
        raise TrainingError(
            f"features cannot be written below {cache_root()}: {error}. Make room, or set VICJOINT_CACHE to"
            " another folder; then the same command goes on."
        ) from error


def in_words(error: Exception, recipe: Recipe, folder: Path, asked: bool) -> Exception:
    """What the system or another process is to blame for, as an error whose message says all; any other error
    as it is."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TrainingError(
            f"{folder} cannot be written: {error.strerror}. Its checkpoints are as they were. Make room, then"
            f" give the same command again (out={folder}) to go on."
        )
    if isinstance(error, OSError) and error.strerror:
        return TrainingError(
            f"{error.filename or folder}: {error.strerror}. When that is mended, the same command with"
            f" out={folder} goes on from the last checkpoint."
        )
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return TrainingError(
            f"there is too little memory ({first_line(error)}). Lower train.batch_size, or raise"
            " train.accumulate, which keeps the batch."
        )
    if str(error).startswith("DataLoader worker"):  # one whose end the readers did not see in time
        return TrainingError(
            f"a process that read data ended unexpectedly ({error}). Where memory is short,"
            f" lower data.workers. The same command with out={folder} goes on."
        )
    if distributed.is_lost(error):
        of = f"process {distributed.rank()} of {distributed.world_size()}"
        said = (
            f"{of}: another process is gone, or did not answer within train.timeout={recipe.train.timeout:g}"
            f" s ({str(error).splitlines()[0]}). The same command with out={folder} goes on from the last"
            " checkpoint; torchrun --max-restarts=N does so by itself."
        )
        # the first process has saved before it left
        return Stopped(said) if asked and distributed.rank() > 0 else TrainingError(said)
    return TrainingError(f"{type(error).__name__} at {place_of(error)}: {error}")


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def place_of(error: Exception) -> str:
    """file:line where it was raised, or where a library was called that raised it: in the program, or in a
    user's encoder."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    return f"{(own or frames)[-1].filename}:{(own or frames)[-1].lineno}"


def stopped_at(step: int | None, folder: Path) -> str:
    after = "" if step is None else f" after step {step}"
    return (
        f"stopped by a signal{after}; a checkpoint is saved. Run the same recipe with out={folder} to go on."
    )


def describe(parts: Parts, folder: Path) -> None:
    """What is about to be trained: a file in the run folder, and a line where an objective has something to
    say of its weights."""
    terms = dict.fromkeys(term for t in parts.tasks for term in t.objective.terms)
    trained = {
        "source": "; ".join(sources_of(parts.tasks)),
        "unused": "; ".join(parts.unused) or None,
        "weights_from": {name: begin.hash for name, begin in parts.begins.items()},
        "parameters": parameters(parts.model),
        "terms": list(terms),
        "metrics": parts.evaluation.explained(),
        **branch_names(parts),
    }
    write_environment(folder, parts.recipe, trained)
    for name, spec in parts.recipe.branches.items():
        if spec.learning.train == "frozen":
            print(f"branch {name} is frozen: its expander, too, stays as it was initialised")
        weights = (spec.learning.weights_from, spec.encoder.get("weights"))
        if spec.weights == "own" and spec.learning.encoder_is_fixed and not any(weights):
            print(
                f"note: branch {name} does not learn ({spec.key}.train: {spec.learning.train}), and its"
                f" encoder begins at random. Name trained weights: {spec.key}.weights_from=RUN"
            )
    for t in parts.tasks:
        if said := t.objective.describe(parts.recipe.branches[t.spec.a].expander[-1]):
            print(f"{t.name}: {said}" if len(parts.tasks) > 1 else said)


def branch_names(parts: Parts) -> dict[str, dict[str, tuple[str, str]]]:
    """What the two branches of each task and of each probe are called where they are shown."""
    return {
        "pairs": {t.name: told_apart(t.spec.a, t.spec.b) for t in parts.tasks},
        "probes": {m.name: told_apart(*m.data.branches) for m in parts.evaluation.measures},
    }


def fit(
    parts: Parts,
    folder: Path,
    begin: int,
    log: MetricsLog,
    signal: StopSignal,
    stepped: Callable[[], None],
    saver: Saver,
) -> None:
    """Train from step `begin` to the recipe's last one; `stepped` is called after each. Raises Stopped, after
    saving, where a signal asked for it."""
    recipe = parts.recipe
    quarantines = quarantine(parts, folder)
    steps = Steps(parts, wrap(parts), folder, begin, log, saver)
    evaluated = distributed.from_first(lambda: log.evaluated(begin))
    parts.model.train()

    with parts.batches(recipe.data.workers, begin, parts.steps) as batches:
        for step in range(begin, parts.steps + 1):
            # once in a while: evaluate, then save, so that a checkpoint never lacks the lines before it
            best = False
            if step == parts.steps or due(step, recipe.evaluate.every) or due(step, recipe.checkpoint.every):
                steps.settle()
            if due(step, recipe.evaluate.every) and step < parts.steps and not (step == begin and evaluated):
                best = evaluate_while_training(parts, folder, step, log, signal, saver)
            if step > begin and (due(step, recipe.checkpoint.every) or step == parts.steps or best):
                saver.save(step)
            if step == parts.steps:
                break

            # one step
            began = time.perf_counter()
            task, _ = parts.turn(step)
            batch, found = read(batches, folder, step, signal, saver, steps)
            waited = time.perf_counter() - began
            quarantines[task.source_name].add(found)
            parts.limit.learn(task.number, found)

            steps.take(step, task, batch, began, waited)
            steps.settle(steps.ahead)
            stepped()


def due(step: int, every: int | None) -> bool:
    return step > 0 and bool(every) and step % every == 0


def quarantine(parts: Parts, folder: Path) -> dict[str, Quarantine]:
    """{source: its bad samples so far}; which of them were late is not tried again."""
    path, most = folder / "bad_samples.jsonl", parts.recipe.data.max_bad_fraction
    records: Counter[str] = Counter()
    for t in parts.tasks:
        records[t.source_name] = max(records[t.source_name], len(t.source.train))
    found = {name: Quarantine(path, name, number, most) for name, number in records.items()}
    for t in parts.tasks:
        parts.limit.learn(t.number, list(found[t.source_name].causes.items()))
    return found


def read(
    batches: Readers, folder: Path, step: int, signal: StopSignal, saver: Saver, steps: Steps
) -> tuple[Batch, list[tuple[str, str]]]:
    """(the batch of a step, the bad samples that all processes found). Where a signal asked to stop, or
    reading fails for good, what was learnt is saved first."""
    batch, bad, unread = None, [], None
    with record_function("waiting for data"):
        try:
            batch, bad = next(batches)
        except ReaderError as error:
            unread = error
    some_bad, asked, over, unsaved = distributed.anywhere(
        bool(bad), signal.asked, unread is not None, saver.failed
    )
    if unsaved:
        saver.wait()
    if batch is None or asked or over:
        steps.settle()
        saver.save_now(step)
        raise unread or (Stopped(stopped_at(step, folder)) if asked else TrainingError(UNREAD))
    return batch, sum(distributed.gather_objects(bad), []) if some_bad else []


def evaluate_while_training(
    parts: Parts, folder: Path, step: int, log: MetricsLog, signal: StopSignal, saver: Saver
) -> bool:
    """Evaluate, write it down, and say whether this was the best so far. A signal does not wait for the end:
    what is not written down is done again."""
    saver.before_evaluation(step)
    try:
        with signal.at_once(), whole(parts.model, parts.untrained):
            results = evaluate(parts)[0]
    except Interrupted:
        saver.save_now(step)
        raise Stopped(stopped_at(step, folder)) from None
    log.evaluation(step, results)
    parts.model.train()
    if distributed.rank() > 0 or not parts.recipe.checkpoint.best:
        return False
    try:
        return best_step(folder, parts.recipe.checkpoint.best) == step
    except KeyError as error:
        raise TrainingError(error.args[0]) from None


# ---- evaluation ----


def evaluate(parts: Parts) -> tuple[dict, dict]:
    """({probe: {row: {metric: number}}}, {probe: pictures}) of the model as it is."""
    # the same model gives the same numbers, whenever asked
    seed_everything(parts.recipe.train.seed, EVALUATION)
    distributed.same_as_first(parts.model.buffers())
    found = parts.evaluation(parts.model, parts.untrained)
    distributed.barrier()
    return found


def finish(parts: Parts, folder: Path, step: int, last: bool = True) -> dict:
    """The last evaluation, of the model after so many steps, its files, the report, and the table on the
    terminal; returns its results. `last`: False leaves the evaluation for later."""
    results, pictures = evaluate(parts) if last else ({}, {})
    if distributed.rank() == 0:
        write_json(folder / "spectrum.json", final_spectra(parts))
        if last:
            write_json(folder / "evaluation.json", results)
        else:
            print(f"not evaluated (evaluate.last: false): python -m vicjoint.evaluate {folder}")
        if pictures:
            arrays = {f"{probe}/{name}": x for probe, shown in pictures.items() for name, x in shown.items()}
            with replaced(folder / "pictures.npz") as file:
                np.savez_compressed(file, **arrays)
        show(parts, results, step)
        if last:
            write_explorers(parts, folder)
        print(f"report: {write_report(folder)}")
    distributed.barrier()
    return results


def show(parts: Parts, results: dict, step: int) -> None:
    """Every probe's table on the terminal."""
    branches = branch_names(parts)["probes"]
    for probe, rows in results.items() if distributed.rank() == 0 else ():
        print(f"\n{probe} after {step} steps\n{table(rows, branches[probe])}")


@torch.no_grad()
def final_spectra(parts: Parts) -> dict[str, list[float]]:
    """Covariance spectrum of each branch's embeddings over about 512 training samples, in evaluation mode; of
    a branch that several tasks train, over the first one's samples."""
    spectra: dict[str, list[float]] = {}
    parts.model.eval()
    for t in parts.tasks:
        records = max(2, min(len(t.source.train), 512 // t.pair.samples_per_record))
        count = math.ceil(records / t.records_per_batch)
        read = parts.batches_of(t, count, min(records, t.records_per_batch))
        on_device = (batch.to(parts.device) for batch, _ in read)
        z = zip(*(map(z_of, parts.model(batch.a, batch.b, t.number)) for batch in on_device))
        for branch, values in zip((t.spec.a, t.spec.b), z):
            whole = torch.cat([value.float().cpu() for value in values])
            spectra.setdefault(branch, metrics.spectrum(whole).tolist())
    return spectra


def parameters(model: Model) -> dict[str, dict[str, int]]:
    """Parameter counts, {branch: {encoder: n, expander: n}}."""
    return {
        name: {
            "encoder": count_parameters(branch.encoder),
            "expander": sum(map(count_parameters, branch.expanders())),
        }
        for name, branch in model.branches.items()
    }
