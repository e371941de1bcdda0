"""fork.html: the branches of a forked flight as a tree and on the map, with outcomes and regret."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from nav_agent import toolset
from nav_eval.episodes import HEADLINE_RADIUS
from nav_eval.evaluation_report import MOST_VIEW_BYTES, OUTCOMES, outcome_of, view_bytes
from nav_eval.flight_view import GROUND
from nav_eval.harness import Record
from nav_eval.html_pages import render
from nav_eval.policies import Call

TRUNK_COLOUR = "#888"
ROW_HEIGHT_PX = 20
_LAYOUT = {
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "template": "none",
    "showlegend": False,
}


@dataclass(frozen=True)
class Branch:
    """A call at the decision that was forked, and the record of the flight with it.

    remaining_m: where the flight ended, horizontally to the mission's last goal. (The record's own distance is from the
    goal of the instruction that it ended in, which differs between branches where there are several.)
    taken: the flight's own call.
    """

    call: Call
    record: Record
    remaining_m: float
    taken: bool = False

    @property
    def text(self) -> str:
        """The call in one line."""
        return toolset.call_line(*self.call)

    @property
    def value(self) -> float:
        """What the flight counts in SPL: 0 without success, else shortest / max(flown, shortest)."""
        return float(self.record["success"][HEADLINE_RADIUS]) * (self.record["metrics"]["spl_weight"] or 0.0)


@dataclass(frozen=True)
class Regret:
    """What a call cost against the best one at the same decision; docs/metrics.md defines it."""

    spl: float
    remaining_m: float


def regret(branch: Branch, branches: Sequence[Branch]) -> Regret:
    """Of one of `branches`."""
    return Regret(
        max(other.value for other in branches) - branch.value,
        branch.remaining_m - min(other.remaining_m for other in branches),
    )


def fork_summary(branches: Sequence[Branch]) -> dict[str, Any]:
    """What the flight viewer says of a fork: how many branches ended how, the best one, and the taken call's regret."""
    best = min(branches, key=lambda branch: (-branch.value, branch.remaining_m))
    (taken,) = (branch for branch in branches if branch.taken)
    cost = regret(taken, branches)
    return {
        "outcomes": dict(Counter(outcome_of(branch.record) for branch in branches)),
        "best": best.text,
        "regret_spl": round(cost.spl, 3),
        "regret_m": round(cost.remaining_m, 1),
    }


def fork_page(branches: Sequence[Branch], *, at: int, facts: Mapping[str, object], flight_page: str) -> str:
    """The page of a fork at decision `at`.

    Args:
        branches: every call, one of them the taken one.
        facts: what is said of the flight above the figures.
        flight_page: where the flight viewer of the flight lies, from this page.
    """
    ordered = sorted(branches, key=lambda branch: (-branch.value, branch.remaining_m))
    (taken,) = (branch for branch in ordered if branch.taken)
    cost = regret(taken, ordered)
    views = _views(ordered)
    return render(
        "fork.html.j2",
        title=f"Fork at decision {at}",
        flight_page=flight_page,
        facts={
            **facts,
            "instruction": " / ".join(taken.record["instructions"]),
            "taken": f"{taken.text}: {outcome_of(taken.record)}",
            "best": f"{ordered[0].text}: {outcome_of(ordered[0].record)}",
            "regret": f"{cost.spl:.3f} of SPL, {cost.remaining_m:.1f} m of remaining distance",
            "flown": f"{len(ordered)} flights, {sum(branch.record['wall_s'] for branch in ordered):.0f} s of a core",
        },
        picture=_picture(taken.record, at),
        outcomes=OUTCOMES,
        counts={name: sum(outcome_of(b.record) == name for b in ordered) for name in OUTCOMES},
        tree=_tree(ordered, at),
        paths=_paths(ordered, taken, at),
        branches=[_row(branch, ordered, index in views) for index, branch in enumerate(ordered)],
        views={str(index): view for index, view in views.items()},
    )


def _row(branch: Branch, branches: Sequence[Branch], has_view: bool) -> dict[str, Any]:
    cost = regret(branch, branches)
    return {
        "call": branch.text,
        "taken": branch.taken,
        "outcome": outcome_of(branch.record),
        "said": f"{branch.record['outcome'].lower()}: {branch.record['reason']}",
        "spl": f"{branch.value:.3f}",
        "regret_spl": f"{cost.spl:.3f}",
        "remaining_m": f"{branch.remaining_m:.1f}",
        "regret_m": f"{cost.remaining_m:.1f}",
        "decisions": len(branch.record["decisions"]),
        "path_m": f"{branch.record['metrics']['path_m']:.1f}",
        "contacts": branch.record["metrics"]["contacts"],
        "has_view": has_view,
    }


