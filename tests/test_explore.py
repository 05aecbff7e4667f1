"""The explorer: what its data say, small copies of items, folders that are left alone, and the page itself,
driven in a browser where there is one."""

import json
import re
import shutil
import tarfile
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("pyarrow")

import indexes

from vicjoint.embeddings import explorer, previews
from vicjoint.embeddings.explorer import Cloud, ExplorerError, cloud_of, write_explorer
from vicjoint.embeddings.maps import maps
from vicjoint.embeddings.previews import Previews, middle
from vicjoint.embeddings.store import read_index
from vicjoint.explore import main

PAGE = Path(explorer.__file__).parent / "page"
NASTY = "<img src=x onerror=\"document.title='caught'\">\x1b[31m"


def data(folder: Path) -> dict:
    text = (folder / "data.js").read_text()
    assert text.startswith("const DATA = ") and text.endswith(";\n")
    return json.loads(text.removeprefix("const DATA = ").removesuffix(";\n"))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def cloud(n=6, name="words", **given) -> Cloud:
    rows = [{"item": f"word {i}", "kind": "even" if i % 2 == 0 else "odd"} for i in range(n)]
    vectors = np.random.default_rng(0).normal(size=(n, 5)) + [[3 * (i % 2), 0, 0, 0, 0] for i in range(n)]
    return Cloud(name, rows, vectors, **given)


# ---- data ----


def test_neighbours_are_those_of_both_clouds_without_the_item_itself(tmp_path):
    page = write_explorer(tmp_path / "page", [cloud(6), cloud(4, "others")], right="kind")
    found = data(page.parent)
    assert [(c["name"], c["count"], c["total"]) for c in found["clouds"]] == [
        ("words", 6, 6),
        ("others", 4, 4),
    ]
    assert len(found["items"]) == 10 and found["columns"][found["right"]]["name"] == "kind"
    own, other = found["near"]
    for i in range(10):
        assert sorted(own["numbers"][i]) == [k for k in range(6) if k != i]
        assert sorted(other["numbers"][i]) == [k for k in range(6, 10) if k != i]
        assert own["similarity"][i] == sorted(own["similarity"][i], reverse=True)
    assert other["numbers"][0][0] == 6  # the same vector, in the other cloud
    assert all(len(places) == 10 for of in found["maps"] for places in of["places"])


def test_cells_become_what_json_and_a_page_can_hold(tmp_path):
    cells = [NASTY, float("nan"), 2**60, True, ["a", "b"], " ", np.float32(0.25), "x" * 3000]
    rows = [{"item": "two\nlines\u202e", "cell": cell} for cell in cells]
    found = data(write_explorer(tmp_path / "page", [Cloud("c", rows, np.eye(8))]).parent)
    assert found["items"][0] == "two\nlines\\u202e"
    values = found["columns"][0]["values"]
    assert values[0] == NASTY.replace("\x1b", "\\x1b")
    assert values[1:7] == [None, str(2**60), "true", '["a", "b"]', None, 0.25]
    assert len(values[7]) < 2100 and values[7].endswith("(3,000 characters)")


def test_what_is_not_finite_is_listed_and_has_no_place(tmp_path):
    given = cloud(5)
    given.vectors[3] = np.nan
    found = data(write_explorer(tmp_path / "page", [given]).parent)
    assert [x is None for x in found["maps"][0]["places"][0]] == [False, False, False, True, False]
    assert found["near"][0]["numbers"][3] == [] and all(3 not in n for n in found["near"][0]["numbers"])


def test_more_items_than_a_page_holds_become_a_sample(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(50, 4))
    one, other = (
        read_index(indexes.write_index(tmp_path / f"{name}.parquet", range(50), vectors)) for name in "ab"
    )
    shown = cloud_of(one, 20)
    numbers = [int(row["item"]) for row in shown.rows]
    assert len(set(numbers)) == 20 and numbers == sorted(numbers) and numbers != list(range(20))
    assert np.allclose(shown.vectors, vectors[numbers], atol=1e-6) and shown.total == 50
    assert [row["item"] for row in cloud_of(other, 20).rows] == [row["item"] for row in shown.rows]


