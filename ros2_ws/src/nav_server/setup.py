from setuptools import find_packages, setup

package_name = "nav_server"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    package_data={package_name: ["py.typed", "page/page.css", "testing/answers/*"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + package_name]),
        ("share/" + package_name, ["package.xml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="StreamPilot developers",
    maintainer_email="maintainers@streampilot.dev",
    description="HTTP API, runtime profile, execution policy and backends around the streaming engine.",
    license="Apache-2.0",
    extras_require={"test": ["pytest"]},  # how colcon test learns that pytest runs them
    entry_points={
        "console_scripts": [
            "nav_server = nav_server.__main__:main",
            "served_perception = nav_server.start:main",
        ],
    },
)
