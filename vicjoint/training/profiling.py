"""Where the time of a step goes: `python -m vicjoint.run RECIPE --profile 20`.

The loop, the gradient and the model name their parts by `record_function`; torch's profiler takes the times
of some steps. Written into the run folder: trace.json.gz, which https://ui.perfetto.dev opens, and
profile.json, the table.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from vicjoint import distributed
from vicjoint.files.write import write_json
from vicjoint.recipe import RecipeError

WARM_UP = 5  # steps before the first that counts: workers start, kernels are chosen
PHASES = ("waiting for data", "transfer", "forward a", "forward b", "objective", "backward", "optimizer")
REST, BESIDE = "the rest", "collectives"  # the rest: checks, logs, the exchange of what was read
COLLECTIVES = ("gloo:", "nccl:")


@contextlib.contextmanager
def profiled(folder: Path, begin: int, end: int, steps: int) -> Iterator[Callable[[], None]]:
    """Gives what the loop, from step `begin` to `end`, calls after each step. `steps`: how many count; 0:
    none. On several processes the first one's are taken. Raises RecipeError where there are not so many."""
    if steps and not 0 < steps <= end - begin - WARM_UP:
        raise RecipeError(
            f"--profile: {steps} steps after {WARM_UP} to warm up do not fit between steps {begin} and {end}."
        )
    if not steps or distributed.rank() > 0:
        yield lambda: None
        return

    def write(done: profile) -> None:
        done.export_chrome_trace(str(folder / "trace.json.gz"))
        rows = table_of(done, steps)
        write_json(folder / "profile.json", {"first_step": begin + WARM_UP + 1, "steps": steps, "rows": rows})
        print("\n".join([f"time of a step, mean of {steps}; {folder / 'trace.json.gz'}", *map(words, rows)]))

    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # it speaks of GPUs where there is none
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    plan = schedule(wait=WARM_UP - 1, warmup=1, active=steps, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as running:
        yield running.step


def table_of(done: profile, steps: int) -> list[dict]:
    """A row for each part of a step: `part`, `seconds` and `share` of the step; with a GPU `gpu_seconds`, of
    its kernels. The parts follow each other; collectives run beside them."""
    of_cpu, of_gpu = dict.fromkeys((*PHASES, REST, BESIDE), 0.0), {}
    whole = 0.0
    for event in done.key_averages():
        part = BESIDE if event.key.startswith(COLLECTIVES) else event.key
        if event.key.startswith("ProfilerStep"):
            whole += event.cpu_time_total / 1e6 / steps
        elif part in of_cpu:
            of_cpu[part] += event.cpu_time_total / 1e6 / steps
            of_gpu[part] = of_gpu.get(part, 0.0) + event.device_time_total / 1e6 / steps
    of_cpu[REST] = whole - sum(of_cpu[part] for part in PHASES)
    on_gpu = any(of_gpu.values())
    return [
        {"part": part, "seconds": seconds, "share": seconds / whole}
        | ({"gpu_seconds": of_gpu.get(part, 0.0)} if on_gpu else {})
        for part, seconds in of_cpu.items()
        if seconds or of_gpu.get(part)
    ]


def words(row: dict) -> str:
    said = f"  {row['part']:<17}{1000 * row['seconds']:9.1f} ms{100 * row['share']:6.1f} %"
    if "gpu_seconds" in row:
        said += f"   GPU{1000 * row['gpu_seconds']:9.1f} ms"
    return said + ("   beside the others" if row["part"] == BESIDE else "")
