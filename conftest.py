"""Modules that are read for doctests only where torch is: `make test-torch`."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("torch") else ["dal/learners/_torch.py", "tests/nets.py"]
