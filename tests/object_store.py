"""A real server that speaks S3, for the tests that keep a campaign's models in an object store."""

import re
import secrets
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import s3fs


@contextmanager
def running() -> Iterator[str]:
    """Start a server on a free port of this machine and give its address; it ends with the context."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said = ""
        try:
            for line in server.stderr:
                said += line
                if (found := re.search(r"http://127\.0\.0\.1:\d+", line)) is not None:
                    # It logs every request, and would wait for ever once the pipe is full.
                    threading.Thread(target=deque, args=(server.stderr, 0), daemon=True).start()
                    yield found[0]
                    return
            raise AssertionError(f"the server ended: {said}")
        finally:
            server.terminate()


def environment(address: str) -> dict[str, str]:
    """What a machine's environment says of its object store; workers and other coordinators inherit it."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "anybody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def fresh_bucket() -> str:
    name = f"bucket-{secrets.token_hex(6)}"
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"
