"""What is recorded of the machine that a figure was measured on."""

from __future__ import annotations

import platform

import pytest

from nav_eval import machine


@pytest.mark.parametrize("release", ["6.1.0-18-cloud-amd64", "6.1.0"])
def test_the_system_is_recorded_without_the_name_of_its_kernels_build(
    release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    monkeypatch.setattr(platform, "platform", lambda: f"Linux-{release}-x86_64-with-glibc2.36")
    assert machine.describe()["system"] == "Linux-6.1.0-x86_64-with-glibc2.36"
