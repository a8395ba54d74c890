"""A page from its template: HTML in which every value is text."""

from __future__ import annotations

from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, content: Mapping[str, object]) -> str:
    """The template of this room, filled in. A value that is missing is an error."""
    loader = PackageLoader("selfsight.report", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(content)
