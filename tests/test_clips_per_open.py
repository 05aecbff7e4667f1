"""Several clips of each opened file: each record so many times an epoch, in different batches; the same
samples on any number of processes and workers, after a resume, and read together or alone."""

import itertools
from collections import Counter
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from vicjoint.data.clips import APART, Clips
from vicjoint.data.stream import Stream, batches
from vicjoint.modalities.image import Clip
from vicjoint.orders import ShardOrder
from vicjoint.pairs.cross_modal import CrossModal
from vicjoint.parts import Modality, Pair, Reading, Source
from vicjoint.recipe import RecipeError, load_recipe
from vicjoint.training.build import build_parts, length_of
from vicjoint.transforms import squares
from vicjoint.video import Video

FILES, CLIPS = 11, 3


class Number(Modality):
    reads = "text"

    def read(self, value, rng=None, window=None):
        return torch.tensor([[float(value), rng.random()]])


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for i in range(FILES):
        with av.open(str(folder / f"{i}.mp4"), "w") as out:
            stream = out.add_stream("libx264", rate=25, options={"g": "12", "bf": "2", "preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for n in range(30):
                pixels = np.random.default_rng(100 * i + n).integers(0, 255, (4, 6, 3), np.uint8)
                frame = av.VideoFrame.from_ndarray(pixels.repeat(8, 0).repeat(8, 1), format="rgb24")
                frame.pts, frame.time_base = n, Fraction(1, 25)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    return folder


def made(films, clips=CLIPS, kind=Clip, **options) -> Stream:
    source = Source()
    source.train = source.test = [
        {"id": f"film{i}", "video": f"{i}.mp4", "number": str(i), "folder": str(films)} for i in range(FILES)
    ]
    pair = CrossModal("video", "number")
    clip = kind(frames=3, stride=2, size=16, flip=0.5, **options)
    clip.video_backend = "pyav"
    pair.bind(Reading((clip, Number()), source, "pyav"))
    return Stream(source.train, pair, seed=4, clips=clips)


@pytest.fixture
def opened(monkeypatch):
    """The files that this process opens."""
    found = []

    class Counted(Video):
        def __init__(self, path, *given):
            found.append(path)
            super().__init__(path, *given)

    monkeypatch.setattr(squares, "Video", Counted)
    return found


def read(stream, per_batch=2, start=0, end=20, workers=0):
    with batches([stream], [per_batch], workers, start, end) as found:
        return [batch for batch, _ in found]


def equal(a, b) -> bool:
    return len(a) == len(b) and all(
        x.samples == y.samples and torch.equal(x.a, y.a) and torch.equal(x.b, y.b) for x, y in zip(a, b)
    )


# ---- the order ----


@pytest.mark.parametrize(
    "records, number, per_batch", [(1000, 3, 8), (37, 4, 5), (4, 2, 5), (16, 2, 1), (129, 5, 4)]
)
def test_each_record_comes_once_for_each_clip(records, number, per_batch):
    clips = Clips(records, number)
    clips.set_batch(per_batch)
    found = [clips.locate(place) for place in range(records * number)]
    assert sorted((row, clip) for row, clip, _ in found) == list(
        itertools.product(range(records), range(number))
    )
    at = {(row, clip): place for place, (row, clip, _) in enumerate(found)}
    for (row, clip), place in at.items():
        apart = found[place][2]
        assert 0 <= apart <= APART and (apart & (apart - 1)) == 0
        if apart and clip + 1 < number:  # in the same row of another batch
            assert at[row, clip + 1] == place + apart * per_batch
    if records >= APART * per_batch:
        assert found[0][2] == APART
    batch_of = Counter((row, place // per_batch) for place, (row, _, apart) in enumerate(found) if apart)
    assert max(batch_of.values(), default=1) == 1


def test_an_epoch_of_films(films):
    once = [s for batch in read(made(films), end=17) for s in batch.samples][: FILES * CLIPS]
    ids = Counter(name.split("@")[0] for name in once)
    assert set(ids.values()) == {CLIPS} and len(set(once)) == FILES * CLIPS
    assert {name.split("@")[1] for name in once} == {"0", "0.1", "0.2"}


# ---- what is read ----


def test_read_together_a_clip_is_what_it_is_alone(films, opened, monkeypatch):
    together = read(made(films))
    files = len(opened)
    monkeypatch.setattr(Clips, "stays", lambda *_: False)
    opened.clear()
    alone = read(made(films))
    assert equal(together, alone) and len(opened) == 40
    assert files == 8 + 2 + 3 * 1 + 7  # of blocks of 4 and 1 batches, what is left; then of the next epoch
    assert len({x.numpy().tobytes() for batch in alone for x in batch.a}) > 35, "clips differ"


@pytest.mark.parametrize("options", [{"cache_mb": 50}, {"reduce": 20}, {"window": 0.5}])
def test_with_options_of_the_clip(films, monkeypatch, options):
    together = read(made(films, **options))
    monkeypatch.setattr(Clips, "stays", lambda *_: False)
    assert equal(together, read(made(films, **options)))


class Darker(Clip):
    """Reads as a modality does that knows nothing of several clips."""

    def read(self, value, rng=None, window=None):
        return super().read(value, rng, window) // 2


def test_a_modality_that_reads_in_its_own_way_does_so_in_each_clip(films):
    plain, own = read(made(films)), read(made(films, kind=Darker))
    assert plain[0].a.max() > 128
    assert all(torch.equal(x.a // 2, y.a) for x, y in zip(plain, own))
    path, rngs = str(films / "0.mp4"), [np.random.default_rng(n) for n in (1, 2)]
    clip = Darker(frames=3, stride=2, size=16)
    windows = [(0.0, 0.5), (0.2, 0.5)]
    together = clip.read_several(path, rngs, windows)
    alone = [clip.read(path, np.random.default_rng(n), window) for n, window in zip((1, 2), windows)]
    assert all(torch.equal(x, y) for x, y in zip(together, alone)) and not clip.several and Clip.several
    slide = clip.slide(path, 0.2, 0.5)
    assert len(slide.spans) > 2
    for (start, _), view in zip(slide.spans, slide.read(0, len(slide.spans))):
        assert torch.equal(view, clip.read(path, None, (start, 0.5)))


@pytest.mark.parametrize("start", [1, 7, 13])
def test_resume_in_the_middle_of_a_block(films, start):
    assert equal(read(made(films), start=start), read(made(films))[start:])


@pytest.mark.parametrize("workers, files", [(2, 24), (3, 40)])
def test_any_number_of_workers_reads_the_same(films, opened, monkeypatch, workers, files):
    whole = read(made(films))
    opened.clear()

    class Info:
        num_workers = workers

    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: Info)
    streams = [made(films) for _ in range(workers)]
    for stream in streams:
        stream.set_batch(2)
    for step, batch in enumerate(whole):  # batches go to them in turn
        found = [streams[step % workers][position] for position in (2 * step, 2 * step + 1)]
        assert batch.samples == [name for *_, name, _ in found]
        assert torch.equal(batch.a, torch.cat([a for a, *_ in found]))
    assert len(opened) == files  # three processes keep nothing, and read nothing for nothing


def test_processes_share_a_batch(films, monkeypatch):
    whole = read(made(films), end=9)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr("vicjoint.distributed.rank", lambda: rank)  # noqa: B023
        monkeypatch.setattr("vicjoint.distributed.world_size", lambda: 2)
        shares.append(read(made(films), end=9))
    for batch, a, b in zip(whole, *shares):
        assert batch.samples == a.samples + b.samples and torch.equal(batch.a, torch.cat([a.a, b.a]))


def test_only_a_process_that_reads_the_next_clip_too_keeps_it(monkeypatch):
    clips = Clips(64, 2)

    class Info:
        num_workers = 3

    assert clips.stays(16) and clips.stays(1) and not clips.stays(0)
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: Info)
    assert not clips.stays(16) and clips.stays(3)


def test_no_more_is_kept_than_a_block_has():
    clips = Clips(64, 2)
    for i in range(100):
        clips.keep({(0, i, 1): (None, None)})
    assert len(clips._kept) == APART and clips.take((0, 99, 1)) and not clips.take((0, 3, 1))


def test_a_damaged_file_is_replaced_each_time_and_named(films, tmp_path):
    for path in films.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes() if path.name != "3.mp4" else b"no film")
    with batches([made(tmp_path)], [2], 0, 0, 16) as found:
        pairs = list(found)
    bad = [name for _, several in pairs for name, _ in several]
    assert set(bad) == {"film3"} and len(bad) >= CLIPS
    # the others are what they were
    for (batch, several), whole in zip(pairs, read(made(films), end=16)):
        assert several or torch.equal(batch.a, whole.a)


# ---- the recipe ----


def test_an_epoch_in_words(films, tmp_path):
    table = ["video,number,split"] + [
        f"{films}/{i}.mp4,{i},{'test' if i > 8 else 'train'}" for i in range(FILES)
    ]
    (tmp_path / "index.csv").write_text("\n".join(table))
    recipe = load_recipe(
        "audio_video",
        [
            f"source={{name: table, root: {tmp_path}/index.csv, column: video}}",
            "pair={name: cross_modal, a: video, b: video}",
            "a.modality={name: clip, frames: 12, size: 48, stride: 1}",
            *("b={weights: same}", "train.batch_size=3", "train.steps=null", "train.epochs=2"),
            *("data.clips_per_open=4", "optim.schedule.warmup_steps=0"),
        ],
    )
    parts = build_parts(recipe)
    assert length_of(parts, parts.tasks[0]) == "samples: 9 records x 4 = 36 an epoch; steps: 24 of 3"


def test_no_pair_that_reads_clips():
    with pytest.raises(
        RecipeError, match=r"clips_per_open: 4 clips of a file .* next_frame has pair.windows"
    ):
        build_parts(
            load_recipe("video_next_frame", ["data.clips_per_open=4", "source.train=8", "source.test=8"])
        )


def test_no_order_but_its_own():
    pair, order = Pair(), ShardOrder(np.zeros(8, int), 1, 1)
    with pytest.raises(ValueError, match=r"clips_per_open: 2 clips .* this source has another one"):
        Stream([{"id": "x"}] * 8, pair, 0, order=order, clips=2)
    pair.distinct = "text"
    with pytest.raises(ValueError, match=r"pair.distinct arranges another one. Leave one of them out"):
        Stream([{"id": str(i), "text": str(i)} for i in range(8)], pair, 0, clips=2)
