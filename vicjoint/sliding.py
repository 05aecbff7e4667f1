"""Windows along the time of one file, for features of long videos and sounds.

with modality.slide("film.mp4", every=0.5) as windows:
    windows.spans                          # [(0.0, 2.0), (0.5, 2.5), ...] in seconds
    views = list(windows.read(10, 20))     # raw views of ten of them, each with a leading dimension of 1
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

Span = tuple[float, float]
"""Start and end in seconds from the start of the file."""

ROUNDING_SECONDS = 1e-3  # of timestamps in files


class Sliding:
    """Windows of a file that stays open between readings. spans: one a window, by increasing start. `read_at`
    gives the view of the window that starts at so many seconds. Close it after use."""

    def __init__(
        self, spans: Sequence[Span], read_at: Callable[[float], Any], close: Callable[[], None] = lambda: None
    ):
        self.spans, self.close = spans, close
        self._read_at = read_at

    def read(self, first: int, last: int) -> Iterator[Any]:
        """Raw views, as in evaluation, of the windows from number `first` up to `last`, without it. Raises as
        a modality's `read` does."""
        return (self._read_at(start) for start, _ in self.spans[first:last])

    def __enter__(self) -> "Sliding":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def spans(name: str, seconds: float, length: float | None, every: float) -> list[Span]:
    """Windows of `length` seconds that lie in a file of `seconds`, one every so many. Raises ValueError,
    naming the file, where none does, or nothing says how long they are."""
    if length is None:
        raise ValueError(f"{name}: nothing says how long a window is. Set pair.seconds in the recipe.")
    spare = seconds - length
    if spare < -ROUNDING_SECONDS:
        raise ValueError(f"{name}: is {seconds:.2f} s long, a window has {length:g} s.")
    number = int((max(spare, 0.0) + ROUNDING_SECONDS) / every) + 1
    return [(n * every, n * every + length) for n in range(number)]
