"""What the makers of a cache run in processes of their own. They import no torch, as the trainer's workers do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sft.encoding_cache
from sft.encoding import Encoding
from sft.encoding_cache import EncodingCache, Source


def make(source: Path, folder: Path, encoding: Encoding, results: Any = None) -> None:
    """Takes part in the making of a cache of small blocks; puts the ids of all documents into `results`."""
    sft.encoding_cache.ROWS_PER_BLOCK = 8
    columns = EncodingCache(folder).prepared(Source(str(source)), encoding, 1).columns
    if results is not None:
        results.put([list(map(int, document.input_ids)) for document in columns])
