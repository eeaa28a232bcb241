"""What each format writes and reads, against files as other programs make them."""

import io
import json
import string
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dal.campaign import Asked
from dal.errors import LabelError
from dal.exchange import FORMATS
from dal.exchange.files import format_of
from dal.exchange.formats import Csv, Format, Item, JsonLines, Known, Line, Parquet, Prodigy, Rejected, Sheet
from dal.exchange.label_studio import LabelStudio, labelling_page, page_classes, task
from dal.texts import composed

CLASSES = ("cat", "dog", "-1", "naïve 🐱")
SHEET = Sheet("c-r003", 3, CLASSES, ("text", "label", "length"), 1)
LINES = [name for name in FORMATS if name != "label-studio"]

# Whatever UTF-8 can hold; a CSV reader takes \r\n in a cell for one line end, which is no loss in a spreadsheet's cell.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x00"), max_size=12)
NAMES = TEXTS.filter(lambda text: bool(text) and text == text.strip())
ANSWERS = st.lists(
    st.tuples(st.sampled_from(CLASSES) | st.none(), NAMES), max_size=3, unique_by=lambda answer: answer[1]
).map(lambda given: tuple(Known(label or "", "submitted" if label else "skipped", name) for label, name in given))


def items_of(ids: Sequence[str], known: Sequence[tuple[Known, ...]], texts: Sequence[str]) -> list[Item]:
    return [
        Item(
            Asked(row, record_id, row - 7, 0.9, row % 4, False, confidence=0.75),
            {"text": text, "label": text[::-1], "length": float("nan") if row % 2 else row / 4},
            None,
            answers,
            complete=bool(answers),
        )
        for row, (record_id, answers, text) in enumerate(zip(ids, known, texts, strict=True), start=7)
    ]


RECORDS = st.lists(st.tuples(NAMES, ANSWERS, TEXTS), min_size=1, max_size=6, unique_by=lambda record: record[0]).map(
    lambda records: items_of(*zip(*records, strict=True))
)


def write(written: Format, items: Sequence[Item], path: Path) -> int:
    file = io.BytesIO()
    lines = written.write(file, SHEET, [list(items[:2]), list(items[2:])])
    path.write_bytes(file.getvalue())
    return lines


def read(written: Format, path: Path) -> list[Line | Rejected]:
    return list(written.lines(path))


def said(written: Format, lines: Sequence[Line | Rejected]) -> list[tuple[str, str, str, str]]:
    """Give what lines say, as the import takes it."""
    assert all(isinstance(line, Line) for line in lines), lines
    return [
        (written.own(line.record_id), written.own(line.label), line.status, written.own(line.annotator))
        for line in lines
        if isinstance(line, Line)
    ]


@pytest.mark.parametrize("name", LINES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=RECORDS)
def test_what_is_written_is_read_back(name: str, items: list[Item], tmp_path: Path) -> None:
    written = format_of(Path("x"), name, CLASSES)
    assert write(written, items, tmp_path / "file") == sum(len(item.known) or 1 for item in items)
    expected = [(item.asked.record_id, *answer) for item in items for answer in item.known or (Known("", "", ""),)]
    lines = read(written, tmp_path / "file")
    assert said(written, lines) == expected
    if name != "csv":  # whose numbers are those of lines, and a cell may hold several
        assert [line[0] for line in lines] == list(range(1, len(lines) + 1))


def annotated(tasks: list[dict[str, Any]], answers: Sequence[tuple[Known, ...]]) -> list[dict[str, Any]]:
    """Answer tasks as a Label Studio server does, in the shape of its export."""
    return [
        each
        | {
            "id": 50 + at,
            "annotations": [
                {
                    "id": at,
                    "completed_by": int(answer.annotator),
                    "was_cancelled": not answer.label,
                    "result": [
                        {
                            "from_name": "label",
                            "to_name": "text",
                            "type": "choices",
                            "value": {"choices": [answer.label]},
                        }
                    ]
                    * bool(answer.label),
                    "created_at": "2026-11-23T02:25:09.498580Z",
                    "updated_at": "2026-11-24T02:25:09Z",
                    "lead_time": 1.5,
                    "prediction": {},
                }
                for answer in given
            ],
        }
        for at, (each, given) in enumerate(zip(tasks, answers, strict=True))
    ]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=RECORDS)
