"""Labels in and out: files of answers, labelling tools, the labelled set."""

from dal.choices import FORMATS
from dal.exchange.files import ImportReport, Records, read_answers, read_gold, write_batch
from dal.exchange.formats import Rejected
from dal.exchange.labels import write_labels
from dal.exchange.server import Pushed, Server, pull_answers, push_batch

__all__ = [
    "FORMATS",
    "ImportReport",
    "Pushed",
    "Records",
    "Rejected",
    "Server",
    "pull_answers",
    "push_batch",
    "read_answers",
    "read_gold",
    "write_batch",
    "write_labels",
]
