"""Labels in and out: files of answers, labelling tools, the labelled set."""

from typing import TYPE_CHECKING

from dal._lazy import names_of
from dal.choices import FORMATS

if TYPE_CHECKING:
    from dal.exchange.files import ImportReport, Records, read_answers, read_gold, write_batch
    from dal.exchange.formats import Rejected
    from dal.exchange.labels import write_labels
    from dal.exchange.machines import Asking, ask_machine
    from dal.exchange.server import Pushed, Server, pull_answers, push_batch
else:
    __getattr__ = names_of(
        __name__,
        {
            "dal.exchange.files": ("ImportReport", "Records", "read_answers", "read_gold", "write_batch"),
            "dal.exchange.formats": ("Rejected",),
            "dal.exchange.labels": ("write_labels",),
            "dal.exchange.machines": ("Asking", "ask_machine"),
            "dal.exchange.server": ("Pushed", "Server", "pull_answers", "push_batch"),
        },
    )

__all__ = [
    "FORMATS",
    "Asking",
    "ImportReport",
    "Pushed",
    "Records",
    "Rejected",
    "Server",
    "ask_machine",
    "pull_answers",
    "push_batch",
    "read_answers",
    "read_gold",
    "write_batch",
    "write_labels",
]
