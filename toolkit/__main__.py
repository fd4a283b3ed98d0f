"""`python -m toolkit`: the same from a shell."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
