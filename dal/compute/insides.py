"""The only use of distributed's private API, with what happens where a version of it has changed."""

import logging

from distributed import utils

_log = logging.getLogger(__name__)


def keep_preload() -> None:
    """Keep distributed from choosing what the fork server imports.

    Its own choice is made once a process, imports pandas here for that, and leaves out what scans need. Without this,
    workers start more slowly and work as well.
    """
    if hasattr(utils, "_forkserver_preload_set"):
        utils._forkserver_preload_set = True
    else:
        _log.warning("this version of distributed chooses what its fork server imports: workers start more slowly")
