from glob import glob

from setuptools import find_packages, setup

package_name = "nav_agent"
launch_files = sorted(glob("../../../launch/*.launch.py"))

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    package_data={package_name: ["py.typed"], f"{package_name}.prompts": ["*.txt"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + package_name]),
        ("share/" + package_name, ["package.xml"]),
        # The launch files lie at the top of the repository; here they are found by `ros2 launch nav_agent ...`.
        ("share/" + package_name + "/launch", launch_files),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="StreamPilot developers",
    maintainer_email="maintainers@streampilot.dev",
    description="The agent: one bounded tool call at a time, hover in between, cancel that works.",
    license="Apache-2.0",
    extras_require={"test": ["pytest"]},  # how colcon test learns that pytest runs them
    entry_points={
        "console_scripts": [
            "nav_agent = nav_agent.start:main",
            "fly = nav_agent.cli:main",
        ],
    },
)
