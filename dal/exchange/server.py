"""Batches to a Label Studio server and annotations back, over plain HTTP."""

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

from dal.campaign import AnswerFile, CampaignStore
from dal.errors import ServerError, SettingsError
from dal.exchange.files import ImportReport, Reading, Records, is_picture, items, sheet_of
from dal.exchange.formats import Sheet
from dal.exchange.label_studio import LabelStudio, labelling_page, page_classes, shown_key, task

T = TypeVar("T")

SECONDS = 120.0
"""Longest silence of a server; importing hundreds of pictures takes a while."""
EXPORT_SECONDS = 900.0
"""Longest silence of an export, which sends nothing until it is complete; 11,000 tasks took 35 seconds."""

NOBODY = "unknown"
"""Annotator of an annotation whose user is no longer on the server."""

_ACCESS_SECONDS = 200.0  # an access token lives 300
_TASKS_AT_ONCE = 250
_BYTES_AT_ONCE = 8 << 20
_LISTED_AT_ONCE = 1000


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Follow no redirect: urllib would send the token to wherever it points."""


class Server:
    """A Label Studio server.

    Parameters
    ----------
    url : str
        Such as ``http://127.0.0.1:8080``.
    token : str
        A legacy token or a personal access token, from the account page.

    Raises
    ------
    SettingsError
        `url` is no address of a server, or `token` is blank.
    """

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            raise SettingsError(f"`url` must be an address such as http://127.0.0.1:8080, got {url!r}")
        if not token.strip() or not token.isprintable():
            raise SettingsError("`token` must not be blank; Label Studio shows tokens on the page Account & Settings")
        self.url = url.rstrip("/")
        self._token = token.strip()
        # Personal tokens are JSON web tokens, three parts joined by dots; each buys access for five minutes at a time.
        self._personal = self._token.count(".") == 2
        self._access, self._until = "", 0.0
        self._opener = urllib.request.build_opener(_NoRedirect)

    def get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """Return the JSON at `path`."""
        return self._json("GET", path, None)

    def send(self, method: Literal["POST", "PATCH"], path: str, body: object) -> Any:  # noqa: ANN401 - JSON
        """Send JSON, and return the JSON of the response."""
        return self._json(method, path, json.dumps(body, allow_nan=False).encode())

    def download(self, path: str, file: IO[bytes]) -> None:
        """Write the content at `path` to a file."""

        def copy(response: IO[bytes]) -> None:
            while block := response.read(1 << 20):
                file.write(block)
            file.flush()

        self._call("GET", path, None, copy, seconds=EXPORT_SECONDS)

    def _json(self, method: str, path: str, body: bytes | None) -> Any:  # noqa: ANN401 - JSON
        return self._parsed(path, self._call(method, path, body, _all))

    def _parsed(self, path: str, text: bytes) -> Any:  # noqa: ANN401 - JSON
        try:
            return json.loads(text) if text else None
        except ValueError as error:
            raise ServerError(
                f"{self.url}{path} must return JSON, got other content; is it a Label Studio server?"
            ) from error

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
            with self._opener.open(request, timeout=seconds) as response:
                return read(response)
        except urllib.error.HTTPError as error:
            raise ServerError(self._refusal(method, path, error)) from error
        except (OSError, HTTPException) as error:  # URLError is an OSError
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise ServerError(
                f"{self.url} cannot be reached ({reason}); check that it runs and that the address is right, then run "
                "again"
            ) from error

    def _authorization(self) -> str:
        if not self._personal:
            return f"Token {self._token}"
        if time.monotonic() >= self._until:
            path = "/api/token/refresh/"
            body = json.dumps({"refresh": self._token}).encode()
            response = self._parsed(path, self._call("POST", path, body, _all, open_to_all=True))
            if not isinstance(response, dict) or not isinstance(response.get("access"), str):
                raise ServerError(
                    f"{self.url}{path} must return an access token, got none; is it a Label Studio server?"
                )
            self._access, self._until = response["access"], time.monotonic() + _ACCESS_SECONDS
        return f"Bearer {self._access}"

    def _refusal(self, method: str, path: str, error: urllib.error.HTTPError) -> str:
        if error.code in (401, 403):
            kind = "personal access" if self._personal else "legacy"
            return (
                f"{self.url} refuses the token ({error.code}), sent as a {kind} token; copy one from Account & "
                "Settings "
                "there; an organisation may have disabled either kind"
            )
        if 300 <= error.code < 400:
            return f"{self.url}{path} redirects to {error.headers['Location']}; pass that server's own address"
        detail = error.read(2000).decode(errors="replace")
        try:
            content = json.loads(detail)
            detail = content.get("validation_errors") or content.get("detail") or detail
        except (ValueError, AttributeError):
            pass
        return f"{self.url} answers {method} {path} with {error.code}: {detail}"


def _all(response: IO[bytes]) -> bytes:
    return response.read()


# -- out ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pushed:
    """The result of pushing a batch.

    Attributes
    ----------
    project : int
        Number of the project on the server.
    page : str
        URL of the page where people label.
    new : int
        Tasks created now.
    there : int
        Records of the batch that the project had already.
    answered : int
        Records that have all their answers from elsewhere, and are left out.
    """

    project: int
    page: str
    new: int
    there: int
    answered: int


def push_batch(
    campaign: CampaignStore,
    pool: Records,
    number: int,
    server: Server,
    project: str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Pushed:
    """Push a round's batch into a project, in the order of asking, with the model's predictions.

    Pushed again, it adds missing records: a task is identified by its record id and its batch, not by its number.

    Parameters
    ----------
    campaign : Campaign
    pool : Records
        The campaign's pool.
    number : int
        The round.
    server : Server
    project : str
        Number of a project, or a title; a missing title is created.
    progress : callable, optional
        Called with the number of records done and of all records.

    Returns
    -------
    Pushed

    Raises
    ------
    ServerError
        The server cannot be reached or refuses. What was pushed until then stays, and pushing again completes it.
    SettingsError
        The project's labelling page does not match this campaign.
    """
    sheet = sheet_of(campaign, pool, number)
    image = is_picture(pool)
    upto = campaign.answers.last_id()
    batch = campaign.rounds.batch(number)
    latest, waiting = campaign.answers.latest(upto, asked_in=number), campaign.rounds.waiting_rows(number)
    blocks = items(pool, sheet, batch, latest, waiting=waiting, pictures=image)
    identity = _project(server, project, sheet, image=image)
    there = _there(server, identity, sheet)
    new = answered = done = 0
    tasks: list[dict[str, object]] = []
    for block in blocks:
        for item in block:
            done += 1
            if item.complete:
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
    # Sequential, because the batch is ranked. The predictions to show are those of the model that chose it.
    settings = {"sampling": "Sequential sampling", "model_version": sheet.batch, "maximum_annotations": sheet.overlap}
    server.send("PATCH", f"/api/projects/{identity}", settings)
    source = source_of(server, identity)
    campaign.answers.record_export(number, source, f"{source} {sheet.batch}", upto)
    return Pushed(identity, f"{server.url}/projects/{identity}/data", new, len(there), answered)


def _project(server: Server, project: str, sheet: Sheet, *, image: bool) -> int:
    """Find or create the project; refuse one whose page does not match the campaign."""
    if project.isdecimal():
        found = server.get(f"/api/projects/{int(project)}")
        _refuse_page(found, sheet, image=image)
        return int(found["id"])
    for found in _titled(server, project):
        _refuse_page(found, sheet, image=image)
        return int(found["id"])
    if not 3 <= len(project) <= 50:
        raise SettingsError(f"`project` must be a number, or a title of 3 to 50 characters, got {project!r}")
    made = server.send(
        "POST",
        "/api/projects",
        {
            "title": project,
            "label_config": labelling_page(sheet, image=image),
            "maximum_annotations": sheet.overlap,
            # A skip is an answer: the record is not shown to the next person.
            "skip_queue": "IGNORE_SKIPPED",
        },
    )
    return int(made["id"])


def _titled(server: Server, title: str) -> Iterator[dict[str, Any]]:
    """Yield the projects with a title; the server's own filter returns all that contain it."""
    page = 1
    while page:
        listed = server.get(f"/api/projects?page={page}&page_size=100&title={quote(title)}")
        yield from (found for found in listed["results"] if found["title"] == title)
        page = page + 1 if listed.get("next") else 0


