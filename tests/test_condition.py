"""Conditions on the columns of a pool, against Python's own words."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dal.errors import InputError
from dal.pool import Pool
from dal.pool.condition import Condition

N = 9_000
LANGS = ["de", "en", "", "it's"]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    length = pd.array(rng.integers(0, 300, N), dtype="Int64")
    length[::7] = pd.NA
    price = rng.normal(size=N)
    price[::5] = np.nan
    return pd.DataFrame(
        {
            "key": [f"k{row}" for row in range(N)],
            "bytes in": rng.normal(size=N).astype(np.float32),
            "time": rng.integers(0, 9, N).astype(np.float32),
            "lang": rng.choice(LANGS, N),
            "length": length,
            "price": price,
            "seen": pd.array(rng.choice([True, False, None], N), dtype="boolean"),
        }
    )


@pytest.fixture(scope="module")
def pool(table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    place = tmp_path_factory.mktemp("p") / "pool.zarr"
    return Pool.build(table, place, ids="key", display=["lang", "length", "price", "seen"])


CASES: list[tuple[str, Callable[[pd.DataFrame], pd.Series]]] = [
    ("lang = 'de'", lambda t: t["lang"] == "de"),
    ("lang IN ('it''s', '') AND NOT length > 100", lambda t: t["lang"].isin(["it's", ""]) & (t["length"] <= 100)),
    ("price IS NULL OR price < -1", lambda t: t["price"].isna() | (t["price"] < -1)),
    ("seen", lambda t: t["seen"]),
    ("seen IS NOT TRUE", lambda t: t["seen"].fillna(False).eq(False)),
    ("upper(lang) LIKE '_N' and time between 3 and 5", lambda t: (t["lang"] == "en") & t["time"].between(3, 5)),
    ('"bytes in" > 0 -1+1', lambda t: t["bytes in"] > 0),
    ("RECORD_ID >= 'k8'", lambda t: t["key"] >= "k8"),
    ("length = '17'", lambda t: t["length"] == 17),
    ("coalesce(length, 0) % 2 = 1", lambda t: t["length"].fillna(0) % 2 == 1),
]


@pytest.mark.parametrize(("text", "twin"), CASES, ids=[text for text, _ in CASES])
def test_the_records_that_meet_a_condition(
    text: str, twin: Callable[[pd.DataFrame], pd.Series], pool: Pool, table: pd.DataFrame
) -> None:
    rows = np.flatnonzero(np.arange(N) % 3 != 1)[17:]
    met = Condition.on(text, pool).met_by(pool, rows, pool.take(rows))
    expected = twin(table).fillna(False).to_numpy(dtype=bool)[rows]
    assert 0 < expected.sum() < len(rows)
    np.testing.assert_array_equal(met, expected)


def test_it_reads_what_it_names_alone(pool: Pool) -> None:
    assert Condition.on("Lang = 'length' or PRICE > 1", pool).columns == ("lang", "price")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("language = 'de'", "lang, length, price, seen, record_id, bytes in, time"),
        ('lang = "de"', "single"),
        ("lang = 'de", "token"),
        ("lang ==", "syntax"),
        ("", "syntax"),
        ("1 = 1", "reads a column"),
        ("lang = 'de'; drop table records", "one expression"),
        ("lang = 'de' -- or not", "one expression"),
        ("lang, length", "column"),
        ("lang = 'de') FROM records WHERE (1", "syntax"),
        ("length > 1) LIMIT (3", "syntax"),
        ("rowid < 5 and length", "~position"),
        ('"~position" < 5 and length', "~position"),
        ("length > (SELECT avg(length) FROM records)", "not authorized"),
        ("length > random()", "random"),
        ("length > max(length)", "misuse"),
        ("load_extension(lang)", "load_extension"),
        ("length > ?", "binding"),
        ("length\x00", "where"),
        ("(" * 2000 + "length" + ")" * 2000, "where"),
    ],
)
def test_what_is_no_condition_is_refused(text: str, word: str, pool: Pool) -> None:
    with pytest.raises(InputError, match=word):
        Condition.on(text, pool)


def test_a_value_that_cannot_be_computed_names_its_rows(pool: Pool) -> None:
    condition = Condition.on("abs(length - 9223372036854775807 - 1) > 0", pool)
    with pytest.raises(InputError, match=r"rows 0 to \d"):
        condition.met_by(pool, np.arange(N), pool.take(np.arange(N)))


def test_columns_that_differ_by_case_alone_are_refused_where_one_is_named(tmp_path: Path) -> None:
    pool = Pool.build(np.zeros((9, 2)), tmp_path / "p.zarr", display={"Lang": ["de"] * 9, "lang": ["en"] * 9})
    with pytest.raises(InputError, match="Lang, lang"):
        Condition.on("lang = 'de'", pool)
    assert Condition.on("record_id < '3'", pool).columns == ("record_id",)


def test_a_pool_without_columns_has_its_record_ids(tmp_path: Path) -> None:
    pool = Pool.build(np.zeros((9, 2)), tmp_path / "p.zarr")
    with pytest.raises(InputError, match="columns are record_id"):
        Condition.on("f0 > 1", pool)
    rows = np.arange(9)
    assert (
        Condition.on("record_id < '3'", pool).met_by(pool, rows, pool.take(rows)).tolist() == [True] * 3 + [False] * 6
    )
