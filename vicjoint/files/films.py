"""Pictures that are a film: all of a folder, a numbered pattern of them, the pages of a tiff.

pictures("clips/07")             # ("0001.png", "0002.png", ...): in the order of their numbers
pictures("clips/07_%04d.png")
pages("stack.tif")               # 40
"""

import os
import re
from collections.abc import Iterable

from PIL import Image

from vicjoint.files.guard import no_file
from vicjoint.files.images import IMAGE_SUFFIXES

TIFF_SUFFIXES = (".tif", ".tiff")
FRAME_SUFFIXES = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix != ".gif")  # which is a film by itself
PATTERN = re.compile(r"%(?:0(\d+))?d")


def is_pattern(path: str) -> bool:
    """Whether a path has a number such as %05d in its last part."""
    return PATTERN.search(os.path.basename(path)) is not None and not os.path.exists(path)


def is_film(path: str, videos: tuple[str, ...]) -> bool:
    """Whether a folder is one; see are_film."""
    try:
        with os.scandir(path) as found:
            return are_film(list(found), videos)
    except OSError:
        return False


def are_film(entries: Iterable[os.DirEntry], videos: tuple[str, ...]) -> bool:
    """Whether what a folder holds are the frames of a film: at least two pictures, no tiff of several pages,
    no folder, and no file that ends in `videos`; hidden names aside. Raises OSError."""
    frames = []
    for entry in entries:
        name = entry.name.lower()
        if name.endswith(FRAME_SUFFIXES):
            frames.append(entry)
        elif not name.startswith(".") and (name.endswith(videos) or entry.is_dir()):
            return False
    tiffs = [entry.path for entry in frames if entry.name.lower().endswith(TIFF_SUFFIXES)]
    return len(frames) > 1 and not (tiffs and pages(min(tiffs)) > 1)


def pages(path: str) -> int:
    """Of a tiff; 1: it is another picture, or cannot be read."""
    if not path.lower().endswith(TIFF_SUFFIXES) or no_file(path, "image"):
        return 1
    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1)
    except Exception:  # Pillow fails on damaged files in many ways; reading it says which
        return 1


def pictures(path: str) -> list[str]:
    """Names of the pictures of a folder, or of a pattern, in the order of their numbers. Raises ValueError,
    without the path, where that is not the order of a film."""
    numbered = is_pattern(path)
    folder = os.path.dirname(path) if numbered else path
    try:
        names = [name for name in os.listdir(folder or ".") if not name.startswith(".")]
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if numbered:
        wanted = re.compile(PATTERN.sub(_digits, re.escape(os.path.basename(path)), count=1))
        names = [name for name in names if wanted.fullmatch(name)]
    else:
        names = [name for name in names if name.lower().endswith(FRAME_SUFFIXES)]
    if len(names) < 2:
        what = "of this pattern" if numbered else "in it"
        raise ValueError(f"{len(names) or 'no'} picture{'s' * (not names)} {what}, expected two or more")
    names.sort(key=numbers)
    check_names(names)
    return names


def _digits(found: re.Match) -> str:
    return rf"\d{{{found[1]},}}" if found[1] else r"\d+"


def numbers(name: str) -> tuple[list[int], str]:
    """By which names are sorted: frame_2 before frame_10."""
    return [int(digits) for digits in re.findall(r"\d+", name)], name


def check_names(names: list[str]) -> None:
    """Raises ValueError where sorted names differ in more than numbers, or where one number is missing among
    those that count by ones. Times, and every fifth number, count in another way, and may have gaps."""
    kinds = {re.sub(r"\d+", "%d", name): name for name in reversed(names)}
    if len(kinds) > 1 or "%d" not in next(iter(kinds)):
        some = ", ".join(sorted(kinds.values())[:3])
        raise ValueError(
            f"its pictures have names of several kinds ({some}), expected names that differ in a number."
            " Rename them, or give a pattern such as FOLDER/frame_%d.png"
        )
    columns = [column for column in zip(*(numbers(name)[0] for name in names)) if len(set(column)) > 1]
    if len(columns) != 1:
        return
    steps = [after - before for before, after in zip(columns[0], columns[0][1:])]
    if 2 * steps.count(1) >= len(steps) and set(steps) != {1}:
        place = next(i for i, step in enumerate(steps) if step != 1)
        missing = sum(max(step - 1, 0) for step in steps)
        if steps[place] == 0:
            raise ValueError(f"{names[place]} and {names[place + 1]} have one number. Remove one of them")
        raise ValueError(
            f"{missing:,} of its pictures are missing, the first after {names[place]} (the next is"
            f" {names[place + 1]}). Add them, or make a video of each part"
        )
