"""Batches to a Label Studio server and annotations back, by plain HTTP."""

import json
import secrets
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, Literal, TypeVar
from urllib.parse import quote, urlsplit

from dal.campaign import AnswerFile, Campaign
from dal.errors import ServerError, SettingsError
from dal.exchange.files import ImportReport, Reading, Records, is_picture, items, sheet_of
from dal.exchange.formats import Sheet
from dal.exchange.label_studio import LabelStudio, labelling_page, page_classes, shown_key, task

T = TypeVar("T")

SECONDS = 120.0
"""How long a server may keep silent; importing hundreds of pictures takes a while."""
EXPORT_SECONDS = 900.0
"""An export says nothing until it is made; 11,000 tasks were seen to take 35 seconds."""

NOBODY = "unknown"
"""Who gave an annotation whose user is gone from the server."""

_ACCESS_SECONDS = 200.0  # of the 300 that an access token lives
_TASKS_AT_ONCE = 250
_BYTES_AT_ONCE = 8 << 20
_LISTED_AT_ONCE = 1000


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Follow no redirect: urllib would take the token along to wherever it points."""


class Server:
    """A Label Studio server.

    Parameters
    ----------
    url : str
        Such as ``http://127.0.0.1:8080``.
    token : str
        Of the account page: a legacy token, or a personal access token.

    Raises
    ------
    SettingsError
        If the address or the token cannot be one.
    """

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            raise SettingsError(f"an address such as http://127.0.0.1:8080 was expected, {url!r} came")
        if not token.strip() or not token.isprintable():
            raise SettingsError("a token was expected; Label Studio gives one on the page Account & Settings")
        self.url = url.rstrip("/")
        self._token = token.strip()
        # Personal tokens are JSON web tokens, three parts with dots between; they buy access for five minutes each.
        self._personal = self._token.count(".") == 2
        self._access, self._until = "", 0.0
        self._opener = urllib.request.build_opener(_NoRedirect)

    def get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """Read JSON."""
        return self._json("GET", path, None)

    def send(self, method: Literal["POST", "PATCH"], path: str, body: object) -> Any:  # noqa: ANN401 - JSON
        """Send JSON, and read the answer."""
        return self._json(method, path, json.dumps(body, allow_nan=False).encode())

    def download(self, path: str, file: IO[bytes]) -> None:
        """Write what is at `path` to a file."""

        def copy(answer: IO[bytes]) -> None:
            while block := answer.read(1 << 20):
                file.write(block)
            file.flush()

        self._call("GET", path, None, copy, seconds=EXPORT_SECONDS)

    def _json(self, method: str, path: str, body: bytes | None) -> Any:  # noqa: ANN401 - JSON
        return self._parsed(path, self._call(method, path, body, _all))

    def _parsed(self, path: str, text: bytes) -> Any:  # noqa: ANN401 - JSON
        try:
            return json.loads(text) if text else None
        except ValueError as error:
            raise ServerError(f"{self.url}{path} gave no JSON: is it a Label Studio server?") from error

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | None,
        read: Callable[[IO[bytes]], T],
        *,
        seconds: float = SECONDS,
        open_to_all: bool = False,
    ) -> T:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if not open_to_all:
            headers["Authorization"] = self._authorization()
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=headers)
        try:
            with self._opener.open(request, timeout=seconds) as answer:
                return read(answer)
        except urllib.error.HTTPError as error:
            raise ServerError(self._refusal(method, path, error)) from error
        except (OSError, HTTPException) as error:  # URLError is an OSError
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise ServerError(
                f"{self.url} cannot be reached ({reason}): is it running, and the address right? Then run again"
            ) from error

    def _authorization(self) -> str:
        if not self._personal:
            return f"Token {self._token}"
        if time.monotonic() >= self._until:
            path = "/api/token/refresh/"
            body = json.dumps({"refresh": self._token}).encode()
            said = self._parsed(path, self._call("POST", path, body, _all, open_to_all=True))
            if not isinstance(said, dict) or not isinstance(said.get("access"), str):
                raise ServerError(f"{self.url}{path} gave no access token: is it a Label Studio server?")
            self._access, self._until = said["access"], time.monotonic() + _ACCESS_SECONDS
        return f"Bearer {self._access}"

    def _refusal(self, method: str, path: str, error: urllib.error.HTTPError) -> str:
        if error.code in (401, 403):
            kind = "personal access" if self._personal else "legacy"
            return (
                f"{self.url} refuses the token ({error.code}), sent as a {kind} token: take one from Account & "
                "Settings there; an organisation may have either kind turned off"
            )
        if 300 <= error.code < 400:
            return f"{self.url}{path} redirects to {error.headers['Location']}: pass that server's own address"
        told = error.read(2000).decode(errors="replace")
        try:
            said = json.loads(told)
            told = said.get("validation_errors") or said.get("detail") or told
        except (ValueError, AttributeError):
            pass
        return f"{self.url} answers {method} {path} with {error.code}: {told}"


def _all(answer: IO[bytes]) -> bytes:
    return answer.read()


# -- out ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pushed:
    """What pushing a batch came to.

    Attributes
    ----------
    project : int
        Its number on the server.
    page : str
        Where people label.
    new : int
        Tasks made now.
    there : int
        Records of the batch that the project had already.
    answered : int
        Records that have their answers from elsewhere, and stay out.
    """

    project: int
    page: str
    new: int
    there: int
    answered: int


def push_batch(
    campaign: Campaign,
    pool: Records,
    number: int,
    server: Server,
    project: str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Pushed:
    """Put a round's batch into a project, in the order of asking, with the model's predictions.

    Pushed again, it adds what is missing: a task is known by its record id and its batch, whatever number it has.

    Parameters
    ----------
    campaign : Campaign
    pool : Records
        The campaign's pool.
    number : int
        The round.
    server : Server
    project : str
        Number of a project, or the title of one, which is made if there is none.
    progress : callable, optional
        Called with the records done and the records in all.

    Raises
    ------
    ServerError
        If the server cannot be reached or refuses. What was pushed by then stays; pushing again goes on.
    SettingsError
        If the project's labelling page cannot take this campaign's answers.
    """
    sheet = sheet_of(campaign, pool, number)
    image = is_picture(pool)
    identity = _project(server, project, sheet, image=image)
    upto = campaign.last_answer()
    batch = campaign.batch(number)
    there = _there(server, identity, sheet)
    new = answered = done = 0
    tasks: list[dict[str, object]] = []
    for block in items(pool, sheet, batch, campaign.latest_answers(upto, asked_in=number)):
        for item in block:
            done += 1
            if len(item.known) >= sheet.overlap:
                answered += item.asked.record_id not in there
            elif item.asked.record_id not in there:
                tasks.append(task(sheet, item))
                new += 1
            if len(tasks) >= _TASKS_AT_ONCE or len(tasks) * len(item.image or "") > _BYTES_AT_ONCE:
                _import(server, identity, tasks)
                tasks = []
                if progress is not None:
                    progress(done, len(batch))
    _import(server, identity, tasks)
    if progress is not None:
        progress(done, len(batch))
    # Sequential, because the batch is ranked; the predictions shown are those of the model that chose it.
    settings = {"sampling": "Sequential sampling", "model_version": sheet.batch, "maximum_annotations": sheet.overlap}
    server.send("PATCH", f"/api/projects/{identity}", settings)
    source = source_of(server, identity)
    campaign.record_export(number, source, f"{source} {sheet.batch}", upto)
    return Pushed(identity, f"{server.url}/projects/{identity}/data", new, len(there), answered)


def _project(server: Server, project: str, sheet: Sheet, *, image: bool) -> int:
    """Find the project, or make it; refuse one whose page cannot take the answers."""
    if project.isdecimal():
        found = server.get(f"/api/projects/{int(project)}")
        _refuse_page(found, sheet, image=image)
        return int(found["id"])
    for found in _titled(server, project):
        _refuse_page(found, sheet, image=image)
        return int(found["id"])
    if not 3 <= len(project) <= 50:
        raise SettingsError(f"the title of a project has 3 to 50 characters in Label Studio; {project!r} came")
    made = server.send(
        "POST",
        "/api/projects",
        {
            "title": project,
            "label_config": labelling_page(sheet, image=image),
            "maximum_annotations": sheet.overlap,
            # A skip is an answer: the record is not put before the next person.
            "skip_queue": "IGNORE_SKIPPED",
        },
    )
    return int(made["id"])


def _titled(server: Server, title: str) -> Iterator[dict[str, Any]]:
    """Find the projects of a title; the server's own filter takes any that contain it."""
    page = 1
    while page:
        said = server.get(f"/api/projects?page={page}&page_size=100&title={quote(title)}")
        yield from (found for found in said["results"] if found["title"] == title)
        page = page + 1 if said.get("next") else 0


