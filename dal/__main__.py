"""Run the command line as ``python -m dal``."""

from dal.cli import main

# Worker processes are spawned: they import this module again.
if __name__ == "__main__":
    main(prog_name="dal")
