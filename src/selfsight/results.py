"""The base of what verbs and measurements give: a frozen dataclass in Python, one JSON object on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Result:
    """What was found: fields for Python, and `to_dict`, the object that `--json` prints. A field that `if_any` names is
    left out there where it is None."""

    if_any: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, for JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: _plain(v) for name, v in values.items() if v is not None or name not in self.if_any}


def counted(counts: Mapping[str, int]) -> str:
    """`3 no such file; 1 empty file`, for people."""
    return "; ".join(f"{count:,} {name}" for name, count in counts.items())


def duration(seconds: float) -> str:
    """Seconds in the unit people would use: `75 s`, `2.2 min`, `20 min`, `1.6 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.{1 if seconds < 570 else 0}f} min"
    return f"{seconds / 3600:.1f} h"


def _plain(value: Any) -> Any:
    if isinstance(value, Result):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
