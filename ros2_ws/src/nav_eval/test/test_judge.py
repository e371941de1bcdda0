"""The judge finds nothing in a good flight, and finds each kind of breach where one was planted."""

from __future__ import annotations

import json
import math
import time as wall
from pathlib import Path

import pytest

from nav_common import topics
from nav_common.data import GateMode, NavigateState, Twist
from nav_common.frames import Vector
from nav_eval import judge
from nav_eval.__main__ import main
from nav_eval.testing.synthetic import START_S, Row, Script, flight, write
from nav_eval.testing.synthetic import command as new_command


def rules(path: Path) -> set[str]:
    return {breach.rule for breach in judge.check(path).breaches}


def command(rows: list[Row], t: float) -> Row:
    """The first command at or after `t`."""
    return next(row for row in rows if row.topic is topics.COMMAND and row.time_s >= START_S + t)


def decision(rows: list[Row], step: int) -> Row:
    return next(row for row in rows if row.topic is topics.DECISION and row.data.step == step)


def odometry(rows: list[Row], start: float, end: float) -> list[Row]:
    return [r for r in rows if r.topic is topics.ODOM and START_S + start <= r.time_s <= START_S + end]


def test_a_good_flight_has_no_breach(tmp_path: Path) -> None:
    report = judge.check(write(tmp_path / "good", flight()))
    assert report.breaches == []
    assert (report.goals, report.decisions, report.notes) == (1, 3, [])
    assert report.hover_violations == 0


def test_a_decision_shorter_than_the_slack_is_judged_by_the_command_before_it(tmp_path: Path) -> None:
    def quick(script: Script) -> None:
        script.asks = ((1.97, 1.99), (6.97, 6.99), (11.97, 11.99))
        script.motions = ((2.0, 4.7), (7.0, 9.7))

    assert judge.check(write(tmp_path / "good", flight(quick))).breaches == []
    rows = flight(quick)
    asked_before_hover(rows)
    assert judge.check(write(tmp_path / "moving", rows)).hover_violations == 1


def accepted_but_moving(rows: list[Row]) -> None:
    command(rows, 1.5).change(twist=Twist.body(1.0))


def accepted_without_hover(rows: list[Row]) -> None:
    drop_commands(rows, 0.9, 1.9)


def moving_command_while_thinking(rows: list[Row]) -> None:
    command(rows, 7.3).change(twist=Twist.body(yaw_rate_rad_s=0.4))


def asked_before_hover(rows: list[Row]) -> None:
    for t in (6.9, 7.0):
        command(rows, t).change(twist=Twist.body(2.0))


def hover_stream_stops_while_thinking(rows: list[Row]) -> None:
    decision(rows, 2).change(ask_stamp_s=START_S + 6.5)
    drop_commands(rows, 6.6, 7.4)
    for sequence, row in enumerate((r for r in rows if r.topic is topics.COMMAND), 1):
        row.change(sequence=sequence)  # none was sent, rather than missed by the recorder


def drop_commands(rows: list[Row], start: float, end: float) -> None:
    rows[:] = [
        r for r in rows if not (r.topic is topics.COMMAND and START_S + start < r.time_s < START_S + end)
    ]


def decision_says_not_hovering(rows: list[Row]) -> None:
    decision(rows, 2).change(hovering=False)


def drifting_while_thinking(rows: list[Row]) -> None:
    for row in odometry(rows, 7.2, 7.4):
        row.change(velocity=Vector(0.0, 0.8, 0.0))


def picture_before_the_end_of_motion(rows: list[Row]) -> None:
    decision(rows, 2).change(frame_stamp_s=START_S + 5.0, barrier_stamp_s=START_S + 4.9)


def picture_before_the_barrier(rows: list[Row]) -> None:
    decision(rows, 2).change(frame_stamp_s=START_S + 5.6)


def no_picture(rows: list[Row]) -> None:
    decision(rows, 1).change(frame_stamp_s=0.0)


def speed_up(rows: list[Row], start: float) -> None:
    for row in odometry(rows, start, start + 0.6):
        row.change(velocity=Vector(2.0 * (row.time_s - START_S - start) + 0.3, 0.0, 0.0))


def wrong_epoch_executed(rows: list[Row]) -> None:
    rows.append(new_command(13.1, 900, 2.0, epoch=2))
    speed_up(rows, 13.2)


def stale_command_executed(rows: list[Row]) -> None:
    rows.append(new_command(10.0, 900, 2.0, sent_s=13.1))
    speed_up(rows, 13.2)


def nan_command_executed(rows: list[Row]) -> None:
    rows.append(new_command(13.1, 900, math.nan))
    speed_up(rows, 13.2)


def moves_by_itself(rows: list[Row]) -> None:
    speed_up(rows, 13.2)


def gate_stays_open(rows: list[Row]) -> None:
    for row in rows:
        if row.topic is topics.STATE:
            row.change(gate_mode=GateMode.ACTIVE)


