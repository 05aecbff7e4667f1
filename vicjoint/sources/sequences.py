"""Sources of sequences: FASTA files.

    # records: id, sequence, description, and a column for each key=value of the header
    Fasta("/data/proteins.fasta.gz")

Records are read by the `cross_modal` pair from their columns: {name: cross_modal, a: sequence, b: text}.
"""

import gzip
import re
import zlib
from pathlib import Path

from vicjoint.files.paths import user_path
from vicjoint.parts import Source
from vicjoint.registry import register
from vicjoint.sources.base import (
    SPLIT_NAMES,
    SourceError,
    TestFraction,
    numbered,
    repeated,
    split_by_hash,
    split_of,
)

# of a compressed file, unpacked: UniRef50 has three times as much, and would not fit either
MOST_BYTES = 1 << 33
OWN = ("id", "sequence", "description")
# values go on to the next key, as in UniProt's `OS=Homo sapiens OX=9606`
PAIR = re.compile(r"(?:^|\s)([A-Za-z_]\w*)=(.*?)(?=\s+[A-Za-z_]\w*=|$)")


@register("source", "fasta")
class Fasta(Source):
    """A FASTA file (.fasta, .fa, .faa, also .gz) of proteins, all in memory.

    The header `>id words key=value ...` gives the columns id, description (the words) and one for each key,
    as text; a value reaches to the next key. Ids that come again get a number. Where all headers have
    `split=` (as in tables), these are the splits. Otherwise the split is by hash of the sequence, so that
    equal sequences are on one side. Lines that start with `;` are comments.
    """

    def __init__(self, root: str, test_fraction: TestFraction = 0.15):
        self.root = user_path(root).absolute()
        records = self._parse(read_text(self.root).splitlines())
        marked = [r for r in records if "split" in r]
        if marked and len(marked) < len(records):
            missing = next(r["id"] for r in records if "split" not in r)
            raise SourceError(
                f"fasta: {self.root}: {len(marked)} of {len(records)} headers have split=, '{missing}' has"
                " none. Give it to all or to none."
            )
        if marked:
            sides = {r["sequence"]: self._side(r) for r in records}
            wrong = next((r for r in records if sides[r["sequence"]] != self._side(r)), None)
            if wrong:
                raise SourceError(
                    f"fasta: {self.root}: the sequence of '{wrong['id']}' is in train and in test. Keep it on"
                    " one side, or the test is on training data."
                )
        else:
            different = list(dict.fromkeys(r["sequence"] for r in records))
            if len(different) < 2:
                raise SourceError(
                    f"fasta: {self.root}: all {len(records)} sequences are equal, expected different ones to"
                    " train and to test on."
                )
            sides = split_by_hash(different, test_fraction, f"fasta {self.root}")
        self.train, self.test = (
            [r for r in records if sides[r["sequence"]] == split] for split in ("train", "test")
        )
        for split, part in (("train", self.train), ("test", self.test)):
            if not part:
                raise SourceError(
                    f"fasta: {self.root}: no header says split={split}. Mark some, or remove split= from all"
                    " headers."
                )

    def _parse(self, lines: list[str]) -> list[dict]:
        records, parts = [], []
        for number, line in enumerate(lines, 1):
            line = line.strip()
            if line.startswith(">"):
                records.append(self._header(line[1:], number))
                parts.append([])
            elif line and not line.startswith(";"):
                if not records:
                    raise SourceError(
                        f"fasta: {self.root}, line {number} is {line[:40]!r}, expected a header such as"
                        " '>P12345 name' before the first sequence."
                    )
                parts[-1].append(line)
        if len(records) < 2:
            raise SourceError(
                f"fasta: {self.root} has {len(records)} sequences, expected two or more: one to train on and"
                " one to test on."
            )
        names = [record["id"] for record in records]
        self.repeated = repeated(names, "sequences")
        return [
            {**record, "id": own, "sequence": "".join(part)}
            for record, own, part in zip(records, numbered(names), parts)
        ]

    def _header(self, text: str, number: int) -> dict:
        name, _, rest = text.strip().partition(" ")
        if not name:
            raise SourceError(
                f"fasta: {self.root}, line {number}: a header without an id, expected '>P12345 name'."
            )
        pairs = {(f"header_{key}" if key in OWN else key): value.strip() for key, value in PAIR.findall(rest)}
        return {"id": name, "description": " ".join(PAIR.sub(" ", rest).split()), **pairs}

    def _side(self, record: dict) -> str:
        if (side := split_of(record["split"])) is None:
            raise SourceError(
                f"fasta: {self.root}: split of '{record['id']}' is '{record['split']}', expected one of"
                f" {SPLIT_NAMES}."
            )
        return side

    def describe(self) -> str:
        return (
            f"fasta {self.root}: {len(self.train):,} train, {len(self.test):,} test sequences{self.repeated}"
        )


def read_text(path: Path) -> str:
    """The text of a plain or gzip-compressed file. Raises SourceError."""
    if not path.exists():
        raise SourceError(f"fasta: root {path} does not exist. Expected a FASTA file: check the path.")
    if path.is_dir():
        found = sorted(
            p.name for p in path.iterdir() if re.search(r"\.(fa|faa|fasta)(\.gz)?$", p.name.lower())
        )
        raise SourceError(
            f"fasta: root {path} is a folder, expected a FASTA file. Found there:"
            f" {', '.join(found[:5]) or 'no .fasta, .fa or .faa file'}."
        )
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            with gzip.open(path) as file:
                data = file.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                raise SourceError(
                    f"fasta: {path} has more than {MOST_BYTES:,} bytes when it is unpacked, too many to hold"
                    " in memory. Cut it into parts."
                )
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(
            f"fasta: {path} is not UTF-8: {error.reason} at byte {error.start}. Save it as UTF-8."
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(
            f"fasta: cannot read {path}: {error}. Expected a FASTA file, plain or compressed by gzip."
        ) from None
