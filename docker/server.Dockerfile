# The server, or everything on one machine: perception, agent, link, page and API, on the official ROS 2 Jazzy image.
# docker build -f docker/server.Dockerfile -t streampilot-server .
FROM ros:jazzy-ros-base

# As scripts/setup.sh asks for them; curl for the health check.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates cmake curl g++ libegl1 libgl1-mesa-dri libopengl0 make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 streampilot \
    && install -d -o streampilot /opt/streampilot /opt/streampilot/runs /models

USER 10001
WORKDIR /opt/streampilot

# The environment first: it changes seldom, and takes longest. TORCH_INDEX: a build of torch for an older driver, such as
# https://download.pytorch.org/whl/cu126, or .../cpu for a machine without a GPU; empty: PyPI's, for drivers from 580 on.
ARG TORCH_INDEX=""
COPY --chown=streampilot . .
RUN make setup && rm -rf ~/.cache/pip

VOLUME ["/models", "/opt/streampilot/runs"]
EXPOSE 6006 7447
HEALTHCHECK --interval=30s --timeout=10s --start-period=180s --retries=3 \
    CMD ["/opt/streampilot/docker/health.sh"]
ENTRYPOINT ["/opt/streampilot/docker/entry.sh"]
CMD ["server", "http:=true", "http_host:=0.0.0.0"]
