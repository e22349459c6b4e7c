"""`python -m llamac` is the `llamac` command."""

from __future__ import annotations

import sys

from llamac.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
