"""What `goodput_script.py` imports: what `sft/train.py` does, so that its runs start as real ones do."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sft.train_imports import import_libraries

if __name__ == "__main__":
    import_libraries()
