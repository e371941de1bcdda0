from setuptools import find_packages, setup

package_name = "airsim_sim"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(exclude=["test"]),
    package_data={package_name: ["py.typed", "scenes/*.yaml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + package_name]),
        ("share/" + package_name, ["package.xml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=False,  # scenes are read as files
    maintainer="StreamPilot developers",
    maintainer_email="maintainers@streampilot.dev",
    description="A headless simulator that speaks AirSim's RPC protocol: worlds, physics, cameras.",
    license="Apache-2.0",
    extras_require={"test": ["pytest"]},
    entry_points={"console_scripts": ["airsim_sim = airsim_sim.__main__:main"]},
)