def test_a_map_shows_the_widest_axes_and_is_the_same_each_time():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(25, 10)) * [9, 5, *[0.1] * 8]
    before = torch.get_rng_state()
    (found,) = maps(vectors)
    assert torch.equal(before, torch.get_rng_state())
    seen = vectors - vectors.mean(0)
    seen /= np.linalg.norm(seen, axis=1, keepdims=True)
    axes = np.linalg.svd(seen - seen.mean(0))[2][:2]
    expected = np.abs((seen - seen.mean(0)) @ axes.T)
    assert np.allclose(np.abs(found.places), expected, atol=1e-4)
    assert (
        np.array_equal(found.places, maps(vectors)[0].places) and "99%" in found.note or "100%" in found.note
    )


def test_few_or_equal_items_have_a_map_too():
    for vectors in (np.ones((1, 3)), np.ones((4, 3)), np.zeros((3, 1))):
        assert np.isfinite(maps(vectors)[0].places).all()


@pytest.mark.slow
def test_umap_is_a_second_map_where_it_is_installed():
    pytest.importorskip("umap")
    groups = np.repeat(np.eye(3), 20, 0) + 0.01 * np.random.default_rng(0).normal(size=(60, 3))
    found = maps(groups)[1]
    centres = found.places.reshape(3, 20, 2).mean(1)
    spread = np.abs(found.places.reshape(3, 20, 2) - centres[:, None]).max()
    assert (
        found.name == "UMAP" and min(np.linalg.norm(centres[i] - centres[i - 1]) for i in range(3)) > spread
    )


# ---- copies of items ----


def test_pictures_clips_and_sounds_are_small_copies(tmp_path):
    large, film, sound = (
        indexes.png(tmp_path / "large.png", size=(900, 300)),
        indexes.mp4(tmp_path / "film.mp4", seconds=2.0),
        indexes.wav(tmp_path / "sound.wav"),
    )
    with Previews(tmp_path, "image", "file") as of:
        assert of.write("0", {"item": str(large)}) == previews.Preview("0.jpg")
        window = of.write("1", {"item": str(film), "start_seconds": 0.5, "end_seconds": 1.5})
        assert window == previews.Preview("1.jpg", clip="1.mp4")
        heard = of.write("2", {"item": str(sound)})
        assert heard == previews.Preview("2.jpg", sound="2.wav")
    assert pixels(tmp_path / "0.jpg").shape == (75, 224, 3)
    with av.open(str(tmp_path / "1.mp4")) as file:
        frames = [frame.to_ndarray(format="gray").mean() for frame in file.decode(video=0)]
        assert file.streams.video[0].codec_context.name == "h264"
    # a quarter to three quarters of 10 to 240
    assert len(frames) == 24 and abs(frames[0] - 68) < 8 and abs(frames[-1] - 182) < 8
    assert abs(pixels(tmp_path / "1.jpg").mean() - 125) < 8
    with av.open(str(tmp_path / "2.wav")) as file:
        assert file.duration == 500_000 and file.streams.audio[0].rate == 8000


