"""By what data are known again, wherever they lie: a count and a hash of the records' ids."""

import hashlib
from collections.abc import Iterable

from vicjoint.parts import Source

Fingerprint = dict[str, tuple[int, str]]
"""{split: (number of records, hash of their ids in order)}."""


def fingerprint(source: Source) -> Fingerprint:
    found = {}
    for split in ("train", "test"):
        found[split] = counted(source.ids(split))
        if source.second is not None:
            found[f"{split} (second)"] = counted(source.ids(split, "b"))
    return found


def counted(ids: Iterable[str]) -> tuple[int, str]:
    count, seen = 0, hashlib.blake2b(digest_size=8)
    for name in ids:
        count += 1
        seen.update(f"{name}\n".encode("utf-8", "backslashreplace"))
    return count, seen.hexdigest()


def differing(before: Fingerprint, now: Fingerprint) -> list[str]:
    """What differs, in words, for each split."""
    found = []
    for split, (count, ids) in now.items():
        then, ids_then = before.get(split, (0, ""))
        how = f"{then:,} then, {count:,} now" if then != count else "others, or in another order"
        if ids != ids_then:
            found.append(f"{split} records: {how}")
    return found
