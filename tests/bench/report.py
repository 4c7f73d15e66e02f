"""How every benchmark ends: a table for people, one RESULT line for programs."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Sequence

Target = tuple[str, float]
COMPARE = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under a header, in columns."""
    texts = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(header))]
    for row in texts:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def is_met(figure: float, target: Target) -> bool:
    sign, bound = target
    return bool(COMPARE[sign](figure, bound))


def result(metrics: dict[str, float], targets: dict[str, Target]) -> bool:
    """Print the line that the other tools read; whether every target is met."""
    met = all(is_met(metrics[name], target) for name, target in targets.items())
    print("RESULT", json.dumps({"metrics": metrics, "targets": targets, "met": met}))
    return met
