"""``python -m triplet.cli``: the same as ``triplet``."""

import sys

from triplet.cli import main

if __name__ == "__main__":
    sys.exit(main())
