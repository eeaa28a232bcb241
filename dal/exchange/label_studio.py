"""Label Studio's JSON: tasks with predictions out, exported annotations in, and the labelling page of a project.

What its server does and does not check was seen with version 1.23: it takes classes that the project does not have,
several annotations of one person to one task, and the same task any number of times. So a task carries the record id
and the batch in its data, and everything is checked here on the way back.
"""

import io
import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

import ijson

from dal.errors import LabelError
from dal.exchange.formats import Item, Line, Rejected, Sheet, as_json, as_text
from dal.texts import as_seconds, as_time

CONTROL = "label"
"""Name of the labelling page's choice of a class; annotations refer to it."""

# What a task's data holds besides, and the name of the choice: a page's names are unique.
_OWN = ("record_id", "batch", "round", "image", CONTROL)
_HOTKEYS = "1234567890"


class LabelStudio:
    """A JSON file: a list of tasks to import there, or a project exported from there as JSON (not JSON-MIN).

    Parameters
    ----------
    annotators : mapping of int to str, optional
        Names of the server's users. Those that are not in it are called ``user 7``.
    batches : str, optional
        How the batches of the campaign begin; tasks of other campaigns are rejected.
    """

    def __init__(self, annotators: Mapping[int, str] | None = None, batches: str | None = None) -> None:
        self._annotators, self._batches = annotators or {}, batches
        self._first = array("q")

    def place(self, number: int) -> str:
        """Say which annotation it is, as a JSON path: a file of JSON has no lines to go by."""
        task = bisect_right(self._first, number) - 1
        return f"$[{task}].annotations[{number - self._first[task]}]"

    def own(self, text: str) -> str:
        """Give the text: JSON needs no guard."""
        return text

    def lines(self, path: Path) -> Iterator[Line | Rejected]:
        """Read the annotations; a task without any is one pending line."""
        number = 1
        self._first = array("q")
        for index, task in enumerate(_tasks(path)):
            self._first.append(number)
            for line in self._task(number, f"$[{index}]", task):
                yield line
                number += 1

    def _task(self, number: int, place: str, task: object) -> Iterator[Line | Rejected]:
        data = task.get("data") if isinstance(task, dict) else None
        if not isinstance(task, dict) or not isinstance(data, dict):
            yield Rejected(number, place, "", "is no task with `data`; export the project as JSON, not as JSON-MIN")
            return
        record_id = as_text(data.get("record_id"))
        if record_id is None:
            yield Rejected(number, place, "", "no data.record_id, as a text or a whole number")
            return
        batch = data.get("batch")
        if self._batches and isinstance(batch, str) and not batch.startswith(self._batches):
            yield Rejected(number, place, record_id, f"is of the batch {batch!r}, of another campaign")
            return
        annotations = task.get("annotations") or []
        if not isinstance(annotations, list):
            yield Rejected(number, place, record_id, "`annotations` is no list")
            return
        for at, annotation in enumerate(annotations):
            yield self._annotation(number + at, f"{place}.annotations[{at}]", record_id, annotation)
        if not annotations:
            yield Line(number, record_id)

    def _annotation(self, number: int, place: str, record_id: str, said: object) -> Line | Rejected:
        if not isinstance(said, dict):
            return Rejected(number, place, record_id, "is no annotation")
        annotator = self._annotator(said.get("completed_by"))
        given = as_time(said.get("updated_at")) or as_time(said.get("created_at"))
        seconds, suggested = as_seconds(said.get("lead_time")), bool(said.get("prediction"))
        if said.get("was_cancelled"):
            return Line(number, record_id, "", "skipped", annotator, given, seconds, None, suggested)
        chosen = _choices(said.get("result"))
        if len(chosen) != 1:
            what = f"{len(chosen)} classes were chosen" if chosen else "no class was chosen"
            return Rejected(number, place, record_id, f"{what}, and one was expected")
        label = as_text(chosen[0])
        if not label:
            return Rejected(number, place, record_id, f"the choice {chosen[0]!r} is no text")
        return Line(number, record_id, label, "submitted", annotator, given, seconds, None, suggested)

    def _annotator(self, who: object) -> str:
        if isinstance(who, dict):
            return as_text(who.get("email")) or self._annotator(who.get("id"))
        if isinstance(who, int) and not isinstance(who, bool):
            return self._annotators.get(who, f"user {who}")
        return as_text(who) or ""

    def write(self, file: io.RawIOBase, sheet: Sheet, blocks: Iterable[list[Item]]) -> int:
        """Write tasks to import; those that have their answers stay out: no server knows who gave them."""
        count = 0
        for block in blocks:
            for item in block:
                if len(item.known) < sheet.overlap:
                    file.write((b",\n" if count else b"[\n") + json.dumps(task(sheet, item), allow_nan=False).encode())
                    count += 1
        file.write(b"\n]\n" if count else b"[]\n")
        return count


def _tasks(path: Path) -> Iterator[object]:
    """Give the tasks of a file one by one: a project of pictures does not fit into memory."""
    read = 0
    try:
        with path.open("rb") as file:
            if file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"[":
                raise LabelError(f"{path} is no JSON list of tasks: export the project from Label Studio as JSON")
            file.seek(0)
            for said in ijson.items(file, "item", use_float=True):
                yield said
                read += 1
    except OSError as error:
        raise LabelError(f"{path} cannot be read: {error.strerror}. Check the path") from error
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise LabelError(f"{path} is damaged after {read:,} tasks, in $[{read}]: export it again") from error


def _choices(result: object) -> list[object]:
    """Collect what was chosen: by the control of this campaign's page, or by the only one of a page made by hand."""
    regions = [region for region in result if isinstance(region, dict)] if isinstance(result, list) else []
    choices = [region for region in regions if region.get("type") == "choices"]
    own = [region for region in choices if region.get("from_name") == CONTROL] or choices
    found: list[object] = []
    for region in own:
        value = region.get("value")
        chosen = value.get("choices") if isinstance(value, dict) else None
        found += chosen if isinstance(chosen, list) else []
    return found


# -- out ---------------------------------------------------------------------------------------------------------------


def task(sheet: Sheet, item: Item) -> dict[str, object]:
    """Give a record as a task, with the model's prediction where there is one.

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
    """Give the result of a prediction or an annotation that chooses one class."""
    return [{"from_name": CONTROL, "to_name": shown, "type": "choices", "value": {"choices": [label]}}]


def keys(fields: tuple[str, ...]) -> dict[str, str]:
    """Name display fields in a task's data: plain words as they are, since its pages cannot refer to others."""
    return {
        name: name if re.fullmatch(r"(?!field_\d)[A-Za-z_]\w*", name, re.ASCII) and name not in _OWN else f"field_{at}"
        for at, name in enumerate(fields)
    }


def labelling_page(sheet: Sheet, *, image: bool) -> str:
    """Write the labelling page of a project: what is shown of a record, and the classes with their keys.

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
    """Name what the choice refers to: each annotation names it, too."""
    return "image" if image else next(iter(keys(sheet.fields).values()), "record_id")


def page_classes(label_config: str) -> tuple[str, set[str]] | None:
    """Read from a labelling page what the choice `label` refers to, and its classes; None if it has no such choice."""
    try:
        view = ET.fromstring(label_config)
    except ET.ParseError:
        return None
    for choices in view.iter("Choices"):
        if choices.get("name") == CONTROL:
            names = {each.get("value") or "" for each in choices.iter("Choice")}
            return choices.get("toName") or "", names
    return None


__all__ = ["CONTROL", "LabelStudio", "choice", "keys", "labelling_page", "page_classes", "task"]
