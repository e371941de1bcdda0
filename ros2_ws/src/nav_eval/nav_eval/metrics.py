"""The figures of one flown episode, from its track, its decisions and the true map. docs/metrics.md defines each.

World frame of `airsim_sim.world`: north, west, up, m; headings in rad, counter-clockwise from north.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from airsim_bridge.vehicle import CONTACT_GAP_S
from airsim_sim.true_map import NoWayError, Point, TrueMap, length_m
from nav_common.frames import wrap_angle

NEAR_MISS_M = 0.5
"""A clearance below this without a contact is a near miss."""
REVISIT_M, REVISIT_RAD = 1.0, math.radians(30.0)
"""A decision taken this close to the place and heading of an earlier one, with another in between, is a revisit."""
WIDEST_GAP_RAD = math.radians(100.0)
"""Between two headings whose pictures, 90 degrees wide, count as side by side: turns end off by some degrees."""
UNDONE_SHARE = 0.5
"""A turn is undone when the next call turns the other way by at least this share of it."""
FORWARD_TOOLS = ("move_forward", "fly_towards")
TURN_SIGN = {"turn_left": 1.0, "turn_right": -1.0}


@dataclass(frozen=True)
class TrackPoint:
    """Where the drone was at `time_s`: `position` (north, west, up)."""

    time_s: float
    position: tuple[float, float, float]


@dataclass(frozen=True)
class TakenDecision:
    """A tool call with the true pose at which it was decided, at `time_s`."""

    tool: str
    arguments: Mapping[str, int | str]
    position: tuple[float, float, float]
    heading: float
    time_s: float = 0.0


@dataclass(frozen=True)
class Contact:
    """A contact with an object of the world."""

    time_s: float
    object_name: str


@dataclass(frozen=True)
class Coherence:
    """How consistent consecutive decisions are. Shares are of the decisions that could have been inconsistent;
    `score` is 1 less the share of decisions that undo a turn or revisit a pose; None without any."""

    turns: int
    turns_undone: int
    decisions: int
    revisits: int
    goal_changes: int

    @property
    def score(self) -> float | None:
        return (
            1.0 - min(1.0, (self.turns_undone + self.revisits) / self.decisions) if self.decisions else None
        )


@dataclass(frozen=True)
class EpisodeMetrics:
    """The geometric figures of an episode; lengths in m."""

    path_m: float
    shortest_m: float | None
    """None: there is no way to the goal."""
    spl_weight: float | None
    """shortest / max(flown, shortest): what a success counts in SPL."""
    goal_distance_m: float | None
    """None: what was named is absent."""
    nearest_object: str
    """"": there is nothing that could have been named."""
    contacts: int
    near_misses: int
    smallest_clearance_m: float
    ways_chosen: int
    ways_free: int
    coherence: Coherence


def measure(
    true_map: TrueMap,
    goals: Sequence[str],
    goal: str,
    candidates: Sequence[str],
    track: Sequence[TrackPoint],
    decisions: Sequence[TakenDecision],
    contacts: Sequence[Contact],
    within_m: float,
) -> EpisodeMetrics:
    """The figures of an episode.

    Args:
        goals: what was to be reached, in order; the shortest way leads past all of them. Empty: it is absent.
        goal: the one of them that the end of the flight is judged by; "" without.
        candidates: the objects that an instruction could have named, the goal among them.
        track: at least one point; from take-off on.
        within_m: the radius within which a goal counts as reached (for the shortest way).

    Raises:
        ValueError: an empty track.
    """
    if not track:
        raise ValueError("the track is empty: nothing was flown that could be measured")
    places = [point.position for point in track]
    first, last = places[0], places[-1]
    path_m = length_m(places)
    shortest = _shortest(true_map, goals, first[:2], within_m)
    spl_weight = None
    if shortest is not None:
        spl_weight = 1.0 if shortest == 0.0 else shortest / max(path_m, shortest)
    ways = [way for way in (_chosen_way(decision) for decision in decisions) if way is not None]
    merged = merged_contacts(contacts)
    clearances = true_map.clearance(np.array(places), without=[goal] if goal else [])
    return EpisodeMetrics(
        path_m=path_m,
        shortest_m=shortest,
        spl_weight=spl_weight,
        goal_distance_m=true_map.world.object(goal).distance_m(last) if goal else None,
        nearest_object=true_map.nearest_object(last[:2], candidates)[0] if candidates else "",
        contacts=len(merged),
        near_misses=_near_misses(track, clearances, merged),
        smallest_clearance_m=float(clearances.min()),
        ways_chosen=len(ways),
        ways_free=sum(true_map.segment_clearance(*way) > 0.0 for way in ways),
        coherence=coherence(decisions, true_map, candidates),
    )


def looked_all_around(decisions: Sequence[TakenDecision]) -> bool:
    """Whether the front camera had looked in every direction by the last of the decisions: no gap between the headings
    at which decisions were made is wider than its view, or the tool for it was called."""
    if any(decision.tool == "look_around" for decision in decisions[:-1]):
        return True
    headings = sorted(decision.heading % (2 * math.pi) for decision in decisions)
    if not headings:
        return False
    gaps = [after - before for before, after in itertools.pairwise([*headings, headings[0] + 2 * math.pi])]
    return max(gaps) <= WIDEST_GAP_RAD


def merged_contacts(contacts: Sequence[Contact]) -> list[Contact]:
    """Contacts, those less than CONTACT_GAP_S after the one before left out."""
    kept: list[Contact] = []
    before = -math.inf
    for contact in sorted(contacts, key=lambda one: one.time_s):
        if contact.time_s - before >= CONTACT_GAP_S:
            kept.append(contact)
        before = contact.time_s
    return kept


def _shortest(true_map: TrueMap, goals: Sequence[str], start: Point, within_m: float) -> float | None:
    """Length of the shortest way from one goal's surroundings to the next one's; None: there is none, or no goal."""
    if not goals:
        return None
    total = 0.0
    for goal in goals:
        try:
            way = true_map.ways_to(goal, within_m=within_m, without=[goal]).way(start)
        except NoWayError:
            return None
        total += length_m(way)
        start = way[-1]
    return total


def _near_misses(track: Sequence[TrackPoint], clearances: np.ndarray, contacts: Sequence[Contact]) -> int:
    """Spans below NEAR_MISS_M in which nothing was touched."""
    count, span = 0, []
    for point, clearance in zip(track, clearances, strict=True):
        if clearance < NEAR_MISS_M:
            span.append(point.time_s)
            continue
        count += _is_near_miss(span, contacts)
        span = []
    return count + _is_near_miss(span, contacts)


def _is_near_miss(span: Sequence[float], contacts: Sequence[Contact]) -> bool:
    return bool(span) and not any(
        span[0] - CONTACT_GAP_S <= contact.time_s <= span[-1] + CONTACT_GAP_S for contact in contacts
    )


def _chosen_way(decision: TakenDecision) -> tuple[tuple[float, float, float], float, float] | None:
    """(start, heading, length) of the straight way that a call chose; None for a call that chooses none.

    fly_towards chooses a point of the picture: its heading is the one at which the cell's centre lies, with the front
    camera's 90 degrees of view; it stops before what it points at, so only the way up to there is judged (1 m).
    """
    if decision.tool not in FORWARD_TOOLS:
        return None
    heading, length = decision.heading, float(decision.arguments["distance_m"])
    if decision.tool == "fly_towards":
        heading -= math.atan(2.0 * float(decision.arguments["u"]) / 1000.0 - 1.0)
        length = min(length, 1.0)
    return decision.position, heading, length


def coherence(decisions: Sequence[TakenDecision], true_map: TrueMap, candidates: Sequence[str]) -> Coherence:
    """Turns undone, revisits, and changes of the object that consecutive forward motions head for."""
    turns = undone = revisits = 0
    for before, after in itertools.pairwise(decisions):
        sign, back = TURN_SIGN.get(before.tool), TURN_SIGN.get(after.tool)
        if sign is None:
            continue
        turns += 1
        share = (
            float(after.arguments["angle_deg"]) / float(before.arguments["angle_deg"])
            if back is not None
            else 0.0
        )
        undone += back is not None and back != sign and share >= UNDONE_SHARE
    for index, decision in enumerate(decisions):
        revisits += any(_same_pose(decision, earlier) for earlier in decisions[: max(0, index - 1)])
    headed = [_headed_for(decision, true_map, candidates) for decision in decisions]
    headed = [name for name in headed if name]
    changes = sum(a != b for a, b in itertools.pairwise(headed))
    return Coherence(turns, undone, len(decisions), revisits, changes)


def _same_pose(a: TakenDecision, b: TakenDecision) -> bool:
    return (
        math.dist(a.position, b.position) < REVISIT_M and abs(wrap_angle(a.heading - b.heading)) < REVISIT_RAD
    )


def _headed_for(decision: TakenDecision, true_map: TrueMap, candidates: Sequence[str]) -> str:
    """The candidate nearest to the direction of a forward motion, within 30 degrees; "" for none."""
    way = _chosen_way(decision)
    if way is None:
        return ""
    start, heading, _ = way
    best, name = math.radians(30.0), ""
    for candidate in candidates:
        north, west = true_map.world.object(candidate).position[:2]
        off = abs(wrap_angle(math.atan2(west - start[1], north - start[0]) - heading))
        if off < best:
            best, name = off, candidate
    return name
