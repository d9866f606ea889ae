"""Makes the project and the tests' own helpers importable from any folder, and keeps caches out of the user's home."""

import os
import sys
import tempfile
from pathlib import Path

from hypothesis import settings

TESTS = Path(__file__).resolve().parent
for folder in (TESTS.parent, TESTS, TESTS / "ranks", TESTS / "launch"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

# Encoded conversations go to a folder of this run's own, also in the processes that tests start.
_CACHE = tempfile.TemporaryDirectory(prefix="cleansft-test-cache-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name

# Examples are timed by no clock: on a machine that others use too, any of them may take long.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

from faults.recording import shows  # noqa: E402, F401  (a fixture for all tests; the path above comes first)
