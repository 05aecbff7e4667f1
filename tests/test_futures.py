"""Sample videos with several futures, and the probes that look at what a latent predicts of them."""

import numpy as np
import probing
import pytest
import torch
from probing import Bare, Listed, bound, missing, model_of, points, refused
from torch import nn

from vicjoint.pairs.next_frame import NextFrame
from vicjoint.parts import Pair, Predictor
from vicjoint.probes.forks import Decoder, Fork, noise, rows_of, score, use_of_codes
from vicjoint.probes.forks import Embedded as Places
from vicjoint.probes.many_futures import ManyFutures, of_query
from vicjoint.probes.next_frame import NextFrameRetrieval
from vicjoint.registry import ComponentError, build
from vicjoint.samples.futures import SampleFutures, TurningSprite, turning_scene, turns
from vicjoint.video import Video
from vicjoint.video.write import write_mp4

FRAMES, MOMENT = 16, 8


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VICJOINT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return SampleFutures(train=30, test=6, frames=FRAMES, size=32, futures=3)


def pair(source, frames=3, gap=4):
    return bound(NextFrame(frames=frames, stride=2, gap=gap, size=32, windows=2, flip=0), source)


def frames_of(path):
    with Video(path, "pyav") as video:
        return video.read(range(FRAMES)).astype(int)


# ---- the source ----


def test_nothing_before_the_moment_tells_the_future(source):
    for record in source.test:
        films = [frames_of(path) for path in (*record["futures"], *record["impossible"])]
        assert len(films) == 8 and record["moment"] == MOMENT and record["path"] in record["futures"]
        for film in films[1:]:
            assert np.array_equal(film[: MOMENT + 1], films[0][: MOMENT + 1])  # every pixel
        for one in range(8):
            for other in range(one):
                assert np.abs(films[one][MOMENT + 4] - films[other][MOMENT + 4]).max() > 60


def test_every_way_is_taken_about_as_often(source):
    """Of 30 training videos; which is not in their factors' order, nor the same for train and test."""
    taken = [r["sprites"][0]["turn"] for r in source.train]
    assert sorted(set(taken)) == pytest.approx([-np.pi / 3, 0, np.pi / 3], abs=1e-4)
    assert min(taken.count(t) for t in set(taken)) >= 5
    assert not any("futures" in r or "moment" in r for r in source.train)


def test_the_sprite_turns_in_the_middle_by_its_angle():
    assert np.degrees(turns(2)[0]).tolist() == pytest.approx([-45, 45]) and np.degrees(
        turns(2)[1]
    ).tolist() == pytest.approx([135, 225, 0])
    assert np.degrees(turns(3)[0]).tolist() == pytest.approx([-60, 0, 60])
    assert np.degrees(turns(3)[1]).tolist() == pytest.approx([120, 180, 240, -30, 30])
    for turn in (-1.2, 0.0, 0.7):
        sprite = turning_scene(0, "test", 3, FRAMES, turn).sprites[0]
        assert isinstance(sprite, TurningSprite)
        place = lambda frame: np.array(sprite.centre(np.float64(frame)))
        assert place(MOMENT) == pytest.approx([32, 32], abs=1e-3)
        before, after = place(MOMENT) - place(MOMENT - 2), place(MOMENT + 2) - place(MOMENT)
        assert np.hypot(*before) == pytest.approx(np.hypot(*after), abs=1e-3)
        angle = np.arctan2(before[0] * after[1] - before[1] * after[0], before @ after)
        assert angle == pytest.approx(turn, abs=1e-3)


