"""What several tests need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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


MEMORY = Path("/dev/shm")  # noqa: S108 - ours below it has a name of its own
ROOMY = 2 * 2**30
OLD_S = 86_400.0
"""No run takes a day: what is as old was left by one that was killed."""


@contextmanager
def quick_folder(otherwise: Path) -> Iterator[Path]:
    """A folder in memory where there is room: on a disk, to make a database costs four times as much processor time."""
    if not MEMORY.is_dir() or min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available) < ROOMY:
        yield otherwise
        return
    for left in MEMORY.glob("mivra-tests-*"):
        with suppress(FileNotFoundError):  # another run tidies too
            if time.time() - left.stat().st_mtime > OLD_S:
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="mivra-tests-", dir=MEMORY, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


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
