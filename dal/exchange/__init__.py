"""Labels in and out: files of answers."""

from dal.exchange.files import ImportReport, Records, Rejected, read_answers, write_batch

__all__ = ["ImportReport", "Records", "Rejected", "read_answers", "write_batch"]