def test_no_more_looks_than_asked_for_and_all_other_factors_as_many_as_scenes():
    def scenes(looks):
        return [
            turning_scene(4, split, index, FRAMES, looks=looks)
            for split in ("train", "test")
            for index in range(6)
        ]

    def look(scene):
        sprite = scene.sprites[0]
        return (
            scene.background,
            sprite.shape,
            sprite.colour,
            sprite.texture,
            sprite.size,
            sprite.angle,
            sprite.spin,
        )

    assert len({look(s) for s in scenes(2)}) == 2 and len({look(s) for s in scenes(None)}) == 12
    # the same in train and test
    assert look(scenes(2)[0]) == look(scenes(2)[2]) == look(scenes(2)[6]) != look(scenes(2)[1])
    assert len({s.sprites[0].vx for s in scenes(2)}) == 12


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"looks": 0}, "looks: expected a number at least 1, got 0"),
        ({"futures": 1}, "futures: expected a number at least 2, got 1"),
        ({"futures": 6}, "futures: expected a number at most 5, got 6"),
        ({"frames": 3}, "frames: expected a number at least 4, got 3"),
        ({"size": 33}, "size: expected a number that is a multiple of 2, got 33"),
        ({"test": 0}, "test: expected a number at least 1, got 0"),
    ],
)
def test_wrong_parameters(wrong, said):
    with pytest.raises(ComponentError, match=f"source.{said}"):
        build("source", {"name": "sample_futures", **wrong})


@pytest.mark.parametrize("chances", [[0.8], [0.8, 0.3]], ids=str)
def test_chances_that_are_none(chances):
    with pytest.raises(
        ValueError, match=r"source.chances: .* sum to .*Expected a number for each of the 2 fut"
    ):
        build("source", {"name": "sample_futures", "futures": 2, "chances": chances})


def test_records_say_where_the_sprite_is_and_what_may_come(tmp_path, monkeypatch):
    monkeypatch.setenv("VICJOINT_CACHE", str(tmp_path))
    made = SampleFutures(train=40, test=2, frames=FRAMES, size=32, futures=2, looks=4, chances=[0.8, 0.2])
    assert [r["look"] for r in made.train[:6]] == [0, 1, 2, 3, 0, 1]
    assert len({str(r["background"]) for r in made.train}) == 4  # events that share a look
    left = sum(r["sprites"][0]["turn"] < 0 for r in made.train)
    assert 25 <= left <= 38  # of 40, 32 are expected
    for record in made.test:
        own = record["futures"].index(record["path"])
        places = np.array(record["future_positions"])
        assert record["chances"] == [0.8, 0.2] and places.shape == (2, FRAMES, 2)
        assert np.array_equal(places[own], record["positions"])
        assert np.array_equal(places[0, : MOMENT + 1], places[1, : MOMENT + 1])
        assert places[0, MOMENT] == pytest.approx([0.5, 0.5], abs=1e-3)
        for path, track in zip(record["futures"], places):  # what is drawn there is not the background
            film, others = frames_of(path), [frames_of(p) for p in record["futures"] if p != path]
            x, y = (track[MOMENT + 4] * 32).astype(int)
            assert np.abs(film[MOMENT + 4, y, x] - others[0][MOMENT + 4, y, x]).max() > 20


# ---- many_futures ----


class Pixels(nn.Module):
    def forward(self, view):
        return (view[:, :, -1] if view.ndim == 5 else view).flatten(1).float()


class Shown(Predictor):
    """Predictions that it is given, by the last context frame; so what it should score is known."""

    def __init__(self, answers: list[tuple]):
        super().__init__()
        self.answers, self.latents = answers, len(answers[0][1])

    def forward(self, z_a):
        found = [next(many for last, many in self.answers if torch.equal(last, z)) for z in z_a]
        return torch.stack(found) if self.latents > 1 else torch.cat(found)


def model(source, choose):
    """`choose(films of the futures, films of the impossible)` gives frames: the predictions for a record."""
    answers = []
    for record in source.test:
        possible, never = ([frames_of(path) for path in record[key]] for key in ("futures", "impossible"))
        flat = lambda frame: torch.from_numpy(frame).permute(2, 0, 1).flatten().float()
        answers.append((flat(possible[0][MOMENT]), torch.stack([flat(f) for f in choose(possible, never)])))
    return model_of(Bare(Pixels()), Bare(Pixels()), Shown(answers))


