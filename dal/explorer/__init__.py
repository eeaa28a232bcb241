"""The explorer: replays of strategies side by side, in one self-contained HTML file.

:mod:`dal.explorer.run` holds the replays and the folder that keeps them, :mod:`dal.explorer.play` plays them,
:mod:`dal.explorer.view` selects what is sent to a browser, :mod:`dal.explorer.page` writes the file. ``explorer.js``
beside them draws it.
"""

from typing import TYPE_CHECKING

from dal._lazy import names_of

if TYPE_CHECKING:
    from dal.explorer.page import check_page, write_explorer
    from dal.explorer.play import Known, Plan
    from dal.explorer.report import view_of_campaign
    from dal.explorer.run import Run, RunFolder, run_of_campaign
    from dal.explorer.view import view_of_run
else:
    __getattr__ = names_of(
        __name__,
        {
            "dal.explorer.page": ("check_page", "write_explorer"),
            "dal.explorer.play": ("Known", "Plan"),
            "dal.explorer.report": ("view_of_campaign",),
            "dal.explorer.run": ("Run", "RunFolder", "run_of_campaign"),
            "dal.explorer.view": ("view_of_run",),
        },
    )

__all__ = [
    "Known",
    "Plan",
    "Run",
    "RunFolder",
    "check_page",
    "run_of_campaign",
    "view_of_campaign",
    "view_of_run",
    "write_explorer",
]
