"""The loop: recipe in, run folder out. `train(recipe, overrides)` is what `python -m vicjoint.run` calls.

Writes recipe.yaml, environment.json, metrics.jsonl, evaluation.jsonl (while training), evaluation.json,
spectrum.json, pictures.npz, bad_samples.jsonl, checkpoints/ and report.html into the run folder.
"""

import contextlib
import errno
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vicjoint import data, distributed, metrics
from vicjoint.accumulate import backward
from vicjoint.training.build import Parts, build_parts, try_one_record
from vicjoint.training.checkpoint import CheckpointError
from vicjoint.recipe import Recipe, load_recipe
from vicjoint.model import as_spec, count_parameters
from vicjoint.training.nonfinite import Watch
from vicjoint.optim import set_learning_rate
from vicjoint.data.readers import ReaderError
from vicjoint.report.page import write_report
from vicjoint.training.resuming import resume, save
from vicjoint.training.folder import (
    MetricsLog,
    best_step,
    only_one,
    open_run,
    replaced,
    table,
    told_apart,
    write_environment,
    write_json,
)
from vicjoint.training.stopping import EVALUATION, TRAINING, Interrupted, Stopped, StopSignal, seed_everything

HEALTH_EVERY = 20  # steps of a pair between its health lines in metrics.jsonl


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why."""


OWN_ERRORS = (Stopped, TrainingError, CheckpointError, ReaderError, data.BadDataError)  # they say all already


def train(recipe, overrides=()) -> Path:
    """Train what a recipe (file, bare name or mapping) with overrides (`["train.steps=10"]`) describes;
    returns the run folder. A folder given by `out` that holds a run of the same recipe is resumed. Raises
    Stopped, with a checkpoint saved, where a signal asked for it.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    distributed.start(recipe.train.timeout)
    try:
        parts = build_parts(recipe)
        try_one_record(parts)
        folder = distributed.from_first(lambda: open_run(recipe))
        with (
            only_one(folder) if distributed.rank() == 0 else contextlib.nullcontext(),
            StopSignal() as signal,
        ):
            try:
                run_in(parts, folder, signal)
            except OWN_ERRORS:
                raise
            except (OSError, RuntimeError) as error:
                raise in_words(error, parts.recipe, folder, signal.asked) from error
    finally:
        distributed.stop()
    return folder


def run_in(parts: Parts, folder: Path, signal: StopSignal) -> None:
    """From the folder's last checkpoint to the report."""
    if distributed.rank() == 0:
        describe(parts, folder)
    start = resume(parts, folder)
    with MetricsLog(folder, start[0], parts.steps, parts.recipe.train, branch_names(parts)["pairs"]) as log:
        fit(parts, folder, start, log, signal)
    try:
        with signal.at_once():
            finish(parts, folder)
    except Interrupted:  # the last step's checkpoint is saved
        raise Stopped(stopped_at(parts.steps, folder)) from None