def test_tasks_for_label_studio_come_back_with_their_annotations(items: list[Item], tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    assert write(LabelStudio(), items, path) == sum(not item.known for item in items), (
        "nobody knows who gave the others"
    )
    assert [each["data"]["record_id"] for each in json.loads(path.read_bytes())] == [
        item.asked.record_id for item in items if not item.known
    ]
    assert said(LabelStudio(), read(LabelStudio(), path)) == [
        (item.asked.record_id, "", "", "") for item in items if not item.known
    ], "a task without annotations is pending"

    open_items = [item._replace(known=(), complete=False) for item in items]
    write(LabelStudio(), open_items, path)
    people = dict(enumerate(sorted({known.annotator for item in items for known in item.known})))
    numbers = {name: str(at) for at, name in people.items()}
    answers = [tuple(known._replace(annotator=numbers[known.annotator]) for known in item.known) for item in items]
    path.write_text(json.dumps(annotated(json.loads(path.read_bytes()), answers)))
    reader = LabelStudio(people, batches="c-r")
    lines = read(reader, path)
    expected = [(item.asked.record_id, *answer) for item in items for answer in item.known or (Known("", "", ""),)]
    assert said(reader, lines) == expected
    places = [
        f"$[{at}].annotations[{number}]" for at, item in enumerate(items) for number in range(len(item.known) or 1)
    ]
    assert [reader.place(line[0]) for line in lines] == places


# -- JSON lines --------------------------------------------------------------------------------------------------------


def test_json_lines_that_are_broken_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"record_id": "a", "label": "cat", "more": [1, {"x": null}]}',
        b"",
        b'{"record_id": "b", "label": "cat"',
        b'["a", "cat"]',
        b'{"label": "cat"}',
        b'{"record_id": "c", "label": ["cat"]}',
        b'{"record_id": "d", "label": "na\xefve"}',
        b'{"record_id": 7, "label": -1, "status": null, "annotator": "ann"}',
        b'{"record_id": true, "label": "cat"}',
        b'{"record_id": "e", "label": "\\ud83d"}',
        b"[" * 100_000,
        b'{"record_id": "f", "answer": "accept", "accept": ["cat"]}',
        b'{"answer": "accept", "accept": ["cat"], "meta": {"record_id": "g"}}',
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    found = read(JsonLines(), tmp_path / "x.jsonl")
    fit = [line for line in found if isinstance(line, Line)]
    assert fit == [Line(1, "a", "cat"), Line(8, "7", "-1", "", "ann")]
    unfit = {line.place: (line.record_id, line.reason) for line in found if isinstance(line, Rejected)}
    assert {place: record_id for place, (record_id, _) in unfit.items()} == {
        "line 3": "", "line 4": "", "line 5": "", "line 6": "c", "line 7": "",
        "line 9": "", "line 10": "e", "line 11": "", "line 12": "f", "line 13": "",
    }  # fmt: skip
    for place, reason in {
        "line 3": "is not JSON: Expecting ',' delimiter at character 35",
        "line 4": "not a JSON object",
        "line 5": "no record_id",
        "line 6": 'label must be a text, got ["cat"]',
        "line 7": "not UTF-8",
        "line 11": "nested too deeply",
        "line 12": "Prodigy",
        "line 13": "Prodigy",
    }.items():
        assert reason in unfit[place][1]


# -- Prodigy -----------------------------------------------------------------------------------------------------------

OPTIONS = [{"id": name, "text": name} for name in CLASSES]