def measured(source, choose, **options):
    made = model(source, choose)
    return probing.measured(ManyFutures(**options), made, made, source, pair(source))


def test_all_futures_are_found_and_a_wrong_guess_costs_precision(source):
    target = MOMENT + 4
    found = measured(source, lambda possible, never: [f[target] for f in possible])
    assert (
        set(found["model"].values()) == {1}
        and len(points(found["model"])) == 6
        and found["model"] == found["random_init"]
    )
    found = measured(
        source,
        lambda possible, never: [
            possible[0][target],
            possible[1][target],
            possible[1][target],
            never[0][target],
        ],
    )
    for prefix in ("", "inside_"):
        assert [
            found["model"][prefix + name] for name in ("recall", "precision", "found_all")
        ] == pytest.approx([2 / 3, 3 / 4, 0])
    assert found["nearest_4"]["recall"] >= 1 / 3  # the guess is one of them


def test_the_last_frame_and_impossible_turns_are_no_futures(source):
    found = measured(source, lambda possible, never: [possible[0][MOMENT], *(f[MOMENT + 4] for f in never)])
    assert set(found["model"].values()) == {0}


def test_a_frame_of_another_video_costs_the_recall_among_all(source):
    first = {}

    def choose(possible, never):  # between the futures of the query and, nearer, those of the first query
        return [
            0.45 * own[MOMENT + 4] + 0.55 * other[MOMENT + 4]
            for own, other in zip(possible, first.setdefault("of", possible))
        ]

    found = measured(source, choose)["model"]
    assert found["recall"] == pytest.approx(1 / 6) and found["inside_recall"] > 1 / 2


def test_without_a_latent_the_guesses_are_the_nearest_candidates(source):
    found = measured(source, lambda possible, never: [possible[1][MOMENT + 4]], guesses=3)
    assert [found["model"][name] for name in ("recall", "precision", "found_all")] == pytest.approx(
        [1 / 3, 1, 0]
    )
    assert (
        found["nearest_3"]["precision"] == pytest.approx(found["nearest_3"]["recall"])
        and found["nearest_3"]["recall"] >= 1 / 3
    )
    # own candidates: 3 targets, 9 frames up to the moment, of 7 later ones 5 - of 3 futures not nearer than 2
    # - and 7 of each of 5 impossible ones
    own, others = 3 + 9 + 3 * (8 - 1 - 3) + 5 * 7, 5 * 4
    assert found["chance"]["recall"] == pytest.approx(3 / (own + others)) and found["chance"][
        "precision"
    ] == pytest.approx(3 / (own + others))
    assert found["chance"]["inside_recall"] == pytest.approx(3 / own)
    count = own + others
    assert found["chance"]["found_all"] == pytest.approx(6 / (count * (count - 1) * (count - 2)))


def test_ties_are_no_retrieval():
    # a collapsed model finds nothing
    assert of_query(torch.zeros(2, 4), torch.zeros(9, 4), 3, 1)[0].tolist() == [False] * 3
    candidates = torch.tensor([[1.0], [1.0], [5.0], [2.0]])
    hit, share = of_query(torch.tensor([[0.9], [0.8]]), candidates, 2, 1)
    assert hit.tolist() == [True, False] and share == 1  # equal futures: one of them
    hit, share = of_query(torch.tensor([[4.6]]), candidates, 2, 3)
    assert hit.tolist() == [True, False] and share == pytest.approx(1 / 3)


def test_what_cannot_be_measured_is_said(source):
    probe = ManyFutures()
    assert missing(probe, source, pair(source)) is None
    assert "needs the pair next_frame" in missing(probe, source, Pair())
    plain = Listed(test=[{"id": "x"}])
    assert "no test record of the source has `futures`" in missing(probe, plain, pair(plain))
    for name in ("many_futures", "next_frame_retrieval"):
        refused(name, {"guesses": 0}, "guesses: expected a number at least 1, got 0")


