"""The VMM and its guests, built once for all tests here."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.require import demand
from tests.vmm.vmm import ROOT


@pytest.fixture(scope="session", autouse=True)
def _built() -> None:
    demand(["cc", "kvm"])
    for target in ("asan", "guests"):
        subprocess.run(["make", "-s", "-C", ROOT / "native" / "vmm", target], check=True)
