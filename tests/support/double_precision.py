"""The kit's command line in float64."""

import sys

import torch

from triplet import cli

if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    sys.exit(cli.main())
