"""The scan: every record of the pool scored in place, only the best candidates travel."""

from dal.scan.driver import cells_written, sample_codebook, scan, stored_cells
from dal.scan.journal import Journal
from dal.scan.kernel import Cells
from dal.scan.run import Progress, Scan, Summary

__all__ = [
    "Cells",
    "Journal",
    "Progress",
    "Scan",
    "Summary",
    "cells_written",
    "sample_codebook",
    "scan",
    "stored_cells",
]
