"""The real node against the real simulator: what it shows and obeys, and what the drone does when things die."""

import math
import re
import signal
import threading
import time

import cv2
import numpy as np
import pytest
import rclpy
from nav_msgs_ext.msg import DroneState
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from std_msgs.msg import Bool

from airsim_bridge.node import AirSimBridge, ros_transport
from airsim_bridge.testing.graph import BridgeProcess, Operator, Simulator, await_, own_domain
from nav_common import cdr, stamps, topics
from nav_common.contract import COMMAND_PERIOD_S, ZERO_VELOCITY_WITHIN_S


@pytest.fixture(scope="module")
def simulator():
    own_domain()
    simulator = Simulator()
    yield simulator
    simulator.stop()


@pytest.fixture(scope="module")
def operator(simulator):
    operator = Operator()
    yield operator
    operator.close()


@pytest.fixture(scope="module")
def bridge(simulator):
    bridge = BridgeProcess(simulator.port)
    yield bridge
    bridge.end()


@pytest.fixture
def airborne(simulator, operator, bridge):
    """The drone hovers, 2 m above its start or where the test before left it."""
    await_(lambda: operator.state and operator.state.connected and operator.odometry)
    if operator.state.landed or not operator.state.api_control:
        operator.take_off()
    operator.await_state(lambda s: s.gate_mode == DroneState.GATE_HOLD and not s.landed)
    return operator


@pytest.fixture
def alone():
    """A simulator and an operator of the test's own, which starts its bridges itself."""
    own_domain()
    simulator, operator = Simulator(), Operator()
    yield simulator, operator
    operator.close()
    simulator.stop()