def _views(branches: Sequence[Branch]) -> dict[int, Any]:
    """The views that fit on a page under 20 MB, the taken call's first, then in the order of the page."""
    kept, size = {}, 0
    for index in sorted(range(len(branches)), key=lambda index: not branches[index].taken):
        view = branches[index].record["view"]
        size += view_bytes(view)
        if size > MOST_VIEW_BYTES:
            break
        kept[index] = view
    return kept


def _picture(record: Record, at: int) -> str:
    """The newest picture at decision `at`, as base64; "" without one."""
    view = record["view"]
    seen = [picture for picture in view["pictures"] if picture["t"] <= view["decisions"][at - 1]["t"]]
    return seen[-1]["jpeg"] if seen else ""


def _colour(branch: Branch) -> str:
    return OUTCOMES[outcome_of(branch.record)]


def _calls(branch: Branch) -> list[str]:
    return [toolset.call_line(made["tool"], made["arguments"]) for made in branch.record["decisions"]]


def _tree(branches: Sequence[Branch], at: int) -> str:
    """The decisions of every branch from left to right, the best branch on top; a figure as JSON."""
    figure = go.Figure()
    middle = (len(branches) - 1) / 2
    for row, branch in enumerate(branches):
        calls = _calls(branch)
        steps = list(range(at, len(calls) + 1))
        figure.add_scatter(
            x=[at - 0.7, *steps],
            y=[middle, *[row] * len(steps)],
            mode="lines+markers",
            line={"color": _colour(branch), "width": 3 if branch.taken else 1},
            marker={"size": [0, *[9 if branch.taken else 6] * len(steps)]},
            text=["", *(f"{step}: {calls[step - 1]}" for step in steps)],
            hoverinfo="text",
        )
    trunk = _calls(branches[0])[: at - 1]
    figure.add_scatter(
        x=[*range(1, at), at - 0.7],
        y=[middle] * at,
        mode="lines+markers",
        line={"color": TRUNK_COLOUR, "width": 3},
        marker={"size": [9] * (at - 1) + [0]},
        text=[*(f"{step}: {call}" for step, call in enumerate(trunk, 1)), ""],
        hoverinfo="text",
    )
    figure.update_layout(
        **_LAYOUT,
        height=90 + ROW_HEIGHT_PX * len(branches),
        margin={"l": 8, "r": 8, "t": 8, "b": 40},
        xaxis={"title": {"text": "decision"}, "zeroline": False, "dtick": 5, "tick0": 0},
        yaxis={
            "tickvals": list(range(len(branches))),
            "ticktext": [f"<b>{b.text}</b>" if b.taken else b.text for b in branches],
            "autorange": "reversed",
            "automargin": True,
            "zeroline": False,
            "showgrid": False,
        },
    )
    return str(figure.to_json())


def _paths(branches: Sequence[Branch], taken: Branch, at: int) -> str:
    """The branches' paths from above, coloured by outcome, behind the way they share; a figure as JSON."""
    figure = go.Figure()
    forked_s = taken.record["decisions"][at - 1]["time_s"]
    for branch in reversed(branches):  # the best on top
        after = [row for row in branch.record["track"] if row[0] >= forked_s]
        figure.add_scatter(
            x=[-row[2] for row in after],
            y=[row[1] for row in after],
            mode="lines",
            line={"color": _colour(branch), "width": 3 if branch.taken else 1},
            name=branch.text,
            text=[f"{branch.text}: {outcome_of(branch.record)}"] * len(after),
            hoverinfo="text",
        )
    shared = [row for row in taken.record["track"] if row[0] <= forked_s]
    north, west = taken.record["decisions"][at - 1]["position"][:2]
    figure.add_scatter(
        x=[*(-row[2] for row in shared), -west],
        y=[*(row[1] for row in shared), north],
        mode="lines+markers",
        line={"color": TRUNK_COLOUR, "width": 3},
        marker={"size": [0] * len(shared) + [10], "symbol": "diamond"},
        hoverinfo="skip",
    )
    figure.update_layout(
        **{**_LAYOUT, "plot_bgcolor": GROUND},
        margin={"l": 40, "r": 8, "t": 8, "b": 36},
        shapes=taken.record["view"]["shapes"],
        xaxis={"title": {"text": "east, m"}, "zeroline": False},
        yaxis={"title": {"text": "north, m"}, "scaleanchor": "x", "zeroline": False},
    )
    return str(figure.to_json())