def in_words(error: Exception, recipe: Recipe, folder: Path, asked: bool) -> Exception:
    """What the system or another process is to blame for, as an error whose message says all; any other error
    as it is."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TrainingError(
            f"{folder} cannot be written: {error.strerror}. Its checkpoints are as they were. Make room, then"
            f" give the same command again (out={folder}) to go on."
        )
    if str(error).startswith("DataLoader worker"):  # while evaluating: training has readers that are watched
        return TrainingError(
            f"a process that read data for an evaluation ended unexpectedly ({error}). Where memory is short,"
            f" lower data.workers. The same command with out={folder} goes on."
        )
    if distributed.is_lost(error):
        of = f"process {distributed.rank()} of {distributed.world_size()}"
        said = (
            f"{of}: another process is gone, or did not answer within train.timeout={recipe.train.timeout:g}"
            f" s ({str(error).splitlines()[0]}). The same command with out={folder} goes on from the last"
            " checkpoint; torchrun --max-restarts=N does so by itself."
        )
        return (
            Stopped(said) if asked and distributed.rank() > 0 else TrainingError(said)
        )  # the first process has saved before it left
    return error


def stopped_at(step: int | None, folder: Path) -> str:
    after = "" if step is None else f" after step {step}"
    return (
        f"stopped by a signal{after}; a checkpoint is saved. Run the same recipe with out={folder} to go on."
    )


def describe(parts: Parts, folder: Path) -> None:
    """What is about to be trained: a file in the run folder, and a line where an objective has something to
    say of its weights."""
    sources = dict.fromkeys(p.source.describe() for p in parts.pairs)
    terms = dict.fromkeys(term for p in parts.pairs for term in p.objective.terms)
    write_environment(
        folder,
        parts.recipe,
        {
            "source": "; ".join(sources),
            "parameters": parameters(parts.model),
            "terms": list(terms),
            **branch_names(parts),
        },
    )
    for p in parts.pairs:
        width = parts.recipe.named_branches()[p.spec.a].expander[-1]
        if said := p.objective.describe(width):
            print(f"{p.name}: {said}" if len(parts.pairs) > 1 else said)


def branch_names(parts: Parts) -> dict[str, dict[str, tuple[str, str]]]:
    """What the two branches of each pair and of each probe are called where they are shown."""
    return {
        "pairs": {p.name: told_apart(p.spec.a, p.spec.b) for p in parts.pairs},
        "probes": {m.name: told_apart(*m.branches) for m in parts.measures},
    }


def fit(parts: Parts, folder: Path, start: tuple[int, bool], log: MetricsLog, signal: StopSignal) -> None:
    """Train from a step (and whether its evaluation is done) to the recipe's last one. Raises Stopped, after
    saving, where a signal asked for it."""
    recipe, model, optimizer, turns = parts.recipe, parts.model, parts.optimizer, len(parts.pairs)
    begin, evaluated = start
    quarantines = {
        p.source_name: data.Quarantine(
            folder / "bad_samples.jsonl", p.source_name, len(p.source.train), recipe.data.max_bad_fraction
        )
        for p in parts.pairs
    }
    for number, p in enumerate(parts.pairs):
        parts.limit.learn(number, list(quarantines[p.source_name].causes.items()))
    forward = wrap(parts)
    watch = Watch(parts, folder, begin)
    if not evaluated:
        evaluate_while_training(parts, folder, begin, log, signal)
    model.train()

    with parts.batches(recipe.data.workers, begin, parts.steps) as batches:
        for step in range(begin, parts.steps):
            number = step % turns
            trained = parts.pairs[number]
            began = time.perf_counter()
            pair, bad = read(parts, folder, batches, step)
            waited = time.perf_counter() - began
            gathered = distributed.gather_objects((bad, signal.asked))
            if any(asked for _, asked in gathered):
                save(parts, folder, step)
                raise Stopped(stopped_at(step, folder))
            found = [b for bad, _ in gathered for b in bad]
            quarantines[trained.source_name].add(found)
            parts.limit.learn(number, found)

            seed_everything(recipe.train.seed, TRAINING, step, distributed.rank())
            lr = set_learning_rate(
                optimizer, as_spec(recipe.optim.schedule), step, parts.steps, parts.steps_per_epoch
            )
            watch.remember()
            loss, terms, embeddings = backward(
                forward, trained.objective, pair.to(parts.device), recipe, number
            )
            skipped = watch.look(step, number, pair, loss, terms)
            if skipped and watch.over:
                if step:
                    save(parts, folder, step)  # as before this step: --replay has its exact weights
                raise TrainingError(skipped)
            if not skipped:
                update(parts)

            healthy = (step // turns + 1) % HEALTH_EVERY == 0 or step + turns >= parts.steps
            rates = {"lr": lr, "seconds": time.perf_counter() - began, "waited": waited}
            if skipped:
                log.skipped(step + 1, trained.name, terms, rates, skipped)
            else:
                log.step(
                    step + 1,
                    trained.name,
                    loss,
                    terms,
                    rates,
                    embeddings if healthy else None,
                    parts.model.usage,
                )
            after(parts, folder, step + 1, log, signal)


def read(parts: Parts, folder: Path, batches, step: int):
    """The batch of a step. Where reading fails for good, what was learnt is saved first."""
    try:
        return next(batches)
    except ReaderError:
        save(parts, folder, step)
        raise


def after(parts: Parts, folder: Path, done: int, log: MetricsLog, signal: StopSignal) -> None:
    """What is due after `done` steps: an evaluation, then a checkpoint, so that one never lacks the other's
    lines."""
    recipe, best = parts.recipe, False
    if recipe.evaluate.every and done % recipe.evaluate.every == 0 and done < parts.steps:
        best = evaluate_while_training(parts, folder, done, log, signal)
    if done % recipe.checkpoint.every == 0 or done == parts.steps or best:
        save(parts, folder, done)


def evaluate_while_training(
    parts: Parts, folder: Path, done: int, log: MetricsLog, signal: StopSignal
) -> bool:
    """Evaluate, write it down, and say whether this was the best so far. A signal does not wait for the end:
    the evaluation is done again."""
    try:
        with signal.at_once():
            results = evaluate(parts)[0]
    except Interrupted:
        save(parts, folder, done, evaluated=False)
        raise Stopped(stopped_at(done, folder)) from None
    log.evaluation(done, results)
    parts.model.train()
    if distributed.rank() > 0 or not parts.recipe.checkpoint.best:
        return False
    try:
        return best_step(folder, parts.recipe.checkpoint.best) == done
    except KeyError as error:
        raise TrainingError(error.args[0]) from None


def update(parts: Parts) -> None:
    """The optimizer's step with the gradients that are there, and what follows it."""
    if parts.recipe.optim.clip:
        nn.utils.clip_grad_norm_(parts.model.parameters(), parts.recipe.optim.clip)
    parts.optimizer.step()
    parts.optimizer.zero_grad(set_to_none=True)
    parts.model.after_step()


