import base64
import csv
import gzip
import hashlib
import io
import json
import os
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from dal.campaign import Answer, CampaignStore, Settings
from dal.errors import CampaignError, LabelError, NotInstalled, PoolNotFound, SettingsError
from dal.exchange import files, read_answers, read_gold, write_batch
from dal.exchange.formats import CELL_CHARACTERS
from dal.pool import Pool
from dal.web import overview
from tests.batches import batch_of

HEADER = "record_id,label,status,annotator\n"
CLASSES = ("cat", "dog", "-1", "naïve 🐱")


class InMemory:
    """A pool of records that begin at row 100; what is before them has ids that nobody uses."""

    def __init__(self, ids: Sequence[str], **fields: Sequence[object]) -> None:
        self.ids = [*(f"unused {row}" for row in range(100)), *ids]
        self.fields = tuple(fields)
        self.shown = fields
        self.kinds: dict[str, str] = {}
        self.record_shape: tuple[int, ...] = (2,)
        self.encoding = "float32"
        self.has_pictures = False
        self.n_rows = len(self.ids)

    def refreshed(self) -> "InMemory":
        return self

    def rows_of(self, record_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        index = {record_id: row for row, record_id in enumerate(self.ids)}
        return np.array([index.get(record_id, -1) for record_id in record_ids], np.int64)

    def record_ids(self, rows: npt.NDArray[np.int64]) -> list[str]:
        return [self.ids[row] for row in rows.tolist()]

    def display(self, rows: npt.NDArray[np.int64]) -> dict[str, list[object]]:
        return {name: [values[row - 100] for row in rows.tolist()] for name, values in self.shown.items()}

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        raise NotImplementedError("only pools of pictures are looked at")


IDS = [f"r{at}" for at in range(10)]
POOL = InMemory(IDS, text=[f"text of {record_id}" for record_id in IDS])


def start(directory: Path, pool: InMemory = POOL, asked: Sequence[int] = (107, 101, 104, 102)) -> CampaignStore:
    """Make a campaign whose first batch is open."""
    chosen = Settings("pool.zarr", CLASSES, estimator="logistic", strategy="margin", batch_size=4)
    campaign = CampaignStore.make(directory, chosen, pool_fingerprint="f", n_rows=len(pool.ids))
    frozen = {"pool_fingerprint": "f", "n_rows": len(pool.ids), "k": 4, "explore": 0.0, "seed": 0}
    batch_round = campaign.rounds.freeze(**frozen, strategy="margin")
    campaign.rounds.open(batch_round, batch_of(asked, [pool.ids[row] for row in asked]))
    return campaign


@pytest.fixture
def campaign(tmp_path: Path) -> CampaignStore:
    return start(tmp_path / "campaign")


@pytest.fixture
def bring(campaign: CampaignStore, tmp_path: Path) -> Callable[..., files.ImportReport]:
    """Import a file with this content."""

    def bring(
        content: str | bytes, *, name: str = "answers.csv", annotator: str = "ann", **how: Literal["take"]
    ) -> files.ImportReport:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_answers(path, campaign, POOL, annotator, **how)

    return bring


def answered(campaign: CampaignStore) -> dict[tuple[int, str], str | None]:
    """Collect the latest answers, with the names of the classes; None is a skipped record."""
    latest = campaign.answers.latest()
    names = [None if code < 0 else CLASSES[code] for code in latest.labels.tolist()]
    return dict(zip(zip(latest.rows.tolist(), latest.annotators, strict=True), names, strict=True))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def save(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


# -- out -------------------------------------------------------------------------------------------------------------


def test_a_batch_goes_out_in_the_order_of_asking(campaign: CampaignStore, tmp_path: Path) -> None:
    path = tmp_path / "batch-0001.csv"
    assert write_batch(campaign, POOL, 1, path) == 4
    assert path.read_bytes().decode() == (
        "\ufeffrecord_id,label,status,annotator,text\r\n"
        "r7,,,,text of r7\r\n"
        "r1,,,,text of r1\r\n"
        "r4,,,,text of r4\r\n"
        "r2,,,,text of r2\r\n"
    )
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["batch-0001.csv"]


def test_known_answers_are_filled_in_one_line_an_annotator(
    campaign: CampaignStore, bring: Callable[..., files.ImportReport], tmp_path: Path
) -> None:
    bring(HEADER + "r1,cat,,bob\nr1,dog,,ann\nr4,,skipped,ann\nr9,cat,,ann\n")
    assert write_batch(campaign, POOL, 1, tmp_path / "out.csv") == 5
    lines = [
        (line["record_id"], line["label"], line["status"], line["annotator"]) for line in table(tmp_path / "out.csv")
    ]
    assert lines == [
        ("r7", "", "", ""),
        ("r1", "dog", "submitted", "ann"),
        ("r1", "cat", "submitted", "bob"),
        ("r4", "", "skipped", "ann"),
        ("r2", "", "", ""),
    ]
    report = read_answers(tmp_path / "out.csv", campaign, POOL, "ann")
    assert (report.new, report.changed, report.same, report.pending, report.rejected) == (0, 0, 3, 2, ())


def test_every_kind_of_display_field_and_names_that_are_taken(tmp_path: Path) -> None:
    shown = {
        "label": ["a", "b"],
        "=HYPERLINK(1)": [None, ""],
        "length": [-1.5, float("nan")],
        "ok": [True, False],
        "note": ['two\nlines, and a "quote"', "ünï"],
    }
    pool = InMemory(["x", "y"], **shown)
    campaign = start(tmp_path / "c", pool, [101, 100])
    write_batch(campaign, pool, 1, tmp_path / "out.csv")
    first, second = table(tmp_path / "out.csv")
    assert list(first)[4:] == ["pool.label", "'=HYPERLINK(1)", "length", "ok", "note"]
    assert list(second.values())[4:] == ["a", "", "-1.5", "True", 'two\nlines, and a "quote"']
    assert list(first.values())[4:] == ["b", "", "nan", "False", "ünï"]


def test_a_pool_without_display_fields(tmp_path: Path) -> None:
    pool = InMemory(["x", "y"])
    campaign = start(tmp_path / "c", pool, [101, 100])
    assert write_batch(campaign, pool, 1, tmp_path / "out.csv") == 2
    assert [line["record_id"] for line in table(tmp_path / "out.csv")] == ["y", "x"]


def test_a_text_longer_than_a_spreadsheets_cell_is_cut(tmp_path: Path) -> None:
    pool = InMemory(["x", "y"], text=["ä" * 200_000, "short"])
    campaign = start(tmp_path / "c", pool, [100, 101])
    write_batch(campaign, pool, 1, tmp_path / "out.csv")
    assert [line["text"] for line in table(tmp_path / "out.csv")] == ["ä" * CELL_CHARACTERS + "…", "short"]
    assert read_answers(tmp_path / "out.csv", campaign, pool, "ann").pending == 2


def test_labels_that_were_typed_and_not_imported_are_not_written_over(campaign: CampaignStore, tmp_path: Path) -> None:
    path = tmp_path / "batch.csv"
    write_batch(campaign, POOL, 1, path)
    write_batch(campaign, POOL, 1, path)
    lines = table(path)
    lines[0]["label"] = "dog"
    save(path, lines)
    with pytest.raises(CampaignError, match=r"batch\.csv must not hold answers"):
        write_batch(campaign, POOL, 1, path)
    assert table(path) == lines
    read_answers(path, campaign, POOL, "ann")
    write_batch(campaign, POOL, 1, path)
    assert [line["annotator"] for line in table(path)] == ["ann", "", "", ""]


def test_an_export_that_fails_leaves_the_old_file(campaign: CampaignStore, tmp_path: Path) -> None:
    path = tmp_path / "batch.csv"
    write_batch(campaign, POOL, 1, path)
    before = path.read_bytes()

    class Lost(InMemory):
        def display(self, _: npt.NDArray[np.int64]) -> dict[str, list[object]]:
            raise PoolNotFound("the pool has gone")

    with pytest.raises(PoolNotFound, match="the pool has gone"):
        write_batch(campaign, Lost(IDS, text=IDS), 1, path)
    assert path.read_bytes() == before
    assert not [each for each in tmp_path.iterdir() if each.name.endswith(".part")]
    with pytest.raises(CampaignError, match="cannot be written"):
        write_batch(campaign, POOL, 1, tmp_path / "no such folder" / "batch.csv")


# -- what a spreadsheet might run ------------------------------------------------------------------------------------

DANGEROUS = ["=1+2", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1+1", "=cmd|' /C calc'!A0"]
AWKWARD = [
    "'=1+2",
    "''=1+2",
    "'",
    "''",
    "'90s",
    "007",
    " =1",
    "a=b",
    "1e5",
    'a"b',
    "a,b;c\td",
    "two\nlines",
    "ünï",
    "🐱",
]


def test_nothing_in_a_file_begins_like_a_formula(tmp_path: Path) -> None:
    ids = [*DANGEROUS, *AWKWARD]
    pool = InMemory(ids, text=DANGEROUS + AWKWARD)
    campaign = start(tmp_path / "c", pool, range(100, 100 + len(ids)))
    campaign.answers.add([Answer(100, "=1+2", "@ann", "submitted", 2)], source="web")
    write_batch(campaign, pool, 1, tmp_path / "out.csv")
    cells = [cell for line in table(tmp_path / "out.csv") for cell in line.values()]
    assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"))] == []
    assert {"'=1+2", "''=1+2", "'@ann", "'-1"} <= set(cells)


def test_every_record_id_comes_back_exactly(tmp_path: Path) -> None:
    ids = [*DANGEROUS, *AWKWARD]
    pool = InMemory(ids)
    asked = range(100, 100 + len(ids))
    campaign = start(tmp_path / "c", pool, asked)
    write_batch(campaign, pool, 1, tmp_path / "out.csv")
    lines = [
        line | {"label": CLASSES[at % 4], "annotator": "@bob"} for at, line in enumerate(table(tmp_path / "out.csv"))
    ]
    save(tmp_path / "out.csv", lines)
    report = read_answers(tmp_path / "out.csv", campaign, pool, "ann")
    assert (report.new, report.rejected) == (len(ids), ())
    assert answered(campaign) == {(row, "@bob"): CLASSES[at % 4] for at, row in enumerate(asked)}
    write_batch(campaign, pool, 1, tmp_path / "again.csv")
    again = read_answers(tmp_path / "again.csv", campaign, pool, "ann")
    assert (again.same, again.new, again.changed) == (len(ids), 0, 0)


def test_a_file_made_elsewhere_may_hold_ids_without_the_guard(tmp_path: Path) -> None:
    pool = InMemory(["=1+2", "'=3", "-5"])
    campaign = start(tmp_path / "c", pool, [100])
    (tmp_path / "own.csv").write_text("record_id,label\n=1+2,cat\n'=3,dog\n-5,-1\n")
    assert read_answers(tmp_path / "own.csv", campaign, pool, "ann").new == 3
    assert answered(campaign) == {(100, "ann"): "cat", (101, "ann"): "dog", (102, "ann"): "-1"}


# -- in, line by line ------------------------------------------------------------------------------------------------


def test_what_a_line_can_say(campaign: CampaignStore, bring: Callable[..., files.ImportReport]) -> None:
    report = bring(
        HEADER
        + "r7,cat,,\n"
        + "r1, dog ,Submitted,bob\n"
        + "r4,,skipped,\n"
        + "r2,,,\n"
        + "r2,,pending,bob\n"
        + "r9,naïve 🐱,,\n"
    )
    assert (report.new, report.changed, report.same, report.pending, report.volunteered) == (4, 0, 0, 2, 1)
    assert (report.rejected, report.rejections, report.conflicts, report.kept_out, report.seen) == ((), 0, (), 0, False)
    assert answered(campaign) == {
        (107, "ann"): "cat",
        (101, "bob"): "dog",
        (104, "ann"): None,
        (109, "ann"): "naïve 🐱",
    }


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("r1,'dog',,", "is no class of this campaign, which has cat, dog, -1, naïve 🐱; leave out the quotes"),
        ("r1,catt,,", "'catt' is no class of this campaign, which has cat, dog, -1, naïve 🐱; is it 'cat'?"),
        ("r1,CAT,,", "is it 'cat'?"),
        ("r1,zebra,,", "'zebra' is no class"),
        ("zz,cat,,", "no such record"),
        (",cat,,", "no record_id"),
        ("r1,cat,skipped,", "both the label 'cat' and the status 'skipped'"),
        ("r1,cat,pending,", "both the label"),
        ("r1,,submitted,", "'submitted' without a label"),
        ("r1,cat,unsure,", "got 'unsure'"),
        ("r1,cat,,ann,extra", "5 cells where the header has 4"),
    ],
)
def test_a_line_that_is_wrong_is_named_and_the_others_are_taken(
    campaign: CampaignStore, bring: Callable[..., files.ImportReport], line: str, reason: str
) -> None:
    report = bring(f'{HEADER}"r7",dog,,"a\nb"\n\n{line}\nr2,dog,,\n')
    (rejected,) = report.rejected
    assert (rejected.line, rejected.record_id) == (5, line.split(",")[0])
    assert reason in rejected.reason
    assert report.rejections == 1
    assert answered(campaign) == {(107, "a b"): "dog", (102, "ann"): "dog"}


def test_a_label_without_any_likeness_gets_no_suggestion(bring: Callable[..., files.ImportReport]) -> None:
    (rejected,) = bring(HEADER + "r1,zebra,,\n").rejected
    assert rejected.reason.endswith("naïve 🐱")


def test_lines_that_contradict_each_other_are_all_kept_out(
    campaign: CampaignStore, bring: Callable[..., files.ImportReport]
) -> None:
    report = bring(
        HEADER + "r1,cat,,\nr7,dog,,\nr1,dog,,ann\nr1,cat,,bob\nr4,,skipped,\nr4,cat,,\nr7,dog,,\nzz,cat,,\n"
    )
    assert [(each.line, each.record_id) for each in report.rejected] == [
        (2, "r1"),
        (4, "r1"),
        (6, "r4"),
        (7, "r4"),
        (9, "zz"),
    ]
    assert report.rejections == 5
    assert "'ann' answers this record differently between line 2 and line 4" in report.rejected[0].reason
    assert (report.new, report.same) == (2, 1)
    assert answered(campaign) == {(107, "ann"): "dog", (101, "bob"): "cat"}


def test_a_changed_label_is_appended(campaign: CampaignStore, bring: Callable[..., files.ImportReport]) -> None:
    bring(HEADER + "r7,cat,,\nr1,cat,,\n")
    report = bring(HEADER + "r7,dog,,\nr1,cat,,\nr4,,skipped,\n")
    assert (report.new, report.changed, report.same) == (1, 1, 1)
    assert answered(campaign) == {(107, "ann"): "dog", (101, "ann"): "cat", (104, "ann"): None}
    assert campaign.answers.last_id() == 4
    assert campaign.answers.latest(upto=2).labels.tolist() == [0, 0], "the old answer is still there"


def test_an_emptied_label_takes_no_answer_back(
    campaign: CampaignStore, bring: Callable[..., files.ImportReport]
) -> None:
    bring(HEADER + "r7,cat,,\n")
    assert bring(HEADER + "r7,,,\n").pending == 1
    assert answered(campaign) == {(107, "ann"): "cat"}


def test_importing_twice_changes_nothing(campaign: CampaignStore, bring: Callable[..., files.ImportReport]) -> None:
    content = HEADER + "r7,cat,,\nr1,dog,,\nr2,,,\nzz,cat,,\n"
    first = bring(content)
    bring(HEADER + "r7,dog,,\n", name="newer.csv")
    second = bring(content, name="a copy.csv")
    assert (first.new, first.pending, first.rejections, first.seen) == (2, 1, 1, False)
    assert (second.new, second.changed, second.same, second.superseded, second.rejections) == (0, 0, 1, 1, 1)
    assert not second.seen, "its refused line may be fit some day"
    assert answered(campaign) == {(107, "ann"): "dog", (101, "ann"): "dog"}, "an old file must not undo a newer one"
    assert campaign.answers.last_id() == 3
    assert campaign.answers.seen(hashlib.sha256(content.encode()).hexdigest(), "ann") is not None


def test_answers_under_a_wrong_name_are_undone_by_importing_them_as_skipped(
    campaign: CampaignStore, bring: Callable[..., files.ImportReport]
) -> None:
    bring(HEADER + "r7,cat,,\nr1,dog,,\nr2,cat,,\n", annotator="anne")
    report = bring(HEADER + "r7,,skipped,\nr1,,skipped,\n", annotator="anne")
    assert (report.new, report.changed, report.rejections, report.kept_out) == (0, 2, 0, 0)
    assert campaign.answers.labels().rows.tolist() == [102]
    bring(HEADER + "r7,cat,,\n", annotator="ann")
    assert campaign.answers.labels().rows.tolist() == [102, 107]
    assert [each.status for each in campaign.answers.log()] == ["submitted"] * 3 + ["skipped"] * 2 + ["submitted"]


def test_a_file_imported_before_is_not_read_again(
    campaign: CampaignStore, bring: Callable[..., files.ImportReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = HEADER + "r7,cat,,\nr1,dog,,\n"
    bring(content)

    def read(*_: object) -> None:
        raise AssertionError("a line was read")

    monkeypatch.setattr(files.Reading, "_lines", read)
    assert bring(content).seen
    with pytest.raises(AssertionError, match="a line was read"):
        bring(content, annotator="bob")


def test_two_people_may_hand_in_the_same_bytes(
    campaign: CampaignStore, bring: Callable[..., files.ImportReport]
) -> None:
    content = HEADER + "r7,cat,,\n"
    assert bring(content, annotator="ann").new == 1
    assert bring(content, annotator="bob").new == 1
    assert answered(campaign) == {(107, "ann"): "cat", (107, "bob"): "cat"}


def test_many_wrong_lines_are_counted_and_the_first_ones_named(bring: Callable[..., files.ImportReport]) -> None:
    report = bring(HEADER + "".join(f"r1,wrong {at},,\n" for at in range(9000)))
    assert report.rejections == 9000
    assert [each.line for each in report.rejected] == list(range(2, 1002))
    assert all("no class" in each.reason for each in report.rejected)


# -- in, file by file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfrecord_id,label,status,annotator\nr7,cat,,\nr1,,skipped,\n",
        b"record_id,label,status,annotator\r\nr7,cat,,\r\nr1,,skipped,\r\n",
        b"record_id,label,status,annotator\rr7,cat,,\rr1,,skipped,\r",
        b'"record_id";"label";"status";"annotator"\n"r7";"cat";"";""\nr1;;skipped;\n',
        b"\xef\xbb\xbfrecord_id;label;status;annotator;a,b,c,d,e,f\nr7;cat;;;1,2\nr1;;skipped;;\n",
        b"record_id\tlabel\tstatus\tannotator\nr7\tcat\t\t\nr1\t\tskipped\t\n",
        b"annotator,text,status,label,record_id\n,hello,,cat,r7\n,,skipped,,r1\n",
        b"Record_ID , LABEL,status\nr7,cat\nr1,,skipped\n\n,,\n",
        b'record_id,label,status,annotator,text,mine\nr7,cat,,,"a ""quoted""\r\ntext, and more",=1\nr1,,skipped,,,\n',
        b"\n\nrecord_id,label,status\nr7,cat,\nr1,,skipped",
        b"record_id|label|status\nr7|cat|\nr1||skipped\n",
        "record_id\tlabel\tstatus\r\nr7\tcat\t\r\nr1\t\tskipped\r\n".encode("utf-16"),
        b"\xfe\xff" + "sep=;\nrecord_id;label;status\nr7;cat;\nr1;;skipped\n".encode("utf-16-be"),
        b"record_id,label,status,text\nr7,cat,," + b"x" * 1_000_000 + b"\nr1,,skipped\n",
        b'record_id,label,status,"' + b"x" * 200_000 + b'"\nr7,cat,,\nr1,,skipped\n',
    ],
    ids=[
        "bom",
        "crlf",
        "cr",
        "semicolons",
        "semicolons and commas",
        "tabs",
        "reordered",
        "short lines",
        "extra columns",
        "no end",
        "bars",
        "UTF-16",
        "UTF-16, the other way round",
        "a long cell",
        "a long header",
    ],
)
def test_ways_to_write_the_same_file(
    campaign: CampaignStore, bring: Callable[..., files.ImportReport], content: bytes
) -> None:
    report = bring(content)
    assert (report.new, report.rejected, report.pending) == (2, (), 0)
    assert answered(campaign) == {(107, "ann"): "cat", (101, "ann"): None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header.*got an empty file"),
        (b"\xef\xbb\xbf", "header.*got an empty file"),
        (b"\n\r\n", "header.*got an empty file"),
        (b"record_id,status\nr7,skipped\n", "column label, got the columns record_id, status"),
        (b"id,class\nr7,cat\n", "column record_id and label, got the columns id, class"),
        (b"r7,cat\n", "column record_id and label"),
        (b"record_id,label,label\nr7,cat,dog\n", "column 'label' once, got 2"),
        (b"record_id,label\nr7,cat\nr1,na\xefve\n", "UTF-8, got other bytes in line 3"),
        (b"record_id,label\nr7,cat\nr1,na\xc3", "UTF-8, got other bytes in line 3"),
        (b'record_id,label\nr7,cat\nr1,"dog\nr4,cat\n', "line 3: .*quotation mark"),
        (b'record_id,label\nr7,cat\nr1,"d"og\n', "line 3: .*quotation mark"),
        ("record_id,label\nr7,c\u00e4t\n".encode("utf-16")[:-1], "UTF-16, got other bytes in line 2"),
        (b"PK\x03\x04\x14\x00", "Excel workbook"),
        (b"PAR1\x15\x04", "Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_whole(
    campaign: CampaignStore, bring: Callable[..., files.ImportReport], content: bytes, message: str
) -> None:
    with pytest.raises(LabelError, match=message):
        bring(content)
    assert answered(campaign) == {}
    assert campaign.answers.seen(hashlib.sha256(content).hexdigest(), "ann") is None


def test_a_cell_beyond_all_measure_does_not_fill_memory(bring: Callable[..., files.ImportReport]) -> None:
    before = csv.field_size_limit(10_000)
    assert before >= 1 << 26
    try:
        with pytest.raises(LabelError, match="line 3: field larger"):
            bring(b"record_id,label\nr7,cat\nr1," + b"x" * 20_000 + b"\n")
    finally:
        csv.field_size_limit(before)


def test_a_character_on_the_border_of_two_blocks_is_read(bring: Callable[..., files.ImportReport]) -> None:
    start_of_last = "r1,cat,,"
    blank = "\n" * ((1 << 20) - 1 - len(HEADER) - len(start_of_last))
    content = HEADER + blank + start_of_last + "é\n"
    assert content.encode()[(1 << 20) - 1 : (1 << 20) + 1] == "é".encode()
    report = bring(content)
    assert (report.new, report.rejected) == (1, ())


def test_a_header_alone_is_a_file_without_answers(bring: Callable[..., files.ImportReport]) -> None:
    report = bring(HEADER)
    assert (report.new, report.same, report.pending, report.rejections) == (0, 0, 0, 0)


def test_a_file_that_is_not_there_is_said(campaign: CampaignStore, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"nowhere\.csv cannot be read"):
        read_answers(tmp_path / "nowhere.csv", campaign, POOL, "ann")
    with pytest.raises(LabelError, match="name of a person"):
        read_answers(tmp_path / "nowhere.csv", campaign, POOL, "  ")


# -- conflicts -------------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(campaign: CampaignStore, tmp_path: Path) -> Path:
    write_batch(campaign, POOL, 1, tmp_path / "batch.csv")
    return tmp_path / "batch.csv"


def fill(path: Path, **labels: str) -> Path:
    save(path, [line | {"label": labels.get(line["record_id"], line["label"])} for line in table(path)])
    return path


def on_the_web(campaign: CampaignStore, row: int, label: int | None, annotator: str = "ann") -> None:
    status = "skipped" if label is None else "submitted"
    campaign.answers.add([Answer(row, f"r{row - 100}", annotator, status, label)], source="web")


def test_an_answer_given_elsewhere_since_the_export_is_a_conflict(campaign: CampaignStore, exported: Path) -> None:
    on_the_web(campaign, 107, 1)
    on_the_web(campaign, 101, 0)
    on_the_web(campaign, 104, 1, "bob")
    on_the_web(campaign, 102, None)
    fill(exported, r7="cat", r1="cat", r4="cat", r2="dog")
    report = read_answers(exported, campaign, POOL, "ann")
    assert (report.new, report.same, report.kept_out) == (1, 1, 2), "bob's answer is no conflict with ann's"
    assert [(each.line, each.record_id) for each in report.conflicts] == [(2, "r7"), (5, "r2")]
    assert "'cat' here, but 'dog' by 'ann' from web at 2" in report.conflicts[0].reason
    assert "'dog' here, but skipped by 'ann'" in report.conflicts[1].reason
    assert answered(campaign) == {
        (101, "ann"): "cat",
        (102, "ann"): None,
        (104, "ann"): "cat",
        (104, "bob"): "dog",
        (107, "ann"): "dog",
    }


def test_conflicts_are_taken_when_told_though_the_file_was_seen(campaign: CampaignStore, exported: Path) -> None:
    on_the_web(campaign, 107, 1)
    fill(exported, r7="cat", r1="cat")
    read_answers(exported, campaign, POOL, "ann")
    taken = read_answers(exported, campaign, POOL, "ann", conflicts="take")
    assert (taken.changed, taken.same, taken.kept_out, taken.seen) == (1, 1, 0, False)
    assert answered(campaign) == {(107, "ann"): "cat", (101, "ann"): "cat"}
    assert read_answers(exported, campaign, POOL, "ann", conflicts="take").seen


def test_answers_before_the_export_and_corrections_of_the_file_are_no_conflicts(
    campaign: CampaignStore, tmp_path: Path
) -> None:
    on_the_web(campaign, 107, 1)
    write_batch(campaign, POOL, 1, tmp_path / "batch.csv")
    fill(tmp_path / "batch.csv", r7="cat", r1="cat")
    assert read_answers(tmp_path / "batch.csv", campaign, POOL, "ann").changed == 1
    fill(tmp_path / "batch.csv", r1="dog")
    report = read_answers(tmp_path / "batch.csv", campaign, POOL, "ann")
    assert (report.changed, report.conflicts) == (1, ())


def test_a_new_export_knows_what_the_one_before_did_not(
    campaign: CampaignStore, exported: Path, tmp_path: Path
) -> None:
    on_the_web(campaign, 107, 1)
    write_batch(campaign, POOL, 1, tmp_path / "later.csv")
    stale, current = fill(exported, r7="cat"), fill(tmp_path / "later.csv", r7="cat")
    assert read_answers(stale, campaign, POOL, "ann").kept_out == 1
    report = read_answers(current, campaign, POOL, "ann")
    assert (report.changed, report.kept_out) == (1, 0)


def test_a_renamed_file_counts_as_the_latest_export_of_its_batch(campaign: CampaignStore, exported: Path) -> None:
    renamed = exported.rename(exported.with_name("batch (1).csv"))
    on_the_web(campaign, 107, 1)
    on_the_web(campaign, 109, 1)
    rows = [
        *table(fill(renamed, r7="cat")),
        {"record_id": "r9", "label": "cat", "status": "", "annotator": "", "text": ""},
    ]
    save(renamed, rows)
    report = read_answers(renamed, campaign, POOL, "ann")
    assert [each.record_id for each in report.conflicts] == ["r7"], "r9 was in no export"
    assert (report.changed, report.volunteered) == (1, 1)


# -- other formats ---------------------------------------------------------------------------------------------------

OTHERS = {"jsonl": "batch.jsonl", "parquet": "batch.parquet", "prodigy": "batch.jsonl", "label-studio": "batch.json"}


def fill_in(path: Path, file_format: str, labels: dict[str, str | None]) -> None:
    """Answer a file as somebody's program would: a class, or None to skip; other records stay as they are."""
    if file_format == "parquet":
        frame = pd.read_parquet(path)
        for record_id, label in labels.items():
            frame.loc[frame["record_id"] == record_id, ["label", "status"]] = [
                label,
                "submitted" if label else "skipped",
            ]
        frame.to_parquet(path)
        return
    text = path.read_text(encoding="utf-8")
    records = json.loads(text) if file_format == "label-studio" else [json.loads(line) for line in text.splitlines()]
    for record in records:
        within = record.get("data") or record.get("meta") or record
        if within["record_id"] not in labels:
            continue
        label = labels[within["record_id"]]
        if file_format == "jsonl":
            record |= {"label": label, "status": None if label else "skipped"}
        elif file_format == "prodigy":
            record |= {"answer": "accept", "accept": [label]} if label else {"answer": "ignore", "accept": []}
        else:
            value = {"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": [label]}}
            said = {
                "result": [value] if label else [],
                "was_cancelled": not label,
                "lead_time": 2.5,
                "completed_by": "ann",
            }
            record["annotations"] = [said]
    lines = [json.dumps(record) for record in records]
    path.write_text(f"[{','.join(lines)}]" if file_format == "label-studio" else "\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("file_format", list(OTHERS))
def test_a_batch_goes_out_and_comes_back_in_every_format(
    campaign: CampaignStore, tmp_path: Path, file_format: str
) -> None:
    on_the_web(campaign, 104, 3, "bob")
    path = tmp_path / OTHERS[file_format]
    lines = write_batch(campaign, POOL, 1, path, file_format=file_format)
    known = 0 if file_format == "label-studio" else 1
    assert lines == 3 + known
    untouched = read_answers(path, campaign, POOL, "ann", file_format=file_format)
    assert (untouched.new, untouched.changed, untouched.same, untouched.pending) == (0, 0, known, 3)
    assert untouched.rejections == 0
    fill_in(path, file_format, {"r7": "naïve 🐱", "r1": None, "r2": "catt"})
    with pytest.raises(CampaignError, match="must not hold answers"):
        write_batch(campaign, POOL, 1, path, file_format=file_format)
    report = read_answers(path, campaign, POOL, "ann", file_format=file_format)
    assert (report.new, report.changed, report.same, report.pending) == (2, 0, known, 0)
    ((_, place, record_id, reason),) = report.rejected
    at = {"jsonl": "line 4", "prodigy": "line 4", "parquet": "table row 4", "label-studio": "$[2].annotations[0]"}
    assert (place, record_id) == (at[file_format], "r2")
    assert "is it 'cat'?" in reason
    assert answered(campaign) == {(107, "ann"): "naïve 🐱", (101, "ann"): None, (104, "bob"): "naïve 🐱"}
    again = read_answers(path, campaign, POOL, "ann", file_format=file_format)
    assert (again.new, again.changed, again.same, again.rejections) == (0, 0, 2 + known, 1)


def test_a_file_read_as_the_wrong_format_is_not_taken_for_known(campaign: CampaignStore, tmp_path: Path) -> None:
    path = tmp_path / "batch.jsonl"
    write_batch(campaign, POOL, 1, path, file_format="prodigy")
    fill_in(path, "prodigy", {"r7": "cat", "r1": "dog"})
    assert read_answers(path, campaign, POOL, "ann").new == 0
    assert read_answers(path, campaign, POOL, "ann", file_format="prodigy").new == 2
    assert read_answers(path, campaign, POOL, "ann", file_format="prodigy").seen
    write_batch(campaign, POOL, 1, path, file_format="prodigy")


@pytest.mark.parametrize("file_format", list(OTHERS))
def test_an_answer_elsewhere_is_a_conflict_in_every_format(
    campaign: CampaignStore, tmp_path: Path, file_format: str
) -> None:
    path = tmp_path / OTHERS[file_format]
    write_batch(campaign, POOL, 1, path, file_format=file_format)
    on_the_web(campaign, 101, 1)
    fill_in(path, file_format, {"r7": "cat", "r1": "cat"})
    report = read_answers(path, campaign, POOL, "ann", file_format=file_format)
    assert (report.new, report.kept_out) == (1, 1)
    at = {"jsonl": "line 2", "prodigy": "line 2", "parquet": "table row 2", "label-studio": "$[1].annotations[0]"}
    assert [(each.place, each.record_id) for each in report.conflicts] == [(at[file_format], "r1")]
    assert answered(campaign) == {(107, "ann"): "cat", (101, "ann"): "dog"}


def test_of_two_answers_the_later_counts_where_the_file_tells_times(campaign: CampaignStore, tmp_path: Path) -> None:
    def said(record_id: str, label: str, hour: int, annotator: str = "ann") -> dict[str, str]:
        # Times as people write them: of one moment, in two time zones.
        zone = {8: "2026-01-02T09:00:00+01:00", 9: "2026-01-02T09:00:00Z", 10: "2026-01-02T10:00:00.000001+00:00"}
        return {"record_id": record_id, "label": label, "annotator": annotator, "answered_at": zone[hour]}

    lines = [
        said("r7", "cat", 9), said("r7", "dog", 10), said("r7", "cat", 8),
        said("r7", "cat", 8, "bob"),
        said("r1", "cat", 9), said("r1", "dog", 9),
        said("r4", "cat", 9), said("r4", "cat", 10),
    ]  # fmt: skip
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = read_answers(tmp_path / "x.jsonl", campaign, POOL, "ann")
    assert (report.new, report.superseded, report.rejections) == (3, 3, 2)
    assert "between line 5 and line 6" in report.rejected[0].reason
    assert answered(campaign) == {(107, "ann"): "dog", (107, "bob"): "cat", (104, "ann"): "cat"}
    times = {(event.row, event.annotator): event.answered_at for event in campaign.answers.log()}
    assert times[107, "ann"] == datetime(2026, 1, 2, 10, 0, 0, 1, tzinfo=UTC)
    assert times[107, "bob"] == datetime(2026, 1, 2, 8, tzinfo=UTC)


def test_what_a_labelling_tool_tells_of_an_answer_is_kept(campaign: CampaignStore, tmp_path: Path) -> None:
    annotations = [
        {"completed_by": "ann", "was_cancelled": True, "result": [], "lead_time": 2.5, "prediction": {"score": 0.5},
         "updated_at": "2026-01-02T09:00:00Z"},
        {"completed_by": "bob", "was_cancelled": True, "lead_time": -1, "prediction": {}, "updated_at": "yesterday"},
    ]  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps([{"data": {"record_id": "r7"}, "annotations": annotations}]))
    reason = {"record_id": "r1", "status": "skipped", "skip_reason": "cannot tell", "lead_time": 4}
    (tmp_path / "x.jsonl").write_text(json.dumps(reason))
    assert read_answers(tmp_path / "x.json", campaign, POOL, "eve").new == 2
    assert read_answers(tmp_path / "x.jsonl", campaign, POOL, "eve").new == 1
    ann, bob, eve = campaign.answers.log()
    assert (ann.annotator, ann.status, ann.lead_time, ann.suggestion_shown) == ("ann", "skipped", 2.5, True)
    assert ann.answered_at == datetime(2026, 1, 2, 9, tzinfo=UTC)
    assert (bob.annotator, bob.lead_time, bob.suggestion_shown) == ("bob", None, False)
    assert (eve.annotator, eve.skip_reason, eve.lead_time, eve.suggestion_shown) == ("eve", "cannot tell", 4.0, None)


def of_pictures(folder: Path, pixels: npt.NDArray[np.uint8]) -> tuple[CampaignStore, Pool]:
    """Open a round on three pictures that asks for two."""
    pool = Pool.build(pixels, folder / "pool.zarr", ids=["a", "b", "c"])
    chosen = Settings("pool.zarr", CLASSES, estimator="logistic", strategy="margin", batch_size=4)
    campaign = CampaignStore.make(folder / "c", chosen, pool_fingerprint=pool.fingerprint, n_rows=3)
    frozen = {"pool_fingerprint": pool.fingerprint, "n_rows": 3, "k": 2, "explore": 0.0, "seed": 0}
    campaign.rounds.open(campaign.rounds.freeze(**frozen, strategy="margin"), batch_of([2, 1], ["c", "b"]))
    return campaign, pool


@pytest.mark.parametrize(("name", "file_format"), [("x.json", "label-studio"), ("x.jsonl", "prodigy")])
def test_pictures_without_pillow_are_refused_before_a_file_is_written(
    name: str, file_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, pool = of_pictures(tmp_path, np.zeros((3, 5, 4, 1), np.uint8))
    for module in [each for each in sys.modules if each.startswith("PIL")]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(NotInstalled, match=r"PIL.*\[images\]"):
        write_batch(campaign, pool, 1, tmp_path / name, file_format=file_format)
    assert not (tmp_path / name).exists()
    assert write_batch(campaign, pool, 1, tmp_path / "x.csv") == 2, "a format without pictures needs no Pillow"


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_pictures_go_out_as_they_are_in_the_pool(tmp_path: Path, channels: int, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 4, channels)).astype(np.uint8)
    campaign, pool = of_pictures(tmp_path, pixels)
    for name, file_format in (("x.json", "label-studio"), ("x.jsonl", "prodigy")):
        write_batch(campaign, pool, 1, tmp_path / name, file_format=file_format)
        text = (tmp_path / name).read_text()
        tasks = [each["data"] for each in json.loads(text)] if name == "x.json" else map(json.loads, text.splitlines())
        for row, task in zip([2, 1], tasks, strict=True):
            kind, data = task["image"].split(",")
            assert kind == "data:image/png;base64"
            shown = Image.open(io.BytesIO(base64.b64decode(data)))
            assert shown.mode == mode
            np.testing.assert_array_equal(np.asarray(shown).reshape(pixels[row].shape), pixels[row])


# -- large files -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_large_file_needs_little_memory(tmp_path: Path) -> None:
    class Numbered(InMemory):
        def rows_of(self, record_ids: Sequence[str]) -> npt.NDArray[np.int64]:
            return np.array([int(record_id) for record_id in record_ids], np.int64)

    n = 30_000
    pool = Numbered(["x"])
    chosen = Settings("pool.zarr", CLASSES, estimator="logistic", strategy="margin", batch_size=4)
    campaign = CampaignStore.make(tmp_path / "c", chosen, pool_fingerprint="f", n_rows=n)
    path = tmp_path / "large.csv"
    with path.open("w") as file:
        file.write(HEADER)
        file.writelines(f"{row},{CLASSES[row % 2]},,{'ann' * 20}\n" for row in range(n))
    tracemalloc.start()
    told: list[int] = []
    report = read_answers(path, campaign, pool, "ann", progress=told.append)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (report.new, report.volunteered) == (n, n)
    assert peak < 14e6, "the answers alone would be more"
    assert told == list(range(4096, n, 4096))
    latest = campaign.answers.latest()
    np.testing.assert_array_equal(latest.rows, np.arange(n))
    np.testing.assert_array_equal(latest.labels, np.arange(n) % 2)


def test_with_a_real_pool(tmp_path: Path) -> None:
    ids = [f"={row}" if row % 2 else f"ø{row}" for row in range(500)]
    features = np.zeros((500, 3), np.float32)
    pool = Pool.build(features, tmp_path / "pool.zarr", ids=ids, display={"text": [f"@{row}" for row in range(500)]})
    chosen = Settings("pool.zarr", CLASSES, estimator="logistic", strategy="margin", batch_size=4)
    campaign = CampaignStore.make(tmp_path / "c", chosen, pool_fingerprint=pool.fingerprint, n_rows=pool.n_rows)
    frozen = {"pool_fingerprint": pool.fingerprint, "n_rows": 500, "k": 4, "explore": 0.0, "seed": 0}
    rows = [401, 7, 300]
    batch_round = campaign.rounds.freeze(**frozen, strategy="margin")
    campaign.rounds.open(batch_round, batch_of(rows, pool.record_ids(rows)))
    write_batch(campaign, pool, 1, tmp_path / "batch.csv")
    lines = table(tmp_path / "batch.csv")
    assert [line["text"] for line in lines] == ["'@401", "'@7", "'@300"]
    extra = {"record_id": "unknown", "label": "cat", "status": "", "annotator": "", "text": ""}
    save(tmp_path / "batch.csv", [*(line | {"label": "dog"} for line in lines), extra])
    report = read_answers(tmp_path / "batch.csv", campaign, pool, "ann")
    assert (report.new, [each.record_id for each in report.rejected]) == (3, ["unknown"])
    assert answered(campaign) == dict.fromkeys([(7, "ann"), (300, "ann"), (401, "ann")], "dog")


# -- through other programs ------------------------------------------------------------------------------------------

OWN_NAMES = ["Label", "Status", "status ", "ANNOTATOR", "record_id", "Record_ID", "pool.label", "\ufeffstatus", "text"]


@pytest.mark.parametrize("name", ["batch.csv", "batch.tsv", "batch.jsonl", "batch.parquet", "batch.json"])
def test_display_fields_called_like_columns_do_not_stand_in_the_way(tmp_path: Path, name: str) -> None:
    pool = InMemory(["a", "b"], **{field: [f"{field} of a", "spam"] for field in OWN_NAMES})
    campaign = start(tmp_path / "c", pool, [100, 101])
    if name != "batch.json":
        campaign.answers.add([Answer(100, "a", "bob", "submitted", 1)], source="web")
    write_batch(campaign, pool, 1, tmp_path / name)
    report = read_answers(tmp_path / name, campaign, pool, "ann")
    known = name != "batch.json"
    assert (report.same, report.pending, report.new, report.rejections) == (known, 2 - known, 0, 0)
    if name == "batch.jsonl":
        first = json.loads((tmp_path / name).read_text().splitlines()[0])
        assert len(first) == 4 + len(OWN_NAMES), "no field has taken the place of another"
        assert [first[f"pool.{field}"] for field in ("Label", "record_id")] == ["Label of a", "record_id of a"]


def test_a_column_of_the_users_own_in_other_letters_is_left_alone(
    campaign: CampaignStore, bring: Callable[..., files.ImportReport]
) -> None:
    assert bring("Label,record_id,label,STATUS,status\nwhatever,r7,cat,draft,\n").new == 1
    assert answered(campaign) == {(107, "ann"): "cat"}
    for header in ("record_id,Label,LABEL", "record_id,label,label"):
        with pytest.raises(LabelError, match="'label' once, got 2"):
            bring(f"{header}\nr7,cat,dog\n")


NUMBERED = InMemory(["192", "007", "-5", "1e5", "nan"], text=["x"] * 5)
BINARY = ("0", "1")


def binary(directory: Path, classes: Sequence[str] = BINARY) -> CampaignStore:
    chosen = Settings("pool.zarr", tuple(classes), estimator="logistic", strategy="margin", batch_size=4)
    campaign = CampaignStore.make(directory, chosen, pool_fingerprint="f", n_rows=NUMBERED.n_rows)
    frozen = {"pool_fingerprint": "f", "n_rows": NUMBERED.n_rows, "k": 5, "explore": 0.0, "seed": 0}
    asked = list(range(100, 105))
    batch = batch_of(asked, [NUMBERED.ids[row] for row in asked])
    campaign.rounds.open(campaign.rounds.freeze(**frozen, strategy="margin"), batch)
    return campaign


def labels_of(campaign: CampaignStore) -> dict[int, str]:
    latest = campaign.answers.latest()
    return {
        row: campaign.settings.classes[code]
        for row, code in zip(latest.rows.tolist(), latest.labels.tolist(), strict=True)
    }


@pytest.mark.parametrize("name", ["x.csv", "x.CSV", "x.jsonl", "x.parquet", "x.pq"])
@pytest.mark.parametrize("labels", [[1.0, np.nan], [True, None], ["1", np.nan]], ids=["floats", "booleans", "texts"])
def test_a_batch_comes_back_through_pandas(tmp_path: Path, name: str, labels: list[object]) -> None:
    campaign = binary(tmp_path / "c", ("1", "0"))
    campaign.answers.add([Answer(104, "nan", "bob", "submitted", 1)], source="web")
    path = tmp_path / name
    write_batch(campaign, NUMBERED, 1, path)
    suffix = path.suffix.lower()
    texts = {"record_id": str}
    if suffix == ".csv":
        frame = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values={"label": [""], "status": [""]})
    elif suffix == ".jsonl":
        frame = pd.read_json(path, lines=True, dtype={"record_id": str})
    else:
        frame = pd.read_parquet(path)
    frame = frame[frame["record_id"].isin(["192", "-5", "nan", "'-5"])].reset_index(drop=True)
    kept = frame["label"].astype(object)
    kept[:2] = labels
    kept[2] = {float: 0.0, bool: False, str: "0"}[type(labels[0])]
    frame["label"] = kept.astype(float) if isinstance(labels[0], float) else kept
    frame["status"] = np.array([np.nan, np.nan, np.nan])
    frame["annotator"] = np.array([np.nan, np.nan, np.nan])
    if suffix == ".csv":
        frame.to_csv(path, index=False)
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(line) for line in frame.to_dict("records")))  # NaN, as Python writes it
    else:
        frame.to_parquet(path)
    report = read_answers(path, campaign, NUMBERED, "ann")
    assert (report.new, report.pending, report.rejected) == (2, 1, ())
    assert labels_of(campaign) == {100: "1", 104: "0"}


