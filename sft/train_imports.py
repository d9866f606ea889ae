"""What `sft/train.py` imports before it can begin: most of the time that a run takes to its first step.

Started by its path, this file imports and does nothing else. The launcher does that once per node, in a process that
then forks into the ranks (`launch/fork_server.py`); by hand, each rank imports for itself.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from sft.model_list import keep_model_list
from sft.storage import user_cache_folder


def import_libraries() -> None:
    """Imports what every run needs before its first step, without garbage collection: an import makes some 500,000
    objects and hardly any garbage, and going through them again and again is a fifth of its time. For a process that
    only trains: later collections leave these objects out too."""
    gc.disable()
    keep_model_list(user_cache_folder(os.environ))
    import torch  # noqa: F401
    import transformers.modeling_utils  # noqa: F401

    import sft.dataset
    import sft.encoding_cache
    import sft.engine
    import sft.export
    import sft.history
    import sft.identity
    import sft.loop
    import sft.masking
    import sft.model
    import sft.optimizer
    import sft.output_dir
    import sft.resuming
    import sft.run_summary
    import sft.tokenizer
    import sft.world  # noqa: F401

    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    import_libraries()
