"""Self-contained HTML pages: everything they need is in the file, nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from nav_eval.flight_view import View

_TEMPLATES = files("nav_eval") / "templates"


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("nav_eval", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )


def flight_page(view: View, title: str, facts: Mapping[str, object]) -> str:
    """The viewer of one flight. `facts`: what is said of it above the viewer."""
    return render("flight.html.j2", title=title, facts=facts, view=view)


def render(template: str, **values: Any) -> str:
    """A page of `templates/`, with the style, the viewer and the plotting script that it puts into itself."""
    return (
        _environment()
        .get_template(template)
        .render(
            style=(_TEMPLATES / "style.css").read_text(encoding="utf-8"),
            viewer=(_TEMPLATES / "viewer.js").read_text(encoding="utf-8"),
            plotly=get_plotlyjs(),
            **values,
        )
    )
