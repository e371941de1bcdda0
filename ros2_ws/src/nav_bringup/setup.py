from glob import glob

from setuptools import find_packages, setup

package_name = "nav_bringup"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    package_data={package_name: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + package_name]),
        ("share/" + package_name, ["package.xml"]),
        ("share/" + package_name + "/params", sorted(glob("params/*"))),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="StreamPilot developers",
    maintainer_email="maintainers@streampilot.dev",
    description="The node graph as data, its checks and its runner.",
    license="Apache-2.0",
    extras_require={"test": ["pytest"]},  # how colcon test learns that pytest runs them
    entry_points={
        "console_scripts": [
            "run = nav_bringup.runner:main",
            "fly = nav_bringup.fly:main",
            "monitor = nav_bringup.monitor:main",
        ],
    },
)
