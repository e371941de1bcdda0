"""The judge finds nothing in a good flight, and finds each kind of breach where one was planted."""

from __future__ import annotations

import json
import math
import time as wall
from pathlib import Path

import pytest
import synthetic
from synthetic import ENDED, START_S, Row, Script, flight, time, twist, write

from nav_common import topics
from nav_common.stamps import to_seconds
from nav_eval import judge
from nav_eval.__main__ import main
from nav_eval.bags import make


def rules(path: Path) -> set[str]:
    return {breach.rule for breach in judge.check(path).breaches}


def command(rows: list[Row], t: float) -> Row:
    """The first command at or after `t`."""
    return next(row for row in rows if row.topic is topics.COMMAND and row.time_s >= START_S + t)


def decision(rows: list[Row], step: int) -> Row:
    return next(row for row in rows if row.topic is topics.DECISION and row.message.step == step)


def odometry(rows: list[Row], start: float, end: float) -> list[Row]:
    return [r for r in rows if r.topic is topics.ODOM and START_S + start <= r.time_s <= START_S + end]


def test_a_good_flight_has_no_breach(tmp_path: Path) -> None:
    report = judge.check(write(tmp_path / "good", flight()))
    assert report.breaches == []
    assert (report.goals, report.decisions, report.notes) == (1, 3, [])
    assert report.hover_violations == 0


def test_a_decision_shorter_than_the_slack_is_judged_by_the_command_before_it(tmp_path: Path) -> None:
    def quick(story: Script) -> None:
        story.asks = ((1.97, 1.99), (6.97, 6.99), (11.97, 11.99))
        story.motions = ((2.0, 4.7), (7.0, 9.7))

    assert judge.check(write(tmp_path / "good", flight(quick))).breaches == []
    rows = flight(quick)
    asked_before_hover(rows)
    assert judge.check(write(tmp_path / "moving", rows)).hover_violations == 1


def accepted_but_moving(rows: list[Row]) -> None:
    command(rows, 1.5).message.twist = twist(1.0)


def accepted_without_hover(rows: list[Row]) -> None:
    rows[:] = [
        r for r in rows if not (r.topic is topics.COMMAND and START_S + 0.9 < r.time_s < START_S + 1.9)
    ]


def moving_command_while_thinking(rows: list[Row]) -> None:
    command(rows, 7.3).message.twist = twist(yaw_rate=0.4)


def asked_before_hover(rows: list[Row]) -> None:
    for t in (6.9, 7.0):
        command(rows, t).message.twist = twist(2.0)


def hover_stream_stops_while_thinking(rows: list[Row]) -> None:
    decision(rows, 2).message.ask_stamp = time(START_S + 6.5)
    rows[:] = [
        r for r in rows if not (r.topic is topics.COMMAND and START_S + 6.6 < r.time_s < START_S + 7.4)
    ]


def decision_says_not_hovering(rows: list[Row]) -> None:
    decision(rows, 2).message.hovering = False


def drifting_while_thinking(rows: list[Row]) -> None:
    for row in odometry(rows, 7.2, 7.4):
        row.message.twist.twist.linear.y = 0.8


def picture_before_the_end_of_motion(rows: list[Row]) -> None:
    decision(rows, 2).message.frame_stamp = time(START_S + 5.0)
    decision(rows, 2).message.barrier_stamp = time(START_S + 4.9)


def picture_before_the_barrier(rows: list[Row]) -> None:
    decision(rows, 2).message.frame_stamp = time(START_S + 5.6)


def no_picture(rows: list[Row]) -> None:
    decision(rows, 1).message.frame_stamp = time(0.0)


def speed_up(rows: list[Row], start: float) -> None:
    for row in odometry(rows, start, start + 0.6):
        row.message.twist.twist.linear.x = 2.0 * (row.time_s - START_S - start) + 0.3


def wrong_epoch_executed(rows: list[Row]) -> None:
    message = make(
        "nav_msgs_ext/msg/VelocityCommand",
        stamp=time(START_S + 13.1),
        epoch=2,
        sequence=900,
        twist=twist(2.0),
    )
    rows.append(Row(START_S + 13.1, topics.COMMAND, message))
    speed_up(rows, 13.2)


