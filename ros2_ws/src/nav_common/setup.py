from setuptools import find_packages, setup

package_name = "nav_common"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    package_data={package_name: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + package_name]),
        ("share/" + package_name, ["package.xml"]),
    ],
    install_requires=["numpy", "PyYAML", "rosbags"],  # what an edge without ROS installs: docs/windows.md
    zip_safe=True,
    maintainer="StreamPilot developers",
    maintainer_email="maintainers@streampilot.dev",
    description="What both sides of StreamPilot must agree on: topics, time, frames, wire format.",
    license="Apache-2.0",
    extras_require={"test": ["pytest"]},  # how colcon test learns that pytest runs them
)
