"""Check that this container serves: ask the address in DAL_HEALTH, which is that of the pages by default."""

import os
import ssl
import sys
import urllib.error
import urllib.request


def main() -> int:
    """Return 0 where a server answers, and 1 where none does or its answer is an error of its own."""
    address = os.environ.get("DAL_HEALTH", "http://127.0.0.1:8000/")
    # The container asks itself: its certificate is made for the name by which others know it.
    itself = ssl.create_default_context()
    itself.check_hostname = False
    itself.verify_mode = ssl.CERT_NONE
    try:
        with urllib.request.urlopen(address, timeout=5, context=itself):
            return 0
    except urllib.error.HTTPError as error:  # a page for those who have a link is a page
        return int(error.code >= 500)
    except OSError as error:
        sys.stderr.write(f"{address}: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
