"""``python -m npudiff``: the command line, also where its script is not on the path."""

import sys

from npudiff.cli import entry

sys.exit(entry())