def _refuse_page(found: dict[str, Any], sheet: Sheet, *, image: bool) -> None:
    page = page_classes(found.get("label_config") or "")
    shown, classes = page if page else ("", set())
    if shown != shown_key(sheet, image=image) or classes != set(sheet.classes):
        raise SettingsError(
            f"the labelling page of project {found['id']} ({found['title']!r}) is of other classes or fields than this "
            "campaign's; choose another project, or set its labelling interface to:\n"
            f"{labelling_page(sheet, image=image)}"
        )


def _there(server: Server, project: int, sheet: Sheet) -> set[str]:
    """Read which records of the batch the project has."""
    wanted = {"filter": "filter:tasks:data.batch", "operator": "equal", "type": "String", "value": sheet.batch}
    query = quote(json.dumps({"filters": {"conjunction": "and", "items": [wanted]}}))
    there: set[str] = set()
    page, read = 1, 0
    while True:
        said = server.get(
            f"/api/tasks?project={project}&page={page}&page_size={_LISTED_AT_ONCE}&include=id,data&query={query}"
        )
        there |= {
            str(each["data"].get("record_id")) for each in said["tasks"] if each["data"].get("batch") == sheet.batch
        }
        read += len(said["tasks"])
        if read >= said["total"] or not said["tasks"]:
            return there
        page += 1


