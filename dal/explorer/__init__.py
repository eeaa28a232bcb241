"""The explorer: replays of strategies side by side, in one self-contained HTML file.

:mod:`dal.explorer.run` is what is replayed and the folder that keeps it, :mod:`dal.explorer.play` what plays it,
:mod:`dal.explorer.view` what of it is sent to a browser, :mod:`dal.explorer.page` the file. What is drawn, and how, is
in ``explorer.js`` beside them.
"""

from dal.explorer.page import check_page, write_explorer
from dal.explorer.play import Known, Plan, play, table
from dal.explorer.report import view_of_campaign
from dal.explorer.run import Run, RunFolder, run_of_campaign
from dal.explorer.view import view_of_run

__all__ = [
    "Known",
    "Plan",
    "Run",
    "RunFolder",
    "check_page",
    "play",
    "run_of_campaign",
    "table",
    "view_of_campaign",
    "view_of_run",
    "write_explorer",
]
