"""What probes gave to be seen (pictures.npz) -> good and bad cases, each a row of captioned pictures."""

import numpy as np

from vicjoint.report.plots import Picture, frame

Figure = tuple[str, list[Picture]]  # a caption and what stands side by side above it


def pictures(arrays: dict[str, np.ndarray], branches: dict[str, tuple[str, str]]) -> list[dict]:
    """The pictures of each probe, whose arrays are called "probe/name"; `branches`: {probe: names of its
    two}. title [n], good bool [n], and next frames: context uint8 [n, T, H, W, 3] | retrieved and target
    uint8 [n, H, W, 3]; or images: query [n, H, W, 3] (absent where queries are no images) | neighbours [n, K,
    H, W, 3], captions [2], where {a} and {b} stand for the names of the branches, and optionally right bool
    [n, K] and views [m, 2, H, W, 3].
    """
    probes: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        probe, _, name = key.rpartition("/")
        probes.setdefault(probe, {})[name] = array
    return [
        {"probe": probe if len(probes) > 1 else "", **cases(of, *branches.get(probe, ("a", "b")))}
        for probe, of in probes.items()
    ]


def cases(arrays: dict[str, np.ndarray], a: str, b: str) -> dict:
    """One probe's good and bad cases [(title, figures)], what its colours mean, and pairs of views."""
    found = {"good": [], "bad": [], "neighbours": "neighbours" in arrays}
    captions = [str(caption).replace("{a}", a).replace("{b}", b) for caption in arrays.get("captions", ())]
    for i, good in enumerate(arrays["good"]):
        figures = neighbours(arrays, i, *captions) if found["neighbours"] else next_frame(arrays, i)
        found["good" if good else "bad"].append((str(arrays["title"][i]), figures))
    return found | {"views": [[frame(view, 72) for view in two] for two in arrays.get("views", ())]}


def next_frame(arrays: dict[str, np.ndarray], i: int) -> list[Figure]:
    mark = "mark-green" if arrays["good"][i] else "mark-red"
    return [
        ("context", [frame(pixels, 72) for pixels in arrays["context"][i]]),
        ("retrieved", [frame(arrays["retrieved"][i], 144, mark)]),
        ("true next frame", [frame(arrays["target"][i], 144, "mark-green")]),
    ]


def neighbours(arrays: dict[str, np.ndarray], i: int, query: str, found: str) -> list[Figure]:
    """A query and what is nearest to it; marked are the first (right or wrong) and every other right one."""
    right = list(arrays["right"][i]) if "right" in arrays else [arrays["good"][i]]
    nearest = [
        frame(pixels, 72, "mark-green" if any(right[k : k + 1]) else "mark-red" if k == 0 else "")
        for k, pixels in enumerate(arrays["neighbours"][i])
    ]
    asked = [(query, [frame(arrays["query"][i], 72)])] if "query" in arrays else []
    return [*asked, (found, nearest)]
