"""Bad samples of a run: counted, named in a file, and limited."""

import json
import math
from pathlib import Path

from vicjoint import distributed
from vicjoint.data.errors import BadDataError, listed


def allowed(records: int, max_bad_fraction: float) -> int:
    """How many of the records may be bad."""
    return math.ceil(max_bad_fraction * records)


class Quarantine:
    """Bad samples: counted once each, named in `bad_samples.jsonl`, and at most a share of the records."""

    def __init__(self, path: Path, source: str, records: int, max_bad_fraction: float):
        self.path, self.source = path, source
        self.allowed = allowed(records, max_bad_fraction)
        self.fraction, self.records = max_bad_fraction, records
        self.causes: dict[str, str] = {}
        if path.exists():
            lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
            self.causes = {line["sample"]: line["cause"] for line in lines if line["source"] == source}

    def add(self, bad: list[tuple[str, str]]) -> None:
        """Write down the new ones; raises BadDataError above the allowed number."""
        for sample, cause in bad:
            if sample in self.causes:
                continue
            self.causes[sample] = cause
            if distributed.rank() > 0:  # every process counts, the first one writes
                continue
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"source": self.source, "sample": sample, "cause": cause}) + "\n")
        if len(self.causes) > self.allowed:
            raise BadDataError(
                f"{len(self.causes)} of {self.records} samples cannot be read;"
                f" data.max_bad_fraction={self.fraction} allows {self.allowed}. Repair or remove them, or"
                " raise data.max_bad_fraction. The first ten (all in"
                f" {self.path}):\n{listed(self.causes.items())}"
            )
