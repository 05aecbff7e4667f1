"""The lines of a run while it trains: metrics.jsonl, evaluation.jsonl, the terminal, trackers."""

import json
from pathlib import Path

from tqdm import tqdm

from vicjoint import distributed, metrics
from vicjoint.files.guard import printable
from vicjoint.files.write import write_text
from vicjoint.report.tables import without_ends
from vicjoint.training.trackers import Trackers


class MetricsLog:
    """metrics.jsonl, evaluation.jsonl, the progress bar and `trackers`, on the first process alone. Lines
    after the step that a run resumes from are cut off. `branches`: {pair: names of its two}.
    """

    def __init__(
        self,
        folder: Path,
        start: int,
        steps: int,
        batch_size: int,
        branches: dict[str, tuple[str, str]],
        trackers: Trackers,
    ):
        self.folder, self.batch_size, self.branches, self.trackers = folder, batch_size, branches, trackers
        self.losses = {}  # the last of each pair
        self.verdicts: dict[str, tuple[str, int]] = {}  # of each pair: the kind, and the step it began at
        self.early = max(1, steps // 10)  # by then a run should be healthy
        self.looked_early: set[str] = set()  # pairs
        self.active = distributed.rank() == 0
        if not self.active:
            return
        for name in ("metrics.jsonl", "evaluation.jsonl"):
            keep_lines_to(folder / name, start)
        self.file = open(folder / "metrics.jsonl", "a", encoding="utf-8")
        self.bar = tqdm(
            total=steps, initial=start, unit="step", desc=folder.name, mininterval=0.5, dynamic_ncols=True
        )

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        if self.active:
            self.bar.close()
            self.file.close()

    def step(
        self,
        step: int,
        pair: str,
        loss: float,
        terms: dict[str, float],
        rates: dict[str, float],
        embeddings=None,
        usage=None,
    ) -> None:
        """One line for a step that was taken (1-based) on the pair of that name. `rates`: lr, seconds, and
        `waited`, the part of `seconds` spent waiting for data. `embeddings` (z_a, z_b) are given where health
        is due, and there `usage` counts, of a model's latents.
        """
        if not self.active:
            return
        values = {"loss": loss, **terms}
        speed = self.batch_size / rates["seconds"]
        line = {"step": step, "pair": pair, **values, **rates, "samples_per_second": speed}
        if embeddings is not None:
            line["health"] = metrics.health(*embeddings)
            line["verdict"] = metrics.verdict(
                line["health"], *embeddings[0].shape, "variance" in terms, self.branches[pair]
            )
            line |= {} if usage is None else {"latents": metrics.latent_usage(usage)}
            self._say(step, pair, line["verdict"])
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        self.bar.update()
        self.losses[pair] = values["loss"]
        shown = self.losses if len(self.losses) > 1 else values
        self.bar.set_postfix(
            {name: f"{value:.3g}" for name, value in shown.items()} | {"samples/s": f"{speed:.0f}"}
        )
        self.trackers.step(step, self._numbers(line))

    def skipped(self, step: int, pair: str, terms: dict, rates: dict[str, float], why: str) -> None:
        """One line for a step (1-based) that was left out: no loss, no terms, and `skipped`, the reason."""
        if not self.active:
            return
        line = {"step": step, "pair": pair, "loss": None, **dict.fromkeys(terms), **rates, "skipped": why}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        self.bar.update()
        tqdm.write(printable(why))

    def _say(self, step: int, pair: str, verdict: str) -> None:
        """A health line on the terminal when the verdict's kind changes, and once more where after a tenth of
        the steps it still is not healthy: every one is in metrics.jsonl."""
        kind = verdict.split(":")[0]
        before, began = self.verdicts.get(pair, ("", step))
        due = step >= self.early and pair not in self.looked_early
        if step >= self.early:
            self.looked_early.add(pair)
        if kind != before:
            self.verdicts[pair] = kind, step
        elif due and kind != "healthy":
            verdict = f"{kind} since step {began}{verdict.removeprefix(kind)}"
        else:
            return
        tqdm.write(f"step {step}: {pair + ': ' if len(self.losses) > 1 else ''}{verdict}")

    def _numbers(self, line: dict) -> dict[str, float]:
        """The numbers of a line of metrics.jsonl, by the names that trackers show."""
        flat = {k: v for k, v in line.items() if isinstance(v, float)}
        for branch, values in line.get("health", {}).items():
            flat |= (
                {f"health_{branch}/{k}": v for k, v in values.items()}
                if isinstance(values, dict)
                else {f"health/{branch}": values}
            )
        flat |= {f"latents/{name}": value for name, value in line.get("latents", {}).items()}
        return {f"{line['pair']}/{k}": v for k, v in flat.items()} if len(self.branches) > 1 else flat

    def evaluated(self, step: int) -> bool:
        """Whether the evaluation after `step` steps is written down."""
        path = self.folder / "evaluation.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return any(json.loads(line)["step"] == step for line in lines)

    def evaluation(self, step: int, results: dict) -> None:
        if not self.active:
            return
        with open(self.folder / "evaluation.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "results": results}) + "\n")
        self.trackers.evaluation(step, results)
        for probe, rows in results.items():
            model = rows.get("model", {})
            shown = " ".join(f"{metric}={model[metric]:.3f}" for metric in without_ends(model))
            tqdm.write(f"step {step}: {probe}: {shown}")


def keep_lines_to(path: Path, step: int) -> None:
    """Drop the lines of a jsonl file that are later than `step` (written after the checkpoint that a run
    resumes from)."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            break  # the line being written when the run was killed
    write_text(path, "".join(line + "\n" for line in kept))
