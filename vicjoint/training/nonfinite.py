"""Losses and gradients that are not finite: noticed before the optimizer's step, traced to a branch, written
down, and played again.

    watch = Watch(parts, folder, begin)
    watch.remember()  # before a step: what its forward pass will change
    bad, numbers = watch.judge(loss, terms)  # on the device; nothing waits
    if not numbers.finite():  # waits
        watch.go_back()
        said = watch.look_into(step, task, batch, numbers)
    replay(recipe, 1234)  # python -m vicjoint.run RECIPE out=FOLDER --replay 1234

Where one process finds something, all of them leave the step out, so they stay one model.
"""

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from vicjoint import distributed
from vicjoint.accumulate import backward
from vicjoint.batch import Batch, Boxed, Conditioned, Crops, Encoded, Following, unconditioned
from vicjoint.files.guard import printable
from vicjoint.files.write import write_json
from vicjoint.recipe import Recipe, RecipeError
from vicjoint.training import checkpoint
from vicjoint.training.build import Parts, Task, build_parts
from vicjoint.training.fitting import fit_parts
from vicjoint.training.folder import open_run
from vicjoint.training.parallel import gradient_norm, whole
from vicjoint.training.resuming import restore
from vicjoint.training.stopping import TRAINING, seed_everything

BOTH_FINITE = "both embeddings are finite"
STAGES = {"view": "the view", "representation": "the encoder's output", "embedding": "the embedding"}
EXTREME = 10  # a norm so many times the batch's median is extreme
SHOWN = 10  # samples and parameters in a message
ADVICE = "Lower optim.lr, set optim.clip=1.0, or use train.precision=fp32."


