"""What several tests need."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from mivra.store.embedded.places import Places

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout: float = 60.0, what: str = "") -> T:
    """Ask until the answer is true and return it; the test fails with `what` when it never is."""
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s: {what or condition}"
        time.sleep(0.02)
    return answer


NOBODY = 65534


def ordinary_user() -> tuple[str, dict[str, int | dict[str, str]]]:
    """A Python that nobody may run (root's own may be under /root), and the options of Popen that run it as nobody."""
    options: dict[str, int | dict[str, str]] = {"user": NOBODY, "group": NOBODY}
    options["env"] = {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if "packages" in path),
        "PATH": os.defpath,
    }
    probe = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    for candidate in (sys.executable, "/usr/bin/python3"):
        try:
            if subprocess.run([candidate, "-c", probe], check=False, user=NOBODY, group=NOBODY).returncode == 0:
                return candidate, options
        except PermissionError:
            continue
    return pytest.skip("no Python of this version that an ordinary user may run")


def server_processes(home: Path) -> list[psutil.Process]:
    """All processes of this home's embedded servers, the guardian first."""
    places = Places(home)
    found = []
    for process in psutil.process_iter(["cmdline"]):  # asked once: a process may be gone a moment later
        line = process.info["cmdline"] or []
        if "embedded.guardian" in line and str(places.home) in line:
            found.insert(0, process)
        elif places.tag in " ".join(line):
            found.append(process)
    return found