@pytest.mark.parametrize(
    ("task", "line"),
    [
        # The line of Prodigy's own documentation, with a record id.
        (
            {"text": "Improve docs", "priority": 9.14, "meta": {"source": "GitHub", "score": 0.63, "record_id": "r1"},
             "label": "dog", "_input_hash": -1783060616, "_task_hash": -712768656, "answer": "accept"},
            Line(1, "r1", "dog", "submitted"),
        ),
        ({"record_id": 7, "options": OPTIONS, "accept": ["cat"], "answer": "accept", "_annotator_id": "ann"},
         Line(1, "7", "cat", "submitted", "ann")),
        ({"record_id": "r", "options": OPTIONS, "accept": ["cat"], "answer": "ignore", "_session_id": "set-bob"},
         Line(1, "r", "", "skipped", "set-bob")),
        ({"record_id": "r", "label": "cat", "answer": "ignore"}, Line(1, "r", "", "skipped")),
        ({"record_id": "r", "options": OPTIONS}, Line(1, "r")),
        ({"record_id": "r", "options": OPTIONS, "accept": [], "answer": "accept"}, "chosen, got 0"),
        ({"record_id": "r", "options": OPTIONS, "accept": ["cat", "dog"], "answer": "accept"}, "chosen, got 2"),
        ({"record_id": "r", "options": OPTIONS, "accept": ["cat"], "answer": "reject"}, "without a class"),
        ({"record_id": "r", "label": "cat", "answer": "reject"}, "leaves 3 classes"),
        ({"record_id": "r", "label": "eggs", "answer": "reject"}, "'eggs' is no class"),
        ({"record_id": "r", "answer": "accept"}, "name no class"),
        ({"record_id": "r", "accept": [None], "answer": "accept"}, "name no class"),
        ({"record_id": "r", "label": "cat", "answer": "maybe"}, "accept, reject or ignore, got 'maybe'"),
        ({"record_id": "r", "label": "cat", "answer": "accept", "_annotator_id": {}}, Line(1, "r", "cat", "submitted")),
        ({"meta": {"source": "x"}, "label": "cat", "answer": "accept"}, "no record_id, in `meta` or beside it"),
    ],
)  # fmt: skip
def test_what_prodigy_says(task: dict[str, object], line: Line | str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(task) + "\n")
    (found,) = read(Prodigy(CLASSES), tmp_path / "x.jsonl")
    if isinstance(line, Line):
        assert found == line
    else:
        assert isinstance(found, Rejected)
        assert line in found.reason
        assert found.place == "line 1"


def test_a_rejected_class_of_two_is_the_other_one(tmp_path: Path) -> None:
    asked = [{"record_id": "r", "label": name, "answer": answer} for name in "ab" for answer in ("accept", "reject")]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, asked)))
    lines = read(Prodigy(("a", "b")), tmp_path / "x.jsonl")
    assert [line.label for line in lines if isinstance(line, Line)] == ["a", "b", "b", "a"]


def test_the_time_that_prodigy_notes_is_kept(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(
        '{"record_id": "r", "label": "cat", "answer": "accept", "_timestamp": 1700000000}'
    )
    (line,) = read(Prodigy(CLASSES), tmp_path / "x.jsonl")
    assert isinstance(line, Line)
    assert line.answered_at is not None
    assert line.answered_at.isoformat() == "2023-11-14T22:13:20+00:00"


def test_tasks_for_prodigy_show_the_text_and_offer_the_classes(tmp_path: Path) -> None:
    items = items_of(["a", "b"], [(), (Known("dog", "submitted", "ann"),)], ["first", "second"])
    write(Prodigy(CLASSES), items, tmp_path / "x.jsonl")
    first, second = map(json.loads, (tmp_path / "x.jsonl").read_text().splitlines())
    assert first == {
        "text": "first",
        "options": OPTIONS,
        "meta": {"label": "tsrif", "length": None, "record_id": "a", "batch": "c-r003", "round": 3},
    }
    assert (second["answer"], second["accept"], second["_annotator_id"]) == ("accept", ["dog"], "ann")


# -- Parquet -----------------------------------------------------------------------------------------------------------


def test_parquet_of_other_programs_is_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"LABEL": ["cat", None, "dog"], "Record_ID": [7, 8, 9], "other": [[1], [2], []]})
    frame["LABEL"] = frame["LABEL"].astype("category")
    frame.rename(columns={"LABEL": "label", "Record_ID": "record_id"}).to_parquet(tmp_path / "x.parquet")
    assert read(Parquet(), tmp_path / "x.parquet") == [Line(1, "7", "cat"), Line(2, "8"), Line(3, "9", "dog")]


def test_columns_of_parquet_keep_their_types(tmp_path: Path) -> None:
    items = items_of(["a", "b", "c"], [(), (Known("dog", "submitted", "ann"),), ()], ["x", "y", "z"])
    write(Parquet(), items, tmp_path / "x.parquet")
    table = pa.parquet.read_table(tmp_path / "x.parquet")
    assert table.schema.names == ["record_id", "label", "status", "annotator", "text", "pool.label", "length"]
    assert table.column("length").type == pa.float64()
    assert table.column("label").to_pylist() == [None, "dog", None]
    write(Parquet(), [], tmp_path / "empty.parquet")
    assert pa.parquet.read_table(tmp_path / "empty.parquet").num_rows == 0


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"record_id": ["a"], "status": ["skipped"]}, "the column label"),
        ({"record_id": [[1]], "label": ["cat"]}, "the column 'record_id' must hold texts .*got list"),
        ({"record_id": ["a"], "label": [["cat"]]}, "the column 'label' must hold texts .*got list"),
    ],
)
def test_parquet_without_the_columns_is_refused(frame: dict[str, Any], message: str, tmp_path: Path) -> None:
    pd.DataFrame(frame).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(LabelError, match=message):
        read(Parquet(), tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-20])
    with pytest.raises(LabelError, match="cannot be read as Parquet"):
        read(Parquet(), tmp_path / "x.parquet")