def test_pictures_in_tar_files_are_found(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as shard:
        shard.add(indexes.png(tmp_path / "7.png"), "folder/7.png")
    with Previews(tmp_path, "image", "file") as of:
        assert of.write("0", {"item": f"{tmp_path}/x.tar/folder/7"}) == previews.Preview("0.jpg")
        assert "no such picture" in of.write("1", {"item": f"{tmp_path}/x.tar/folder/8"}).cause


def test_long_items_are_cut_to_their_middle():
    assert middle(None, None, 3.0, 6.0) == (0.0, 3.0)
    assert middle(None, None, 60.0, 6.0) == (27.0, 6.0)
    assert middle(10.0, 30.0, 60.0, 6.0) == (17.0, 6.0)


def test_a_films_sound_is_in_the_clip_or_alone(tmp_path):
    pytest.importorskip("soundfile")
    from vicjoint.video.write import write_mp4

    film = tmp_path / "film.mp4"
    tone = 0.5 * np.sin(np.arange(16000) * 0.2).astype(np.float32)
    write_mp4(film, np.zeros((24, 32, 32, 3), np.uint8), tone)
    with Previews(tmp_path, "clip", "file") as of:
        of.write("seen", {"item": str(film)})
    with Previews(tmp_path, "audio", "file") as of:
        assert of.write("heard", {"item": str(film)}).sound == "heard.wav"
    with av.open(str(tmp_path / "seen.mp4")) as file:
        sound = np.concatenate([frame.to_ndarray().ravel() for frame in file.decode(audio=0)])
    assert 0.3 < np.abs(sound).max() < 0.7


def test_molecules_are_drawn_and_texts_are_themselves(tmp_path):
    pytest.importorskip("rdkit")
    with Previews(tmp_path, "molecule", "text") as of:
        assert of.write("0", {"item": "c1ccccc1O"}).picture == "0.jpg"
        assert "not a valid SMILES" in of.write("1", {"item": "c1ccc"}).cause
    with Previews(tmp_path, "text", "text") as of:
        assert of.write("2", {"item": "c1ccccc1O"}) == previews.Preview()


def test_microscope_channels_become_colours(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    bright = np.zeros((3, 20, 20), np.uint16)
    for channel in range(3):
        bright[channel, 5 * channel : 5 * channel + 5] = 40_000
        tifffile.imwrite(tmp_path / f"cell_{'ABC'[channel]}.tiff", bright[channel])
    tifffile.imwrite(tmp_path / "cell.tiff", bright)
    for item in ("cell.tiff", "cell_{channel}.tiff"):
        found = previews.channels_as_colours(str(tmp_path / item))
        assert [found[row, 0].tolist() for row in (0, 5, 10, 19)] == [
            [0, 255, 0],
            [255, 0, 0],
            [0, 0, 255],
            [0, 0, 0],
        ]


def test_clips_and_sounds_end_where_the_limit_is(tmp_path, monkeypatch):
    monkeypatch.setattr(previews, "MOST_BYTES", 1)
    sound = str(indexes.wav(tmp_path / "sound.wav"))
    with Previews(tmp_path, "audio", "file") as of:
        assert of.write("0", {"item": sound}).sound == "0.wav"
        second = of.write("1", {"item": sound})
    assert second.sound is None and second.picture == "1.jpg" and "limit of 0 MB" in second.cause


def test_items_that_cannot_be_read_are_named(tmp_path, capsys):
    items = [indexes.png(tmp_path / "good.png"), tmp_path / "gone.png"]
    path = indexes.write_index(tmp_path / "i.parquet", items, np.eye(2), modality="image", reads="file")
    assert main([str(path), "--to", str(tmp_path / "page")]) == 0
    found = data(tmp_path / "page")
    assert found["picture"] == ["media/0/0.jpg", None] and "no such file" in found["cause"][1]
    assert (tmp_path / "page/media/0/0.jpg").exists()
    said = capsys.readouterr()
    assert (
        "i: 1 of 2 items are not shown" in said.out + said.err
        and "gone.png: no such file" in said.out + said.err
    )
    assert f"explorer: {tmp_path / 'page' / 'index.html'}" in said.out


def test_pictures_may_be_given(tmp_path):
    red = np.zeros((10, 12, 3), np.uint8)
    red[..., 0] = 200
    given = cloud(3, pictures=[red, None, red])
    found = data(write_explorer(tmp_path / "page", [given]).parent)
    assert found["picture"] == ["media/0/0.jpg", None, "media/0/2.jpg"]
    assert pixels(tmp_path / "page/media/0/0.jpg").shape == (10, 12, 3)


# ---- folders and mistakes ----


def test_an_earlier_page_is_replaced_and_other_folders_are_left_alone(tmp_path):
    folder = tmp_path / "page"
    given = cloud(4, pictures=[np.zeros((4, 4, 3), np.uint8)] * 4)
    write_explorer(folder, [given])
    (folder / "note.txt").write_text("mine")
    write_explorer(folder, [cloud(2)])
    assert len(data(folder)["items"]) == 2 and not list(folder.glob("media/*/*.jpg"))
    assert (folder / "note.txt").read_text() == "mine"
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "data.js.tmp").write_text("const")
    assert write_explorer(tmp_path / "killed", [cloud(2)]).exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("mine")
    with pytest.raises(ExplorerError, match="holds other files. Expected a new folder"):
        write_explorer(other, [given])
    assert [path.name for path in other.iterdir()] == ["index.html"]


def test_mistakes_are_said(tmp_path, capsys):
    write = lambda name, **facts: str(
        indexes.write_index(tmp_path / f"{name}.parquet", "xy", np.eye(2), {"class": [1, 2]}, **facts)
    )
    one, other = write("one"), write("other", model="ffff")
    empty = str(indexes.write_index(tmp_path / "empty.parquet", [], np.zeros((0, 2))))
    (tmp_path / "file").write_text("")
    for asked, said in (
        ([one, other], f"{other} beside {one}: the index was made with other weights"),
        ([one, "--right", "clas"], "right: column 'clas' is not in the table; columns: class. Did you mean"),
        ([one, "--most", "0"], "most: 0, expected at least one item."),
        ([empty], "there are no items"),
        ([one, "--to", str(tmp_path / "file")], "is a file. Expected a folder for the page."),
    ):
        to = [] if "--to" in asked else ["--to", str(tmp_path / "page")]
        assert main([*asked, *to]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "page").exists()
    with pytest.raises(ExplorerError, match=r"words: embeddings of shape \[5, 3\], expected \[6, 3\]"):
        write_explorer(tmp_path / "page", [Cloud("words", cloud(6).rows, np.zeros((5, 3)))])


# ---- the page ----


def test_the_page_asks_for_nothing_from_outside_and_makes_no_markup_of_data():
    for name in ("index.html", "explorer.js", "map.js", "explorer.css"):
        text = (PAGE / name).read_text()
        assert not re.search(
            r"https?://|//[a-z]+\.|@import|fetch\(|XMLHttpRequest|innerHTML|outerHTML|eval\(", text
        )
        assert not re.search(r"insertAdjacentHTML|document\.write|setAttribute\(\"(?!aria)", text)
    assert "default-src 'none'" in (PAGE / "index.html").read_text()


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    if (found := shutil.which("chromium") or shutil.which("chromium-browser")) is None:
        pytest.skip("no chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page of three pictures, a clip and a sound, and of four texts, one of them nasty."""
    folder = tmp_path_factory.mktemp("explorer")
    files = [indexes.png(folder / f"{i}.png", (60 * i, 90, 90)) for i in range(3)]
    files += [indexes.mp4(folder / "film.mp4"), indexes.wav(folder / "sound.wav")]
    seen = [{"item": str(path), "class": f"class {i}"} for i, path in enumerate(files)]
    read = [{"item": NASTY if i == 3 else f"text {i}", "class": f"class {i}", NASTY: NASTY} for i in range(4)]
    clouds = [
        Cloud("files", seen, np.eye(5, 4) + 0.01, "image", "file"),
        Cloud("texts", read, np.eye(4), "text", "text", total=1000),
    ]
    return write_explorer(folder / "page", clouds, right="class").parent


@pytest.fixture
def page(browser, folder):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(5000)
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda r: said.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
    page.on("requestfailed", lambda r: said.append(f"failed {r.url}"))
    page.goto((folder / "index.html").as_uri())
    yield page
    assert said == [] and page.title() == "files (image) and texts (text)"
    page.close()


def place(page, i: int) -> tuple[float, float]:
    """Where an item is on the screen."""
    return page.evaluate(
        "i => { const box = element('box').getBoundingClientRect();"
        " return [box.left + map.left(i), box.top + map.top(i)]; }",
        i,
    )


def test_point_shows_and_click_chooses(page):
    assert "texts: 4 items, a sample of 1,000. Neighbours are those among" in page.inner_text("#about")
    page.mouse.move(*place(page, 1))
    page.wait_for_selector("#tip img")
    assert "1.png" in page.inner_text("#tip")
    page.mouse.click(*place(page, 1))
    page.wait_for_selector("#side .show img")
    assert page.evaluate("location.hash") == "#1"
    headings = page.locator("#side h2").all_inner_texts()
    assert headings == ["files (image)", "Nearest in files (image)", "Nearest in texts (text)"]
    # no other file is of its class, so none is wrong
    assert page.locator("#side .tiles >> nth=0 >> b").count() == 0
    marks = page.locator("#side .tiles >> nth=1 >> b").all_inner_texts()
    assert marks == ["✓ right", "✗ wrong", "✗ wrong", "✗ wrong"]
    first = page.locator("#side .tiles").nth(1).locator(".tile").first
    assert "text 1" in first.inner_text() and "✓ right" in first.inner_text()
    first.click()
    page.wait_for_selector("#side blockquote")
    assert page.evaluate("location.hash") == "#6"
    page.keyboard.press("Escape")
    assert page.inner_text("#side h2 >> nth=0") == "Look around"
    page.go_back()
    page.wait_for_selector("#side blockquote")


def test_clips_and_sounds_play(page):
    for item, tag in ((3, "video"), (4, "audio")):
        page.mouse.click(*place(page, item))
        player = page.locator(f"#side {tag}")
        player.wait_for()
        end = time.monotonic() + 5
        while player.evaluate("x => x.currentTime") < 0.05 and time.monotonic() < end:
            page.wait_for_timeout(50)
        assert player.evaluate("x => [x.currentTime > 0, x.error]") == [True, None]


def test_text_from_data_is_text(page, folder):
    page.goto((folder / "index.html").as_uri() + "#8")
    page.wait_for_selector("#side blockquote")
    assert page.inner_text("#side blockquote") == NASTY.replace("\x1b", "\\x1b")
    assert page.locator("#side dt").nth(1).inner_text() == NASTY.replace("\x1b", "\\x1b")
    assert page.locator("img[src=x]").count() == 0


def test_words_and_colours_choose_items(page):
    page.fill("#query", "TEXT class")
    assert page.inner_text("#count") == "3 of 9"
    assert page.locator("#side .tile").count() == 3
    page.fill("#query", "")
    page.select_option("#colour", label="class")
    assert page.locator("#legend button").count() == 5
    page.click("#legend button >> nth=0")
    assert page.inner_text("#count") == "2 of 9"


def test_partners_are_right_and_the_other_cloud_comes_first(browser, tmp_path):
    clouds = [cloud(3, "pictures"), cloud(2, "words")]
    partners = [[3], [4], [4], [0], [1, 2]]
    address = write_explorer(tmp_path / "page", clouds, partners=partners, quick=True).as_uri()
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    for item, marks in (
        (0, {"word 0": "right", "word 1": "wrong"}),
        (4, dict.fromkeys(("word 1", "word 2"), "right")),
    ):
        page.goto(f"{address}#{item}")
        page.wait_for_selector("#side blockquote")
        headings = page.locator("#side h2").all_inner_texts()
        assert headings[1] == f"Nearest in {'words' if item == 0 else 'pictures'}"
        tiles = [tile.inner_text() for tile in page.locator("#side .tiles >> nth=0 >> .tile").all()]
        said = {text.splitlines()[0]: text.split()[-1] for text in tiles}
        assert marks.items() <= said.items() and set(said.values()) == {"right", "wrong"}
        assert page.locator("#side .tiles >> nth=1 >> b").count() == 0
    page.goto(address)
    page.reload()
    assert "right where they belong together" in page.inner_text("#side")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_has_room_for_all(browser, folder, scheme):
    page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme=scheme)
    page.goto((folder / "index.html").as_uri() + "#0")
    page.wait_for_selector("#side .show img")
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert page.evaluate("element('box').clientHeight") > 300
    page.close()
