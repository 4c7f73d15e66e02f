"""The OpenAPI document is true: what it allows is taken, what it forbids is refused, and every answer is in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.config import SchemathesisConfig

from mivra.web.api_endpoints import ENDPOINTS, PROBES, served
from tests.integration.api_world import World, open_world

EXAMPLES = 50
"""Of an endpoint, beside those of the edges of each value: in all some 500 requests, twenty seconds."""
DOCUMENT = json.loads(served())
WANTED = SchemathesisConfig.from_dict({"seed": 6, "generation": {"with-security-parameters": False}})
schema = schemathesis.openapi.from_dict(DOCUMENT, config=WANTED)


@pytest.fixture(scope="module")
def world(servers: tuple[str, str | None], template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(servers, template, tmp_path_factory.mktemp("home")) as opened:
        # Of all ids the one that is tried most.
        opened.bot("0")
        yield opened


@pytest.fixture(scope="module")
def tokens(world: World) -> dict[str, str]:
    """One an endpoint: each has its own limit of requests."""
    return {label: world.token("operator") for label in (*ENDPOINTS, *PROBES)}


def _of(label: str) -> Callable[..., None]:
    @schema.include(name=label).parametrize()
    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), deadline=None)
    def has_no_other_answer(case: Case, world: World, tokens: dict[str, str]) -> None:
        case.call_and_validate(world.url, headers={"Authorization": f"Bearer {tokens[case.operation.label]}"})

    return has_no_other_answer  # type: ignore[no-any-return]


# A name each: pytest gives those of one schema the same id, of which xdist runs one.
for one in (*ENDPOINTS, *PROBES):
    vars()[f"test_every_answer_is_documented_of_{re.sub(r'[^a-z]+', '_', one.lower())}"] = _of(one)


def test_every_route_is_documented_and_nothing_else(world: World) -> None:
    paths = DOCUMENT["paths"]
    documented = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert documented == {*ENDPOINTS, *PROBES}
    for label in PROBES:
        assert paths[label.split()[1]]["get"]["security"] == []
    with world.client("viewer") as client:
        assert client.get("/api/openapi.json").json() == DOCUMENT


def test_the_document_names_the_role_of_each_endpoint() -> None:
    said = {f"{m.upper()} {p}": one.get("description") for p, ms in DOCUMENT["paths"].items() for m, one in ms.items()}
    assert {said[label] for label in PROBES} == {None}
    assert all(said[label] == f"Needs the role {endpoint.role}." for label, endpoint in ENDPOINTS.items())
