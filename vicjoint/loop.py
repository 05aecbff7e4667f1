"""The loop: recipe in, run folder out. `train(recipe, overrides)` is what `python -m vicjoint.run` calls.

Writes recipe.yaml, environment.json, metrics.jsonl, evaluation.jsonl (while training), evaluation.json, spectrum.json,
pictures.npz, bad_samples.jsonl, checkpoints/ and report.html into the run folder.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vicjoint import checkpoint, data, distributed, metrics
from vicjoint.accumulate import backward
from vicjoint.config import Recipe, RecipeError, load_recipe
from vicjoint.model import JointModel, as_spec, build_model, count_parameters
from vicjoint.multicrop import MultiCrop
from vicjoint.optim import set_learning_rate
from vicjoint.registry import build
from vicjoint.report import write_report
from vicjoint.runfolder import MetricsLog, open_run, table, write_environment, write_json

HEALTH_EVERY = 20  # steps between health lines in metrics.jsonl


class Stopped(RuntimeError):
    """A signal asked to stop; a checkpoint is saved and the same command goes on from it."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why."""


@dataclass
class Parts:
    """Everything a recipe describes, built."""

    recipe: Recipe
    source: object
    pair: object
    model: JointModel
    untrained: JointModel  # as the model was before its first step: a row in every evaluation
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    probes: dict[str, object]
    steps: int
    records_per_batch: int
    steps_per_epoch: float
    device: torch.device


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
            terms = list(parts.objective.terms)
            write_environment(folder, recipe, parts.source.describe(), parameters(parts.model), terms)
            if said := getattr(parts.objective, "describe", lambda _: None)(recipe.a.expander[-1]):
                print(said)
        start = resume(parts, folder)
        with checkpoint.StopSignal() as signal, MetricsLog(folder, start, parts.steps, recipe.train) as log:
            fit(parts, folder, start, log, signal)
        finish(parts, folder)
    finally:
        distributed.stop()
    return folder


def build_parts(recipe: Recipe) -> Parts:
    """Build every component; a value that a component refuses comes out as a RecipeError."""
    device = pick_device(recipe.train.device)
    try:
        source = build("source", as_spec(recipe.source))
        pair = build("pair", as_spec(recipe.pair))
        pair.backend, pair.workers = recipe.data.video_backend, recipe.data.workers
        torch.manual_seed(recipe.train.seed)
        untrained = build_model(recipe)
        torch.manual_seed(recipe.train.seed)
        model = build_model(recipe).to(device)
        objective = build("objective", as_spec(recipe.objective)).to(device)
        if (crops := getattr(pair, "crops", 1)) > 1:
            objective = MultiCrop(objective, crops)
        spec = as_spec(recipe.optim)
        spec.pop("schedule"), spec.pop("clip")
        optimizer = build("optimizer", spec, nn.ModuleList([model, objective]), recipe.train.batch_size)
        probes = {p["name"]: build("probe", p) for p in map(as_spec, recipe.evaluate.probes)}
        probes = {name: probe for name, probe in probes.items() if usable(name, probe, source, pair)}
    except (ValueError, TypeError, OSError) as error:
        raise RecipeError(str(error)) from error
    per_record = pair.samples_per_record
    world = distributed.world_size()
    if recipe.train.batch_size % per_record or recipe.train.batch_size // per_record < world:
        raise RecipeError(
            f"train.batch_size: {recipe.train.batch_size} samples cannot be made of records with {per_record} samples each on {world} "
            f"processes. Expected a multiple of {per_record}{' (pair.windows)' if per_record > 1 else ''}, at least {per_record * world}."
        )
    records_per_batch = recipe.train.batch_size // per_record
    if records_per_batch // world % recipe.train.accumulate:
        raise RecipeError(f"train.accumulate: {records_per_batch // world} records a batch cannot be cut into {recipe.train.accumulate} equal parts.")
    steps = recipe.train.steps or math.ceil(recipe.train.epochs * len(source.train) / records_per_batch)
    return Parts(recipe, source, pair, model, untrained.to(device), objective, optimizer, probes, steps, records_per_batch,
                 len(source.train) / records_per_batch, device)


def usable(name: str, probe, source, pair) -> bool:
    """Whether the source has what the probe needs; if not, one line says so. Raises ValueError for a probe of another pair."""
    reason = probe.misses(source, pair) if hasattr(probe, "misses") else None
    if reason and distributed.rank() == 0:
        print(f"probe {name} is left out: {reason}")
    return not reason


@torch.no_grad()
def try_one_record(parts: Parts) -> None:
    """Send one record through both branches before anything is written: a model that does not fit its views is a wrong recipe."""
    stream = data.Stream(parts.source.train, parts.pair, parts.recipe.train.seed)
    pair, _ = next(iter(data.batches(stream, distributed.world_size(), 0, 0, 1)))
    parts.model.eval()
    try:
        on_device = pair.to(parts.device)
        parts.model(on_device.a, on_device.b)
    except (ValueError, RuntimeError) as error:
        shapes = " and ".join(map(shape_of, (on_device.a, on_device.b)))
        raise RecipeError(f"the encoders cannot take this pair's views {shapes}: {error}") from error