def test_pictures_camera_info_and_depth_fit_together(operator, bridge):
    await_(lambda: len(operator.images) >= 3 and len(operator.infos) >= 3 and operator.depths)
    image = operator.images[-1]
    picture = cv2.imdecode(np.frombuffer(image.data, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape == (240, 320, 3)
    assert image.header.frame_id == "front_optical"
    info = {stamps.to_seconds(i.header.stamp): i for i in operator.infos}[
        stamps.to_seconds(image.header.stamp)
    ]
    assert (info.width, info.height, info.k[0], info.k[2]) == (320, 240, pytest.approx(160.0), 160.0)
    depth = operator.depths[-1]
    metres = np.frombuffer(depth.data, np.float32).reshape(depth.height, depth.width)
    assert depth.encoding == "32FC1"
    assert metres.min() > 0.0


def test_a_picture_is_at_the_subscriber_soon(operator, bridge):
    operator.latencies_s.clear()
    await_(lambda: len(operator.latencies_s) >= 20)
    # Specified: a median under 60 ms; measured 18 ms on two cores. Room for a machine that does other things.
    assert np.median(operator.latencies_s) < 0.15
    assert min(operator.latencies_s) > 0.0


def test_diagnostics_say_how_late_the_gate_ticks_and_how_it_is(operator, bridge):
    await_(lambda: len(operator.diagnostic("gate tick late ms")) >= 2, 20.0)
    assert all(float(late_ms) >= 0.0 for late_ms in operator.diagnostic("gate tick late ms"))
    assert operator.diagnostics[-1].status[0].hardware_id.startswith("AirSim at 127.0.0.1:")


def test_take_off_arms_climbs_and_hovers(simulator, airborne):
    state = airborne.state
    assert (state.api_control, state.armed, state.landed) == (True, True, False)
    assert state.flying_mode == DroneState.FLYING_AIRBORNE
    assert simulator.simulation.position[2] == pytest.approx(2.1, abs=0.3)
    assert airborne.odometry.pose.pose.position.z == pytest.approx(simulator.simulation.position[2], abs=0.1)


def test_commands_fly_it_and_silence_stops_it(simulator, airborne):
    epoch = airborne.state.epoch
    airborne.stream(2.0, 2.0)
    last = simulator.time_s
    assert simulator.simulation.position[0] > 2.0  # north, where it looks
    assert airborne.odometry.pose.pose.position.y == pytest.approx(simulator.simulation.position[0], abs=0.5)
    airborne.await_state(lambda s: s.gate_mode == DroneState.GATE_HOLD, 5.0)
    first_zero = min(at for at, v in simulator.velocities_since(last) if not any(v))
    assert first_zero - last <= ZERO_VELOCITY_WITHIN_S
    assert simulator.speed() < 0.2
    assert airborne.state.epoch > epoch
    # The epoch of before is dead.
    where = simulator.simulation.position
    airborne.stream(0.5, 2.0, epoch=epoch)
    assert "epoch" in airborne.state.last_refusal
    assert np.linalg.norm(np.subtract(simulator.simulation.position, where)) < 0.1


def test_turning_left_is_counter_clockwise(simulator, airborne):
    before = simulator.simulation.yaw_deg
    airborne.stream(1.0, 0.0, yaw_rate=0.5)
    airborne.await_state(lambda s: s.gate_mode == DroneState.GATE_HOLD, 5.0)
    assert 15.0 < simulator.simulation.yaw_deg - before < 50.0


BAD = {
    "NaN": ({"x": float("nan")}, "not finite"),
    "infinite": ({"x": float("inf")}, "not finite"),
    "old": ({"age_s": 2.0}, "s old"),
    "wrong epoch": ({"epoch_change": -1}, "epoch"),
    "out of order": ({"sequence": 0}, "out of order"),
}


@pytest.mark.parametrize(("change", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_command_moves_nothing_and_is_told(simulator, airborne, change, reason):
    change, x = dict(change), 2.0
    x = change.pop("x", x)
    if "age_s" in change:
        change["stamp_s"] = stamps.to_seconds(airborne.odometry.header.stamp) - change.pop("age_s")
    if "epoch_change" in change:
        change["epoch"] = airborne.state.epoch + change.pop("epoch_change")
    airborne.command()  # a good one, so that there is an order to break
    airborne.await_state(lambda s: s.gate_mode == DroneState.GATE_ACTIVE, 5.0)
    refused, since = airborne.state.commands_refused, simulator.time_s
    airborne.command(x, **change)
    state = airborne.await_state(lambda s: s.commands_refused > refused, 5.0)
    assert reason in state.last_refusal
    assert all(max(map(abs, v)) < 1e-6 for _, v in simulator.velocities_since(since))


def test_emergency_stop_holds_until_it_is_reset(simulator, airborne):
    airborne.stream(1.0, 2.0)
    since = simulator.time_s
    airborne.emergency_stop(True)
    airborne.stream(0.6, 2.0)
    state = airborne.await_state(lambda s: s.gate_mode == DroneState.GATE_EMERGENCY, 2.0)
    assert state.gate_reason == "emergency stop"
    assert min(at for at, v in simulator.velocities_since(since) if not any(v)) - since <= 0.3
    airborne.emergency_stop(False)
    airborne.await_state(lambda s: s.gate_mode == DroneState.GATE_HOLD, 2.0)
    airborne.stream(0.5, 1.0)
    assert simulator.speed() > 0.3


def plain_publisher(operator, topic):
    """With the quality of service that `ros2 topic pub` has by itself."""
    publisher = operator.node.create_publisher(Bool, topic.resolve(), 10)
    await_(lambda: publisher.get_subscription_count() >= 1, 10.0, f"nobody takes {topic.name} from it")
    return publisher


def test_anybody_can_stop_it(airborne):
    publisher = plain_publisher(airborne, topics.EMERGENCY_STOP)
    publisher.publish(Bool(data=True))
    airborne.await_state(lambda s: s.gate_mode == DroneState.GATE_EMERGENCY, 5.0)
    publisher.publish(Bool(data=False))
    airborne.await_state(lambda s: s.gate_mode == DroneState.GATE_HOLD, 5.0)
    airborne.node.destroy_publisher(publisher)


def test_anybody_can_say_that_the_link_is_lost(airborne):
    publisher = plain_publisher(airborne, topics.LINK_UP)
    publisher.publish(Bool(data=False))
    airborne.await_state(lambda s: "link lost" in s.fault, 5.0)
    publisher.publish(Bool(data=True))
    airborne.await_state(lambda s: not s.fault, 5.0)
    airborne.node.destroy_publisher(publisher)


def test_a_stop_engaged_before_the_bridge_came_holds(alone):
    simulator, operator = alone
    operator.emergency_stop(True)
    bridge = BridgeProcess(simulator.port)
    try:
        operator.await_state(lambda s: s.connected and s.gate_mode == DroneState.GATE_EMERGENCY)
        operator.emergency_stop(False)
        operator.await_state(lambda s: s.gate_mode == DroneState.GATE_HOLD, 5.0)
    finally:
        bridge.end()


def test_each_stop_arrives_once_whoever_sends_it():
    own_domain()
    topic, seen = topics.EMERGENCY_STOP, []
    operator = Operator()
    try:
        operator.emergency_stop(True)  # kept for those that come later
        with ros_transport("probe") as transport:
            transport.subscribe(topic, lambda data: seen.append(cdr.unpack(topic.type, data).data))
            await_(lambda: seen == [True])
            operator.emergency_stop(False)
            await_(lambda: len(seen) == 2)
            plain_publisher(operator, topic).publish(Bool(data=True))
            await_(lambda: len(seen) == 3)
            time.sleep(0.2)  # a repetition would come with it
            assert seen == [True, False, True]
    finally:
        operator.close()


def test_cmd_vel_flies_only_when_armed(simulator, airborne):
    for _ in range(5):
        airborne.cmd_vel(1.0)
        time.sleep(COMMAND_PERIOD_S)
    airborne.await_state(lambda s: s.last_refusal == "cmd_vel is not armed", 2.0)
    assert airborne.ask(topics.ARM_CMD_VEL_SERVICE, True).success
    airborne.cmd_vel(0.0)
    for _ in range(15):
        time.sleep(COMMAND_PERIOD_S)
        airborne.cmd_vel(1.0)
    assert simulator.speed() > 0.5
    assert airborne.ask(topics.ARM_CMD_VEL_SERVICE, False).success


def test_a_lost_link_stops_it_and_refuses_commands(simulator, airborne):
    airborne.stream(1.0, 2.0)
    airborne.link(False)
    airborne.await_state(lambda s: "link lost" in s.fault, 2.0)
    airborne.await_state(lambda s: s.gate_mode == DroneState.GATE_HOLD, 5.0)
    airborne.link(True)
    airborne.await_state(lambda s: not s.fault, 2.0)
    assert simulator.speed() < 0.2


def test_landing_disarms(simulator, airborne):
    answer = airborne.ask(topics.LAND_SERVICE)
    assert answer.success, answer.message
    airborne.await_state(lambda s: s.landed and not s.armed, 5.0)
    answer = airborne.ask(topics.LAND_SERVICE)
    assert not answer.success
    assert "already on the ground" in answer.message


def test_api_control_can_be_given_back(airborne):
    assert airborne.ask(topics.API_CONTROL_SERVICE, False).success
    airborne.await_state(lambda s: not s.api_control, 3.0)
    airborne.command(1.0)
    airborne.await_state(lambda s: "API control is off" in s.last_refusal, 3.0)
    assert airborne.ask(topics.API_CONTROL_SERVICE, True).success
    airborne.await_state(lambda s: s.api_control, 3.0)


def test_reset_puts_it_back(simulator, airborne):
    assert airborne.ask(topics.RESET_VEHICLE_SERVICE).success
    state = airborne.await_state(lambda s: s.landed, 5.0)
    assert not state.armed
    assert simulator.simulation.position[:2] == pytest.approx((0.0, 0.0), abs=0.1)


def test_killed_in_flight_the_bridge_leaves_a_drone_that_stops_and_comes_back_holding(alone):
    simulator, operator = alone
    bridge = BridgeProcess(simulator.port)
    try:
        operator.take_off()
        operator.stream(1.5, 2.0)
        assert simulator.speed() > 1.5
        epoch = operator.state.epoch
        killed = simulator.time_s
        bridge.kill()
        time.sleep(1.5)
        assert simulator.moving_demand_ends(killed) - killed <= ZERO_VELOCITY_WITHIN_S
        assert simulator.speed() < 0.2
        where = simulator.simulation.position
        operator.forget()
        bridge = BridgeProcess(simulator.port)
        state = operator.await_state(lambda s: s.flying_mode == DroneState.FLYING_AIRBORNE)
        assert state.gate_mode == DroneState.GATE_HOLD
        assert state.epoch > epoch
        assert state.armed
        assert np.linalg.norm(np.subtract(simulator.simulation.position, where)) < 0.3
    finally:
        bridge.end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_stops_the_drone_first(alone, number):
    simulator, operator = alone
    bridge = BridgeProcess(simulator.port)
    try:
        operator.take_off()
        operator.stream(1.0, 2.0)
        since = simulator.time_s
    finally:
        status, output = bridge.end(number)
    assert status == 0, output
    velocities = simulator.velocities_since(since)
    assert velocities
    assert not any(velocities[-1][1])


def test_state_tells_when_the_simulator_is_gone_and_when_it_is_back(alone):
    simulator, operator = alone
    bridge = BridgeProcess(simulator.port)
    try:
        await_(lambda: operator.state and operator.state.connected)
        simulator.stop()
        gone = time.monotonic()
        state = operator.await_state(lambda s: not s.connected, 5.0)
        assert time.monotonic() - gone < 1.0
        assert "AirSim at 127.0.0.1" in state.fault
        assert state.gate_mode == DroneState.GATE_HOLD
        assert state.flying_mode == DroneState.FLYING_UNKNOWN
        again = Simulator(simulator.port)
        try:
            operator.await_state(lambda s: s.connected and not s.fault, 10.0)
            images = len(operator.images)
            await_(lambda: len(operator.images) > images + 3)
        finally:
            again.stop()
    finally:
        status, output = bridge.end()
    assert status == 0, output


WRONG_PARAMETERS = {
    "port": (70000, "port is 70000, must be 1 to 65535"),
    "image_rate_hz": (-1.0, "image_rate_hz is -1.0, must be 0.0 to 60.0"),
    "max_speed": (0.0, "max_speed is 0.0, must be 0.1 to 20.0"),
    "api_flavor": ("gazebo", "api_flavor is 'gazebo', must be one of airsim, cosys"),
    "cameras": ("['front']", "cameras has 'front', must be like 'front_center:front'"),
    "cameras, empty": ("[]", "parameter cameras is empty, must be list (AirSim's name"),
    "cameras, twice": (
        "['a:front', 'b:front']",
        "cameras is ['front', 'front']: a topic's name occurs twice",
    ),
    "vehicle_namespace": ("my drone", "vehicle_namespace is 'my drone', must be letters"),
    "depth_rate_hz": (0.0, "depth_rate_hz is 0, but reflex is true: the reflex needs depth"),
    "jpeg_quality": ("high", "jpeg_quality is high of type str, must be int"),
}


@pytest.mark.parametrize("name", WRONG_PARAMETERS)
def test_a_wrong_parameter_is_refused_with_name_value_and_range(name):
    value, message = WRONG_PARAMETERS[name]
    rclpy.init(args=["--ros-args", "-p", f"{name.partition(',')[0]}:={value}"])
    try:
        with pytest.raises(ValueError, match=re.escape(message)):
            AirSimBridge()
    finally:
        rclpy.shutdown()


def set_parameter(operator, name, value):
    """The node's answer."""
    client = operator.node.create_client(SetParameters, "/airsim_bridge/set_parameters")
    assert client.wait_for_service(10.0)
    future = client.call_async(
        SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
    )
    await_(future.done)
    operator.node.destroy_client(client)
    return future.result().results[0]


def test_limits_and_rates_change_in_flight(simulator, airborne):
    assert set_parameter(airborne, "max_speed", 0.5).successful
    airborne.stream(1.5, 3.0)
    assert 0.3 < simulator.speed() < 0.7
    assert set_parameter(airborne, "max_speed", 5.0).successful
    airborne.await_state(lambda s: s.gate_mode == DroneState.GATE_HOLD, 5.0)
    assert set_parameter(airborne, "image_rate_hz", 20.0).successful
    airborne.images.clear()
    await_(lambda: len(airborne.images) > 40)
    span = [stamps.to_seconds(airborne.images[k].header.stamp) for k in (0, 40)]
    assert span[1] - span[0] < 3.5  # at 10 Hz it would be 4 s
    assert set_parameter(airborne, "image_rate_hz", 10.0).successful


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_speed", 0.0, "max_speed"),
        ("max_speed", math.nan, "max_speed"),
        ("depth_rate_hz", 0.0, "the reflex needs depth"),
        ("port", 4, "read-only"),
        ("link_loss_land_s", 5.0, "read-only"),
    ],
)
def test_a_change_that_does_not_fit_is_refused(airborne, name, value, words):
    answer = set_parameter(airborne, name, value)
    assert not answer.successful
    assert words in answer.reason


def test_commands_are_taken_while_a_landing_lasts(airborne):
    """And refused; the executor's one thread must not wait for the ground."""
    refused = airborne.state.commands_refused
    landing = threading.Thread(target=airborne.ask, args=(topics.LAND_SERVICE,))
    landing.start()
    airborne.await_state(lambda s: s.gate_mode == DroneState.GATE_LAND, 5.0)
    airborne.command(1.0)
    airborne.await_state(lambda s: s.commands_refused > refused and "LAND" in s.last_refusal, 5.0)
    landing.join(60.0)
    assert not landing.is_alive()


def test_a_wrong_parameter_stops_the_process_with_one_line():
    bridge = BridgeProcess(70000)
    output, _ = bridge.process.communicate(timeout=30.0)
    assert bridge.process.returncode == 2
    assert "[FATAL] parameter port is 70000" in output
    assert "Traceback" not in output
