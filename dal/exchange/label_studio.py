"""Label Studio's JSON: tasks with predictions out, exported annotations in, and the labelling page of a project.

Version 1.23 of the server accepts classes that the project does not have, several annotations of one person for one
task, and the same task any number of times. So a task carries the record id and the batch in its data, and every
annotation is checked here on import.
"""

import codecs
import io
import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

from dal.errors import LabelError
from dal.exchange.formats import Item, Line, Rejected, Sheet, as_json, as_label, as_text, chosen_in, opening, user
from dal.texts import as_seconds, as_time, brief, composed, folded, parsed

CONTROL = "label"
"""Name of the class choice on the labelling page; annotations refer to it."""

# Keys of a task's data besides display fields, and the name of the choice: names on a page are unique.
_OWN = (
    "record_id", "batch", "round", "image", CONTROL,
    # Columns of the exported tables.
    "id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "status",
)  # fmt: skip
_HOTKEYS = "1234567890"
_TOKENS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.DOTALL)
_DEPTHS = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}


class LabelStudio:
    """A JSON file: a list of tasks to import there, or a project exported from there as JSON or JSON-MIN.

    Exports of versions before 1.0, which call annotations completions, can be read as well.

    Parameters
    ----------
    annotators : mapping of int to str, optional
        Names of the server's users. Others are called ``user 7``.
    batches : str, optional
        Prefix of the campaign's batches; tasks of other campaigns are rejected.
    block_bytes : int, default=1 MiB
        Bytes of a file that are read at a time.
    """

    pictures = True

    def __init__(
        self, annotators: Mapping[int, str] | None = None, batches: str | None = None, block_bytes: int = 1 << 20
    ) -> None:
        self._annotators, self._batches, self._block_bytes = annotators or {}, batches, block_bytes
        self._first, self._flat = array("q"), False

    def place(self, number: int) -> str:
        """Return the JSON path of an annotation: a JSON file has no lines to go by."""
        task = bisect_right(self._first, number) - 1
        within = "" if self._flat else f".annotations[{number - self._first[task]}]"
        return f"$[{task}]{within}"

    def own(self, text: str) -> str:
        """Return the text unchanged: JSON needs no guard."""
        return text

    def lines(self, path: Path) -> Iterator[Line | Rejected]:
        """Yield the annotations; a task without any is one pending line."""
        number = 1
        self._first, self._flat = array("q"), False
        for index, text in enumerate(_elements(path, self._block_bytes)):
            self._first.append(number)
            place = f"$[{index}]"
            try:
                task = parsed(text)
            except ValueError as error:
                yield Rejected(number, place, "", str(error))
                number += 1
                continue
            for line in self._task(number, place, task):
                yield line
                number += 1

    def _task(self, number: int, place: str, task: object) -> Iterator[Line | Rejected]:
        if not isinstance(task, dict):
            yield Rejected(number, place, "", "is not a task with `data`")
            return
        # JSON-MIN, or a table that another program wrote: one answer an object, with the data beside it.
        flat = not isinstance(task.get("data"), dict)
        data: dict[str, object] = task if flat else task["data"]
        record_id = as_text(data.get("record_id"))
        if record_id is None:
            where = "record_id, in `data` or beside it" if flat else "data.record_id"
            yield Rejected(number, place, "", f"no {where}, as a text or a whole number")
            return
        batch = data.get("batch")
        if self._batches and isinstance(batch, str) and not batch.startswith(self._batches):
            yield Rejected(number, place, record_id, f"is of the batch {batch!r}, of another campaign")
            return
        if flat:
            self._flat = True
            yield self._alone(number, place, record_id, task)
            return
        annotations = task.get("annotations") or task.get("completions") or []
        if not isinstance(annotations, list):
            yield Rejected(number, place, record_id, "`annotations` must be a list")
            return
        for at, annotation in enumerate(annotations):
            yield self._annotation(number + at, f"{place}.annotations[{at}]", record_id, annotation)
        if not annotations:
            yield Line(number, record_id)

    def _alone(self, number: int, place: str, record_id: str, fields: dict[str, object]) -> Line | Rejected:
        # In an export a number is a user of the server; in a table of another program it is a name.
        exported = "annotation_id" in fields
        annotator = self._annotator(fields.get("annotator")) if exported else as_text(fields.get("annotator")) or ""
        given = as_time(fields.get("updated_at")) or as_time(fields.get("created_at"))
        seconds, chosen = as_seconds(fields.get("lead_time")), chosen_in(fields.get(CONTROL))
        label = "" if not chosen else as_label(chosen[0])
        if exported and not chosen and not fields.get("status"):
            return Rejected(number, place, record_id, f"a class must be chosen by the name {CONTROL!r}, got none")
        if len(chosen) > 1 or label is None:
            return Rejected(number, place, record_id, f"one class must be chosen, got {brief(fields.get(CONTROL))}")
        status = as_text(fields.get("status")) or ""
        return Line(number, record_id, label, status, annotator, given, seconds)

    def _annotation(self, number: int, place: str, record_id: str, fields: object) -> Line | Rejected:
        if not isinstance(fields, dict):
            return Rejected(number, place, record_id, "is not an annotation")
        annotator = self._annotator(fields.get("completed_by"))
        given = as_time(fields.get("updated_at")) or as_time(fields.get("created_at"))
        seconds, suggested = as_seconds(fields.get("lead_time")), bool(fields.get("prediction"))
        if fields.get("was_cancelled") or fields.get("skipped"):
            return Line(number, record_id, "", "skipped", annotator, given, seconds, None, suggested)
        chosen = _choices(fields.get("result"))
        if len(chosen) != 1:
            return Rejected(number, place, record_id, f"one class must be chosen, got {len(chosen)}")
        label = as_label(chosen[0])
        if not label:
            return Rejected(number, place, record_id, f"the choice must be a text, got {brief(chosen[0])}")
        return Line(number, record_id, label, "submitted", annotator, given, seconds, None, suggested)

    def _annotator(self, who: object) -> str:
        if isinstance(who, dict):
            return as_text(who.get("email")) or self._annotator(who.get("id"))
        if isinstance(who, float) and who.is_integer():  # pandas makes floats of a column with a gap
            who = int(who)
        if isinstance(who, int) and not isinstance(who, bool):
            return self._annotators.get(who, user(who))
        return as_text(who) or ""

    def write(self, file: io.RawIOBase, sheet: Sheet, blocks: Iterable[list[Item]]) -> int:
        """Write tasks to import, and return their number; records with all their answers are left out.

        A server could not attribute existing answers to their annotators.
        """
        count = 0
        for block in blocks:
            for item in block:
                if not item.complete:
                    file.write((b",\n" if count else b"[\n") + json.dumps(task(sheet, item), allow_nan=False).encode())
                    count += 1
        file.write(b"\n]\n" if count else b"[]\n")
        return count