def _import(server: Server, project: int, tasks: list[dict[str, object]]) -> None:
    if tasks:
        server.send("POST", f"/api/projects/{project}/import", tasks)


# -- in ----------------------------------------------------------------------------------------------------------------


def pull_answers(
    campaign: Campaign,
    pool: Records,
    server: Server,
    project: str,
    *,
    conflicts: Literal["keep out", "take"] = "keep out",
) -> ImportReport:
    """Import the annotations of a project, in one transaction; pulled again, it brings what has changed since.

    An annotator is called by the e-mail address of the user. A project is exported as a whole: Label Studio's notices
    of single answers may be lost, the export is the truth.

    Parameters
    ----------
    campaign : Campaign
    pool : Records
        The campaign's pool.
    server : Server
    project : str
        Number or title.
    conflicts : {"keep out", "take"}
        What becomes of annotations whose annotator answered otherwise, elsewhere, since the batch was pushed.

    Raises
    ------
    ServerError
        If the server cannot be reached or refuses; nothing was imported then.
    """
    identity = _known_project(server, project)
    users = server.get("/api/users")
    names = {user["id"]: user.get("email") or user.get("username") or f"user {user['id']}" for user in users}
    written = LabelStudio(names, batches=f"{campaign.id}-r")
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        # Tasks without annotations are left out; those are pending, and counted by the campaign.
        server.download(f"/api/projects/{identity}/export?exportType=JSON", file)
        path = Path(file.name)
        # Each pull is a file of its own: whether an annotation is known is told answer by answer.
        digest = secrets.token_hex(32)
        source = AnswerFile(source_of(server, identity), digest, NOBODY, conflicts == "take", "label-studio")
        reading = Reading(path, written, campaign.settings.classes, pool, NOBODY)
        imported = campaign.import_answers(reading.answers(), source, rejected=lambda: reading.rejections)
        return reading.report(imported)


def _known_project(server: Server, project: str) -> int:
    if project.isdecimal():
        return int(project)
    for found in _titled(server, project):
        return int(found["id"])
    raise ServerError(f"{server.url} has no project {project!r}: push a batch first, or check the title")


def source_of(server: Server, project: int) -> str:
    """Name where answers come from."""
    return f"{server.url}/projects/{project}"
