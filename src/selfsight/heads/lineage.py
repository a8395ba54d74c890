"""From what a head was made."""

from __future__ import annotations

import shlex
import sys

from selfsight.data.collection import Collection
from selfsight.data.labels import Labels
from selfsight.encoders.encoder import Encoder
from selfsight.heads.head import Head
from selfsight.machine import environment


def lineage_of(
    items: Collection, labels: Labels, encoder: Encoder, model: str | Encoder, seed: int, parent: Head | None
) -> dict[str, object]:
    """What lineage.json says: from what, by what and with which versions a head was made."""
    return {
        "command": shlex.join(["selfsight", *sys.argv[1:]]) if sys.argv[0].endswith("selfsight") else "from Python",
        "model": model if isinstance(model, str) else "an Encoder",
        "seed": seed,
        "collection": str(items.path),
        "collection_version": items.version,
        "ids": items.id_hash(labels.rows),
        "labels": labels.digest,
        "encoder": encoder.digest,
        "parent": parent.digest if parent else None,
        "versions": environment(str(encoder.device))["versions"],
    }