def commands_out_of_order(rows: list[Row]) -> None:
    command(rows, 3.0).change(sequence=1)


def pictures_out_of_order(rows: list[Row]) -> None:
    picture = next(r for r in rows if r.topic is topics.FRONT_IMAGE and r.time_s > START_S + 3)
    picture.change(stamp_s=START_S)


def epoch_falls(rows: list[Row]) -> None:
    for row in rows:
        if row.topic is topics.STATE and row.time_s > START_S + 13.5:
            row.change(epoch=1)


def decision_left_out(rows: list[Row]) -> None:
    decision(rows, 3).change(step=5)


def command_after_the_end(rows: list[Row]) -> None:
    rows.append(new_command(13.3, 900, 1.0))


def decision_after_the_end(rows: list[Row]) -> None:
    ended = next(r for r in rows if r.topic is topics.GOAL_STATE and r.data.state is NavigateState.ENDED)
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
        (picture_gap, "gap", "no pictures for"),
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

    def coasts(script: Script) -> None:
        slow = script.speed_m_s
        script.speed_m_s = lambda t: 2.0 if 9.0 <= t < 13.5 else slow(t)  # type: ignore[method-assign]

    report = judge.check(write(tmp_path / "coasting", flight(coasts)))
    assert any("still moves" in b.message and b.rule == "motion-without-command" for b in report.breaches), (
        report.text()
    )


def test_refused_commands_that_move_nothing_are_no_breach(tmp_path: Path) -> None:
    """What matters is what the gate executes; that somebody sent an old command is not the vehicle's fault."""
    rows = flight()
    for t, epoch, stamp in ((5.9, 2, 5.9), (6.1, 3, 3.0)):
        rows.append(new_command(stamp, 900, 2.0, epoch=epoch, sent_s=t))
    assert judge.check(write(tmp_path / "refused", rows)).breaches == []


def test_take_off_and_contacts_explain_motion(tmp_path: Path) -> None:
    rows = flight()
    speed_up(rows, 13.2)
    for row in rows:
        if row.topic is topics.STATE and row.time_s > START_S + 13.1:
            row.change(collision_count=1)
    assert judge.check(write(tmp_path / "bumped", rows)).breaches == []


def test_clocks_of_two_machines_may_differ(tmp_path: Path) -> None:
    """The agent's clock an hour ahead of the edge's changes no judgement."""
    rows = flight()
    for row in rows:
        if row.topic is topics.DECISION:
            row.change(stamp_s=row.data.stamp_s + 3600.0, ask_stamp_s=row.data.ask_stamp_s + 3600.0)
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


def test_a_recording_in_which_nothing_can_be_judged_is_no_good_flight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row for row in flight() if row.topic is topics.ODOM]
    report = judge.check(write(tmp_path / "odometry_only", rows))
    assert not report.breaches
    assert report.nothing_judged
    assert "motion-without-command (no commands recorded)" in report.notes
    assert main(["check", str(tmp_path / "odometry_only")]) == 2
    assert "no safety rule could be judged" in capsys.readouterr().out


def test_what_could_not_be_judged_is_named_beside_the_verdict(tmp_path: Path) -> None:
    report = judge.check(write(tmp_path / "bag", [row for row in flight() if row.topic is not topics.STATE]))
    assert not report.nothing_judged
    assert report.notes == ["gate-open (no states recorded)"]
    assert "no breach, 8 of 9 rules judged" in report.text()


def test_a_recorder_that_had_to_wait_is_no_breach(tmp_path: Path) -> None:
    """What counts is when things were sent and measured, not when the recorder got them."""
    rows = flight()
    for row in rows:
        for start in (6.9, 11.0):  # a second and a half, while thinking and in between
            if START_S + start < row.time_s < START_S + start + 1.45 and row.topic not in (
                topics.DECISION,
                topics.GOAL_STATE,
            ):
                row.time_s = START_S + start + 1.45 + (row.time_s - START_S - start) * 1e-3
    report = judge.check(write(tmp_path / "starved", rows))
    assert report.breaches == [], report.text()


def test_commands_that_the_recorder_missed_are_no_gap(tmp_path: Path) -> None:
    """Commands are best effort: the sequence tells that they were sent."""
    rows = flight()
    decision(rows, 2).change(ask_stamp_s=START_S + 6.5)
    drop_commands(rows, 6.6, 7.4)
    assert judge.check(write(tmp_path / "missed", rows)).breaches == []


def test_ten_thousand_messages_take_under_ten_seconds(tmp_path: Path) -> None:
    rows = flight(lambda script: setattr(script, "end_s", 340.0))
    assert len(rows) > 10_000
    bag = write(tmp_path / "long", rows)
    start = wall.monotonic()
    judge.check(bag)
    assert wall.monotonic() - start < 10.0