@pytest.mark.parametrize("as_text", [False, True])
def test_whole_numbers_that_became_fractions_are_the_same_records(tmp_path: Path, as_text: bool) -> None:
    campaign = binary(tmp_path / "c")
    frame = pd.DataFrame({"record_id": [192.0, -5.0, np.nan], "label": [1.0, 0.0, np.nan], "status": [np.nan] * 3})
    if as_text:
        frame = frame.astype(str)
    frame.to_csv(tmp_path / "x.csv", index=False, na_rep="NaN")
    frame.to_parquet(tmp_path / "x.parquet")
    frame.to_json(tmp_path / "x.jsonl", orient="records", lines=True)
    for name, who in (("x.csv", "a"), ("x.parquet", "b"), ("x.jsonl", "c")):
        report = read_answers(tmp_path / name, campaign, NUMBERED, who)
        assert report.new == 2, (name, report)
    assert set(labels_of(campaign).items()) == {(100, "1"), (102, "0")}
    (tmp_path / "y.csv").write_text("record_id,label\n7,1\n")
    (rejected,) = read_answers(tmp_path / "y.csv", campaign, NUMBERED, "a").rejected
    assert "007 into 7" in rejected.reason
    (tmp_path / "far.jsonl").write_text('{"record_id": 9007199254740992.0, "label": 1}')
    assert "no record_id" in read_answers(tmp_path / "far.jsonl", campaign, NUMBERED, "a").rejected[0].reason


