"""Drives the simulator with a real AirSim client; run by test_conformance.py in the environment that has them.

    python conformance_client.py airsim|cosysairsim PORT

Prints one line a check and ends with status 1 when any failed. Imports nothing of this project.
"""

import importlib
import math
import sys
import time
import traceback

import numpy as np

PACKAGE, PORT = sys.argv[1], int(sys.argv[2])
airsim = importlib.import_module(PACKAGE)
COSYS = PACKAGE == "cosysairsim"
client = airsim.MultirotorClient(port=PORT, timeout_value=200)
CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def position():
    return client.simGetVehiclePose().position


def velocity():
    return client.getMultirotorState().kinematics_estimated.linear_velocity


def close(a, b, tolerance=0.3):
    assert abs(a - b) <= tolerance, f"{a} is not {b} within {tolerance}"


@check
def connects_and_versions_agree():
    client.confirmConnection()
    assert client.ping() is True
    assert client.getServerVersion() >= client.getMinRequiredServerVersion()
    assert client.getClientVersion() >= client.getMinRequiredClientVersion()
    assert client.listVehicles() == ["SimpleFlight"]
    assert "SettingsVersion" in client.getSettingsString()
    assert abs(client.getHomeGeoPoint().latitude - 47.641468) < 1e-6


@check
def control_and_arming():
    assert client.isApiControlEnabled() is False
    client.enableApiControl(True)
    assert client.isApiControlEnabled() is True
    assert client.armDisarm(True) is True
    assert client.getMultirotorState().landed_state == airsim.LandedState.Landed


@check
def takeoff_climbs_and_answers_true():
    assert client.takeoffAsync().get() is True
    close(position().z_val, -2.0)
    assert client.getMultirotorState().landed_state == airsim.LandedState.Flying


def reaches(future, axis, value):
    """The task brings the velocity there while it runs, and then answers True."""
    deadline = time.time() + 200
    while abs(getattr(velocity(), axis) - value) > 0.2:
        assert time.time() < deadline, f"{axis} is {getattr(velocity(), axis)}, never {value}"
    assert future.get() is True


@check
def velocity_in_the_world_and_in_the_body():
    reaches(client.moveByVelocityAsync(0, 2, 0, 4), "y_val", 2)
    client.rotateToYawAsync(90, timeout_sec=20, margin=1).join()
    reaches(client.moveByVelocityBodyFrameAsync(-2, 0, 0, 4), "y_val", -2)
    reaches(client.moveByVelocityZAsync(0, -1, -3, 4), "y_val", -1)
    close(position().z_val, -3)
    assert client.moveByVelocityZBodyFrameAsync(0, 1, -3, 0.5).get() is True
    client.hoverAsync().join()


@check
def a_new_task_cancels_the_old_which_answers_false():
    first = client.moveByVelocityAsync(0, 0, -0.5, 30)
    client.ping()
    second = client.hoverAsync()
    assert first.get() is False
    assert second.get() is True
    third = client.moveByVelocityAsync(0, 0, 0.2, 30)
    client.cancelLastTask()
    assert third.get() is False


@check
def positions_paths_and_heights():
    assert client.moveToPositionAsync(2, -1, -4, 2).get() is True
    here = position()
    close(here.x_val, 2)
    close(here.y_val, -1)
    close(here.z_val, -4)
    points = [airsim.Vector3r(2, 1, -4), airsim.Vector3r(0, 1, -4)]
    assert client.moveOnPathAsync(points, 2, timeout_sec=60).get() is True
    close(position().x_val, 0)
    assert client.moveToZAsync(-3, 1).get() is True
    close(position().z_val, -3)
    yaw = airsim.YawMode(False, 0)
    assert client.moveByVelocityAsync(0, 2, 0, 3, airsim.DrivetrainType.ForwardOnly, yaw).get() is True
    client.hoverAsync().join()


@check
def turning():
    assert client.rotateToYawAsync(-45, timeout_sec=20, margin=2).get() is True
    q = client.simGetVehiclePose().orientation
    close(math.degrees(2 * math.atan2(q.z_val, q.w_val)), -45, 4)
    assert client.rotateByYawRateAsync(30, 1.0).get() is True


@check
def raw_png_and_float_pictures_of_every_type():
    kinds = airsim.ImageType
    raw, png, planar, perspective, vis, segmentation = client.simGetImages(
        [
            airsim.ImageRequest("front_center", kinds.Scene, False, False),
            airsim.ImageRequest("0", kinds.Scene, False, True),
            airsim.ImageRequest("0", kinds.DepthPlanar, True, False),
            airsim.ImageRequest("0", kinds.DepthPerspective, True, False),
            airsim.ImageRequest("0", kinds.DepthVis, False, True),
            airsim.ImageRequest("0", kinds.Segmentation, False, False),
        ]
    )
    assert (raw.width, raw.height) == (320, 240)
    picture = np.frombuffer(raw.image_data_uint8, dtype=np.uint8).reshape(raw.height, raw.width, 3)
    assert picture[:60, :, 0].mean() > picture[:60, :, 2].mean(), "blue first: the sky"
    assert bytes(png.image_data_uint8[:8]) == b"\x89PNG\r\n\x1a\n"
    assert bytes(vis.image_data_uint8[:4]) == b"\x89PNG"
    depth = np.array(planar.image_data_float, dtype=np.float32).reshape(planar.height, planar.width)
    ray = np.array(perspective.image_data_float, dtype=np.float32).reshape(depth.shape)
    assert (ray >= depth - 1e-3).all()
    assert np.isfinite(depth).all()
    assert depth.min() > 0
    assert len(segmentation.image_data_uint8) == segmentation.width * segmentation.height * 3
    assert raw.time_stamp == planar.time_stamp > 0
    close(raw.camera_position.z_val, position().z_val, 0.2)
    assert abs(raw.camera_orientation.get_length() - 1) < 1e-3