def shape_of(view) -> str:
    return " + ".join(map(shape_of, view)) if isinstance(view, (tuple, list)) else str(list(view.shape))


def fit(parts: Parts, folder: Path, start: int, log: MetricsLog, signal: checkpoint.StopSignal) -> None:
    """Train from step `start` to the recipe's last step. Raises Stopped, after saving, where a signal asked for it."""
    recipe, model, optimizer, device = parts.recipe, parts.model, parts.optimizer, parts.device
    stream = data.Stream(parts.source.train, parts.pair, recipe.train.seed)
    batches = iter(data.batches(stream, parts.records_per_batch, recipe.data.workers, start, parts.steps))
    quarantine = data.Quarantine(folder / "bad_samples.jsonl", recipe.source.name, len(stream.records), recipe.data.max_bad_fraction)
    forward = wrap(model, recipe, device)
    model.train()

    for step in range(start, parts.steps):
        # once in a while: evaluate, save
        if step > start and recipe.evaluate.every and step % recipe.evaluate.every == 0:
            log.evaluation(step, evaluate(parts)[0])
        if step > start and step % recipe.checkpoint.every == 0:
            save(parts, folder, step)

        began = time.perf_counter()
        pair, bad = next(batches)
        waited = time.perf_counter() - began
        quarantine.add([b for of_process in distributed.gather_objects(bad) for b in of_process])

        lr = set_learning_rate(optimizer, as_spec(recipe.optim.schedule), step, parts.steps, parts.steps_per_epoch)
        loss, terms, embeddings = backward(forward, parts.objective, pair.to(device), recipe)
        check_finite(step, loss, terms)
        if recipe.optim.clip:
            norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.clip)
            check_finite(step, norm, {"gradient norm": norm})
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.after_step()

        healthy = (step + 1) % HEALTH_EVERY == 0 or step + 1 == parts.steps
        log.step(step + 1, loss, terms, lr, time.perf_counter() - began, waited, embeddings if healthy else None)
        if any(distributed.gather_objects(signal.asked)) and step + 1 < parts.steps:
            save(parts, folder, step + 1)
            raise Stopped(f"stopped by a signal after step {step + 1}; a checkpoint is saved. Run the same recipe with out={folder} to go on.")
    if start < parts.steps:
        save(parts, folder, parts.steps)


def save(parts: Parts, folder: Path, step: int) -> None:
    state = {"step": step, "model": parts.model.state_dict(), "objective": parts.objective.state_dict(),
             "optimizer": parts.optimizer.state_dict(), "torch_rng": torch.get_rng_state()}
    if distributed.rank() == 0:
        checkpoint.save(folder / "checkpoints", step, state, parts.recipe.checkpoint.keep)


def resume(parts: Parts, folder: Path) -> int:
    """Load the last checkpoint of the folder, where there is one; returns the step to go on from."""
    state = checkpoint.load_last(folder / "checkpoints")
    if state is None:
        return 0
    parts.model.load_state_dict(state["model"])
    parts.objective.load_state_dict(state["objective"])
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


def wrap(model: JointModel, recipe: Recipe, device: torch.device):
    """The model as the loop calls it: compiled and distributed where asked for."""
    forward = model
    if distributed.world_size() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model) if device.type == "cuda" else model
        forward = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    return torch.compile(forward) if recipe.train.compile else forward


def pick_device(asked: str) -> torch.device:
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise RecipeError("train.device: cuda was asked for, but torch sees no GPU. Expected auto or cpu on this machine.")
    return torch.device(asked, torch.cuda.current_device()) if asked == "cuda" else torch.device(asked)


# ---- evaluation ----


def evaluate(parts: Parts) -> tuple[dict, dict]:
    """({probe: {row: {metric: number}}}, {probe: pictures}) of the model as it is."""
    results, pictures = {}, {}
    if distributed.rank() == 0:
        for name, probe in parts.probes.items():
            rows = results.setdefault(name, {})
            for key, value in probe(parts.model, parts.untrained, parts.source, parts.pair, parts.device):
                if key == "pictures":
                    pictures[name] = value
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
    """Covariance spectrum of each branch's embeddings over about 512 training samples, in evaluation mode."""
    stream = data.Stream(parts.source.train, parts.pair, parts.recipe.train.seed)
    records = max(2, min(len(stream.records), 512 // parts.pair.samples_per_record))
    z = {"a": [], "b": []}
    parts.model.eval()
    for batch, _ in data.batches(stream, min(records, parts.records_per_batch), 0, 0, math.ceil(records / parts.records_per_batch)):
        batch = batch.to(parts.device)
        for branch, value in zip("ab", parts.model(batch.a, batch.b)):
            z[branch].append(value.float().cpu())
    return {branch: metrics.spectrum(torch.cat(values)).tolist() for branch, values in z.items()}


def parameters(model: JointModel) -> dict[str, dict[str, int]]:
    """Parameter counts, {branch: {encoder: n, expander: n}}."""
    return {name: {"encoder": count_parameters(branch.encoder), "expander": count_parameters(branch.expander)}
            for name, branch in (("a", model.a), ("b", model.b))}