def test_an_id_that_is_written_so_is_found_before_what_it_may_have_been(tmp_path: Path) -> None:
    pool = InMemory(["7", "7.0", "'=1", "=1", " 8", "8"])
    campaign = start(tmp_path / "c", pool, [100])
    (tmp_path / "x.csv").write_text("record_id,label\n7.0,cat\n'=1,dog\n''=1,-1\n 8,cat\n8 ,dog\n")
    assert read_answers(tmp_path / "x.csv", campaign, pool, "ann").rejected == ()
    names = {event.record_id: CLASSES[event.label or 0] for event in campaign.answers.log()}
    assert names == {"7.0": "cat", "=1": "dog", "'=1": "-1", " 8": "cat", "8": "dog"}


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf"record_id";"label";"status";"annotator"\r\n"192";"TRUE";"";""\r\n"-5";"FALSE";"";""\r\n',
        b"sep=;\r\nrecord_id;label;status\r\n192;TRUE;\r\n-5;FALSE;\r\n",
        b'"sep=\t"\r\nrecord_id\tlabel\r\n192\tTRUE\r\n-5\tFALSE\r\n',
        b"\r\n\nrecord_id;label\r192;true\n-5;false\r\n",
        b"\xef\xbb\xbfrecord_id,label,status\n 192 , true ,NaN\n'-5,FALSE,SUBMITTED \n",
    ],
    ids=["LibreOffice", "Excel", "tabs", "mixed line ends", "blanks"],
)
def test_spreadsheets_write_truth_values_in_their_own_way(tmp_path: Path, content: bytes) -> None:
    campaign = binary(tmp_path / "c", ("false", "true"))
    (tmp_path / "x.CSV").write_bytes(content)
    report = read_answers(tmp_path / "x.CSV", campaign, NUMBERED, "ann")
    assert (report.new, report.rejected) == (2, ())
    assert labels_of(campaign) == {100: "true", 102: "false"}


