"""transformers' list of its models, kept from one start to the next.

`import transformers` reads the 3,000 files of `transformers/models` to know which names are where, for `transformers`
and again for `transformers.models`: 0.3 to 0.4 s each from a local disk, more from a network's. The list is kept under
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
MOST_LISTS = 8
"""Kept lists, of as many installations; the oldest go."""
_LISTING, _NAME = "transformers.utils.import_utils", "define_import_structure"
"""The module and its function that makes the list."""
_FORMAT = 1
"""To be raised with every change of what is kept."""


def keep_model_list(cache: Path | None) -> None:
    """From here on `import transformers` takes its list from the folder `cache`, and puts it there if it is not there
    or the files are others now. A folder that cannot be written costs the time only. If transformers is imported
    already, or no folder is given, nothing changes."""
    is_waiting = any(isinstance(finder, _Finder) for finder in sys.meta_path)
    if cache is not None and _LISTING not in sys.modules and not is_waiting:
        sys.meta_path.insert(0, _Finder(cache))


class _Finder(MetaPathFinder):
    """Finds one module, once, as Python does, for another loader; it stays where that is never imported."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _LISTING:
            return None
        sys.meta_path = [finder for finder in sys.meta_path if finder is not self]  # another thread may go through it
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
        listed = getattr(module, _NAME, None)
        if listed is None:  # another release of transformers
            return
        source = Path(self.path)
        models = source.parent.parent / "models"

        @functools.cache
        def whole() -> Structure:
            return kept_list(self._cache, [source, models], lambda: listed(models, "models"))

        @functools.wraps(listed)
        def define_import_structure(*words: Any, **options: Any) -> Any:
            match (*map(str, words), *sorted(options.items())):
                case (path, "models") | (path, ("prefix", "models")) if path == str(models):
                    return {needs: dict(modules) for needs, modules in whole().items()}  # transformers adds its own
                case (path,) if path == str(models / "__init__.py"):
                    return without_prefix(whole(), "models.")
            return listed(*words, **options)

        setattr(module, _NAME, define_import_structure)


def kept_list(cache: Path, sources: Sequence[Path], look: Callable[[], Structure]) -> Structure:
    """What `look` finds in the files `sources` and the folders among them: from `cache` if they are as they were."""
    file = cache / f"transformers-models-{_stamp(sources)}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):  # not there, or damaged
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["sha256"] == _digest(kept["models"]):
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
        _write(file, json.dumps({"sha256": _digest(models), "models": models}))
    return found


def _write(file: Path, text: str) -> None:
    """Writes it, atomically, and leaves the newest MOST_LISTS lists."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.urandom(8).hex()}")  # other ranks write theirs
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
    lists = sorted(file.parent.glob("transformers-models-*.json"), key=lambda path: path.stat().st_mtime)
    for old in lists[:-MOST_LISTS]:
        old.unlink()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _stamp(sources: Sequence[Path]) -> str:
    """A hash over the path, size and time of change (ns) of each file."""
    digest = hashlib.sha256(f"{_FORMAT}\n".encode())
    for path, status in sorted((entry for source in sources for entry in _files(source)), key=lambda entry: entry[0]):
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


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