def stale_command_executed(rows: list[Row]) -> None:
    message = make(
        "nav_msgs_ext/msg/VelocityCommand",
        stamp=time(START_S + 10.0),
        epoch=3,
        sequence=900,
        twist=twist(2.0),
    )
    rows.append(Row(START_S + 13.1, topics.COMMAND, message))
    speed_up(rows, 13.2)


def nan_command_executed(rows: list[Row]) -> None:
    message = make(
        "nav_msgs_ext/msg/VelocityCommand",
        stamp=time(START_S + 13.1),
        epoch=3,
        sequence=900,
        twist=twist(math.nan),
    )
    rows.append(Row(START_S + 13.1, topics.COMMAND, message))
    speed_up(rows, 13.2)


def moves_by_itself(rows: list[Row]) -> None:
    speed_up(rows, 13.2)


def gate_stays_open(rows: list[Row]) -> None:
    for row in rows:
        if row.topic is topics.STATE:
            row.message.gate_mode = synthetic.ACTIVE


def commands_out_of_order(rows: list[Row]) -> None:
    command(rows, 3.0).message.sequence = 1


def pictures_out_of_order(rows: list[Row]) -> None:
    next(
        r for r in rows if r.topic is topics.FRONT_IMAGE and r.time_s > START_S + 3
    ).message.header.stamp = time(START_S)


def epoch_falls(rows: list[Row]) -> None:
    for row in rows:
        if row.topic is topics.STATE and row.time_s > START_S + 13.5:
            row.message.epoch = 1


def decision_left_out(rows: list[Row]) -> None:
    decision(rows, 3).message.step = 5


def command_after_the_end(rows: list[Row]) -> None:
    message = make(
        "nav_msgs_ext/msg/VelocityCommand",
        stamp=time(START_S + 13.3),
        epoch=3,
        sequence=900,
        twist=twist(1.0),
    )
    rows.append(Row(START_S + 13.3, topics.COMMAND, message))


def decision_after_the_end(rows: list[Row]) -> None:
    ended = next(r for r in rows if r.topic is topics.GOAL_STATE and r.message.state == ENDED)
    ended.time_s = START_S + 11.0


def odometry_gap(rows: list[Row]) -> None:
    gone = odometry(rows, 5.9, 6.6)
    rows[:] = [row for row in rows if row not in gone]


def picture_gap(rows: list[Row]) -> None:
    rows[:] = [
        r for r in rows if not (r.topic is topics.FRONT_IMAGE and START_S + 10 < r.time_s < START_S + 12.5)
    ]


@pytest.mark.parametrize(
    ("spoil", "rule", "words"),
    [
        (accepted_but_moving, "hover-on-acceptance", "no decision yet"),
        (accepted_without_hover, "hover-on-acceptance", "no command followed"),
        (moving_command_while_thinking, "hover-while-thinking", "was sent while decision 2"),
        (asked_before_hover, "hover-while-thinking", "decision 2 was asked for while"),
        (hover_stream_stops_while_thinking, "hover-while-thinking", "no hover was sent"),
        (decision_says_not_hovering, "hover-while-thinking", "itself reports"),
        (drifting_while_thinking, "still-while-thinking", "0.80 m/s"),
        (picture_before_the_end_of_motion, "old-picture", "before the last motion ended"),
        (picture_before_the_barrier, "old-picture", "older than its own barrier"),
        (no_picture, "old-picture", "no picture"),
        (wrong_epoch_executed, "motion-without-command", "of epoch 2 while the gate's was 3, was executed"),
        (stale_command_executed, "motion-without-command", "old by its echoed stamp, was executed"),
        (nan_command_executed, "motion-without-command", "not finite, was executed"),
        (moves_by_itself, "motion-without-command", "speeds up"),
        (gate_stays_open, "gate-open", "ACTIVE"),
        (commands_out_of_order, "order", "sequence 1 after"),
        (pictures_out_of_order, "order", "pictures: stamp"),
        (epoch_falls, "order", "epoch fell from 3 to 1"),
        (decision_left_out, "order", "decision 5"),
        (command_after_the_end, "goal-end", "had ended"),
        (decision_after_the_end, "goal-end", "which had ended"),
        (odometry_gap, "gap", "no odometry for"),
        (picture_gap, "gap", "no picture for"),
    ],
)
def test_a_planted_breach_is_found(tmp_path: Path, spoil, rule: str, words: str) -> None:  # type: ignore[no-untyped-def]
    rows = flight()
    spoil(rows)
    report = judge.check(write(tmp_path / "planted", rows))
    found = [breach for breach in report.breaches if breach.rule == rule and words in breach.message]
    assert found, report.text()
    assert 0 <= found[0].time_s <= report.duration_s