@pytest.mark.parametrize("wrong", [{"futures": "a.mp4;b.mp4"}, {"moment": None}, {"moment": "8"}], ids=str)
def test_records_that_do_not_say_what_they_must(source, wrong, capsys):
    one = Listed(test=source.test[:1])
    two = Listed(test=[source.test[0], {**source.test[1], **wrong}])
    found = [
        probing.measured(ManyFutures(), made, made, of, pair(of))
        for of in (one, two)
        for made in [model(one, lambda possible, never: [f[MOMENT + 4] for f in possible])]
    ]
    assert found[0] == found[1]
    said = capsys.readouterr().out
    assert (
        "evaluation leaves out test/00001.mp4" in said
        and "expected a list of paths of videos and the number of the last frame that they share" in said
    )


def test_a_window_that_does_not_end_at_the_moment_is_named(source, capsys):
    made = model(source, lambda possible, never: [possible[0][MOMENT]])
    with pytest.raises(ValueError, match="none of the 6 test videos can be read with this pair"):
        probing.measured(ManyFutures(), made, made, source, pair(source, frames=6, gap=1))
    assert f"no window of this pair ends at frame {MOMENT}, where the futures part" in capsys.readouterr().out


# ---- decoded places ----

QUERIES, WIDTH = 40, 5


def forked(probabilities, move=0.0):
    """Futures at a distance of 0.2, embeddings that are linear in the place, a model that predicts both,
    `move` aside of them, and a third in the middle."""
    rng = np.random.default_rng(0)
    matrix = torch.from_numpy(rng.normal(size=(2, WIDTH)))
    middle = rng.uniform(0.3, 0.7, (QUERIES, 1, 2))
    futures = middle + np.array([[-0.1, 0.0], [0.1, 0.0]])
    places = np.concatenate([futures + [0, move], middle], 1)
    seen = np.concatenate([futures, middle, rng.uniform(0, 1, (QUERIES, 9, 2))], 1)
    z = torch.from_numpy(seen) @ matrix
    fork = Fork(futures, np.tile([0.8, 0.2], (QUERIES, 1)), np.ones((QUERIES, 1)))
    known = torch.from_numpy(seen.copy())
    known[:, -1] = torch.nan  # a frame of which no place is known
    pi = torch.tensor(probabilities, dtype=torch.float64).expand(QUERIES, 3)
    embedded = Places(torch.from_numpy(places) @ matrix, pi, z[:, :2], z[:, 2], z[:, 3])
    return embedded, Decoder(list(z), list(known)), fork


def scored(probabilities, move=0.0):
    embedded, decode, fork = forked(probabilities, move)
    return {name: points(score(*row, fork)) for name, row in rows_of(embedded, decode, fork).items()}


def test_places_are_decoded_from_frames_of_other_videos_and_measured_in_distances_of_the_futures():
    embedded, decode, fork = forked([0.5, 0.5, 0.0])
    assert decode(embedded.targets) == pytest.approx(fork.futures, abs=1e-3)
    assert fork.d.ravel() == pytest.approx(0.2)
    found = scored([0.5, 0.5, 0.0], move=0.02)["model"]
    for name in ("best_of_k", "validity", "coverage"):
        assert found[name] == pytest.approx(0.1, abs=0.01)
    assert found["prior_error"] == pytest.approx(0.3) and found["prior_bias"] == pytest.approx(0.3)
    assert found["nll"] == pytest.approx(np.log(2))
    assert found["error"] == pytest.approx(0.5 * (0.1 + 1.005), abs=0.01)


def test_a_prior_that_is_right_has_the_least_likelihood_and_energy_score():
    right, half, between = (scored(pi)["model"] for pi in ([0.8, 0.2, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]))
    assert right["prior_error"] == pytest.approx(0, abs=1e-6)
    assert right["nll"] < half["nll"] and right["energy"] < half["energy"] < between["energy"]
    assert right["energy"] == pytest.approx(0.16, abs=0.01)
    assert between["validity"] == pytest.approx(0.5, abs=0.01)


