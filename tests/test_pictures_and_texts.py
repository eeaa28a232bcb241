"""Pools from folders of pictures and from texts."""

import io
import tracemalloc
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.pipeline import Pipeline, make_pipeline

from dal.cli import main
from dal.errors import PoolIncomplete, SourceError
from dal.pool import Pool, Sizes, texts
from dal.pool.tables import open_table

RNG = np.random.default_rng(0)


class Stopped(Exception):
    pass


def save(path: Path, pixels: np.ndarray, **how: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)
    return path


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.uint8)


SMALL = Sizes(chunk_bytes=5 * 4 * 3 * 4, field_rows=4, block_bytes=5 * 4 * 3 * 7, block_rows=11, csv_block_bytes=800)
"""By which blocks and chunks hold a few records."""
build_small = partial(Pool.build, sizes=SMALL)


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Pictures in folders, named so that the order of paths is not the order of making, and things that are none."""
    made = {f"{'cats' if at % 3 else 'dogs/old'}/ø {at * 7 % 40:02d}.PNG": noise(5, 4, 3) for at in range(40)}
    for name, pixels in made.items():
        save(tmp_path / "in" / name, pixels, format="PNG")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    save(tmp_path / "in" / ".thumbnails" / "x.png", noise(2, 2, 3))
    save(tmp_path / "in" / ".hidden.png", noise(2, 2, 3))
    return tmp_path / "in", made


def test_a_folder_becomes_a_pool_with_paths_for_ids(folder: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    pool = build_small(folder[0], tmp_path / "pool.zarr")
    names = sorted(folder[1])
    assert (pool.n_rows, pool.record_shape, pool.encoding) == (40, (5, 4, 3), "uint8")
    assert pool.record_ids(range(40)) == names
    assert pool.rows_of([names[33], "notes.txt"]).tolist() == [33, -1]
    expected = np.stack([folder[1][name] for name in names]).reshape(40, -1)
    np.testing.assert_array_equal(pool.read(0, 40), expected)


def test_an_interrupted_build_goes_on_and_another_folder_is_refused(
    folder: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    def stop(done: int, _: int | None) -> None:
        if done >= 20:
            raise Stopped

    with pytest.raises(Stopped):
        build_small(folder[0], tmp_path / "pool.zarr", progress=stop)
    with pytest.raises(PoolIncomplete):
        Pool.open(tmp_path / "pool.zarr")
    done: list[int] = []
    pool = build_small(folder[0], tmp_path / "pool.zarr", progress=lambda rows, _: done.append(rows))
    assert done[0] > 15, "it went on"
    expected = np.stack([folder[1][name] for name in sorted(folder[1])]).reshape(40, -1)
    np.testing.assert_array_equal(pool.read(0, 40), expected)
    with pytest.raises(Stopped):
        build_small(folder[0], tmp_path / "other.zarr", progress=stop)
    save(folder[0] / "cats" / "zz.png", noise(5, 4, 3))
    with pytest.raises(SourceError, match="another source"):
        build_small(folder[0], tmp_path / "other.zarr")


def test_pictures_of_several_sizes_are_resized_as_told(tmp_path: Path) -> None:
    wide, high = save(tmp_path / "in" / "a.png", noise(8, 20, 3)), save(tmp_path / "in" / "b.png", noise(30, 10, 3))
    with pytest.raises(SourceError, match=r"b\.png must be 8 x 20 .*a\.png, got 30 x 10.*--size"):
        Pool.build(tmp_path / "in", tmp_path / "pool.zarr")
    pool = Pool.build(tmp_path / "in", tmp_path / "pool.zarr", size=(6, 5), overwrite=True)
    assert pool.record_shape == (6, 5, 3)
    for row, path in enumerate((wide, high)):
        expected = np.asarray(Image.open(path).resize((5, 6), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(pool.read(row, row + 1), expected.reshape(1, -1))
    shown = CliRunner().invoke(
        main, ["pool", "build", str(tmp_path / "in"), str(tmp_path / "x.zarr"), "--size", "6x5"], catch_exceptions=False
    )
    assert "2 records of 6 x 5 x 3 uint8" in shown.output
    np.testing.assert_array_equal(Pool.open(tmp_path / "x.zarr").read(0, 2), pool.read(0, 2))


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3), ("CMYK", 3), ("RGB", 3)]
)
def test_kinds_of_pixels(mode: str, channels: int, tmp_path: Path) -> None:
    colour = Image.fromarray(noise(5, 4, 3))
    picture = colour.convert(mode)
    (tmp_path / "in").mkdir()
    picture.save(tmp_path / "in" / "a.tif")
    pool = Pool.build(tmp_path / "in", tmp_path / "pool.zarr")
    assert pool.record_shape == (5, 4, channels)
    expected = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    np.testing.assert_array_equal(pool.read(0, 1), expected.reshape(1, -1))


def test_grey_among_colour_is_taken_and_colour_among_grey_refused(tmp_path: Path) -> None:
    grey = noise(5, 4)
    save(tmp_path / "in" / "a.png", noise(5, 4, 3))
    save(tmp_path / "in" / "b.png", grey)
    pool = Pool.build(tmp_path / "in", tmp_path / "pool.zarr")
    np.testing.assert_array_equal(pool.read(1, 2), np.repeat(grey, 3).reshape(1, -1))
    save(tmp_path / "in" / "0.png", grey)
    with pytest.raises(SourceError, match=r"a\.png must be grey like 0\.png"):
        Pool.build(tmp_path / "in", tmp_path / "other.zarr")


def test_a_picture_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    pixels = noise(5, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    save(tmp_path / "in" / "a.png", pixels, exif=exif)
    pool = Pool.build(tmp_path / "in", tmp_path / "pool.zarr")
    assert pool.record_shape == (4, 5, 3)
    np.testing.assert_array_equal(pool.read(0, 1), np.rot90(pixels, -1).reshape(1, -1))


@pytest.mark.parametrize("broken", ["cut", "text", "empty", "16 bits"])
def test_a_broken_picture_is_refused_by_its_name(broken: str, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", noise(50, 40, 3))
    path = save(tmp_path / "in" / "b" / "bad.png", noise(50, 40, 3))
    if broken == "cut":
        path.write_bytes(path.read_bytes()[:-3000])
    elif broken == "16 bits":
        Image.fromarray(np.full((50, 40), 40_000, np.uint16)).save(path)
    else:
        path.write_text("hello" if broken == "text" else "")
    with pytest.raises(SourceError, match=r"b/bad\.png (cannot be read as a picture|must have 8 bits.*'I;16')"):
        Pool.build(tmp_path / "in", tmp_path / "pool.zarr")


def test_options_that_are_not_for_pictures_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", noise(5, 4, 3))
    with pytest.raises(SourceError, match="`ids`, `features` and `display`"):
        Pool.build(tmp_path / "in", tmp_path / "pool.zarr", ids="path")
    with pytest.raises(SourceError, match="`size` and `background`"):
        Pool.build(np.zeros((3, 2)), tmp_path / "pool.zarr", size=(2, 2))
    with pytest.raises(SourceError, match=r"`size` must be"):
        Pool.build(tmp_path / "in", tmp_path / "pool.zarr", size=(0, 2))
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match="must hold pictures"):
        Pool.build(tmp_path / "none", tmp_path / "pool.zarr")
    assert not (tmp_path / "pool.zarr").exists()


def test_memory_does_not_grow_with_the_folder(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(file, "BMP")
    (tmp_path / "in").mkdir()
    for at in range(400):  # 4.9 MB
        (tmp_path / "in" / f"{at}.bmp").write_bytes(file.getvalue())
    tracemalloc.start()
    Pool.build(tmp_path / "in", tmp_path / "pool.zarr", sizes=Sizes(block_bytes=2**18, chunk_bytes=2**18))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5e6


def transparent() -> Image.Image:
    """A black figure on a transparent ground that is black as well, half of it half transparent."""
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[1:3, 1:3, 3] = 255
    pixels[1:3, 3:5] = (200, 100, 0, 128)
    return Image.fromarray(pixels)


def test_transparent_pictures_are_drawn_on_white_or_a_background(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    transparent().save(tmp_path / "in" / "a.png")
    save(tmp_path / "in" / "b.png", np.full((4, 6, 3), 77, np.uint8))
    with caplog.at_level("WARNING"):
        pool = Pool.build(tmp_path / "in", tmp_path / "pool.zarr")
    assert "1 of 2 pictures are transparent in places; drawn on #ffffff" in caplog.text
    pixels = pool.read(0, 2).reshape(2, 4, 6, 3)
    assert pixels[0, 0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 1, 1].tolist() == [0, 0, 0]
    np.testing.assert_allclose(pixels[0, 1, 3], [255 - 55 * 128 / 255, 255 - 155 * 128 / 255, 127], atol=1.1)
    assert (pixels[1] == 77).all()
    shown = CliRunner().invoke(
        main, ["pool", "build", str(tmp_path / "in"), str(tmp_path / "red.zarr"), "--background", "red"]
    )
    assert "drawn on #ff0000" in shown.output
    red = Pool.open(tmp_path / "red.zarr")
    assert red.read(0, 1).reshape(4, 6, 3)[0, 0].tolist() == [255, 0, 0]
    (tmp_path / "more").mkdir()
    transparent().save(tmp_path / "more" / "c.png")
    grown = Pool.open(tmp_path / "red.zarr").append(tmp_path / "more")  # on the background of the pool
    np.testing.assert_array_equal(grown.read(2, 3), red.read(0, 1))
    with pytest.raises(SourceError, match="`background` must be a colour"):
        Pool.build(tmp_path / "in", tmp_path / "x.zarr", background="paper")
    with pytest.raises(SourceError, match="`size` and `background`"):
        Pool.build(np.eye(2), tmp_path / "x.zarr", background="white")


@pytest.mark.parametrize("kind", ["LA", "P", "PA", "RGB with a colour", "L with a grey", "1", "palette with alphas"])
def test_every_kind_of_transparency_is_drawn_on_white(kind: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / ("a.tif" if kind == "PA" else "a.png")
    grey = np.zeros((4, 6), np.uint8)
    grey[1:3, 1:3] = 90
    if kind == "LA":
        Image.fromarray(np.stack([grey, (grey > 0).astype(np.uint8) * 255], axis=2)).save(path)
    elif kind == "RGB with a colour":
        Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save(path, transparency=(0, 0, 0))
    elif kind in ("L with a grey", "1"):
        Image.fromarray(grey).convert("1" if kind == "1" else "L").save(path, transparency=0)
    else:
        picture = Image.fromarray((grey > 0).astype(np.uint8), "P")
        picture.putpalette([0, 0, 0, 90, 90, 90])
        if kind == "PA":
            picture = Image.merge("LA", (picture.convert("L"), Image.fromarray((grey > 0).astype(np.uint8) * 255)))
            picture.convert("RGBA").save(path)
        else:
            picture.save(path, transparency=b"\x00\xff" if kind == "palette with alphas" else 0)
    pool = Pool.build(tmp_path / "in", tmp_path / "pool.zarr")
    pixels = pool.read(0, 1).reshape(4, 6, -1)
    assert (pixels[0] == 255).all()
    figure = 255 if kind == "1" else 90
    assert (pixels[1:3, 1:3] == figure).all()


def test_an_interrupted_build_goes_on_on_its_own_background(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for at in range(30):
        transparent().resize((4, 5)).save(tmp_path / "in" / f"{at:02d}.png")

    def stop(done: int, _: int | None) -> None:
        if done >= 15:
            raise Stopped

    with pytest.raises(Stopped):
        build_small(tmp_path / "in", tmp_path / "pool.zarr", progress=stop, background="#0000ff")
    with pytest.raises(SourceError, match="another source"):
        build_small(tmp_path / "in", tmp_path / "pool.zarr")
    pool = build_small(tmp_path / "in", tmp_path / "pool.zarr", background="blue")
    assert (pool.read(0, 30) == pool.read(0, 1)).all()


def test_pictures_by_other_endings_are_taken_and_what_is_left_out_is_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = noise(5, 4, 3)
    for name, kind in (
        ("a.jfif", "JPEG"),
        ("b.AVIF", "AVIF"),
        ("c.JPG", "JPEG"),
        ("d.jp2", "JPEG2000"),
        ("e.ppm", "PPM"),
    ):
        save(tmp_path / "in" / name, pixels, format=kind)
    for name in ("f.heic", "g.HEIC", "h.svg", "sub/README", "i.pdf", "Thumbs.db"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    with caplog.at_level("WARNING"):
        pool = Pool.build(tmp_path / "in", tmp_path / "pool.zarr")
    assert pool.record_ids(range(5)) == ["a.jfif", "b.AVIF", "c.JPG", "d.jp2", "e.ppm"]
    np.testing.assert_array_equal(pool.read(4, 5), pixels.reshape(1, -1))
    for told in ("2 .heic (such as f.heic)", "1 .svg", "1 .pdf", "1 without ending (such as sub/README)"):
        assert told in caplog.text
    assert "Thumbs" not in caplog.text
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "x.heic").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"must hold pictures.*1 \.heic"):
        Pool.build(tmp_path / "none", tmp_path / "x.zarr")


def test_of_an_animation_the_first_picture_is_taken_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.fromarray(np.full((5, 4), value, np.uint8)) for value in (0, 255)]
    (tmp_path / "in").mkdir()
    frames[0].save(tmp_path / "in" / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "in" / "b.tif", save_all=True, append_images=frames[1:])
    with caplog.at_level("WARNING"):
        pool = Pool.build(tmp_path / "in", tmp_path / "pool.zarr")
    assert (pool.read(0, 2) == 0).all()
    assert "2 of 2 pictures hold several pictures, of which the first is taken" in caplog.text


def test_grey_pictures_appended_to_a_pool_in_colour_are_made_like_the_others(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", noise(8, 20, 3))
    pool = Pool.build(tmp_path / "in", tmp_path / "pool.zarr", size=(5, 4))
    grey = noise(5, 4)
    save(tmp_path / "more" / "b.png", grey)
    assert Pool.open(pool.path).append(tmp_path / "more").record_shape == (5, 4, 3)
    np.testing.assert_array_equal(Pool.open(pool.path).read(1, 2), np.repeat(grey, 3).reshape(1, -1))
    save(tmp_path / "wide" / "c.png", noise(9, 9, 3))
    assert Pool.open(pool.path).append(tmp_path / "wide").n_rows == 3  # of the size of the pool


# -- texts -------------------------------------------------------------------------------------------------------------

WORDS = ["ham", "spam", "eggs", "lovely", "wonderful", "plan", "meeting", "win", "now", "money"]
MANY = [" ".join(RNG.choice(WORDS, 6)) for _ in range(150)]


def pipeline() -> Pipeline:
    return make_pipeline(TfidfVectorizer(), TruncatedSVD(4))


def table(path: Path, rows: Sequence[str] = MANY) -> Path:
    frame = pd.DataFrame({"key": [f"{at:03d}" for at in range(len(rows))], "subject": rows, "sent": range(len(rows))})
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path, row_group_size=40)
    return path


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_texts_become_features_and_stay_to_be_shown(ending: str, tmp_path: Path) -> None:
    source = table(tmp_path / f"mails{ending}")
    fitted = make_pipeline(TfidfVectorizer(), TruncatedSVD(4, random_state=0)).fit(MANY)
    given = pipeline()
    how = {"ids": "key", "text": "subject", "display": ["sent"]}
    pool = build_small(source, tmp_path / "pool.zarr", vectoriser=given, **how)
    assert not hasattr(given[0], "vocabulary_"), "what was passed in stays as it was"
    assert (pool.record_shape, pool.dtype, pool.fields) == ((4,), np.float32, ("subject", "sent"))
    np.testing.assert_allclose(pool.read(7, 150), fitted.transform(MANY)[7:], atol=1e-6)
    assert pool.record_ids([42, 7]) == ["042", "007"]
    assert pool.display([42, 7])["subject"] == [MANY[42], MANY[7]]
    again = build_small(source, tmp_path / "again.zarr", vectoriser=pipeline(), **how)
    np.testing.assert_array_equal(again.read(0, 150), pool.read(0, 150))
    kept = build_small(source, tmp_path / "fitted.zarr", vectoriser=fitted, **how)
    np.testing.assert_allclose(kept.read(0, 150), fitted.transform(MANY), atol=1e-6)


def test_a_vectoriser_is_fitted_on_a_sample_of_the_whole_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    class Length(TfidfVectorizer):
        def fit(self, raw_documents: list[str], y: object = None) -> "Length":
            seen.append(list(raw_documents))
            return super().fit(raw_documents, y)

    monkeypatch.setattr(texts.joblib, "hash", lambda _: "a class of a test cannot be pickled")
    rows = [f"word{at} same" for at in range(150)]
    source = table(tmp_path / "x.csv", rows)
    for _ in range(2):
        opened = open_table(source, None, None, [], text="subject", sizes=SMALL)
        blocks = texts.Texts(opened, "subject", Length(), SMALL, fitted_on=20).blocks(0)
        assert max(len(block.features) for block in blocks) <= 11
    assert seen[0] == seen[1]
    positions = [rows.index(text) for text in seen[0]]
    assert len(set(positions)) == 20
    assert positions == sorted(positions)
    assert positions[-1] > 100, "not the first ones"


def test_an_interrupted_build_of_texts_gives_the_same_pool(tmp_path: Path) -> None:
    source = table(tmp_path / "x.parquet")
    whole = build_small(source, tmp_path / "whole.zarr", text="subject", vectoriser=pipeline())

    def stop(done: int, _: int | None) -> None:
        if done >= 70:
            raise Stopped

    with pytest.raises(Stopped):
        build_small(source, tmp_path / "pool.zarr", text="subject", vectoriser=pipeline(), progress=stop)
    other = make_pipeline(TfidfVectorizer(), TruncatedSVD(4, n_iter=9))
    with pytest.raises(SourceError, match="another source"):
        build_small(source, tmp_path / "pool.zarr", text="subject", vectoriser=other)
    pool = build_small(source, tmp_path / "pool.zarr", text="subject", vectoriser=pipeline())
    np.testing.assert_array_equal(pool.read(0, 150), whole.read(0, 150))


def test_narrow_sparse_features_are_made_dense_and_wide_ones_refused(tmp_path: Path) -> None:
    source = table(tmp_path / "x.csv")
    hashing = HashingVectorizer(n_features=64)
    pool = Pool.build(source, tmp_path / "pool.zarr", text="subject", vectoriser=hashing)
    np.testing.assert_allclose(pool.read(0, 150), hashing.transform(MANY).toarray(), atol=1e-6)
    with pytest.raises(SourceError, match="at most 16,384 columns, got 1,048,576"):
        Pool.build(source, tmp_path / "wide.zarr", text="subject", vectoriser=HashingVectorizer())


class Odd:
    def __init__(self, given: object) -> None:
        self.given = given

    def transform(self, _: list[str]) -> object:
        return self.given


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"text": "subject"}, "`text` and `vectoriser`"),
        ({"vectoriser": Odd(None)}, "`text` and `vectoriser`"),
        ({"text": "subject", "vectoriser": TfidfVectorizer}, "`vectoriser` must have `transform`"),
        ({"text": "subject", "vectoriser": 7}, "`vectoriser` must have `transform`"),
        ({"text": "body", "vectoriser": Odd(None)}, r"columns.*\['body'\]"),
        ({"text": "sent", "vectoriser": Odd(None)}, "`text`.*'sent' of int64"),
        ({"text": "subject", "vectoriser": Odd(None), "features": ["sent"]}, "`features` must be left out"),
        ({"text": "subject", "vectoriser": Odd(np.zeros(3))}, r"one row a text, got shape \(3,\)"),
        ({"text": "subject", "vectoriser": Odd([[1], [1, 2]])}, "rows of one length"),
        ({"text": "subject", "vectoriser": Odd(np.zeros((1, 2), "U3"))}, "must return numbers"),
        ({"text": "subject", "vectoriser": Odd(lambda: 0)}, "picklable"),
        ({"text": "subject", "vectoriser": TfidfVectorizer(min_df=1000)}, "cannot be fitted on 150 texts"),
    ],
)
def test_what_cannot_be_vectorised_is_said(how: dict[str, object], message: str, tmp_path: Path) -> None:
    source = table(tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=message):
        Pool.build(source, tmp_path / "pool.zarr", **how)
    assert not (tmp_path / "pool.zarr").exists()


def test_the_command_line_names_a_vectoriser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = table(tmp_path / "x.csv")
    (tmp_path / "vectorisers_of_a_test.py").write_text(
        "from sklearn.feature_extraction.text import HashingVectorizer\nhashing = HashingVectorizer(n_features=32)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arguments = [str(source), str(tmp_path / "pool.zarr"), "--ids", "key", "--text", "subject", "--vectoriser"]
    shown = CliRunner().invoke(main, ["pool", "build", *arguments, "vectorisers_of_a_test:hashing"])
    assert "150 records of 32 float32" in shown.output, shown.output
    assert "display fields: subject" in shown.output
    shown = CliRunner().invoke(main, ["pool", "build", *arguments, "vectorisers_of_a_test:nothing"])
    assert shown.exit_code == 1
    assert "`vectoriser`" in shown.output
    assert "'vectorisers_of_a_test:nothing'" in shown.output


@pytest.mark.parametrize("name", ["only", "both", "Only"])
def test_a_vectoriser_of_ones_own_needs_nothing_but_transform(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = table(tmp_path / "x.csv")
    (tmp_path / "transformers_of_a_test.py").write_text(
        "class Only:\n"
        "    def transform(self, texts):\n"
        "        return [[len(text), text.count('e')] for text in texts]\n"
        "class Both(Only):\n"
        "    def fit(self, texts, y=None):\n"
        "        raise AssertionError('it came as it is')\n"
        "only, both = Only(), Both()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    place = tmp_path / "pool.zarr"
    arguments = [str(source), str(place), "--text", "subject", "--vectoriser", f"transformers_of_a_test:{name}"]
    shown = CliRunner().invoke(main, ["pool", "build", *arguments])
    assert shown.exit_code == 0, shown.output
    expected = [[len(text), text.count("e")] for text in MANY]
    np.testing.assert_array_equal(Pool.open(place).read(0, len(MANY)), expected)
