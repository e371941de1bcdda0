from setuptools import find_packages, setup

package_name = "nav_eval"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    package_data={package_name: ["py.typed", "templates/*"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + package_name]),
        ("share/" + package_name, ["package.xml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="StreamPilot developers",
    maintainer_email="maintainers@streampilot.dev",
    description="Record, judge, replay and evaluate flights.",
    license="Apache-2.0",
    extras_require={"test": ["pytest"]},  # how colcon test learns that pytest runs them
    entry_points={
        "console_scripts": [
            "record = nav_eval.start:record",
            "play = nav_eval.start:play",
            "truth = nav_eval.start:truth",
            "nav_eval = nav_eval.__main__:main",
        ],
    },
)