@check
def one_picture_from_every_camera():
    for name in ("front_center", "front_right", "front_left", "bottom_center", "back_center", "3", 4):
        data = client.simGetImage(str(name), airsim.ImageType.Scene)
        assert bytes(data[:4]) == b"\x89PNG", name
        info = client.simGetCameraInfo(name)
        assert info.fov == 90
        assert len(info.proj_mat.matrix) == 4
        assert not info.pose.containsNan()


@check
def state_kinematics_and_sensors():
    state = client.getMultirotorState()
    truth = client.simGetGroundTruthKinematics()
    close(state.kinematics_estimated.position.z_val, truth.position.z_val)
    assert state.timestamp > 0
    assert state.collision.has_collided is False
    assert state.gps_location.altitude > client.getHomeGeoPoint().altitude + 1
    assert state.rc_data.is_valid is False
    imu = client.getImuData()
    close(imu.linear_acceleration.z_val, -9.8, 3)
    barometer = client.getBarometerData()
    close(barometer.altitude, client.getHomeGeoPoint().altitude - position().z_val, 1)
    field = client.getMagnetometerData().magnetic_field_body
    assert 0.2 < field.get_length() < 0.7
    gps = client.getGpsData()
    assert gps.is_valid is True
    assert gps.gnss.fix_type == 3
    close(gps.gnss.geo_point.altitude, barometer.altitude, 1)
    sensor = client.getDistanceSensorData("Distance")
    assert sensor.min_distance < sensor.distance <= sensor.max_distance
    cloud = client.getLidarData("Lidar").point_cloud
    assert len(cloud) % 3 == 0
    assert len(cloud) > 300


@check
def objects_and_their_poses():
    names = client.simListSceneObjects("tree.*")
    assert names == [f"tree_{n}" for n in range(1, 6)]
    pose = client.simGetObjectPose("beacon")
    assert 10 <= math.hypot(pose.position.x_val, pose.position.y_val) <= 22
    assert client.simGetObjectPose("unicorn").containsNan()
    if COSYS:
        return  # its segmentation is by instance, without these calls
    assert client.simSetSegmentationObjectID("tree.*", 20, True) is True
    assert client.simGetSegmentationObjectID("tree_3") == 20


@check
def teleport_and_collision():
    beacon = client.simGetObjectPose("beacon").position
    pose = client.simGetVehiclePose()
    pose.position.x_val, pose.position.y_val, pose.position.z_val = beacon.x_val - 3, beacon.y_val, -2.0
    pose.orientation = airsim.Quaternionr(0, 0, 0, 1)
    client.simSetVehiclePose(pose, True)
    close(position().x_val, beacon.x_val - 3, 0.1)
    client.simGetCollisionInfo()
    assert client.moveByVelocityAsync(3, 0, 0, 2).get() is True
    client.hoverAsync().join()
    hit = client.simGetCollisionInfo()
    assert hit.has_collided is True
    assert hit.object_name == "beacon"
    close(hit.impact_point.x_val, beacon.x_val - 0.4, 0.1)
    close(hit.normal.x_val, -1, 0.05)
    assert hit.time_stamp > 0
    client.simSetVehiclePose(pose, True)
    client.simGetCollisionInfo()
    assert client.simGetCollisionInfo().has_collided is False


@check
def pause_and_lockstep():
    client.simPause(True)
    assert client.simIsPause() is True
    before = client.getMultirotorState().timestamp
    time.sleep(0.1)
    assert client.getMultirotorState().timestamp == before
    client.simContinueForTime(0.5)
    assert client.getMultirotorState().timestamp - before == 500_000_000
    client.simContinueForFrames(30)
    assert client.getMultirotorState().timestamp - before == 1_000_000_000
    client.simPause(False)
    assert client.simIsPause() is False


@check
def errors_arrive_as_errors():
    for call in (
        lambda: client.client.call("noSuchMethod", 1),
        lambda: client.simGetImages([airsim.ImageRequest("nose", 0)]),
        lambda: client.getMultirotorState("Drone7"),
        lambda: client.client.call("ping", 1),
    ):
        text = ""
        try:
            call()
        except Exception as error:
            text = str(error)
        assert "rpclib" in text, text
    assert client.ping() is True


@check
def home_landing_and_reset():
    assert client.goHomeAsync().get() is True
    assert client.landAsync().get() is True
    assert client.getMultirotorState().landed_state == airsim.LandedState.Landed
    client.reset()
    assert client.isApiControlEnabled() is False
    close(position().x_val, 0, 0.05)
    client.enableApiControl(True)
    assert client.armDisarm(False) is True, "AirSim's SimpleFlight is armed by default, after a reset too"
    assert client.armDisarm(False) is False, "it is not armed any more"


failed = 0
for function in CHECKS:
    try:
        function()
        print("ok  ", function.__name__, flush=True)
    except Exception:
        failed += 1
        print("FAIL", function.__name__, traceback.format_exc(), sep="\n", flush=True)
print(f"{len(CHECKS) - failed} of {len(CHECKS)} checks passed")
sys.exit(1 if failed else 0)
