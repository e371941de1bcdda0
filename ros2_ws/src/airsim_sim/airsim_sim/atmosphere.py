"""The U.S. Standard Atmosphere 1976 below 11 km, and the earth's magnetic field as a dipole."""

from __future__ import annotations

import math

SEA_LEVEL_PRESSURE_PA = 101_325.0
EARTH_RADIUS_M = 6_356_766.0  # of the geopotential height
GAS_CONSTANT = 287.053  # of dry air, J/(kg K)
DIPOLE_GAUSS = 0.312  # field at the magnetic equator
MAGNETIC_NORTH = (80.37, -72.62)  # geomagnetic pole, degrees north and east (2015)


def temperature(altitude_m: float) -> float:
    """Kelvin."""
    return 288.15 - 0.0065 * EARTH_RADIUS_M * altitude_m / (EARTH_RADIUS_M + altitude_m)


def pressure(altitude_m: float) -> float:
    """Pascal."""
    return SEA_LEVEL_PRESSURE_PA * math.pow(temperature(altitude_m) / 288.15, 5.255877)


def pressure_altitude(pressure_pa: float) -> float:
    """Metres above the level of standard pressure: the altimeter's formula, as AirSim's barometer uses it."""
    return (1 - math.pow(pressure_pa / SEA_LEVEL_PRESSURE_PA, 0.190284)) * 145_366.45 * 0.3048


def air_density(altitude_m: float) -> float:
    """kg/m3."""
    return pressure(altitude_m) / (GAS_CONSTANT * temperature(altitude_m))


def magnetic_field(latitude_deg: float, longitude_deg: float) -> tuple[float, float, float]:
    """Gauss, north-east-down, of a dipole through the geomagnetic poles."""
    latitude, pole = math.radians(latitude_deg), math.radians(MAGNETIC_NORTH[0])
    east = math.radians(MAGNETIC_NORTH[1] - longitude_deg)
    sin_magnetic = math.sin(latitude) * math.sin(pole) + math.cos(latitude) * math.cos(pole) * math.cos(east)
    cos_magnetic = math.sqrt(max(0.0, 1 - sin_magnetic**2))
    declination = math.atan2(
        math.cos(pole) * math.sin(east),
        math.cos(latitude) * math.sin(pole) - math.sin(latitude) * math.cos(pole) * math.cos(east),
    )
    level = DIPOLE_GAUSS * cos_magnetic
    return level * math.cos(declination), level * math.sin(declination), 2 * DIPOLE_GAUSS * sin_magnetic