def _elements(path: Path, block_bytes: int) -> Iterator[bytes]:
    """Yield the elements of a JSON list one by one, unparsed: a project of pictures does not fit into memory.

    Unparsed, so that an element that is not JSON, or holds a number that no program reads, is rejected alone.
    """
    if opening(path) != b"[":
        raise LabelError(
            f"{path} must be a JSON list of tasks; export the project from Label Studio as JSON, or write a list of "
            "objects (pandas: orient='records'); objects on a line each are named .jsonl"
        )
    count = 0
    try:
        with path.open("rb") as file:
            buffer = file.read(block_bytes).removeprefix(codecs.BOM_UTF8).lstrip()
            at, begin, depth = 1, 1, 1
            while True:
                for token in _TOKENS.finditer(buffer, at):
                    if token[0] == b'"':  # the text continues in the next block
                        break
                    at = token.end()
                    depth += _DEPTHS.get(token[0], 0)
                    if not depth or (depth == 1 and token[0] == b","):
                        if (element := buffer[begin : at - 1]).strip():
                            yield element
                            count += 1
                        begin = at
                    if not depth:
                        if (buffer[at:] + file.read()).strip():
                            raise LabelError(
                                f"{path} must end after its list of {count:,} tasks, got more; export it again"
                            )
                        return
                more = file.read(max(block_bytes, len(buffer) - begin))
                if not more:
                    raise LabelError(f"{path} is damaged after {count:,} tasks, in $[{count}]; export it again")
                buffer, at, begin = buffer[begin:] + more, at - begin, 0
    except OSError as error:
        raise LabelError(f"{path} cannot be read: {error.strerror}; check the path") from error