def test_what_is_missing_is_pending_unless_a_class_or_a_person_is_called_so(tmp_path: Path) -> None:
    content = "record_id,label,status,annotator\n192,NaN,nan,NaN\n007,<NA>,None,nan\n-5,1,nan,<NA>\n"
    (tmp_path / "x.csv").write_text(content)
    report = read_answers(tmp_path / "x.csv", binary(tmp_path / "a"), NUMBERED, "ann")
    assert (report.new, report.pending, report.rejections) == (1, 2, 0)
    campaign = binary(tmp_path / "b", ("NaN", "1"))
    campaign.answers.add([Answer(103, "1e5", "Nan", "submitted", 1)], source="web")
    assert read_answers(tmp_path / "x.csv", campaign, NUMBERED, "ann").new == 2
    people = {(event.record_id, event.annotator) for event in campaign.answers.log()}
    assert people == {("1e5", "Nan"), ("192", "Nan"), ("-5", "ann")}


def test_a_decomposed_class_is_the_class(tmp_path: Path) -> None:
    decomposed, composed = "cafe\u0301", "caf\u00e9"
    campaign = binary(tmp_path / "c", (decomposed, "tea"))
    assert campaign.settings.classes == (composed, "tea")
    assert CampaignStore.open(campaign.directory).settings.classes == (composed, "tea")
    toml = campaign.directory / "campaign.toml"
    toml.write_text(toml.read_text(encoding="utf-8").replace(composed, decomposed), encoding="utf-8")
    assert CampaignStore.open(campaign.directory).settings.classes == (composed, "tea")
    for at, spelling in enumerate((decomposed, composed)):
        (tmp_path / "x.csv").write_text(f"record_id,label\n{NUMBERED.ids[100 + at]},{spelling}\n", encoding="utf-8")
        assert read_answers(tmp_path / "x.csv", campaign, NUMBERED, "ann").new == 1
    with pytest.raises(SettingsError, match="more than once"):
        Settings("p", (decomposed, composed), estimator="logistic", strategy="margin", batch_size=4).check()


