from setuptools import find_packages, setup

package_name = "airsim_bridge"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    package_data={package_name: ["py.typed", "settings.json"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + package_name]),
        ("share/" + package_name, ["package.xml"]),
    ],
    # What an edge without ROS installs (docs/windows.md); "link" and "http" are its ways to a server.
    install_requires=["nav_common", "msgpack", "numpy", "opencv-python-headless"],
    zip_safe=True,
    maintainer="StreamPilot developers",
    maintainer_email="maintainers@streampilot.dev",
    description="The edge: AirSim client, command gate, reflex, ROS node, and an edge that needs no ROS.",
    license="Apache-2.0",
    extras_require={
        "test": ["pytest"],
        "link": ["zenoh_link"],
        "http": ["httpx2"],
    },  # "test": how colcon test learns that pytest runs them
    entry_points={
        "console_scripts": [
            "airsim_bridge = airsim_bridge.start:main",
            "edge = airsim_bridge.start:edge",
            "record_flight = airsim_bridge.start:record_flight",
        ]
    },
)
