"""Makes the project and the tests' own helpers importable from any folder."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
for folder in (TESTS.parent, TESTS, TESTS / "ranks"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
