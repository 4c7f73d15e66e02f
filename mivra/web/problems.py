"""Problems as a caller of the HTTP routes reads them (RFC 9457), and as a person reads them on a page."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import orjson
import streamlit as st
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mivra.errors import Conflict, InvalidData, MivraError, StoreError

RETRY_S: Final = 5
"""What cannot be answered now is asked again after this long."""
STATUSES: Final[dict[type[MivraError], int]] = {Conflict: 409, InvalidData: 422}
"""The rest is not the caller's fault, and may be over soon: 503."""
CODES: Final = {"PT404": 404, "42501": 403}
"""What our functions raise; other lacks of a right are the program's own."""

logger = logging.getLogger(__name__)


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """A problem document, under the status's own title."""
    said = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return Response(orjson.dumps(said), status, headers, media_type="application/problem+json")


def answer_to(error: Exception) -> Response:
    """What became of a call, said to a program."""
    if isinstance(error, HTTPException):
        return problem(error.status_code, error.detail, error.headers)
    if not isinstance(error, MivraError):
        logger.error("a request could not be answered", exc_info=error)
        return problem(500, "This request could not be answered; the log has the reason by its X-Request-Id.")
    code = error.code if isinstance(error, StoreError) else ""
    status = CODES.get(code) or next((s for kind, s in STATUSES.items() if isinstance(error, kind)), 503)
    if status != HTTPStatus.SERVICE_UNAVAILABLE:
        return problem(status, str(error))
    logger.warning("not answered: %s", error)
    # The driver's own words name the server and the user.
    return problem(status, (type(error).__doc__ or "").strip(), {"Retry-After": str(RETRY_S)})


async def no_such_route(request: Request) -> Response:
    """Everything under /api/ that is nothing: else Streamlit would answer 200 with its page."""
    return problem(404, f"There is nothing at {request.url.path}.")


def script_failed(error: Exception) -> bool:
    """An error that no page expected: one sentence, what to do, and an id that the log has too. Never a traceback."""
    error_id = uuid.uuid4().hex[:8]
    logger.error("error %s", error_id, exc_info=error)
    sentence = str(error) if isinstance(error, MivraError) else "This page could not be drawn."
    st.error(sentence, icon=":material/error:", title="Something went wrong")
    st.caption(f"Try again; if it stays, look for error `{error_id}` in the console's log.")
    st.button("Try again", icon=":material/refresh:", key=f"again_{error_id}")
    return True
