"""Settings as somebody wrote them, and where each one stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Path = tuple[str, ...]
"""The way to a value through nested mappings: `("lora", "r")`."""


@dataclass(frozen=True)
class Source:
    """Nested plain values (mappings, lists, text, numbers, booleans, None) and the place of each."""

    values: Mapping[str, Any]
    name: str = ""
    """The file, as the user named it; empty for values that no file holds."""
    places: Mapping[Path, str] = field(default_factory=dict)
    """Path → `run.yaml:12` or `--lora.r`."""

    def where(self, path: Path) -> str:
        """The place of the value, or of the nearest mapping around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.name

    def part(self, path: Path) -> Source:
        """The mapping that stands at `path`, as a source of its own; an empty one where no mapping stands there."""
        values: Any = self.values
        for key in path:
            values = values.get(key) if isinstance(values, Mapping) else None
        if not isinstance(values, Mapping):
            return Source({}, self.name)
        length = len(path)
        places = {key[length:]: place for key, place in self.places.items() if key[:length] == path != key}
        return Source(values, self.name, places)