# -- Label Studio ------------------------------------------------------------------------------------------------------


def test_an_export_of_label_studio_1_23(tmp_path: Path) -> None:
    """Recorded from a server: four tasks of which the last were skipped, and one labelled twice by one person."""
    recorded = Path(__file__).parent / "data" / "label-studio-1.23-export.json"
    reader = LabelStudio({1: "ann@example.com"})
    lines = read(reader, recorded)
    assert all(isinstance(line, Line) for line in lines)
    raw = json.loads(recorded.read_bytes())
    expected = [
        (
            each["data"]["record_id"],
            "" if annotation["was_cancelled"] else annotation["result"][0]["value"]["choices"][0],
            "skipped" if annotation["was_cancelled"] else "submitted",
            "ann@example.com",
        )
        for each in raw
        for annotation in each["annotations"]
    ]
    assert said(reader, lines) == expected
    assert {status for *_, status, _ in expected} == {"skipped", "submitted"}
    first = lines[0]
    assert isinstance(first, Line)
    assert first.answered_at is not None
    assert first.answered_at.isoformat() == "2026-11-23T02:25:09.498622+00:00"


@pytest.mark.parametrize(
    ("given", "place", "reason"),
    [
        (17, "$[1]", "is not a task"),
        ({"id": 1, "text": "a", "label": "cat"}, "$[1]", "no record_id"),
        ({"record_id": "r", "label": {"choices": ["cat", "dog"]}}, "$[1]", "one class must be chosen"),
        ({"data": {"record_id": True}}, "$[1]", "no data.record_id"),
        ({"data": {"text": "a"}}, "$[1]", "no data.record_id"),
        ({"data": {"record_id": "r", "batch": "other-r001"}}, "$[1]", "of another campaign"),
        ({"data": {"record_id": "r"}, "annotations": {"a": 1}}, "$[1]", "must be a list"),
        ({"data": {"record_id": "r"}, "annotations": ["x"]}, "$[1].annotations[0]", "is not an annotation"),
        ({"data": {"record_id": "r"}, "annotations": [{"result": []}]}, "$[1].annotations[0]", "chosen, got 0"),
        ({"data": {"record_id": "r"}, "annotations": [{"result": None}]}, "$[1].annotations[0]", "chosen, got 0"),
    ],
)  # fmt: skip
def test_a_task_that_is_wrong_is_named_by_its_path(given: object, place: str, reason: str, tmp_path: Path) -> None:
    items = items_of(["a", "b"], [(), ()], ["x", "y"])
    tasks = annotated([task(SHEET, item) for item in items], [(Known("cat", "submitted", "5"),), ()])
    (tmp_path / "x.json").write_text(json.dumps([tasks[0], given, tasks[1]]))
    first, found, last = read(LabelStudio({5: "eve"}, batches="c-r"), tmp_path / "x.json")
    assert isinstance(found, Rejected)
    assert (found.place, reason in found.reason) == (place, True), found
    assert isinstance(first, Line)
    assert (first.record_id, first.label, first.annotator) == ("a", "cat", "eve")
    assert last == Line(3, "b")


