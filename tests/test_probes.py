"""Next-frame retrieval on videos whose right answers are known by construction."""

import numpy as np
import pytest
import torch
from probing import Bare, Listed, bound, measured, model_of
from torch import nn

from vicjoint.pairs.next_frame import NextFrame, Window
from vicjoint.probes import next_frame
from vicjoint.probes.next_frame import NextFrameRetrieval, middle_rank
from vicjoint.video.write import write_mp4

FRAMES, LEVEL = 30, 4  # frame t of a video is grey with brightness LEVEL * t + 3 * video


class Place(nn.Module):
    """An encoder that reads the brightness, and for a clip moves on by `ahead` frames."""

    def __init__(self, ahead: float = 0.0):
        super().__init__()
        self.ahead = ahead

    def forward(self, pixels):
        x = pixels.float()
        last = x[:, :, -1] if x.ndim == 5 else x
        level = last.mean((1, 2, 3)) / LEVEL + (self.ahead if x.ndim == 5 else 0)
        return torch.stack([level, level.square() / 30], 1)


def model(ahead):
    return model_of(Bare(Place(ahead)), Bare(Place()))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    made = Listed()
    for v in range(4):
        frames = np.zeros((FRAMES, 32, 32, 3), np.uint8)
        frames += (LEVEL * np.arange(FRAMES) + 30 * v).astype(np.uint8)[:, None, None, None]
        write_mp4(folder / f"{v}.mp4", frames)
        made.test.append({"id": f"{v}.mp4", "path": str(folder / f"{v}.mp4")})
    return made


def rows(ahead, source, stride=2, **options):
    pair = bound(NextFrame(frames=4, stride=stride, gap=1, size=32, windows=2), source)
    return measured(NextFrameRetrieval(**options), model(ahead), model(9), source, pair)


def test_a_model_that_knows_the_future_is_perfect_and_baselines_are_not(source):
    found = rows(1.0, source)
    assert found["model"]["r1"] == 1 and found["model"]["copy_rate"] == 0 and found["model"]["offset"] == 0
    # brightness of other videos' frames gets in between
    assert found["model"]["skill"] > 0.9 and found["model"]["open_r1"] == 0.5
    assert found["copy_last"]["open_r1"] == 0 and found["chance"]["open_r1"] < 1 / 72
    assert (
        found["copy_last"]["r1"] == 0
        and found["copy_last"]["copy_rate"] == 1
        and found["copy_last"]["skill"] == 0
    )
    assert found["copy_last"]["offset"] == 1
    assert found["pixels"]["copy_rate"] == 1
    # brightness grows evenly, so moving on by the last change is right
    assert found["extrapolation"]["r1"] > 0.9
    # it looks nine frames ahead: right only where that is beyond the end
    assert found["random_init"]["r1"] <= 0.25
    assert found["chance"]["r1"] == pytest.approx(1 / 24) and found["chance"]["all_r1"] == pytest.approx(
        1 / 4
    )


def test_pixels_have_an_extrapolation_and_a_ceiling(source):
    found = rows(1.0, source)
    assert found["pixels_extrapolation"]["r1"] > 0.9 and found["pixels"]["r1"] == 0
    assert found["ceiling"]["r1"] == found["ceiling"]["skill"] == 1


def test_copying_is_a_good_answer_where_the_context_is_no_candidate(source):
    found = rows(1.0, source, stride=1)
    assert found["copy_last"]["r1"] == 0 and found["copy_last"]["unseen_r1"] == 1
    assert rows(1.0, source)["copy_last"]["unseen_r1"] == 0.5  # or the frame before the last, as near
    assert found["chance"]["unseen_r1"] == pytest.approx(1 / 20)


def test_where_nothing_moves_there_is_no_answer(source, tmp_path):
    """Of two windows, the first at the beginning and the last at the end, the first stands still."""
    frames = np.zeros((FRAMES, 32, 32, 3), np.uint8)
    frames += (LEVEL * np.arange(FRAMES).clip(8)).astype(np.uint8)[:, None, None, None]
    write_mp4(tmp_path / "still.mp4", frames)
    still = Listed(test=[{"id": "still.mp4", "path": str(tmp_path / "still.mp4")}])
    found = rows(1.0, still, queries=2)
    assert found["model"]["r1"] == 0.5 and found["model"]["answerable_r1"] == 1
    assert found["ceiling"]["r1"] == 0.5 and found["ceiling"]["answerable_r1"] == 1
    assert found["copy_last"]["answerable_r1"] == 0
    assert found["chance"]["answerable_r1"] == pytest.approx(1 / 24)
    write_mp4(tmp_path / "still.mp4", frames[:1].repeat(FRAMES, 0))
    assert all(row["answerable_r1"] == 0 for row in rows(1.0, still, pictures=0).values())


def test_a_model_that_copies_is_seen_to_copy(source):
    found = rows(0.0, source)
    assert found["model"]["copy_rate"] == 1 and found["model"]["r1"] == 0 and found["model"]["r5"] == 1


def test_candidates_hold_the_last_context_frame_and_the_target():
    probe = NextFrameRetrieval(candidates=10)
    for last, step, frames in ((7, 1, 24), (3, 1, 24), (22, 1, 24), (50, 3, 75), (4, 2, 9)):
        candidates = probe._candidate_frames(Window([last - 1, last], last + step), frames)
        assert last in candidates and last + step in candidates
        assert len(candidates) <= 10 and set(np.diff(candidates)) == {step} and max(candidates) < frames


def test_ties_get_the_middle_rank():
    assert middle_rank(torch.tensor([1.0, 1.0, 1.0, 1.0]), 2) == 2.5
    assert middle_rank(torch.tensor([0.0, 1.0, 2.0, 1.0]), 3) == 2.5
    assert middle_rank(torch.tensor([0.5, 1.0, 2.0]), 0) == 1


def test_collapsed_embeddings_score_as_chance_not_better(source):
    collapsed = model(0.0)
    for side in "ab":
        collapsed.branches[side].encoder.forward = lambda pixels: torch.zeros(len(pixels), 2)
    pair = bound(NextFrame(frames=4, stride=2, gap=1, size=32), source)
    found = measured(NextFrameRetrieval(pictures=0), collapsed, model(9), source, pair)
    assert found["model"]["r1"] == 0 and found["model"]["mrr"] == pytest.approx(1 / 12.5)


def test_pictures_show_context_retrieved_and_target(source):
    pictures = rows(0.0, source, pictures=4)["pictures"]
    assert pictures["context"].shape[1:] == (4, 32, 32, 3) and not pictures["good"].any()
    assert np.array_equal(pictures["retrieved"], pictures["context"][:, -1])
    assert len(pictures["title"]) == len(pictures["target"]) == len(pictures["context"])


def test_unreadable_test_videos_are_named_and_left_out(source, tmp_path, capsys):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    both = Listed(test=[{"id": "bad\x1b.mp4", "path": str(tmp_path / "bad.mp4")}, *source.test])
    assert rows(1.0, both, pictures=0) == rows(1.0, source, pictures=0)
    assert capsys.readouterr().out.count(r"evaluation leaves out bad\x1b.mp4") == 1
    both.test = both.test[:1]
    with pytest.raises(ValueError, match="none of the 1 test videos can be read"):
        rows(1.0, both)


def test_coarse_averages_blocks():
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.allclose(
        next_frame.coarse(pixels.flatten(1)).view(2, 3, 16, 16)[:, :, 0, 0],
        pixels[:, :, :2, :2].mean((2, 3)),
        atol=1e-6,
    )
