import io

import pytest
from rich.console import Console

from dal import progress
from dal.progress import shown


def test_a_log_gets_plain_lines_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    written = io.StringIO()
    with shown("scan", Console(file=written, width=200)) as show:
        # What was there before, as out of a journal, tells nothing of the pace.
        for seconds[0], done in [(0, 400), (12, 520), (13, 530), (30, 700), (60, 1000)]:
            show(done, 1000, "5 rows/s")
    assert written.getvalue().splitlines() == [
        "scan: 520 of 1,000 (52%) 0:00:48 left, 5 rows/s",
        "scan: 700 of 1,000 (70%) 0:00:30 left, 5 rows/s",
        "scan: 1,000 of 1,000 (100%) 5 rows/s",
    ]
    written = io.StringIO()
    with shown("map", Console(file=written, width=200)) as show:
        show(5, 5, "rows")
        assert written.getvalue() == ""
    assert written.getvalue() == "map: 5 of 5 (100%) rows\n"


def test_a_terminal_gets_a_bar() -> None:
    written = io.StringIO()
    with shown("scan", Console(file=written, width=120, force_terminal=True)) as show:
        show(5, 10, "best score 0.9")
    assert "50%" in written.getvalue()
    assert "best score 0.9" in written.getvalue()
