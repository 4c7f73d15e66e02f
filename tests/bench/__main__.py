"""`python -m tests.bench`: run every benchmark and write their figures, with the machine, into the README."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from tests.bench.report import is_met

FOLDER = Path(__file__).parent
README = FOLDER.parent.parent / "README.md"
BEGIN, END = "<!-- figures: written by make bench -->", "<!-- end of figures -->"
NOT_BENCHMARKS = {"__init__", "__main__", "report"}


def main() -> int:
    names = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in NOT_BENCHMARKS)
    results = {name: run(name, sys.argv[1:]) for name in names}
    write(results)
    return 0 if all(result and result["met"] for result in results.values()) else 1


def run(name: str, arguments: list[str]) -> dict[str, Any] | None:
    """One benchmark in a process of its own; None when it ended without a result."""
    print(f"== {name}", flush=True)
    command = [sys.executable, "-m", f"tests.bench.{name}", *arguments]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="")
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return json.loads(lines[-1].removeprefix("RESULT ")) if lines else None


def write(results: dict[str, dict[str, Any] | None]) -> None:
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{section(results)}{END}{after}", encoding="utf-8")


def section(results: dict[str, dict[str, Any] | None]) -> str:
    lines = [f"Measured on {machine()}.", "", "| benchmark | metric | figure | target | met |", "|---|---|---|---|---|"]
    for name, result in results.items():
        if result is None:
            lines.append(f"| `tests.bench.{name}` | | ended without a result | | no |")
            continue
        for metric, figure in result["metrics"].items():
            target = result["targets"].get(metric)
            cells = [" ".join(map(str, target)), "yes" if is_met(figure, target) else "no"] if target else ["", ""]
            lines.append(f"| `tests.bench.{name}` | {metric} | {figure} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    memory = psutil.virtual_memory().total // 2**30
    return (
        f"{os.cpu_count()} shared cores ({platform.machine()}), {memory} GiB, {platform.system()}, "
        f"Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}"
    )


if __name__ == "__main__":
    sys.exit(main())
