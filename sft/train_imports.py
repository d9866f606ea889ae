"""What `sft/train.py` imports before it can begin: most of the time that a run takes to its first step.

Started by its path, this file imports and does nothing else. The launcher does that once per node, in a process that
then forks into the ranks (`launch/fork_server.py`); by hand, each rank imports for itself.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)


def import_libraries() -> None:
    """Imports what every run needs before its first step, without garbage collection: an import makes some 500,000
    objects and hardly any garbage, and going through them again and again is a fifth of its time. For a process that
    only trains: later collections leave these objects out too."""
    gc.disable()
    import torch  # noqa: F401

    with _models_listed_once():
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


@contextmanager
def _models_listed_once() -> Iterator[None]:
    """Spares transformers one of two looks through its models.

    It reads the 3,000 files of `transformers/models` to know which names are where, once for `transformers` and once
    for `transformers.models`: 0.3 to 0.4 s each. The second list is the first one without the prefix `models.`.
    """
    import transformers
    from transformers.utils import import_utils

    listed = import_utils.define_import_structure
    folder = Path(str(transformers.__file__)).parent / "models"

    def list_of(path: Any, prefix: str | None = None) -> Any:
        if prefix is None and str(path) == str(folder / "__init__.py"):
            return without_prefix(listed(folder, "models"), "models.")
        return listed(path, prefix)

    import_utils.define_import_structure = list_of
    try:
        yield
    finally:
        import_utils.define_import_structure = listed


def without_prefix(structure: dict[Any, dict[str, Any]], prefix: str) -> dict[Any, dict[str, Any]]:
    """Of a list of modules by what they need, those with the prefix, without it."""
    return {
        needs: {name.removeprefix(prefix): names for name, names in modules.items() if name.startswith(prefix)}
        for needs, modules in structure.items()
    }


if __name__ == "__main__":
    import_libraries()
