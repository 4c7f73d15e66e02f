"""The OpenAPI document, made of the endpoints themselves: what is answered and what is written cannot differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from mivra.web.api_endpoints import Endpoint

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
MIVRA: Final = "Bearer tokens are made by: python -m mivra token create NAME --role viewer|operator|admin"
HEADERS: Final = {401: "WWW-Authenticate", 429: "Retry-After", 503: "Retry-After"}
ALWAYS: Final = (401, 403, 429, 500, 503)
WITH_BODY: Final = (408, 413, 415, 422)


class Problem(msgspec.Struct):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str


def document(endpoints: Iterable[Endpoint], probes: Iterable[str]) -> dict[str, Any]:
    components: dict[str, Any] = {}
    _schema(Problem, components)
    paths: dict[str, dict[str, Any]] = {path: {"get": _probe(path)} for path in probes}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, components)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Mivra", "version": "1", "description": MIVRA},
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}, "schemas": components},
    }


def _operation(endpoint: Endpoint, components: dict[str, Any]) -> dict[str, Any]:
    statuses = [*ALWAYS, *endpoint.also, *(WITH_BODY if endpoint.body else ())]
    if parameters := list(_parameters(endpoint.query)):
        statuses.append(422)
    responses = {str(status): _refused(status) for status in sorted(statuses)}
    responses[str(endpoint.status)] = _given(endpoint, components)
    if endpoint.path == "/api/health":
        responses["503"]["content"] |= responses["200"]["content"]
    operation = {
        "operationId": endpoint.path.removeprefix("/api").strip("/").replace("/", "-").removesuffix(".json"),
        "summary": endpoint.says,
        "description": f"Needs the role {endpoint.role}.",
        "parameters": parameters,
        "responses": responses,
    }
    if endpoint.body:
        content = {JSON: {"schema": _schema(endpoint.body, components)}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _given(endpoint: Endpoint, components: dict[str, Any]) -> dict[str, Any]:
    is_text = isinstance(endpoint.gives, str)
    kind, schema = (endpoint.gives, {"type": "string"}) if is_text else (JSON, _schema(endpoint.gives, components))
    return {"description": HTTPStatus(endpoint.status).phrase, "content": {kind: {"schema": schema}}}


def _refused(status: int) -> dict[str, Any]:
    content = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    refused: dict[str, Any] = {"description": HTTPStatus(status).phrase, "content": content}
    if status in HEADERS:
        refused["headers"] = {HEADERS[status]: {"schema": {"type": "string"}}}
    return refused


def _probe(path: str) -> dict[str, Any]:
    text = {"text/plain": {"schema": {"type": "string"}}}
    responses = {str(status): {"description": HTTPStatus(status).phrase, "content": text} for status in (200, 503)}
    return {"operationId": path.strip("/"), "summary": "For a probe", "security": [], "responses": responses}


def _parameters(query: Any) -> Iterator[dict[str, Any]]:
    found: dict[str, Any] = {}
    _schema(query, found)
    for name, schema in found[query.__name__]["properties"].items():
        yield {"name": name, "in": "query", "required": False, "schema": schema}


def _schema(kind: Any, components: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type; what it names goes to the components."""
    (schema,), named = msgspec.json.schema_components([kind], ref_template="#/components/schemas/{name}")
    components.update(named)
    return schema
