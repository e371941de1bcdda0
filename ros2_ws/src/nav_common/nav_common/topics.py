"""Every topic, service and action of the graph, named once, with its type and quality of service."""

from __future__ import annotations

from dataclasses import dataclass

from nav_common.contract import LIVELINESS_LEASE_S

DEFAULT_VEHICLE_NAMESPACE = "/drone"


@dataclass(frozen=True)
class Qos:
    """The part of DDS's quality of service that matters here."""

    reliable: bool
    depth: int
    transient_local: bool = False
    """The publisher keeps its last messages for subscribers that come later."""
    any_publisher: bool = False
    """Subscriptions are volatile, so they match a publisher of either durability, such as a plain `ros2 topic pub`
    (DDS lets a transient-local subscription match only a transient-local publisher). They get no earlier messages."""
    lease_s: float = 0.0
    """Liveliness: subscribers hear of the death of the publisher's process within this time; 0: they do not."""


# Newest only, losses allowed: what is old is useless.
SENSOR = Qos(reliable=False, depth=1)
# A short history, losses allowed: odometry and commands, where order and age are checked by the receiver.
STREAM = Qos(reliable=False, depth=5)
# Nothing lost, in order.
EVENTS = Qos(reliable=True, depth=20)
# Nothing lost, from whatever publisher; ours keep the last one for late subscribers that ask for it.
LATCHED = Qos(reliable=True, depth=1, transient_local=True, any_publisher=True)


@dataclass(frozen=True)
class Topic:
    """A topic. `name` is relative to the vehicle's namespace, or absolute when it begins with a slash."""

    name: str
    type: str
    qos: Qos

    def resolve(self, vehicle_namespace: str = DEFAULT_VEHICLE_NAMESPACE) -> str:
        """The absolute name."""
        return resolve(self.name, vehicle_namespace)


def resolve(name: str, vehicle_namespace: str = DEFAULT_VEHICLE_NAMESPACE) -> str:
    """`name` within the vehicle's namespace, unless it is absolute already."""
    if name.startswith("/"):
        return name
    return f"/{vehicle_namespace.strip('/')}/{name}" if vehicle_namespace.strip("/") else f"/{name}"


# Of the vehicle. `{camera}` is the ROS name of a camera: "front" for AirSim's front_center.
CAMERA_IMAGE = Topic("camera/{camera}/image/compressed", "sensor_msgs/msg/CompressedImage", SENSOR)
CAMERA_INFO = Topic("camera/{camera}/camera_info", "sensor_msgs/msg/CameraInfo", SENSOR)
CAMERA_DEPTH = Topic("camera/{camera}/depth", "sensor_msgs/msg/Image", SENSOR)
FRONT_IMAGE = Topic("camera/front/image/compressed", "sensor_msgs/msg/CompressedImage", SENSOR)
FRONT_INFO = Topic("camera/front/camera_info", "sensor_msgs/msg/CameraInfo", SENSOR)
FRONT_DEPTH = Topic("camera/front/depth", "sensor_msgs/msg/Image", SENSOR)
# Perception says which picture it takes next: the earliest stamp, on the vehicle's clock. A link sends no others.
FRAME_WANTED = Topic("camera/front/frame_wanted", "std_msgs/msg/Header", Qos(reliable=True, depth=1))
ODOM = Topic("odom", "nav_msgs/msg/Odometry", STREAM)
IMU = Topic("imu", "sensor_msgs/msg/Imu", STREAM)
STATE = Topic("state", "nav_msgs_ext/msg/DroneState", Qos(reliable=True, depth=5, transient_local=True))
COMMAND = Topic("command", "nav_msgs_ext/msg/VelocityCommand", STREAM)
CMD_VEL = Topic("cmd_vel", "geometry_msgs/msg/TwistStamped", STREAM)
EMERGENCY_STOP = Topic("emergency_stop", "std_msgs/msg/Bool", LATCHED)
# Whether the edge can be reached by the side that sends commands; said by the link. Where nobody says it, it is up.
LINK_UP = Topic("link_up", "std_msgs/msg/Bool", LATCHED)
LINK_STATE = Topic("link_state", "nav_msgs_ext/msg/LinkState", LATCHED)
# The simulator's truth, for evaluation only, from an edge that was asked to tell it: where the drone is, and (as a pose
# too) where the mission's goal stands; the simulator's world, ENU.
TRUTH = Topic("truth", "nav_msgs/msg/Odometry", STREAM)
TRUTH_GOAL = Topic("truth/goal", "nav_msgs/msg/Odometry", Qos(reliable=True, depth=1))

# Of the nodes.
# With a lease: the drone may not go on moving when the memory that is to decide next has died.
ENGINE_STATUS = Topic(
    "/vlm_perception/status",
    "nav_msgs_ext/msg/EngineStatus",
    Qos(reliable=True, depth=20, lease_s=LIVELINESS_LEASE_S),
)
DECISION = Topic("/nav_agent/decision", "nav_msgs_ext/msg/Decision", EVENTS)
GOAL_STATE = Topic("/nav_agent/goal_state", "nav_msgs_ext/msg/GoalState", Qos(True, 20, transient_local=True))
# The way flown and the decisions, drawn: the whole drawing each time, kept for whoever looks later.
MARKERS = Topic(
    "/nav_agent/markers",
    "visualization_msgs/msg/MarkerArray",
    Qos(reliable=True, depth=1, transient_local=True),
)
WATCH_EVENT = Topic("/vlm_perception/watch_event", "nav_msgs_ext/msg/WatchEvent", EVENTS)
ACTIVE_FRAMES = Topic(
    "/vlm_perception/active_frames", "nav_msgs_ext/msg/ActiveFrames", Qos(True, 20, transient_local=True)
)
DIAGNOSTICS = Topic("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", EVENTS)

# Services and actions.
GENERATE_ACTION = "/vlm_perception/generate"
PRIME_SERVICE = "/vlm_perception/prime"
ASK_SERVICE = "/vlm_perception/ask"
RESET_MEMORY_SERVICE = "/vlm_perception/reset"
WATCH_SERVICE = "/vlm_perception/watch"
RECALL_SERVICE = "/vlm_perception/recall"
NAVIGATE_ACTION = "/nav_agent/navigate"
# Relative to the vehicle's namespace.
TAKEOFF_SERVICE = "takeoff"
LAND_SERVICE = "land"
RESET_VEHICLE_SERVICE = "reset"
API_CONTROL_SERVICE = "enable_api_control"
ARM_CMD_VEL_SERVICE = "arm_cmd_vel"

# Frames (REP-105): odom -> base_link -> <camera>_optical.
ODOM_FRAME = "odom"
BASE_FRAME = "base_link"


def optical_frame(camera: str) -> str:
    """Frame of a camera's pictures."""
    return f"{camera}_optical"