def _choices(result: object) -> list[object]:
    """Return the chosen classes: by the control of this campaign's page, or by all choices of a page made by hand."""
    regions = [region for region in result if isinstance(region, dict)] if isinstance(result, list) else []
    choices = [region for region in regions if region.get("type") == "choices"]
    own = [region for region in choices if region.get("from_name") == CONTROL] or choices
    found: list[object] = []
    for region in own:
        found += chosen_in(region.get("value"))
    return found


# -- out ---------------------------------------------------------------------------------------------------------------


def task(sheet: Sheet, item: Item) -> dict[str, object]:
    """Return a record as a task, with the model's prediction where there is one.

    The prediction's score is the model's confidence: Label Studio can order by it, lowest first.
    """
    asked = item.asked
    data = {key: as_json(item.shown[name]) for name, key in keys(sheet.fields).items()}
    data |= {"record_id": asked.record_id, "batch": sheet.batch, "round": sheet.round}
    if item.image:
        data["image"] = item.image
    if asked.predicted is None:
        return {"data": data}
    prediction = {
        "model_version": sheet.batch,
        "result": choice(shown_key(sheet, image=bool(item.image)), sheet.classes[asked.predicted]),
        **({} if asked.confidence is None else {"score": asked.confidence}),
    }
    return {"data": data, "predictions": [prediction]}


def choice(shown: str, label: str) -> list[dict[str, object]]:
    """Return the result of a prediction or an annotation that chooses one class."""
    return [{"from_name": CONTROL, "to_name": shown, "type": "choices", "value": {"choices": [label]}}]


def keys(fields: tuple[str, ...]) -> dict[str, str]:
    """Return the key of each display field in a task's data: plain words stay, because pages can refer to no others."""
    return {
        name: name
        if re.fullmatch(r"(?!field_\d)[A-Za-z_]\w*", name, re.ASCII) and folded(name) not in _OWN
        else f"field_{at}"
        for at, name in enumerate(fields)
    }


def labelling_page(sheet: Sheet, *, image: bool) -> str:
    """Return the labelling page of a project: what is shown of a record, and the classes with their keys.

    Examples
    --------
    >>> sheet = Sheet("c1-r001", 1, ("ham", "spam"), ("subject",), 1)
    >>> print(labelling_page(sheet, image=False))
    <View>
      <Header value="subject" size="6" />
      <Text name="subject" value="$subject" />
      <Choices name="label" toName="subject" choice="single" showInLine="true">
        <Choice value="ham" hotkey="1" />
        <Choice value="spam" hotkey="2" />
      </Choices>
    </View>
    """
    view = ET.Element("View")
    if image:
        ET.SubElement(view, "Image", name="image", value="$image")
    for name, key in keys(sheet.fields).items():
        ET.SubElement(view, "Header", value=name, size="6")
        ET.SubElement(view, "Text", name=key, value=f"${key}")
    shown = shown_key(sheet, image=image)
    if shown == "record_id":
        ET.SubElement(view, "Text", name="record_id", value="$record_id")
    choices = ET.SubElement(view, "Choices", name=CONTROL, toName=shown, choice="single", showInLine="true")
    for at, name in enumerate(sheet.classes):
        each = ET.SubElement(choices, "Choice", value=name)
        if at < len(_HOTKEYS):
            each.set("hotkey", _HOTKEYS[at])
    ET.indent(view)
    return ET.tostring(view, encoding="unicode")


def shown_key(sheet: Sheet, *, image: bool) -> str:
    """Return the key of the shown data that the choice, and each annotation, refers to."""
    return "image" if image else next(iter(keys(sheet.fields).values()), "record_id")


def page_classes(label_config: str) -> tuple[str, set[str]] | None:
    """Parse what the choice `label` of a labelling page refers to, and its classes; None if it has no such choice."""
    try:
        view = ET.fromstring(label_config)
    except ET.ParseError:
        return None
    for choices in view.iter("Choices"):
        if choices.get("name") == CONTROL:
            names = {composed(each.get("value") or "") for each in choices.iter("Choice")}
            return choices.get("toName") or "", names
    return None


__all__ = ["CONTROL", "LabelStudio", "choice", "keys", "labelling_page", "page_classes", "task"]