def wrap(parts: Parts):
    """The model as the loop calls it, with two views and the number of their pair: compiled and distributed
    where asked for."""
    forward = model = parts.model
    if distributed.world_size() > 1:
        cuda = parts.device.type == "cuda"
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model) if cuda else model
        # branches without a part in a step get no gradient, and the optimizer leaves them as they are, as on
        # one process
        idle = any({p.spec.a, p.spec.b} != set(model.branches) for p in parts.pairs)
        forward = DistributedDataParallel(
            model, device_ids=[parts.device.index] if cuda else None, find_unused_parameters=idle
        )
    return torch.compile(forward) if parts.recipe.train.compile else forward


# ---- evaluation ----


def evaluate(parts: Parts) -> tuple[dict, dict]:
    """({probe: {row: {metric: number}}}, {probe: pictures}) of the model as it is."""
    results, pictures = {}, {}
    seed_everything(
        parts.recipe.train.seed, EVALUATION
    )  # the same model gives the same numbers, whenever it is asked
    if distributed.rank() == 0:
        for m in parts.measures:
            rows = results.setdefault(m.name, {})
            for key, value in m.probe(
                parts.model.between(*m.branches),
                parts.untrained.between(*m.branches),
                m.source,
                m.pair,
                parts.device,
            ):
                if key == "pictures":
                    pictures[m.name] = value
                else:
                    row, metric = key.split("/")
                    rows.setdefault(row, {})[metric] = value
    distributed.barrier()
    return results, pictures


def finish(parts: Parts, folder: Path) -> None:
    """The last evaluation, its files, the report, and the table on the terminal."""
    results, pictures = evaluate(parts)
    if distributed.rank() == 0:
        write_json(folder / "evaluation.json", results)
        if pictures:
            with replaced(folder / "pictures.npz") as file:
                np.savez_compressed(
                    file,
                    **{
                        f"{probe}/{name}": array
                        for probe, arrays in pictures.items()
                        for name, array in arrays.items()
                    },
                )
        write_json(folder / "spectrum.json", final_spectra(parts))
        branches = branch_names(parts)["probes"]
        for probe, rows in results.items():
            print(f"\n{probe} after {parts.steps} steps\n{table(rows, branches[probe])}")
        print(f"report: {write_report(folder)}")
    distributed.barrier()


@torch.no_grad()
def final_spectra(parts: Parts) -> dict[str, list[float]]:
    """Covariance spectrum of each branch's embeddings over about 512 training samples, in evaluation mode; of
    a branch that several pairs train, over the first one's samples."""
    spectra = {}
    parts.model.eval()
    for number, (p, stream) in enumerate(zip(parts.pairs, parts.streams())):
        records = max(2, min(len(stream.records), 512 // p.pair.samples_per_record))
        batches = data.batches(
            stream, min(records, p.records_per_batch), 0, 0, math.ceil(records / p.records_per_batch)
        )
        on_device = (batch.to(parts.device) for batch, _ in batches)
        z = zip(*(parts.model(batch.a, batch.b, number) for batch in on_device))
        for branch, values in zip((p.spec.a, p.spec.b), z):
            spectra.setdefault(
                branch, metrics.spectrum(torch.cat([value.float().cpu() for value in values])).tolist()
            )
    return spectra


def parameters(model) -> dict[str, dict[str, int]]:
    """Parameter counts, {branch: {encoder: n, expander: n}}."""
    return {
        name: {"encoder": count_parameters(branch.encoder), "expander": count_parameters(branch.expander)}
        for name, branch in model.branches.items()
    }
