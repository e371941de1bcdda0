from glob import glob

from setuptools import find_packages, setup

package_name = "nav_pilot"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test", "test.*"]),
    package_data={package_name: ["py.typed", "model/*", "model-*/*", "words.txt"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + package_name]),
        ("share/" + package_name, ["package.xml"]),
        ("share/" + package_name + "/model", sorted(glob(package_name + "/model/*"))),
    ],
    install_requires=["setuptools"],
    zip_safe=False,
    maintainer="StreamPilot developers",
    maintainer_email="maintainers@streampilot.dev",
    description="The small embedded pilot: how it is trained, its serving form, its weights.",
    license="Apache-2.0",
    extras_require={"test": ["pytest"]},  # how colcon test learns that pytest runs them
)
