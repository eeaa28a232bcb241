"""The explorer as one HTML file that fetches nothing and may only draw."""

import base64
import hashlib
import html
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from dal._files import replacing
from dal.errors import SettingsError


def write_explorer(path: str | Path, view: dict[str, Any]) -> None:
    """Write the explorer.

    Parameters
    ----------
    path : path
        Of the HTML file.
    view : dict
        As returned by :func:`dal.explorer.view_of_run`.

    Raises
    ------
    SettingsError
        `path` does not end in .html or .htm.
    """
    check_page(path)
    page = explorer_html(view).encode()
    with replacing(Path(path)) as file:
        file.write(page)


def check_page(path: str | Path) -> None:
    """Check that a path has the suffix of a page.

    Raises
    ------
    SettingsError
        The suffix is another one.
    """
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise SettingsError(f"`output` must end in .html, got {Path(path).name}; the explorer is a page of HTML")


def explorer_html(view: dict[str, Any]) -> str:
    """Return the page.

    Its policy lets it run its own script and style and nothing else: no request, no frame, no form.
    """
    here = files("dal.explorer")
    style, script, page = (here.joinpath(f"explorer.{kind}").read_text("utf-8") for kind in ("css", "js", "html"))
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; img-src data: blob:;"
        " base-uri 'none'; form-action 'none'"
    )
    parts = {
        "POLICY": html.escape(policy),
        "TITLE": html.escape(str(view["title"])),
        "STYLE": style,
        "DATA": as_script_json(view),
        "SCRIPT": script,
    }
    # In one pass: a record may hold the text of a placeholder.
    return re.sub("@@([A-Z]+)@@", lambda found: parts[found[1]], page)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def as_script_json(value: object) -> str:
    r"""Return a value as JSON for a script element: no text in it can end the element.

    Examples
    --------
    >>> as_script_json(["</script>"])
    '["\\u003c/script\\u003e"]'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