# -- one line is one line --------------------------------------------------------------------------------------------


def test_an_impossible_line_is_refused_and_the_others_are_taken(
    campaign: CampaignStore, bring: Callable[..., files.ImportReport]
) -> None:
    lines = [
        '{"record_id": "r7", "label": "cat", "answered_at": "0001-01-01T00:00:00+14:00"}',
        '{"record_id": "r7", "label": "cat", "answered_at": "9999-12-31T23:59:59-12:00"}',
        '{"record_id": "r7", "label": ' + "1" * 5000 + "}",
        '{"record_id": ' + "9" * 4300 + ', "label": "cat"}',
        '{"record_id": "r7", "label": ' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"record_id": "r7", "label": "\\ud83d"}',
        '{"record_id": "r\\u0000", "label": "cat"}',
        '{"record_id": "r7", "label": "cat", "annotator": "a\\u0000b"}',
        '{"record_id": "r7", "label": "cat", "annotator": "' + "x" * 5000 + '"}',
        '{"record_id": "r7", "label": Infinity}',
        '{"record_id": "unknown", "label": "cat"}',
        '{"record_id": "r1", "label": "dog", "lead_time": ' + "1" * 400 + "}",
        '{"record_id": "r2", "label": NaN, "annotator": NaN}',
    ]
    report = bring("\n".join(lines), name="x.jsonl")
    assert [each.place for each in report.rejected] == [f"line {number}" for number in range(1, 12)]
    assert (report.new, report.pending) == (1, 1)
    assert answered(campaign) == {(101, "ann"): "dog"}


