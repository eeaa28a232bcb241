"""Labels saved: campaigns replayed in memory against known classes, strategies paired by seed.

    python -m benchmarks labels --json labels.json --data DIR

Plays what the default promises (:mod:`benchmarks.labels.promises`) and an oracle, some hours of two cores; any part of
it by ``--sets``, ``--strategies`` and ``--seeds``. The file is written after each pool, and a run that finds it goes on
from there: of what it holds, the first seed of each set and strategy is replayed again, and if that asks other records
than it did, the code has changed and its replays are made again.
"""

from benchmarks.labels.main import command

__all__ = ["command"]
