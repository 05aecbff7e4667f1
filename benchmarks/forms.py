"""The form that variance and covariance take, by shape and number of processes: docs/scaling.md's table.

    python -m benchmarks.forms

Computed, not measured: of both branches, MiB that each process receives in a step, and operations of the
products (10^9; a multiplication and an addition are two).
"""

from vicjoint.objectives.forms import best_form, forms

WORLDS = (1, 8, 32, 256, 1024, 4096)
SHAPES = [  # N, D, bytes of a number, how often statistics are taken, whose shape it is
    (64, 48, 4, 1, "audio_video_text"),
    (128, 512, 4, 2, "video_next_frame"),
    (512, 2048, 2, 1, ""),
    (2048, 2048, 2, 1, ""),
    (2048, 8192, 4, 1, "imagenet in float32"),
    (2048, 8192, 2, 1, "imagenet"),
    (4096, 8192, 2, 1, "imagenet, larger batches"),
    (16384, 8192, 2, 1, ""),
    (65536, 8192, 2, 1, ""),
    (32768, 512, 2, 1, ""),
]


def main() -> None:
    print("| N x D | | " + " | ".join(f"W = {world:,}" for world in WORLDS) + " |")
    print("| --- " * (2 + len(WORLDS)) + "|")
    for rows, dim, size, shares, whose in SHAPES:
        cells = [cell(rows, dim, world, size, shares) if world <= rows else "" for world in WORLDS]
        print(f"| {rows} x {dim} | {whose or f'{8 * size} bits'} | " + " | ".join(cells) + " |")


def cell(rows: int, dim: int, world: int, size: int, shares: int) -> str:
    """Name, MiB, 10^9 operations."""
    name = best_form(rows, dim, world, size, shares)
    form = next(form for form in forms(rows, dim, world, size, shares) if form.name == name)
    return f"{name}, {number(form.received / 2**20)}, {number(form.operations / 1e9)}"


def number(value: float) -> str:
    """Three digits that count."""
    return (
        "0"
        if not value
        else "< 0.01"
        if value < 0.01
        else f"{value:,.0f}"
        if value >= 100
        else f"{value:.3g}"
    )


if __name__ == "__main__":
    main()
