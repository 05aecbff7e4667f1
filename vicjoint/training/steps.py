"""The steps of a run: taken by the device, then looked at by the processor and written down.

    steps = Steps(parts, forward, folder, begin, log, saver)
    steps.take(step, task, batch, began, waited)
    steps.settle(steps.ahead)     # write down all but the last so many; none: all

A GPU never waits for the processor to look: a step is looked at once the next one is on its way. The device
itself decides what becomes of a step that is not finite. From that step on nothing is updated, until the
processor has seen it: it says so, and takes those behind it again. So weights, buffers and the optimizer's
state are those before it, as where each step is looked at before its update: on CPUs, and with an optimizer
that cannot be held.
"""

import copy
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from vicjoint import distributed
from vicjoint.accumulate import backward
from vicjoint.batch import Batch
from vicjoint.optim import set_learning_rate
from vicjoint.training.build import Parts, Task
from vicjoint.training.log import MetricsLog
from vicjoint.training.nonfinite import Numbers, Watch
from vicjoint.training.parallel import clip_gradients
from vicjoint.training.saving import Saver
from vicjoint.training.stopping import TRAINING, seed_everything

HEALTH_EVERY = 20  # steps of a task between its health lines in metrics.jsonl


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and why."""


@dataclass
class Taken:
    """A step (from 0) that was not looked at yet. embeddings and usage: where health is due. counted: what
    the objectives had counted before it."""

    step: int
    task: Task
    batch: Batch
    lr: float
    numbers: Numbers
    embeddings: tuple[Tensor, Tensor] | None
    usage: Tensor | None
    counted: list


class Steps:
    """ahead: how many steps may be on their way while the next one is prepared, 0 or 1."""

    def __init__(
        self, parts: Parts, forward: nn.Module, folder: Path, begin: int, log: MetricsLog, saver: Saver
    ):
        self.parts, self.forward, self.log, self.saver = parts, forward, log, saver
        self.watch = Watch(parts, folder, begin)
        self.ahead = 1 if decided_by_device(parts) else 0
        self.held = torch.zeros((), device=parts.device) if self.ahead else None
        self.taken: deque[Taken] = deque()
        self.since, self.waited = 0.0, 0.0

    def take(self, step: int, task: Task, batch: Batch, began: float, waited: float) -> None:
        """Forward and backward pass, and the update where all is finite. `began`: when its batch was asked
        for, on the clock of time.perf_counter; `waited`: seconds until it came."""
        parts, options = self.parts, self.parts.recipe.train
        if not self.taken:
            self.since, self.waited = began, 0.0
        self.waited += waited
        seed_everything(options.seed, TRAINING, step, distributed.rank())
        lr = set_learning_rate(
            parts.optimizer, parts.recipe.schedule, step, parts.steps, parts.steps_per_epoch
        )
        parts.model.begin_step(step / parts.steps)
        counted = [copy.deepcopy(part.get_extra_state()) for part in counting(parts)]
        self.watch.remember()
        with record_function("transfer"):
            on_device = batch.to(parts.device)
        loss, terms, embeddings = backward(
            self.forward, task.objective, on_device, options, task.number, task.gradient_b
        )
        bad, numbers = self.watch.judge(loss, terms)
        if self.held is not None:
            self.held = torch.maximum(self.held, bad)
            with record_function("optimizer"):
                update(parts, self.held)
            self.watch.go_back(self.held)
        elif numbers.finite():
            with record_function("optimizer"):
                update(parts)
        else:
            parts.optimizer.zero_grad(set_to_none=True)
            self.watch.go_back()
        number, usage = parts.turn(step)[1] + 1, None
        if number % HEALTH_EVERY != 0 and number < parts.shares.count(task.number, parts.steps):
            embeddings = None
        elif parts.model.usage is not None:
            usage = parts.model.usage.clone()
        self.taken.append(Taken(step, task, batch, lr, numbers, embeddings, usage, counted))

    def settle(self, left: int = 0) -> None:
        """Look at the steps that were taken, but for the last `left`, and write them down. Raises
        TrainingError where one is not finite and none may be left out, after saving what was before it."""
        while len(self.taken) > left:
            x = self.taken.popleft()
            finite = x.numbers.finite()
            now = time.perf_counter()
            rates = {"lr": x.lr, "seconds": now - self.since, "waited": self.waited}
            self.since, self.waited = now, 0.0
            if finite:
                loss, terms = x.numbers.loss, x.numbers.terms
                self.log.step(x.step + 1, x.task.name, loss, terms, rates, x.embeddings, x.usage)
            else:
                self.leave_out(x, rates)

    def leave_out(self, x: Taken, rates: dict[str, float]) -> None:
        """Say what was not finite, and take the steps behind it again: they changed nothing."""
        behind = list(self.taken)
        self.taken.clear()
        if self.held is not None:
            self.held = torch.zeros_like(self.held)
        for part, counted in zip(counting(self.parts), behind[0].counted if behind else ()):
            part.set_extra_state(counted)
        why = self.watch.look_into(x.step, x.task, x.batch, x.numbers)
        if self.watch.over:
            if x.step:
                self.saver.save_now(x.step)  # as before this step: --replay has its exact weights
            raise TrainingError(why)
        self.log.skipped(x.step + 1, x.task.name, x.numbers.terms, rates, why)
        for y in behind:
            self.take(y.step, y.task, y.batch, time.perf_counter(), 0.0)


def decided_by_device(parts: Parts) -> bool:
    """Whether a step that is not finite is left out without a look of the processor: on a GPU, with an
    optimizer that does nothing where its `found_inf` is 1 (it says so as torch's GradScaler wants it)."""
    return parts.device.type == "cuda" and getattr(parts.optimizer, "_step_supports_amp_scaling", False)


def counting(parts: Parts) -> list[nn.Module]:
    """Parts of the objectives with a state that is no tensor, which no step that is left out takes back."""
    modules = (module for task in parts.tasks for module in task.objective.modules())
    return [part for part in modules if type(part).get_extra_state is not nn.Module.get_extra_state]


def update(parts: Parts, held: Tensor | None = None) -> None:
    """The optimizer's step with the gradients that are there, and what follows it. held: 1 on the device
    where nothing may change, else 0."""
    if parts.recipe.clip:
        clip_gradients(parts.model.parameters(), parts.recipe.clip)
    if held is not None:
        parts.optimizer.found_inf = held  # type: ignore[attr-defined]
    parts.optimizer.step()
    parts.optimizer.zero_grad(set_to_none=True)
    parts.model.after_step(1.0 if held is None else 1 - held.double())
