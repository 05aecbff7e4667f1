"""The loop: recipe in, run folder out. `train(recipe, overrides)` is what `python -m vicjoint.run` calls.

Writes recipe.yaml, environment.json, metrics.jsonl, evaluation.jsonl (while training), evaluation.json, spectrum.json,
pictures.npz, bad_samples.jsonl, checkpoints/ and report.html into the run folder.
"""

import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vicjoint import checkpoint, data, distributed, metrics
from vicjoint.accumulate import backward
from vicjoint.build import Parts, build_parts, try_one_record
from vicjoint.config import Recipe, load_recipe
from vicjoint.model import as_spec, count_parameters
from vicjoint.optim import set_learning_rate
from vicjoint.report.page import write_report
from vicjoint.runfolder import MetricsLog, open_run, table, write_environment, write_json

HEALTH_EVERY = 20  # steps of a pair between its health lines in metrics.jsonl


class Stopped(RuntimeError):
    """A signal asked to stop; a checkpoint is saved and the same command goes on from it."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why."""


def train(recipe, overrides=()) -> Path:
    """Train what a recipe (file, bare name or mapping) with overrides (`["train.steps=10"]`) describes; returns the run folder.
    A folder given by `out` that holds a run of the same recipe is resumed."""
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    distributed.start()
    try:
        parts = build_parts(recipe)
        try_one_record(parts)
        folder = Path(distributed.broadcast_object(str(open_run(recipe)) if distributed.rank() == 0 else None))
        if distributed.rank() == 0:
            describe(parts, folder)
        start = resume(parts, folder)
        with checkpoint.StopSignal() as signal, MetricsLog(folder, start, parts.steps, recipe.train) as log:
            fit(parts, folder, start, log, signal)
        finish(parts, folder)
    finally:
        distributed.stop()
    return folder


def describe(parts: Parts, folder: Path) -> None:
    """What is about to be trained: a file in the run folder, and a line where an objective has something to say of its weights."""
    sources = dict.fromkeys(p.source.describe() for p in parts.pairs)
    terms = dict.fromkeys(term for p in parts.pairs for term in p.objective.terms)
    write_environment(folder, parts.recipe, "; ".join(sources), parameters(parts.model), list(terms))
    for p in parts.pairs:
        width = parts.recipe.named_branches()[p.spec.a].expander[-1]
        if said := getattr(p.objective, "describe", lambda _: None)(width):
            print(f"{p.name}: {said}" if len(parts.pairs) > 1 else said)


def fit(parts: Parts, folder: Path, start: int, log: MetricsLog, signal: checkpoint.StopSignal) -> None:
    """Train from step `start` to the recipe's last step. Raises Stopped, after saving, where a signal asked for it."""
    recipe, model, optimizer, device, turns = parts.recipe, parts.model, parts.optimizer, parts.device, len(parts.pairs)
    batches = iter(parts.batches(recipe.data.workers, start, parts.steps))
    quarantines = {p.source_name: data.Quarantine(folder / "bad_samples.jsonl", p.source_name, len(p.source.train), recipe.data.max_bad_fraction)
                   for p in parts.pairs}
    forward = wrap(parts)
    model.train()

    for step in range(start, parts.steps):
        # once in a while: evaluate, save
        if step > start and recipe.evaluate.every and step % recipe.evaluate.every == 0:
            log.evaluation(step, evaluate(parts)[0])
        if step > start and step % recipe.checkpoint.every == 0:
            save(parts, folder, step)

        number = step % turns
        trained = parts.pairs[number]
        began = time.perf_counter()
        pair, bad = next(batches)
        waited = time.perf_counter() - began
        quarantines[trained.source_name].add([b for of_process in distributed.gather_objects(bad) for b in of_process])

        lr = set_learning_rate(optimizer, as_spec(recipe.optim.schedule), step, parts.steps, parts.steps_per_epoch)
        loss, terms, embeddings = backward(forward, trained.objective, pair.to(device), recipe, number)
        check_finite(step, loss, terms)
        if recipe.optim.clip:
            norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.clip)
            check_finite(step, norm, {"gradient norm": norm})
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.after_step()

        healthy = (step // turns + 1) % HEALTH_EVERY == 0 or step + turns >= parts.steps
        rates = {"lr": lr, "seconds": time.perf_counter() - began, "waited": waited}
        log.step(step + 1, trained.name, loss, terms, rates, embeddings if healthy else None)
        if any(distributed.gather_objects(signal.asked)) and step + 1 < parts.steps:
            save(parts, folder, step + 1)
            raise Stopped(f"stopped by a signal after step {step + 1}; a checkpoint is saved. Run the same recipe with out={folder} to go on.")
    if start < parts.steps:
        save(parts, folder, parts.steps)


def save(parts: Parts, folder: Path, step: int) -> None:
    first, *further = (p.objective.state_dict() for p in parts.pairs)
    state = {"step": step, "model": parts.model.state_dict(), "objective": first, "further_objectives": further, "optimizer": parts.optimizer.state_dict(), "torch_rng": torch.get_rng_state()}
    if distributed.rank() == 0:
        checkpoint.save(folder / "checkpoints", step, state, parts.recipe.checkpoint.keep)


def resume(parts: Parts, folder: Path) -> int:
    """Load the last checkpoint of the folder, where there is one; returns the step to go on from."""
    state = checkpoint.load_last(folder / "checkpoints")
    if state is None:
        return 0
    parts.model.load_state_dict(state["model"])
    for p, objective in zip(parts.pairs, [state["objective"], *state.get("further_objectives", [])]):
        p.objective.load_state_dict(objective)
    parts.optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["torch_rng"])
    print(f"going on from step {state['step']} of {parts.steps} in {folder}")
    return state["step"]