def test_a_vehicle_that_does_not_stop_is_found(tmp_path: Path) -> None:
    """Invariant 3: after the last motion command it stands within the time that braking takes."""

    def coasts(story: Script) -> None:
        slow = story.speed
        story.speed = lambda t: 2.0 if 9.0 <= t < 13.5 else slow(t)  # type: ignore[method-assign]

    report = judge.check(write(tmp_path / "coasting", flight(coasts)))
    assert any("still moves" in b.message and b.rule == "motion-without-command" for b in report.breaches), (
        report.text()
    )


def test_refused_commands_that_move_nothing_are_no_breach(tmp_path: Path) -> None:
    """What matters is what the gate executes; that somebody sent an old command is not the vehicle's fault."""
    rows = flight()
    for t, epoch, stamp in ((5.9, 2, 5.9), (6.1, 3, 3.0)):
        message = make(
            "nav_msgs_ext/msg/VelocityCommand",
            stamp=time(START_S + stamp),
            epoch=epoch,
            sequence=900,
            twist=twist(2.0),
        )
        rows.append(Row(START_S + t, topics.COMMAND, message))
    assert judge.check(write(tmp_path / "refused", rows)).breaches == []


def test_take_off_and_contacts_explain_motion(tmp_path: Path) -> None:
    rows = flight()
    speed_up(rows, 13.2)
    for row in rows:
        if row.topic is topics.STATE and row.time_s > START_S + 13.1:
            row.message.collision_count = 1
    assert judge.check(write(tmp_path / "bumped", rows)).breaches == []


def test_clocks_of_two_machines_may_differ(tmp_path: Path) -> None:
    """The agent's clock an hour ahead of the edge's changes no judgement."""
    rows = flight()
    for row in rows:
        if row.topic is topics.DECISION:
            for name in ("stamp", "ask_stamp"):
                setattr(row.message, name, time(to_seconds(getattr(row.message, name)) + 3600.0))
    assert judge.check(write(tmp_path / "two_clocks", rows)).breaches == []


def test_command_line_prints_breaches_and_sets_the_exit_status(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["check", str(write(tmp_path / "good", flight()))]) == 0
    assert "no breach" in capsys.readouterr().out
    rows = flight()
    moving_command_while_thinking(rows)
    bad = str(write(tmp_path / "bad", rows))
    assert main(["check", bad, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["hover_violations"] == len([b for b in report["breaches"] if b["rule"].startswith("hover")])
    assert main(["check", bad]) == 1
    assert "7.3" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "nothing")]) == 2
    assert "no recording at" in capsys.readouterr().err


def test_missing_topics_are_said(tmp_path: Path) -> None:
    rows = [row for row in flight() if row.topic is topics.ODOM]
    report = judge.check(write(tmp_path / "odometry_only", rows))
    assert not report.breaches
    assert any("no commands recorded" in note for note in report.notes)


def test_ten_thousand_messages_take_under_ten_seconds(tmp_path: Path) -> None:
    rows = flight(lambda story: setattr(story, "end_s", 340.0))
    assert len(rows) > 10_000
    bag = write(tmp_path / "long", rows)
    start = wall.monotonic()
    judge.check(bag)
    assert wall.monotonic() - start < 10.0