@pytest.mark.parametrize(
    ("who", "name"),
    [
        (5, "eve"),
        (6, "user 6"),
        ({"id": 5, "email": "eve@example.com"}, "eve@example.com"),
        ({"id": 5}, "eve"),
        ("eve@example.com", "eve@example.com"),
        (None, ""),
    ],
)
def test_ways_in_which_an_annotation_names_its_annotator(who: object, name: str, tmp_path: Path) -> None:
    said = {"data": {"record_id": "r"}, "annotations": [{"was_cancelled": True, "completed_by": who}]}
    (tmp_path / "x.json").write_text(json.dumps([said]))
    assert read(LabelStudio({5: "eve"}), tmp_path / "x.json") == [
        Line(1, "r", "", "skipped", name, suggestion_shown=False)
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "JSON list of tasks"),
        (b'{"tasks": []}', "JSON list of tasks"),
        (b'[{"data": {"record_id": "a"}}, {"data": ', r"damaged after 1 tasks, in \$\[1\]"),
        (b'[{"data": {"record_id": "a"}}] {}', "list of 1 tasks, got more"),
        (b'[{"data": {"record_id": "a}}]', r"damaged after 0 tasks, in \$\[0\]"),
    ],
)
def test_json_that_is_damaged_is_refused_whole(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(LabelError, match=message):
        read(LabelStudio(), tmp_path / "x.json")


def test_a_task_that_no_program_reads_is_refused_alone(tmp_path: Path) -> None:
    broken = [
        b'{"data": {"record_id": "na\xefve"}}',
        b'{"data": {"record_id": ' + b"1" * 5000 + b"}}",
        b'{"data": {"record_id": "a\\ud83d"}}',
        b'{"data": {"record_id": "a"}} {}',
        b'{"data": {"record_id": NaN}}',
        b"[" * 100_000 + b"]" * 100_000,
        b'{"data": {"record_id": "a"}, "annotations": [{"result": [{"type": "choices", "value": {"choices": ['
        + b"[" * 500 + b"]" * 500 + b"]}}]}]}",
    ]  # fmt: skip
    whole = b'{"data": {"record_id": "b", "text": "], \\" {", "big": ' + b"9" * 30 + b', "x": NaN}}'
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf [" + b",\n".join([*broken, whole]) + b"]\n")
    *refused, last = read(LabelStudio(), tmp_path / "x.json")
    assert all(isinstance(line, Rejected) for line in refused)
    assert [line.place.partition(".")[0] for line in refused if isinstance(line, Rejected)] == [
        f"$[{at}]" for at in range(len(broken))
    ]
    assert last == Line(len(broken) + 1, "b")


def test_tasks_longer_than_what_is_read_at_once_are_whole(tmp_path: Path) -> None:
    tasks = [{"data": {"record_id": f"r{at}", "text": '\\"[{,]}' * at * 7}} for at in range(40)]
    (tmp_path / "x.json").write_text(json.dumps(tasks, indent=1))
    assert read(LabelStudio(block_bytes=64), tmp_path / "x.json") == [Line(at + 1, f"r{at}") for at in range(40)]


@pytest.mark.parametrize("chosen", ["cat", ["cat"], {"choices": ["cat"]}, {"choices": "cat"}], ids=repr)
@pytest.mark.parametrize("form", ["annotations", "completions", "min", "csv", "tsv"])
def test_exports_of_other_versions_and_kinds(form: str, chosen: object, tmp_path: Path) -> None:
    at, text = "2021-03-05T08:00:00.000000Z", "a, b"
    told = {"created_at": at, "updated_at": at, "lead_time": 2.5}
    value = chosen if isinstance(chosen, dict) else {"choices": chosen}
    if form in ("annotations", "completions"):
        result = [{"from_name": "label", "to_name": "text", "type": "choices", "value": value}]
        said = [{"id": 1, "completed_by": 7, "result": result, **told}]
        path = tmp_path / "x.json"
        path.write_text(json.dumps([{"id": 3, "data": {"record_id": "r", "text": text}, form: said}]))
    elif form == "min":
        path = tmp_path / "x.json"
        flat = {"id": 3, "record_id": "r", "text": text, "label": chosen, "annotator": 7, "annotation_id": 1, **told}
        path.write_text(json.dumps([flat]))
    else:
        path = tmp_path / f"x.{form}"
        cell = chosen if isinstance(chosen, str) else json.dumps(value)
        flat = {"annotation_id": 1, "annotator": 7, "id": 3, "label": cell, "record_id": "r", "text": text, **told}
        pd.DataFrame([flat]).to_csv(path, index=False, sep="\t" if form == "tsv" else ",")
    for name in (None, "label-studio"):
        written = format_of(path, name, CLASSES)
        (line,) = read(written, path)
        assert isinstance(line, Line), line
        assert (line.record_id, line.label, line.annotator, line.lead_time) == ("r", "cat", "user 7", 2.5)
        assert line.answered_at is not None
        assert line.answered_at.isoformat() == "2021-03-05T08:00:00+00:00"
        if form in ("min", "annotations", "completions"):
            assert written.place(1) == ("$[0]" if form == "min" else "$[0].annotations[0]")


def test_an_export_from_before_version_1(tmp_path: Path) -> None:
    """As version 0.7 wrote it: completions, times as seconds, skipped ones marked in two ways, nobody named."""
    chosen = [{"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": ["dog"]}}]
    completions = [
        {"id": 1001, "created_at": 1599573600, "lead_time": 3, "result": chosen},
        {"id": 1002, "created_at": 1599573600, "skipped": True, "result": []},
        {"id": 1003, "created_at": 1599573600, "was_cancelled": True, "result": []},
    ]
    (tmp_path / "x.json").write_text(json.dumps([{"id": 0, "data": {"record_id": 5}, "completions": completions}]))
    lines = read(LabelStudio(), tmp_path / "x.json")
    assert said(LabelStudio(), lines) == [
        ("5", "dog", "submitted", ""),
        ("5", "", "skipped", ""),
        ("5", "", "skipped", ""),
    ]


