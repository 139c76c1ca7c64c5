"""The kit's command line with another folder of configs: ``python with_sources.py FOLDER ARGUMENTS``."""

import sys
from pathlib import Path

from triplet import cli
from triplet.pull import sources

if __name__ == "__main__":
    sources.CONFIGS = Path(sys.argv[1])
    sys.exit(cli.main(sys.argv[2:]))