def test_a_refused_line_is_taken_when_its_record_is_there(tmp_path: Path) -> None:
    """The pool grows after the file was handed in, and after the campaign's last round froze."""
    small, grown = InMemory(["a"]), InMemory(["a", "b"])
    campaign = start(tmp_path / "c", small, [100])
    (tmp_path / "x.csv").write_text("record_id,label\na,cat\nb,dog\n")
    report = read_answers(tmp_path / "x.csv", campaign, small, "ann")
    assert (report.new, report.rejections) == (1, 1)
    campaign.answers.add([Answer(100, "a", "ann", "submitted", 1)], source="web")
    report = read_answers(tmp_path / "x.csv", campaign, grown, "ann")
    assert (report.new, report.changed, report.superseded, report.rejections) == (1, 0, 1, 0)
    assert answered(campaign) == {(100, "ann"): "dog", (101, "ann"): "dog"}
    assert read_answers(tmp_path / "x.csv", campaign, grown, "ann").seen
    (tmp_path / "gold.csv").write_text("record_id,label\nc,cat\n")
    with pytest.raises(LabelError, match="no such record"):
        read_gold(tmp_path / "gold.csv", campaign, grown)
    assert read_gold(tmp_path / "gold.csv", campaign, InMemory(["a", "b", "c"])) == 1


