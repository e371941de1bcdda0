from setuptools import find_packages, setup

package_name = "zenoh_link"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    package_data={package_name: ["py.typed", "*.yaml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + package_name]),
        ("share/" + package_name, ["package.xml"]),
    ],
    install_requires=[
        "nav_common",
        "cryptography",
        "eclipse-zenoh",
        "numpy",
        "opencv-python-headless",
        "PyYAML",
    ],
    zip_safe=False,
    maintainer="StreamPilot developers",
    maintainer_email="maintainers@streampilot.dev",
    description="ROS topics and services over zenoh between the vehicle's machine and the model's.",
    license="Apache-2.0",
    extras_require={"test": ["pytest"]},  # how colcon test learns that pytest runs them
    entry_points={
        "console_scripts": [
            "zenoh_link = zenoh_link.start:main",
            "link_tool = zenoh_link.__main__:main",
        ]
    },
)
