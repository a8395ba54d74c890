"""What the licence of the starting weights means for users of the encoder."""

from __future__ import annotations

import re

NONE = "none: trained from random weights"
UNKNOWN = "unknown"
# SPDX identifiers in lower case, of licences that allow any use of what is made from the weights.
FREE = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "0bsd", "isc", "unlicense", "cc0-1.0", "cc-by-4.0",
}  # fmt: skip


def concern(licence: str) -> str | None:
    """A sentence of warning about `licence`, as encoders record it; None if it allows any use or there is none."""
    name = licence.strip().lower()
    if name == NONE or name in FREE:
        return None
    if name.startswith(UNKNOWN) or not name:
        return (
            "The licence of the starting weights is unknown: ask their makers before you publish or sell what is made."
        )
    if re.search(r"(?<![a-z])nc(?![a-z])|non-?commercial", name):
        return f"The licence of the starting weights, {licence}, forbids commercial use, of this encoder too."
    return f"The licence of the starting weights, {licence}, may forbid some use: read it before you publish or sell."