def test_a_prediction_says_what_the_model_thinks_and_how_sure_it_is() -> None:
    (item,) = items_of(["a"], [()], ["x"])
    (prediction,) = task(SHEET, item)["predictions"]
    assert prediction == {
        "model_version": "c-r003",
        "score": 0.75,
        "result": [{"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": ["naïve 🐱"]}}],
    }
    assert task(SHEET, item)["data"] == {
        "text": "x", "field_1": "x", "length": None, "record_id": "a", "batch": "c-r003", "round": 3,
    }  # fmt: skip
    cold = item._replace(asked=replace(item.asked, predicted=None, confidence=None))
    assert "predictions" not in task(SHEET, cold)


@settings(max_examples=100, deadline=None)
@given(
    classes=st.lists(
        st.text(st.characters(exclude_categories=["Cc", "Cs", "Co", "Cn"]), min_size=1), min_size=1, unique=True
    ),
    fields=st.lists(st.text(string.printable, min_size=1, max_size=5), max_size=4, unique=True),
    image=st.booleans(),
)
@example(classes=["<\"&'>"], fields=["label", "field_0", "record_id", "<x>"], image=False)
def test_a_labelling_page_offers_the_classes_whatever_they_are_called(
    classes: list[str], fields: list[str], image: bool
) -> None:
    fields = [name for name in fields if name.isprintable()]
    sheet = replace(SHEET, classes=tuple(classes), fields=tuple(fields))
    page = labelling_page(sheet, image=image)
    shown = "image" if image else ([*json.loads(json.dumps(fields)), "record_id"][0])
    found = page_classes(page)
    assert found is not None
    assert found[1] == {composed(name) for name in classes}
    if shown.isidentifier() and shown.isascii() and shown not in ("label", "batch", "round") and "field_" not in shown:
        assert found[0] == shown


def test_formats_go_by_the_ending_of_a_file_and_can_be_named(tmp_path: Path) -> None:
    kinds: dict[str, Callable[..., Format]] = {"a.csv": Csv, "a.TSV": Csv, "a.jsonl": JsonLines, "a.json": LabelStudio}
    for name, kind in kinds.items():
        assert type(format_of(Path(name), None, CLASSES)) is kind
    assert type(format_of(Path("a.jsonl"), "prodigy", CLASSES)) is Prodigy
    with pytest.raises(LabelError, match="suffix of a format; name one of csv, jsonl"):
        format_of(Path("a.docx"), None, CLASSES)
    with pytest.raises(LabelError, match="got 'xml'"):
        format_of(Path("a.csv"), "xml", CLASSES)


def test_a_quotation_mark_too_many_swallows_no_record(tmp_path: Path) -> None:
    """Wherever it stands, the file is refused, or each line is given."""
    lines = ["record_id,label,status,annotator,text", "r1,ham,,ann,one", 'r2,spam,,ann,"two, x"', 'r3,ham,,ann,"t""ee"']
    path, refused = tmp_path / "answers.csv", 0
    for number, line in enumerate(lines):
        for at in range(len(line) + 1):
            path.write_text("\n".join([*lines[:number], f'{line[:at]}"{line[at:]}', *lines[number + 1 :]]) + "\n")
            try:
                found = [each.record_id.replace('"', "") for each in Csv().lines(path)]
            except LabelError:
                refused += 1
            else:
                assert found == ["r1", "r2", "r3"], (number, at)
    assert refused > 30