def _refuse_page(found: dict[str, Any], sheet: Sheet, *, image: bool) -> None:
    page = page_classes(found.get("label_config") or "")
    shown, classes = page if page else ("", set())
    if shown != shown_key(sheet, image=image) or classes != set(sheet.classes):
        raise SettingsError(
            f"the labelling page of project {found['id']} ({found['title']!r}) must have this campaign's classes and "
            "fields, got others; choose another project, or set its labelling interface to:\n"
            f"{labelling_page(sheet, image=image)}"
        )


def _there(server: Server, project: int, sheet: Sheet) -> set[str]:
    """Return the ids of the records of the batch that the project has."""
    wanted = {"filter": "filter:tasks:data.batch", "operator": "equal", "type": "String", "value": sheet.batch}
    query = quote(json.dumps({"filters": {"conjunction": "and", "items": [wanted]}}))
    there: set[str] = set()
    page, read = 1, 0
    while True:
        listed = server.get(
            f"/api/tasks?project={project}&page={page}&page_size={_LISTED_AT_ONCE}&include=id,data&query={query}"
        )
        there |= {
            str(each["data"].get("record_id")) for each in listed["tasks"] if each["data"].get("batch") == sheet.batch
        }
        read += len(listed["tasks"])
        if read >= listed["total"] or not listed["tasks"]:
            return there
        page += 1


