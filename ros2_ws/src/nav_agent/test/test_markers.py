"""The drawing of a flight holds the way, the decisions where they were taken and each goal's end, within a size."""

import json
import math

from nav_agent.markers import MOST_PLACES, MOST_POINTS, FlightMarkers
from nav_common.conversions import decode, encode
from nav_common.data import (
    Decision,
    GenerateStatus,
    GoalState,
    Marker,
    MarkerAction,
    MarkerArray,
    MarkerType,
    NavigateState,
    Odometry,
    Outcome,
)
from nav_common.frames import Quaternion, Vector

NORTH = Quaternion(math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5))


def at(east: float, north: float = 0.0, orientation: Quaternion = NORTH) -> Odometry:
    return Odometry(1.0, Vector(east, north, 5.0), orientation)


def decision(step: int, tool: str = "move_forward", **arguments: object) -> Decision:
    return Decision(0.0, 0.0, goal_id="a", step=step, tool=tool, arguments=json.dumps(arguments))


def ended(outcome: Outcome = Outcome.FINISHED, reason: str = "reached") -> GoalState:
    return GoalState(0.0, "a", "fly to the red beacon", NavigateState.ENDED, 3, outcome, reason)


def drawn(markers: FlightMarkers) -> dict[str, list[Marker]]:
    """By namespace; everything of before is taken away first."""
    drawing = markers.draw(7.0)
    assert drawing is not None
    first, *rest = drawing.markers
    assert (first.action, first.ns) == (MarkerAction.DELETEALL, "")  # of the whole topic
    assert len({(marker.ns, marker.id) for marker in rest}) == len(rest)
    found: dict[str, list[Marker]] = {}
    for marker in rest:
        assert (marker.stamp_s, marker.frame_id, marker.action) == (7.0, "odom", MarkerAction.ADD)
        found.setdefault(marker.ns, []).append(marker)
    return found


def test_a_flight_is_drawn_as_a_way_with_its_decisions_and_its_end() -> None:
    markers = FlightMarkers()
    markers.take_odometry(at(0.0))
    markers.take_decision(decision(1, "fly_towards", u=450, v=550, distance_m=8))
    for centimetres in range(0, 800, 5):
        markers.take_odometry(at(centimetres / 100))
    markers.take_decision(decision(2, "finish", reason="reached"))
    markers.take_goal_state(ended())
    found = drawn(markers)
    (way,) = found["way"]
    assert way.type is MarkerType.LINE_STRIP
    assert (way.points[0], way.points[-1]) == (Vector(0.0, 0.0, 5.0), Vector(7.95, 0.0, 5.0))
    arrows = found["decisions"]
    assert [arrow.type for arrow in arrows] == [MarkerType.ARROW] * 2
    assert [arrow.position for arrow in arrows] == [way.points[0], way.points[-1]]
    assert all(arrow.orientation == NORTH for arrow in arrows)
    words = found["decisions: words"]
    assert [text.type for text in words] == [MarkerType.TEXT_VIEW_FACING] * 2
    assert [text.text for text in words] == [
        "1: fly_towards(u=450, v=550, distance_m=8)",
        "2: finish(reason=reached)",
    ]
    (ball,), (end,) = found["ends"], found["ends: words"]
    assert (ball.type, ball.position) == (MarkerType.SPHERE, way.points[-1])
    assert end.text == "fly to the red beacon: reached"
    # One above the other, not one through the other.
    assert end.position.z > words[1].position.z > ball.position.z


def test_what_failed_has_another_colour_and_says_what() -> None:
    markers = FlightMarkers()
    markers.take_odometry(at(0.0))
    markers.take_decision(decision(1))
    markers.take_decision(Decision(0.0, 0.0, step=2, status=GenerateStatus.DEADLINE))
    markers.take_goal_state(ended(Outcome.STUCK, ""))
    found = drawn(markers)
    chosen, failed = found["decisions"]
    assert chosen.color != failed.color == found["ends"][0].color
    assert found["decisions: words"][1].text == "2: deadline"
    assert found["ends: words"][0].text == "fly to the red beacon: stuck"


def test_nothing_is_drawn_twice_and_nothing_of_goals_that_go_on_or_were_rejected() -> None:
    markers = FlightMarkers()
    assert markers.draw(0.0) is None
    markers.take_odometry(at(0.0))
    assert markers.draw(0.0) is not None
    markers.take_odometry(at(0.1))
    markers.take_goal_state(GoalState(0.0, "a", state=NavigateState.MOVING))
    markers.take_goal_state(GoalState(0.0, "", state=NavigateState.ENDED, outcome=Outcome.ERROR))
    assert markers.draw(0.0) is None
    markers.take_odometry(at(0.3))
    assert markers.draw(0.0) is not None


def test_before_the_first_odometry_a_decision_is_drawn_at_the_start() -> None:
    markers = FlightMarkers()
    markers.take_decision(decision(1))
    assert drawn(markers)["decisions"][0].position == Vector(0.0, 0.0, 0.0)


def test_the_drawing_of_a_long_flight_stays_small_and_is_a_message() -> None:
    markers = FlightMarkers()
    for tick in range(3600 * 20):
        markers.take_odometry(at(tick * 0.1, 30.0 * math.sin(tick)))
        if tick % 20 == 0:
            markers.take_decision(decision(tick, "fly_towards", u=450, v=550, distance_m="8" * 200))
    drawing = markers.draw(1.0)
    assert drawing is not None
    assert len(drawing.markers) == 2 + 2 * MOST_PLACES
    way = next(marker for marker in drawing.markers if marker.ns == "way")
    assert MOST_POINTS / 2 <= len(way.points) <= MOST_POINTS
    words = [marker.text for marker in drawing.markers if marker.text]
    assert all(len(text) <= 80 for text in words)
    assert words[-1].startswith("71980: ")
    payload = encode(drawing)
    assert len(payload) < 64_000  # one datagram of UDP
    assert decode(MarkerArray, payload) == drawing