def check_finite(step: int, loss, terms: dict) -> None:
    """Stop before the optimizer step: the weights stay those of the last good step."""
    if not torch.isfinite(loss):
        broken = [f"{name}={float(value)}" for name, value in terms.items() if not torch.isfinite(value)] or [f"loss={float(loss)}"]
        raise TrainingError(
            f"step {step + 1}: {', '.join(broken)} is not finite. Nothing was updated by this step. "
            "Lower optim.lr, set optim.clip=1.0, or use train.precision=fp32."
        )


def wrap(parts: Parts):
    """The model as the loop calls it, with two views and the number of their pair: compiled and distributed where asked for."""
    forward = model = parts.model
    if distributed.world_size() > 1:
        cuda = parts.device.type == "cuda"
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model) if cuda else model
        # branches without a part in a step get no gradient, and the optimizer leaves them as they are, as on one process
        idle = any({p.spec.a, p.spec.b} != set(model.branches) for p in parts.pairs)
        forward = DistributedDataParallel(model, device_ids=[parts.device.index] if cuda else None, find_unused_parameters=idle)
    return torch.compile(forward) if parts.recipe.train.compile else forward


# ---- evaluation ----


def evaluate(parts: Parts) -> tuple[dict, dict]:
    """({probe: {row: {metric: number}}}, {probe: pictures}) of the model as it is."""
    results, pictures = {}, {}
    if distributed.rank() == 0:
        for m in parts.measures:
            rows = results.setdefault(m.name, {})
            for key, value in m.probe(parts.model.between(*m.branches), parts.untrained.between(*m.branches), m.source, m.pair, parts.device):
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
            np.savez_compressed(folder / "pictures.npz", **{f"{probe}/{name}": array for probe, arrays in pictures.items() for name, array in arrays.items()})
        write_json(folder / "spectrum.json", final_spectra(parts))
        for probe, rows in results.items():
            print(f"\n{probe} after {parts.steps} steps\n{table(rows)}")
        print(f"report: {write_report(folder)}")
    distributed.barrier()


@torch.no_grad()
def final_spectra(parts: Parts) -> dict[str, list[float]]:
    """Covariance spectrum of each branch's embeddings over about 512 training samples, in evaluation mode; of a branch that several
    pairs train, over the first one's samples."""
    spectra = {}
    parts.model.eval()
    for number, (p, stream) in enumerate(zip(parts.pairs, parts.streams())):
        records = max(2, min(len(stream.records), 512 // p.pair.samples_per_record))
        batches = data.batches(stream, min(records, p.records_per_batch), 0, 0, math.ceil(records / p.records_per_batch))
        on_device = (batch.to(parts.device) for batch, _ in batches)
        z = zip(*(parts.model(batch.a, batch.b, number) for batch in on_device))
        for branch, values in zip((p.spec.a, p.spec.b), z):
            spectra.setdefault(branch, metrics.spectrum(torch.cat([value.float().cpu() for value in values])).tolist())
    return spectra


def parameters(model) -> dict[str, dict[str, int]]:
    """Parameter counts, {branch: {encoder: n, expander: n}}."""
    return {name: {"encoder": count_parameters(branch.encoder), "expander": count_parameters(branch.expander)}
            for name, branch in model.branches.items()}
