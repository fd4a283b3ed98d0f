"""The command line: start and follow runs, list and steer them, export a notebook, run a job, look at this machine.

Each command imports what it needs when it is chosen, so that `--help` answers at once.
"""

from toolkit.cli.main import main

__all__ = ["main"]