def test_records_appended_since_the_pool_was_opened_are_known(tmp_path: Path) -> None:
    X = np.zeros((4, 2), np.float32)
    pool = Pool.build(X[:2], tmp_path / "pool.zarr", ids=["a", "b"])
    chosen = Settings("pool.zarr", CLASSES, estimator="logistic", strategy="margin", batch_size=2)
    campaign = CampaignStore.make(tmp_path / "c", chosen, pool_fingerprint=pool.fingerprint, n_rows=2)
    Pool.open(tmp_path / "pool.zarr").append(X[2:], ids=["c", "d"])
    (tmp_path / "x.csv").write_text("record_id,label\nd,cat\nnowhere,dog\na,dog\n")
    report = read_answers(tmp_path / "x.csv", campaign, pool, "ann")
    assert (report.new, [each.record_id for each in report.rejected]) == (2, ["nowhere"])
    assert answered(campaign) == {(3, "ann"): "cat", (0, "ann"): "dog"}
    (tmp_path / "gold.csv").write_text("record_id,label\nc,cat\n")
    assert read_gold(tmp_path / "gold.csv", campaign, pool) == 1
    assert campaign.answers.gold() == {2: 0}


# -- the export of the pages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_the_export_of_the_pages_comes_back_as_it_is(tmp_path: Path, form: Literal["csv", "jsonl"]) -> None:
    ids = [*DANGEROUS, *AWKWARD]
    pool = InMemory(ids)
    campaign = start(tmp_path / "c", pool, range(100, 100 + len(ids)))
    campaign.answers.add(
        [Answer(100 + at, record_id, "=ann", "submitted", at % 4) for at, record_id in enumerate(ids)], source="web"
    )
    path = tmp_path / f"export.{form}"
    path.write_bytes(b"".join(overview.exported(campaign, form)))
    assert path.read_bytes().startswith(b"\xef\xbb\xbf") == (form == "csv")
    if form == "csv":
        cells = [cell for line in table(path) for name, cell in line.items() if name != "row"]
        assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"))] == []
    report = read_answers(path, campaign, pool, "somebody else")
    assert (report.same, report.new, report.changed, report.rejections) == (len(ids), 0, 0, 0)


