"""transformers' list of its models, kept from one start to the next.

`import transformers` reads the 3,000 files of `transformers/models` to know which names are where, for `transformers`
and again for `transformers.models`: 0.3 to 0.4 s each from a local disk, more from a network's. The list is kept with
the paths, sizes and times of change of these files, so that one that was changed in place is seen. The second list is
the first one without the prefix `models.`. Standard library only.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

Structure: TypeAlias = dict[frozenset[str], dict[str, set[str]]]
"""The names of each module, by what has to be installed for them."""
_LISTING = "transformers.utils.import_utils"
"""The module whose `define_import_structure` makes the list."""


def keep_model_list(cache: Path) -> None:
    """From here on `import transformers` takes its list from the folder `cache`, and puts it there if it is not there
    or the files are others now. A folder that cannot be written costs the time only. If it is imported already, nothing
    changes."""
    if _LISTING not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(cache))


class _Finder(MetaPathFinder):
    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _LISTING:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader, self._cache)
        return spec


class _Loader(SourceFileLoader):
    """Loads the module as ever, then puts the kept list before its own."""

    def __init__(self, loader: SourceFileLoader, cache: Path) -> None:
        super().__init__(loader.name, str(loader.path))
        self._cache = cache

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        listed = module.define_import_structure
        source = Path(self.path)
        models = source.parent.parent / "models"

        @functools.cache
        def whole() -> Structure:
            return kept_list(self._cache, [source, models], lambda: listed(models, "models"))

        def define_import_structure(module_path: Any, prefix: str | None = None) -> Any:
            match (str(module_path), prefix):
                case (asked, "models") if asked == str(models):
                    return {needs: dict(modules) for needs, modules in whole().items()}  # transformers adds its own
                case (asked, None) if asked == str(models / "__init__.py"):
                    return without_prefix(whole(), "models.")
            return listed(module_path, prefix)

        module.define_import_structure = define_import_structure  # type: ignore[attr-defined]


def kept_list(cache: Path, sources: Sequence[Path], look: Callable[[], Structure]) -> Structure:
    """What `look` finds in the files `sources` and the folders among them: from `cache` if they are as they were."""
    stamp = _stamp(sources)
    file = cache / f"transformers-models-{hashlib.sha256(str(sources[0]).encode()).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):  # not there, or damaged
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["stamp"] == stamp:
            return {
                frozenset(needs): {module: set(names) for module, names in modules.items()}
                for needs, modules in kept["models"]
            }
    found = look()
    models = [
        [sorted(needs), {module: sorted(names) for module, names in modules.items()}]
        for needs, modules in found.items()
    ]
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.urandom(8).hex()}")  # other ranks write theirs
        temporary.write_text(json.dumps({"stamp": stamp, "models": models}), encoding="utf-8")
        temporary.replace(file)
    return found


def _stamp(sources: Sequence[Path]) -> str:
    """A hash over the path, size and time of change (ns) of each file."""
    digest = hashlib.sha256()
    for path, status in sorted((entry for source in sources for entry in _files(source)), key=lambda entry: entry[0]):
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files(source: Path | str) -> Iterator[tuple[str, os.stat_result]]:
    if os.path.isfile(source):
        yield str(source), os.stat(source)
        return
    with os.scandir(source) as entries:
        for entry in entries:
            if entry.is_dir():
                if entry.name != "__pycache__":
                    yield from _files(entry.path)
            elif entry.name.endswith(".py"):
                yield entry.path, entry.stat()


def without_prefix(structure: Structure, prefix: str) -> Structure:
    """Of a list of modules by what they need, those with the prefix, without it."""
    return {
        needs: {name.removeprefix(prefix): names for name, names in modules.items() if name.startswith(prefix)}
        for needs, modules in structure.items()
    }