def _import(server: Server, project: int, tasks: list[dict[str, object]]) -> None:
    if tasks:
        server.send("POST", f"/api/projects/{project}/import", tasks)


# -- in ----------------------------------------------------------------------------------------------------------------


def pull_answers(
    campaign: CampaignStore,
    pool: Records,
    server: Server,
    project: str,
    *,
    conflicts: Literal["keep out", "take"] = "keep out",
) -> ImportReport:
    """Import the annotations of a project, in one transaction; pulled again, it imports later changes.

    An annotator is named by the user's e-mail address. A project is exported as a whole: Label Studio's notices of
    single answers can get lost, an export cannot.

    Parameters
    ----------
    campaign : Campaign
    pool : Records
        The campaign's pool.
    server : Server
    project : str
        Number or title.
    conflicts : {"keep out", "take"}
        What to do with annotations whose annotator answered differently, elsewhere, since the batch was pushed.

    Returns
    -------
    ImportReport

    Raises
    ------
    ServerError
        The server cannot be reached or refuses; nothing was imported.
    """
    identity = _known_project(server, project)
    users = server.get("/api/users")
    names = {user["id"]: user.get("email") or user.get("username") or f"user {user['id']}" for user in users}
    written = LabelStudio(names, batches=f"{campaign.id}-r")
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        # The export leaves out tasks without annotations; they are pending, and the campaign counts them.
        server.download(f"/api/projects/{identity}/export?exportType=JSON", file)
        path = Path(file.name)
        # Each pull counts as a new file: whether an annotation is known is decided answer by answer.
        digest = secrets.token_hex(32)
        source = AnswerFile(source_of(server, identity), digest, NOBODY, conflicts == "take", "label-studio")
        reading = Reading(path, written, campaign.settings.classes, pool, NOBODY)
        imported = campaign.answers.import_file(reading.answers(), source, rejected=lambda: reading.rejections)
        return reading.report(imported)


def _known_project(server: Server, project: str) -> int:
    if project.isdecimal():
        return int(project)
    for found in _titled(server, project):
        return int(found["id"])
    raise ServerError(f"`project` must be on {server.url}, got {project!r}; push a batch first, or check the title")


def source_of(server: Server, project: int) -> str:
    """Return the name of a project as the source of answers."""
    return f"{server.url}/projects/{project}"
