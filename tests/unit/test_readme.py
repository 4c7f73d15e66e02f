"""The README is true: what a user can set, call or open is in it."""

from __future__ import annotations

import argparse
import ast
from dataclasses import fields
from pathlib import Path

import pytest

from mivra.bot.config import BotConfig
from mivra.cli import _parser
from mivra.config import Settings


@pytest.fixture(scope="module")
def readme() -> str:
    return (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("variable", [field.metadata["variable"] for field in fields(Settings)])
def test_every_setting_is_in_the_readme(readme: str, variable: str) -> None:
    assert f"| `{variable}` |" in readme


def test_every_command_is_in_the_readme(readme: str) -> None:
    (commands,) = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    missing = [name for name in commands.choices if f"| `{name}` |" not in readme]
    assert not missing


@pytest.mark.parametrize("key", [field.name for field in fields(BotConfig)])
def test_every_key_of_a_bots_config_is_in_the_readme(readme: str, key: str) -> None:
    assert f"| `{key}` |" in readme


def test_every_page_is_in_the_readme(readme: str, root: Path) -> None:
    # The router is a script that draws when it is imported, so its table of pages is read, not run.
    tree = ast.parse((root / "mivra" / "web" / "router.py").read_text(encoding="utf-8"))
    (table,) = [n.value for n in tree.body if isinstance(n, ast.AnnAssign) and getattr(n.target, "id", "") == "PAGES"]
    titles = [title for pages in ast.literal_eval(table).values() for _, title, _ in pages]
    assert titles
    assert [title for title in titles if f"| {title} |" not in readme] == []


def test_every_dependency_says_what_it_is_for(readme: str, root: Path) -> None:
    lines = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [line.partition("==")[0].partition("[")[0] for line in lines if "==" in line]
    table = readme.partition("| package | for |")[2]
    assert [name for name in names if name not in table] == []


def test_every_benchmark_is_in_the_readme(readme: str, root: Path) -> None:
    from tests.bench.__main__ import NOT_BENCHMARKS  # noqa: PLC0415

    names = {path.stem for path in (root / "tests" / "bench").glob("*.py")} - NOT_BENCHMARKS
    assert [name for name in sorted(names) if f"`{name}`" not in readme] == []


def test_every_endpoint_is_in_the_readme(readme: str) -> None:
    from mivra.web.api_endpoints import ENDPOINTS, PROBES  # noqa: PLC0415 - the pages' code

    assert [label for label in (*ENDPOINTS, *PROBES) if f"`{label}`" not in readme] == []
