"""The sample world as a table: picture, video, sound and words of a scene say the same, and the factors are
in each."""

import wave

import av
import numpy as np
import pytest
from wrong import refused

from vicjoint import video
from vicjoint.files import images
from vicjoint.files.cells import file_path
from vicjoint.samples import table
from vicjoint.samples.table import MOTIONS, RATE_HZ, SampleTable
from vicjoint.sources.table import Table


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VICJOINT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield SampleTable(train=8, test=4, frames=24, size=32)


def sound_file(path) -> np.ndarray:
    with wave.open(path) as file:
        assert (file.getnchannels(), file.getframerate()) == (1, RATE_HZ)
        return np.frombuffer(file.readframes(10**7), np.int16) / 32767


def test_rows_and_files(source):
    assert (len(source.train), len(source.test)) == (
        8,
        4,
    ) and source.describe() == f"sample_table {source.root}: 8 train, 4 test records"
    for record in source.train + source.test:
        frames = video.read(file_path(record, record["video"]), range(24))
        picture = images.read(file_path(record, record["image"])).permute(1, 2, 0).numpy()
        assert frames.shape == (24, 32, 32, 3) and np.abs(frames[0].astype(int) - picture).mean() < 8
        assert len(sound_file(file_path(record, record["sound"]))) == RATE_HZ
        assert len(set(record["captions"])) == 3 and record["caption"] == record["captions"][0]
        for caption in record["captions"]:
            assert all(record[word] in caption for word in ("size", "colour", "shape", "motion"))
    again = Table(str(source.root / "factors.jsonl"), column="video")
    assert [r["caption"] for r in again.test] == [r["caption"] for r in source.test]


def test_the_sound_of_the_video_is_the_sound_file_at_the_same_time(source):
    for record in source.test:
        wav = sound_file(file_path(record, record["sound"]))
        with av.open(record["path"]) as container:
            frames = list(container.decode(audio=0))
        assert frames[0].pts == 0
        heard = np.concatenate([f.to_ndarray()[0] for f in frames])[: len(wav)]
        at = lambda lag: np.corrcoef(heard[2000 + lag : -2000 + lag], wav[2000:-2000])[0, 1]
        assert at(0) > 0.98 and at(0) == max(at(lag) for lag in (-1024, -5, 0, 5, 1024))


def test_a_scene_is_pure_and_every_motion_stays_inside():
    seen = set()
    for index in range(120):
        scene, motion = table.draw(3, "train", index, 32)
        assert (scene, motion) == table.draw(3, "train", index, 32) != table.draw(4, "train", index, 32)
        sprite = scene.sprites[0]
        x, y = sprite.x + sprite.vx * np.arange(32), sprite.y + sprite.vy * np.arange(32)
        for place in (x, y):
            assert place.min() >= sprite.size / 2 - 0.01 and place.max() <= 64 - sprite.size / 2 + 0.01
        assert (round(x[-1] - x[0]), round(y[-1] - y[0])) == tuple(28 * step for step in MOTIONS[motion])
        seen.add((motion, table.size_word(sprite)))
    assert len(seen) == 10


def pitch_hz(sound: np.ndarray) -> float:
    power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 2**16))
    return np.argmax(power) * RATE_HZ / 2**16


def heard(**factors):
    from dataclasses import replace

    scene, _ = table.draw(0, "train", 0, 48)
    motion = factors.pop("motion", "still")
    sprite = replace(
        scene.sprites[0], **{"shape": "circle", "texture": "plain", "colour": "red", "size": 14.0, **factors}
    )
    return table.sound_of(replace(scene, sprites=(sprite,)), motion, 48)


def test_factors_are_heard():
    tones = [pitch_hz(heard(colour=c)) for c in table.COLOURS]
    assert np.allclose(tones, 440 * 2 ** (np.arange(8) / 6), rtol=0.01)
    assert pitch_hz(heard(size=24.0)) == pytest.approx(220, rel=0.01)
    up, down = heard(motion="up"), heard(motion="down")
    assert pitch_hz(up[:1600]) < 480 and pitch_hz(up[-1600:]) > 820 and pitch_hz(down[-1600:]) < 240
    loud = lambda x: float(np.sqrt(np.mean(x**2)))
    assert loud(heard(motion="right")[-4000:]) > 3 * loud(heard(motion="right")[:4000])
    assert loud(heard(motion="left")[:4000]) > 3 * loud(heard(motion="left")[-4000:])
    sounds = [heard(shape=s, texture=t) for s in table.SHAPES for t in table.TEXTURES]
    assert all(np.corrcoef(a, b)[0, 1] < 0.96 for i, a in enumerate(sounds) for b in sounds[:i])
    assert max(np.abs(s).max() for s in sounds) <= 1 and len(sounds[0]) == 2 * RATE_HZ


@pytest.mark.parametrize(
    "options, message",
    [
        ({"train": 0}, "train is 0, expected 1 or more"),
        ({"frames": 4}, "frames is 4, expected 8 or more"),
        ({"size": 33}, "size is 33, expected an even number"),
    ],
)
def test_wrong_numbers(options, message):
    refused("source", "sample_table", options, message)
