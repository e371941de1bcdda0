"""What crosses: the shipped file is good, and each kind of nonsense is named."""

import pytest
import yaml

from nav_common import topics
from zenoh_link import settings
from zenoh_link.__main__ import main
from zenoh_link.errors import SettingsError
from zenoh_link.settings import Direction, Side

SHIPPED = settings.DEFAULT_FILE.read_text()


def parse_changed(change):
    values = yaml.safe_load(SHIPPED)
    change(values)
    return settings.parse(yaml.safe_dump(values))


def test_the_shipped_file_lets_the_vehicles_topics_cross_and_only_one_way_to_the_gate():
    loaded = settings.load()
    to_edge = {route.topic.name for route in loaded.of(Direction.TO_EDGE)}
    assert to_edge == {
        topics.COMMAND.name,
        topics.EMERGENCY_STOP.name,
        topics.FRAME_WANTED.name,
        topics.WATCH_EVENT.name,
    }
    to_server = {route.key for route in loaded.sent_by(Side.EDGE)}
    assert {"drone/odom", "drone/state", "drone/camera/front/image/compressed", "diagnostics"} <= to_server
    assert "drone/camera/front/depth/compressedDepth" in to_server
    assert set(loaded.services) == {"takeoff", "land", "reset", "enable_api_control"}


def test_another_vehicle_has_other_keys():
    keys = {route.key for route in settings.load(vehicle="/drone2").routes}
    assert "drone2/command" in keys
    assert not any(key.startswith("drone/") for key in keys)
    with pytest.raises(SettingsError, match="vehicle is 'drone 2'"):
        settings.load(vehicle="drone 2")


def test_commands_and_pictures_travel_apart():
    by_name = {route.topic.name: route for route in settings.load().routes}
    assert not by_name[topics.COMMAND.name].is_bulk
    assert by_name[topics.FRONT_IMAGE.name].is_bulk


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["to_edge"][0].update(topic="comand"), "'comand' is not known; known are"),
        (lambda v: v["to_edge"].append(v["to_server"][3]), "odom stands in to_server and in to_edge"),
        (lambda v: v["to_edge"].append(v["to_edge"][0]), "command stands there twice"),
        (lambda v: v["to_edge"][0].update(priority="high"), "priority is 'high', must be one of real_time"),
        (lambda v: v["to_edge"][0].update(rate_hz=0), "rate_hz is 0, must be a number from 0.01 to 200"),
        (lambda v: v["to_edge"][0].update(rate_hz=float("nan")), "rate_hz is nan"),
        (lambda v: v["to_edge"][0].update(max_bytes=True), "max_bytes is True"),
        (lambda v: v["to_edge"][0].pop("max_bytes"), "to_edge: command: max_bytes is missing"),
        (lambda v: v["to_edge"][0].update(colour=1), "to_edge: command: colour is not known"),
        (lambda v: v["to_server"][0].update(priority="real_time"), "pictures may not delay commands"),
        (lambda v: v["to_edge"][0].update(newest=True), "newest is for sensors"),
        (
            lambda v: v["to_edge"].append({**v["to_edge"][1], "topic": "link_up"}),
            "link_up is said by each side",
        ),
        (lambda v: v["to_edge"].append("command"), "must hold 'name: value' entries"),
        (lambda v: v.update(vehicle="drone"), "vehicle is 'drone'"),
        (lambda v: v.update(speed=3), "speed is not known"),
        (lambda v: v.pop("machines"), "machines is missing"),
        (lambda v: v["machines"].update(edge="server"), "a name occurs twice"),
        (lambda v: v["machines"].update(edge="../ca"), "machine's name is '../ca'"),
        (lambda v: v["services"].append("arm_cmd_vel"), "services has 'arm_cmd_vel', known are"),
        (
            lambda v: v["pictures"].update(jpeg_quality=[85, 40]),
            r"is \[85, 40\], must be \[lowest, highest\]",
        ),
        (lambda v: v["pictures"].update(rate_hz=[2]), "rate_hz is"),
        (lambda v: v["pictures"].update(preview_hz=0), "preview_hz is 0, must be a number from 0.01"),
        (lambda v: v["to_edge"].pop(), "requested_by is 'camera/front/frame_wanted', must be a topic"),
        (lambda v: v["to_server"][0].update(requested_by="odom"), "requested_by is 'odom', must be a topic"),
        (lambda v: v["to_server"][3].update(requested_by="command"), "of which only the newest counts"),
        (lambda v: v.update(plain_peer="yes"), "plain_peer is 'yes', must be a true or false"),
    ],
)
def test_nonsense_is_named(change, message):
    with pytest.raises(SettingsError, match=message):
        parse_changed(change)


@pytest.mark.parametrize("text", ["", "[1, 2", "just text", "- a\n- b"])
def test_what_is_no_settings_file_is_refused(text):
    with pytest.raises(SettingsError):
        settings.parse(text)


def test_a_file_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["settings", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml cannot be read" in capsys.readouterr().err


def test_the_command_lists_what_crosses(capsys):
    assert main(["settings"]) == 0
    assert "drone/command" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tls/gpu.example.org:7447", "tls/gpu.example.org:7447"),
        ("tls/gpu.example.org", "tls/gpu.example.org:7447"),
        ("tls/[::]:1234", "tls/[::]:1234"),
        ("tcp/127.0.0.1:1", "tcp/127.0.0.1:1"),
        ("tcp/localhost:1", "tcp/localhost:1"),
    ],
)
def test_addresses(text, shown):
    assert str(settings.parse_address(text)) == shown


@pytest.mark.parametrize(
    "text",
    ["", "host:7447", "tls/", "tls/host:0", "tls/host:70000", "quic/host:1", "tls/a b:1", "tls/h?x=1:1"],
)
def test_addresses_that_make_no_sense_are_refused(text):
    with pytest.raises(SettingsError, match="address is"):
        settings.parse_address(text)


def test_certificates_from_the_command_line(tmp_path, capsys):
    folder = tmp_path / "new"
    assert main(["certificates", "make", str(folder), "--host", "gpu.example.org", "--machine", "edge"]) == 0
    assert (folder / "edge.key").exists()
    assert main(["certificates", "show", str(folder)]) == 0
    assert "edge.pem" in capsys.readouterr().out
    assert main(["certificates", "make", str(folder)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["certificates", "make", str(folder), "--days", "0"]) == 2
    assert main(["certificates", "show", str(tmp_path / "nothing")]) == 2
