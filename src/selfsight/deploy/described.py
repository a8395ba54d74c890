"""What the bodies of requests hold, as /openapi.json describes it: FastAPI knows JSON alone."""

from __future__ import annotations

IMAGES = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
        },
    }
}
LABEL = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["request_id"],
                    "properties": {
                        "request_id": {"type": "string"},
                        "image": {"type": "integer", "default": 0},
                        "label": {},
                        "mask": {"type": "object"},
                        "boxes": {"type": "array", "items": {"type": "object"}},
                        "by": {"type": "string", "default": "local"},
                    },
                }
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        "label": {"type": "string"},
                        "by": {"type": "string"},
                    },
                }
            },
        },
    }
}
