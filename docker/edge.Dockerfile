# The edge on Linux, without ROS and torch: bridge, gate and link beside an AirSim.
# docker build -f docker/edge.Dockerfile -t streampilot-edge .
FROM python:3.12-slim

RUN useradd --create-home --uid 10001 streampilot
WORKDIR /opt/streampilot
COPY requirements.lock ./
COPY ros2_ws/src/nav_common nav_common
COPY ros2_ws/src/airsim_bridge airsim_bridge
COPY ros2_ws/src/zenoh_link zenoh_link
RUN pip install --no-cache-dir -c requirements.lock ./nav_common "./airsim_bridge[http]" ./zenoh_link

USER 10001
# It has no port of its own: whether it flies is seen in its output and at the server. Its process is the sign of life.
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "airsim_bridge.edge"]
CMD ["--help"]
