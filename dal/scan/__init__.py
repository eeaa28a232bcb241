"""The scan: every record of the pool scored in place, only the best candidates travel.

:func:`dal.scan.scan` is the pass; :func:`dal.scan.sample_codebook` makes the codebook that most strategies want, and a
:class:`dal.scan.Journal` keeps what is finished. Out of what the pass keeps,
:func:`dal.selection.batch.choose` chooses the batch.
"""

from typing import TYPE_CHECKING

from dal._lazy import names_of

if TYPE_CHECKING:
    from dal.scan.driver import cells_written, sample_codebook, scan, stored_cells
    from dal.scan.journal import Journal
    from dal.scan.plan import Limits
    from dal.scan.run import Progress, Scan, Summary
    from dal.scan.waves import Carried, Reach, Waves
    from dal.scan.worker.kernel import Cells
else:
    __getattr__ = names_of(
        __name__,
        {
            "dal.scan.driver": ("cells_written", "sample_codebook", "scan", "stored_cells"),
            "dal.scan.journal": ("Journal",),
            "dal.scan.worker.kernel": ("Cells",),
            "dal.scan.plan": ("Limits",),
            "dal.scan.run": ("Progress", "Scan", "Summary"),
            "dal.scan.waves": ("Carried", "Reach", "Waves"),
        },
    )

__all__ = [
    "Carried",
    "Cells",
    "Journal",
    "Limits",
    "Progress",
    "Reach",
    "Scan",
    "Summary",
    "Waves",
    "cells_written",
    "sample_codebook",
    "scan",
    "stored_cells",
]