def test_controls_fail_where_a_model_with_both_futures_does_not():
    rows = scored([0.8, 0.2, 0.0])
    assert rows["targets"]["validity"] < 0.01 and rows["model"]["validity"] < 0.01
    assert rows["mean"]["validity"] == pytest.approx(0.2, abs=0.01)  # 0.8 of the way
    assert rows["copy_last"]["validity"] == pytest.approx(0.5, abs=0.01)
    assert rows["noise"]["validity"] > 0.15 and rows["other_clips"]["validity"] > 0.4
    # what fits another clip's target says nothing of this one's
    assert rows["foreign_latent"]["error"] == pytest.approx(rows["model"]["error"], abs=0.01)
    embedded, _, fork = forked([0.8, 0.2, 0.0])
    found = use_of_codes(embedded, fork)
    assert found["bits"] == pytest.approx(0.7219, abs=1e-3)
    assert np.log2(found["perplexity"]) == pytest.approx(0.7219, abs=1e-3)


def test_the_noise_has_the_covariance_of_the_predictions():
    generator = torch.Generator().manual_seed(1)
    apart = torch.randn(2000, 3, WIDTH, generator=generator) * torch.arange(1.0, WIDTH + 1)
    found = noise(apart, torch.full((2000, 3), 1 / 3)).flatten(0, 1)
    assert found.std(0).tolist() == pytest.approx([1, 2, 3, 4, 5], rel=0.05)


# ---- next_frame_retrieval with a latent ----


class Ahead(Predictor):
    """Brightness, moved on by each of `ahead` frames."""

    def __init__(self, ahead):
        super().__init__()
        self.latents, self.ahead = len(ahead), torch.tensor([[frames, 0] for frames in ahead])

    def forward(self, z_a):
        return z_a[:, None] + 4 * self.ahead if self.latents > 1 else z_a + 4 * self.ahead


def test_best_of_k_looks_at_the_target_and_the_guess_does_not(tmp_path):
    write_mp4(
        tmp_path / "v.mp4",
        np.zeros((30, 32, 32, 3), np.uint8) + (6 * np.arange(30)).astype(np.uint8)[:, None, None, None],
        crf=0,
    )

    source = Listed(test=[{"id": "v", "path": str(tmp_path / "v.mp4")}])

    class Level(nn.Module):
        def forward(self, view):
            level = (view[:, :, -1] if view.ndim == 5 else view).float().mean((1, 2, 3)) * 4 / 6
            return torch.stack([level, 0 * level], 1)

    def rows(ahead, **options):
        made, untrained = (model_of(Bare(Level()), Bare(Level()), Ahead(frames)) for frames in (ahead, [9.0]))
        pair = bound(NextFrame(frames=4, stride=2, gap=1, size=32), source)
        found = probing.measured(NextFrameRetrieval(pictures=0, **options), made, untrained, source, pair)
        return {
            f"{row}/{metric}": value for row, metrics in found.items() for metric, value in metrics.items()
        }

    found = rows([-1.0, 1.0, -0.2, 0.1])
    # the guess is the last: between the others
    assert found["model/r1"] == 0 and found["model/copy_rate"] == 1 and found["best_of_4/r1"] == 1
    assert (
        found["nearest_4/r1"] == 1
        and rows([-1.0, 1.0, -0.2, 0.1], guesses=1).keys().isdisjoint({"nearest_4/r1", "nearest_1/r1"})
        and "best_of_4/mrr" not in found
    )
    assert rows([1.0]).keys().isdisjoint({"best_of_1/r1", "nearest_1/r1"})
    assert rows([3.0], guesses=8)["nearest_8/r1"] == 1 and "best_of_8/r1" not in rows([3.0], guesses=8)
