"""Sign-in by password: Supabase Auth says whose it is, and is then told to forget that it was asked."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Final
from uuid import UUID

import httpx
from starlette.exceptions import HTTPException

from mivra.web.sign_in import AUTH_AWAY, AUTH_BUSY, AUTH_REFUSES, SECOND_FACTOR

TIMEOUT: Final = httpx.Timeout(8.0, connect=3.0)
"""Auth computes a password hash, which takes some 100 ms; a person waits this long at most."""

WRONG: Final = ("invalid_credentials", "email_not_confirmed", "user_banned", "validation_failed")
"""Codes of what the person, not the dashboard, has to see to; all read the same on the page."""
BUSY: Final = 429

logger = logging.getLogger(__name__)


def verify(url: str, key: str, email: str, password: str) -> UUID | None:
    """The user of this project whose password that is, None for nobody; HTTPException when Auth does not say.

    A client for each attempt: signing in changes who a client is. Its tokens are given back and kept nowhere.
    """
    from supabase_auth import SyncGoTrueClient  # noqa: PLC0415 - 0.2 s of imports that only sign-in by password needs
    from supabase_auth.errors import AuthError  # noqa: PLC0415

    headers = {"apikey": key, "Authorization": f"Bearer {key}"}
    with (
        httpx.Client(timeout=TIMEOUT) as http,
        SyncGoTrueClient(
            url=f"{url}/auth/v1", headers=headers, http_client=http, auto_refresh_token=False, persist_session=False
        ) as client,
    ):
        try:
            user = client.sign_in_with_password({"email": email, "password": password}).user
        except (AuthError, ValueError) as error:
            if getattr(error, "code", None) in WRONG:
                return None
            raise _refused(error) from error
        with suppress(AuthError, ValueError):
            client.sign_out({"scope": "local"})
    if user and any(factor.status == "verified" for factor in user.factors or ()):
        raise HTTPException(403, SECOND_FACTOR)
    return UUID(user.id) if user else None


def _refused(error: Exception) -> HTTPException:
    status, code = getattr(error, "status", 0), getattr(error, "code", None)
    # Its message may repeat what was sent; code and status do not.
    logger.warning("Supabase Auth answered a sign-in with %s %s %s", type(error).__name__, status, code)
    if status == BUSY:
        return HTTPException(BUSY, AUTH_BUSY, {"Retry-After": "60"})
    return HTTPException(503, AUTH_REFUSES if 400 <= status < 500 else AUTH_AWAY)  # noqa: PLR2004 - HTTP's 4xx