def test_a_field_keeps_its_type_where_the_first_block_has_only_gaps(tmp_path: Path) -> None:
    pool = InMemory(IDS, n=[None] * 4 + [2**60 + 1] * 6, ok=[None] * 9 + [True])
    pool.kinds = {"n": "integer", "ok": "boolean"}
    campaign = start(tmp_path / "campaign", pool, asked=(101, 102, 107, 109))
    write_batch(campaign, pool, 1, tmp_path / "batch.parquet", at_once=2)
    written = pa.parquet.read_table(tmp_path / "batch.parquet")
    assert written.column("n").to_pylist() == [None, None, 2**60 + 1, 2**60 + 1]
    assert written.column("ok").to_pylist() == [None, None, None, True]
    assert [str(written.schema.field(name).type) for name in ("n", "ok")] == ["int64", "bool"]


# -- what programs make of a file on the way ---------------------------------------------------------------------------


@pytest.mark.parametrize("end", [".csv", ".parquet", ".jsonl", ".json"])
@pytest.mark.parametrize("name", ["7", "@ann", "'=x"])
def test_an_annotator_whose_name_was_rewritten_on_the_way_is_the_same_person(
    tmp_path: Path, name: str, end: str
) -> None:
    campaign = start(tmp_path / "c")
    (tmp_path / "first.jsonl").write_text(json.dumps({"record_id": "r1", "label": "cat", "annotator": name}))
    read_answers(tmp_path / "first.jsonl", campaign, POOL, "ann")
    write_batch(campaign, POOL, 1, tmp_path / "batch.csv")
    frame = pd.read_csv(tmp_path / "batch.csv")
    frame.loc[frame["record_id"] == "r7", "label"] = "dog"
    path = tmp_path / f"back{end}"
    match end:
        case ".csv":
            frame.to_csv(path)
        case ".parquet":
            frame.to_parquet(path)
        case _:
            frame.to_json(path, orient="records", lines=end == ".jsonl")
    report = read_answers(path, campaign, POOL, "bob")
    assert (report.new, report.same, report.rejected) == (1, 1, ())
    assert answered(campaign) == {(101, name): "cat", (107, "bob"): "dog"}


@pytest.mark.parametrize("end", [".csv", ".parquet", ".jsonl", ".json"])
def test_what_was_guarded_comes_back_in_any_format(tmp_path: Path, end: str) -> None:
    pool = InMemory(["=1+2", "'=1", "-5", "plain"])
    campaign = start(tmp_path / "c", pool, [100, 101, 102, 103])
    write_batch(campaign, pool, 1, tmp_path / "batch.csv")
    frame = pd.read_csv(tmp_path / "batch.csv", dtype=str)
    frame["label"] = ["'-1", "-1", "cat", "'-1"]
    path = tmp_path / f"back{end}"
    match end:
        case ".csv":
            frame.to_csv(path, sep=";")
        case ".parquet":
            frame.set_index("record_id").to_parquet(path)
        case _:
            frame.to_json(path, orient="records", lines=end == ".jsonl")
    report = read_answers(path, campaign, pool, "ann")
    assert (report.new, report.rejected) == (4, ())
    assert answered(campaign) == {(100, "ann"): "-1", (101, "ann"): "-1", (102, "ann"): "cat", (103, "ann"): "-1"}


def test_a_line_with_more_cells_than_the_header_is_refused_alone(bring: Callable[..., files.ImportReport]) -> None:
    report = bring("record_id,label\nr1,cat,dog\nr7,cat\n")
    assert report.new == 1
    assert [(line.place, line.record_id) for line in report.rejected] == [("line 2", "r1")]


def test_keys_in_other_letters_are_the_columns(
    campaign: CampaignStore, bring: Callable[..., files.ImportReport]
) -> None:
    bring(
        '{"Record_ID": "r1", "LABEL": "cat", "Label": "dog"}\n{"record_id": "r7", "label": null, "Label": "dog"}',
        name="a.jsonl",
    )
    assert answered(campaign) == {(101, "ann"): "cat"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"record_id": "r1", "klass": "cat"}\n', "the key label"),
        ("a.jsonl", b'[\n{"record_id": "r1", "label": "cat"}]', "name it .json"),
        ("a.jsonl", gzip.compress(b'{"record_id": "r1", "label": "cat"}', mtime=0), "gzip"),
        ("a.jsonl", '{"record_id": "r1", "label": "cat"}'.encode("utf-16"), "UTF-16"),
        ("a.json", gzip.compress(b'[{"record_id": "r1", "label": "cat"}]', mtime=0), "gzip"),
        ("a.json", '[{"record_id": "r1", "label": "cat"}]'.encode("utf-16"), "UTF-16"),
        ("a.json", b'{"record_id": {"0": "r1"}, "label": {"0": "cat"}}', "orient='records'"),
        ("a.csv", gzip.compress(b"record_id,label\nr1,cat\n", mtime=0), "gzip"),
        ("a.xlsx", b"PK\x03\x04", "workbook"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_what_it_is(
    campaign: CampaignStore, bring: Callable[..., files.ImportReport], name: str, content: bytes, said: str
) -> None:
    with pytest.raises(LabelError, match=said):
        bring(content, name=name)
    assert answered(campaign) == {}


def test_an_annotation_whose_choice_has_another_name_is_said(
    campaign: CampaignStore, bring: Callable[..., files.ImportReport]
) -> None:
    flat = [{"record_id": "r1", "feeling": "cat", "annotation_id": 5, "annotator": 2.0}, {"record_id": "r7"}]
    report = bring(json.dumps(flat), name="a.json")
    assert (report.new, report.pending) == (0, 1)
    assert [(line.place, line.record_id) for line in report.rejected] == [("$[0]", "r1")]
    report = bring(json.dumps([flat[0] | {"label": "cat"}]), name="a.json")
    assert answered(campaign) == {(101, "user 2"): "cat"}


@pytest.mark.skipif(os.name == "nt", reason="names of files are texts there")
def test_a_file_may_be_called_by_any_bytes(campaign: CampaignStore, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.csv")
    assert write_batch(campaign, POOL, 1, path) == 4
    path.write_text("record_id,label\nr1,cat\n")
    assert read_answers(path, campaign, POOL, "ann").new == 1
    assert read_answers(path, campaign, POOL, "ann").seen
