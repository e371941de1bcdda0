"""What the tests share."""

from __future__ import annotations

from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def ros() -> ModuleType:
    """`nav_common.ros`. Without ROS the tests that ask for it are skipped; a fault in the module itself fails them."""
    pytest.importorskip("rclpy")
    from nav_common import ros

    return ros
