"""``python -m tardygrad`` is the command line."""

from __future__ import annotations

import sys

from tardygrad.cli import main

if __name__ == "__main__":
    sys.exit(main())