class Watch:
    """Looks at every step of a run. `skipped`: steps that this run has left out so far, those before a resume
    too."""

    def __init__(self, parts: Parts, folder: Path, begin: int):
        self.parts, self.folder, self.options = parts, folder, parts.recipe.train
        trained = (parts.model, *(t.objective for t in parts.tasks))
        self.modules = [module for whole in trained for module in whole.modules()]
        self.remember()
        self.skipped = count_skipped(folder / "metrics.jsonl", begin)

    def buffers(self):
        """(module, name, tensor) of each buffer as it is now: some are replaced by others in a step."""
        return [
            (module, name, b) for module in self.modules for name, b in module.named_buffers(recurse=False)
        ]

    @torch.no_grad()
    def remember(self) -> None:
        """Keep what a forward pass changes: running statistics, a queue."""
        self.kept = [b.clone() for _, _, b in self.buffers()]

    @torch.no_grad()
    def go_back(self, held: Tensor | None = None) -> None:
        """held: a flag on the device, only where it is 1."""
        for kept, (module, name, buffer) in zip(self.kept, self.buffers()):
            if kept.shape == buffer.shape:  # in place, since DistributedDataParallel holds on to the tensor
                buffer.copy_(kept) if held is None else torch.where(held > 0, kept, buffer, out=buffer)
            elif held is None or held > 0:  # a queue that took its width in this step; to know, it waits
                setattr(module, name, kept.clone())

    @property
    def over(self) -> bool:
        """Whether the run has to stop at what was just found."""
        return self.options.nonfinite == "stop" or self.skipped > self.options.nonfinite_limit

    def judge(self, loss: Tensor, terms: dict[str, Tensor]) -> tuple[Tensor, "Numbers"]:
        """(1 where loss or gradient is not finite on some process, else 0: a float [] on the device; the
        step's numbers on their way to the processor, in one copy). Waits for nothing."""
        gradients = [
            p.grad
            for group in self.parts.optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        norm = gradient_norm(gradients)
        flag = (~(torch.isfinite(loss) & torch.isfinite(norm))).float().reshape(1).to(self.parts.device)
        bad = distributed.total(flag)[0].clamp(max=1)
        return bad, Numbers(bad, loss, norm, terms)

    def look_into(self, step: int, task: Task, batch: Batch, numbers: "Numbers") -> str:
        """What was not finite in step `step` (from 0), which was left out, in which branch it began and where
        that is written down. The model is the one the step ran in, buffers too, and is so after it."""
        total, terms = numbers.loss, numbers.terms
        broken = [f"{name}={value}" for name, value in terms.items() if not math.isfinite(value)]
        broken = broken or ([f"gradient norm={numbers.norm}"] if math.isfinite(total) else [f"loss={total}"])
        self.remember()
        seed_everything(self.options.seed, TRAINING, step, distributed.rank())
        with whole(self.parts.model):
            found = merged(distributed.gather_objects(examine(self.parts, task, batch)))
        self.go_back()
        samples = [name for names in distributed.gather_objects(batch.samples) for name in names]
        self.skipped += 1
        path = self.folder / f"nonfinite_{step + 1}.json"
        where = first_place(found)
        if distributed.rank() == 0:
            write_json(
                path,
                {
                    "step": step + 1,
                    "pair": task.name,
                    "not_finite": broken,
                    "began": where,
                    "terms": {name: as_json(value) for name, value in terms.items()},
                    "samples": samples,
                    "branches": found,
                },
            )
        return self._in_words(step + 1, ", ".join(broken), where, path)

    def _in_words(self, step: int, broken: str, where: str, path: Path) -> str:
        if where == BOTH_FINITE:
            where += ", only the loss or its gradient is not"
        said = (
            f"step {step}: {broken} is not finite; {where}. Nothing was updated by this step. Its samples are"
            f" listed in {path}; add --replay {step} to the command (with out={self.folder}) to look into"
            " it. "
        )
        if self.options.nonfinite == "stop":
            return said + f"{ADVICE} Or set train.nonfinite=skip to leave out such steps."
        if self.over:
            return (
                said
                + f"{self.skipped} steps were left out, train.nonfinite_limit={self.options.nonfinite_limit}"
                f" allows no more. {ADVICE}"
            )
        return (
            said
            + f"It is left out ({self.skipped} so far, train.nonfinite_limit={self.options.nonfinite_limit})."
        )


class Numbers:
    """What a step gave: its loss, the norm of its gradient and its terms, as floats once `finite` has waited
    for the device."""

    def __init__(self, bad: Tensor, loss: Tensor, norm: Tensor, terms: dict[str, Tensor]):
        self.names, self.copied = list(terms), None
        device = bad.device
        values = [
            torch.as_tensor(x, dtype=torch.float64, device=device) for x in (bad, loss, norm, *terms.values())
        ]
        self.values = torch.stack(values).detach()
        if self.values.is_cuda:
            copied = torch.empty(len(values), dtype=torch.float64, pin_memory=True)
            self.values = copied.copy_(self.values, non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def finite(self) -> bool:
        """Whether loss and gradient are, on all processes."""
        if self.copied is not None:
            self.copied.synchronize()
        bad, self.loss, self.norm, *values = self.values.tolist()
        self.terms = dict(zip(self.names, values))
        return not bad


def count_skipped(metrics: Path, begin: int) -> int:
    """Steps up to `begin` that metrics.jsonl says were left out."""
    found = 0
    for line in metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else ():
        try:
            row = json.loads(line)
            found += bool(row.get("skipped")) and row["step"] <= begin
        except (ValueError, AttributeError, KeyError):  # the line being written when the run was killed
            continue
    return found


# ---- looking into a batch ----


@torch.no_grad()
def examine(parts: Parts, task: Task, batch: Batch) -> dict[str, dict]:
    """{side: {stage: numbers, "samples": those with values that are not finite, or extreme}} of a batch, by
    a forward pass in the model's present state. Changes buffers as a forward pass does. Of several crops, and
    of several targets, the first is looked at.
    """
    batch, found = batch.to(parts.device), {}
    two = parts.model.between(task.spec.a, task.spec.b)
    with torch.autocast(parts.device.type, torch.bfloat16, enabled=parts.recipe.train.precision == "bf16"):
        for side, raw in (("a", batch.a), ("b", batch.b)):
            told = raw.condition if isinstance(raw, Conditioned) else None
            raw = unconditioned(raw)
            raw = raw[0] if isinstance(raw, Crops) else raw.view if isinstance(raw, Boxed) else raw
            if isinstance(raw, Following):
                raw = raw.view[:, 0]
            if told is not None and told.ndim == 3:
                told = told[:, 0]
            view = raw.y if isinstance(raw, Encoded) else two.side(side).modality(raw)
            y = two.steps(side, raw)
            z = two.embed(side, y, told)
            stages = [x for x in (*floats(view), y, z) if len(x) == len(batch)]
            found[side] = {
                "view": numbers(floats(view)),
                "representation": numbers([y]),
                "embedding": numbers([z]),
                "samples": noticeable([x.flatten(1).float() for x in stages], batch.samples),
            }
    return found


def floats(view) -> list[Tensor]:
    """The tensors of real numbers in a view."""
    if isinstance(view, Tensor):
        return [view] if view.is_floating_point() else []
    return [x for part in view for x in floats(part)] if isinstance(view, (tuple, list)) else []


def numbers(tensors: list[Tensor]) -> dict:
    """How many values are not finite, and least, greatest, mean size and deviation of the others."""
    values = torch.cat([x.detach().float().flatten() for x in tensors]) if tensors else torch.zeros(0)
    good = values[torch.isfinite(values)]
    told = {"values": len(values), "not_finite": len(values) - len(good)}
    if len(good):
        told |= {
            "min": float(good.min()),
            "max": float(good.max()),
            "mean_abs": float(good.abs().mean()),
            "std": float(good.std(correction=0)),
        }
    return told


def noticeable(stages: list[Tensor], samples: list[str]) -> list[dict]:
    """Samples with values that are not finite, or with a norm EXTREME times the median; each once, the worst
    first. `stages` [B, K] are a view, a representation and an embedding: looked at is the first with values
    that are not finite, since behind it a batch norm spreads them to all samples; where there is none, the
    embedding."""
    z = next((x for x in stages if not torch.isfinite(x).all()), stages[-1])
    norms = z.norm(dim=1)
    good = norms[torch.isfinite(norms)]
    median = float(good.median()) if len(good) else 0.0
    chosen = {}
    for name, norm in zip(samples, norms.tolist()):
        if not math.isfinite(norm) or norm > EXTREME * median:
            chosen[name] = max(norm, chosen.get(name, 0.0)) if math.isfinite(norm) else math.inf
    return [
        {"sample": name, "norm": as_json(norm), "median": median}
        for name, norm in sorted(chosen.items(), key=lambda item: -item[1])
    ]


def merged(of_processes: list[dict]) -> dict:
    """Findings of all processes as one: counts are added, extremes taken; the other numbers are the first
    process's."""
    first, *others = of_processes
    for other in others:
        for side, stages in other.items():
            for stage in STAGES:
                mine, theirs = first[side][stage], stages[stage]
                mine.update({key: mine[key] + theirs[key] for key in ("values", "not_finite")})
                mine.update(
                    {
                        key: pick(mine[key], theirs[key])
                        for key, pick in (("min", min), ("max", max))
                        if key in mine and key in theirs
                    }
                )
            first[side]["samples"] += stages["samples"]
    return first


def first_place(found: dict) -> str:
    """Where values that are not finite begin: branch and stage, or that both embeddings are finite."""
    places = {
        side: next((stage for stage in STAGES if stages[stage]["not_finite"]), None)
        for side, stages in found.items()
    }
    words = [
        f"branch {side}: {STAGES[stage]} is the first that is not finite"
        for side, stage in places.items()
        if stage
    ]
    return " and ".join(words) or BOTH_FINITE


def as_json(value) -> float | str:
    """JSON has no word for NaN and infinity."""
    return float(value) if math.isfinite(value) else str(float(value))


# ---- playing a step again ----


def replay(recipe: Recipe, step: int) -> None:
    """Read the batch of step `step` (from 1, as in metrics.jsonl) again and say what the model makes of it,
    in the weights of the last checkpoint before it. Prints a report and writes it to replay_<step>.json.
    Raises RecipeError where there is no such run or step.
    """
    folder = Path(recipe.out or "")
    if recipe.out is None or not (folder / "recipe.yaml").exists():
        raise RecipeError("--replay: expected out=FOLDER, the folder of the run that the step belongs to.")
    open_run(recipe)  # refuses the run of another recipe
    parts = build_parts(recipe)
    if not 1 <= step <= parts.steps:
        raise RecipeError(f"--replay: step {step} is not one of this run, expected 1 to {parts.steps}.")
    weights = load_before(parts, folder, step)
    task, _ = parts.turn(step - 1)
    with parts.batches(0, step - 1, step) as batches:
        batch, bad = next(batches)
    parts.model.train()
    parts.model.begin_step((step - 1) / parts.steps)
    seed_everything(recipe.train.seed, TRAINING, step - 1, 0)
    found = examine(parts, task, batch)
    seed_everything(recipe.train.seed, TRAINING, step - 1, 0)
    loss, terms, _ = backward(
        parts.model, task.objective, batch.to(parts.device), recipe.train, task.number, task.gradient_b
    )
    gradients = [
        name
        for name, p in parts.model.named_parameters()
        if p.grad is not None and not torch.isfinite(p.grad).all()
    ]
    report = {
        "step": step,
        "weights": weights,
        "pair": task.name,
        "same_samples": compared(folder, step, batch.samples),
        "replaced": [{"sample": sample, "cause": cause} for sample, cause in bad],
        "loss": as_json(loss),
        "terms": {name: as_json(value) for name, value in terms.items()},
        "began": first_place(found),
        "branches": found,
        "gradients_not_finite": gradients,
        "samples": batch.samples,
    }
    write_json(folder / f"replay_{step}.json", report)
    print("\n".join([*in_words(report), f"all of it: {folder / f'replay_{step}.json'}"]))


def load_before(parts: Parts, folder: Path, step: int) -> str:
    """Load the last checkpoint before step `step`; what it is, in words."""
    there = [s for s in checkpoint.steps(folder / "checkpoints") if s < step]
    if not there:
        fit_parts(parts)
        return f"as initialised: no checkpoint from before step {step} is there"
    restore(parts, checkpoint.load(checkpoint.path_of(folder / "checkpoints", there[-1])))
    return f"of the checkpoint after step {there[-1]}" + (
        "" if there[-1] == step - 1 else f", {step - 1 - there[-1]} steps earlier than it ran in"
    )


def compared(folder: Path, step: int, samples: list[str]) -> bool | None:
    """Whether the batch is the one that was written down; None where none was."""
    path = folder / f"nonfinite_{step}.json"
    return json.loads(path.read_text(encoding="utf-8"))["samples"] == samples if path.exists() else None


def in_words(report: dict) -> list[str]:
    """The lines of a replay's report."""
    same = {
        True: "the same samples as were written down",
        False: "OTHER samples than were written down: have files changed?",
        None: "nothing was written down of this step",
    }[report["same_samples"]]
    lines = [
        (
            f"step {report['step']} of pair {report['pair']}, in the weights {report['weights']};"
            f" {len(report['samples'])} samples, {same}"
        ),
        f"loss {report['loss']}: " + ", ".join(f"{name} {value}" for name, value in report["terms"].items()),
        report["began"],
    ]
    for side, stages in report["branches"].items():
        for stage, words in STAGES.items():
            told = stages[stage]
            span = (
                f", from {told['min']:.4g} to {told['max']:.4g}, std {told['std']:.4g}"
                if "min" in told
                else ""
            )
            lines.append(
                f"branch {side}, {words}: {told['not_finite']:,} of {told['values']:,} values not"
                f" finite{span}"
            )
        lines += [
            f"  {printable(s['sample'])}: norm {s['norm']}, the batch's median is {s['median']:.4g}"
            for s in stages["samples"][:SHOWN]
        ]
    gradients = report["gradients_not_finite"]
    more = f" and {len(gradients) - SHOWN} more" if len(gradients) > SHOWN else ""
    return lines + [f"gradients that are not finite: {', '.join(gradients[:SHOWN]) or 'none'}{more}"]
