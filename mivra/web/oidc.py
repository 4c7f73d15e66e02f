"""Sign-in by OIDC: Streamlit asks the provider, and what it brought back is exchanged for a session of ours at once."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote, urlsplit

import anyio.to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from streamlit.auth_util import (
    get_cookie_with_chunks,
    get_redirect_uri,
    get_secrets_auth_section,
    is_authlib_installed,
    validate_auth_credentials,
)
from streamlit.errors import StreamlitAuthError
from streamlit.web.server.server_util import get_cookie_secret
from streamlit.web.server.starlette.starlette_app_utils import decode_signed_value
from streamlit.web.server.starlette.starlette_server_config import USER_COOKIE_NAME

from mivra.errors import ConfigError, MivraError
from mivra.web import sign_in
from mivra.web.sign_in import NEXT_COOKIE, Desk, address_of, safe_path

LOGIN: Final = "/auth/login"
CALLBACK: Final = "/oauth2callback"
FRESH_DAYS: Final = 120 / 86400
"""Two minutes: what Streamlit remembers for 30 days is believed only when the browser comes straight from there."""
UNVERIFIED: Final = "The provider does not say that this e-mail address is yours, so it counts for nothing here."
DEFAULT_TITLE: Final = "single sign-on"

logger = logging.getLogger(__name__)


def providers(origin: str | None) -> dict[str, str]:
    """Titles of the providers in [auth] of secrets.toml by name, none without it; ConfigError says what is wrong."""
    section = get_secrets_auth_section()
    if not section:
        return {}
    names = [name for name, value in section.items() if isinstance(value, Mapping) and "client_id" in value]
    found = {"default": DEFAULT_TITLE} if "client_id" in section else {}
    found |= {name: name.replace("-", " ").title() for name in names}
    try:
        for name in found or ("default",):
            validate_auth_credentials(name)
    except StreamlitAuthError as error:
        raise ConfigError(" ".join(str(error).split())) from error
    if not is_authlib_installed():
        raise ConfigError("Sign-in by OIDC needs Authlib; run: pip install -r requirements.txt")
    uri = urlsplit(get_redirect_uri(section) or "")
    if uri.path != CALLBACK or (origin and f"{uri.scheme}://{uri.netloc}" != origin):
        raise ConfigError(f"redirect_uri of [auth] in secrets.toml must be {origin or 'the address'}{CALLBACK}")
    return found


def login_url(provider: str) -> str:
    """Where the sign-in at this provider begins; good for two minutes."""
    from streamlit.user_info import generate_login_redirect_url  # noqa: PLC0415 - it needs Authlib

    return generate_login_redirect_url(provider)


def brought(request: Request) -> dict[str, object]:
    """What a provider has just said of who comes back from it; empty for everybody else."""
    if request.method != "GET" or USER_COOKIE_NAME not in request.cookies:
        return {}
    secret = get_cookie_secret()

    def signed(name: str) -> bytes | None:
        return decode_signed_value(secret, name, request.cookies.get(name, ""), FRESH_DAYS)

    payload = get_cookie_with_chunks(signed, USER_COOKIE_NAME)
    claims = json.loads(payload) if payload else {}
    return claims if isinstance(claims, dict) else {}


async def exchange(desk: Desk, request: Request, claims: Mapping[str, object]) -> Response:
    """A session for who comes back from a provider; Streamlit's own cookies are taken away in any case."""
    try:
        response = await anyio.to_thread.run_sync(_exchange, desk, request, claims)
    except (MivraError, HTTPException) as error:
        response = desk.refused(error)
    for name in request.cookies:
        if name.startswith(USER_COOKIE_NAME) or name == NEXT_COOKIE:
            response.delete_cookie(name)
    return response


def _exchange(desk: Desk, request: Request, claims: Mapping[str, object]) -> Response:
    address = address_of(request)
    email = str(claims.get("email", ""))[: sign_in.EMAIL_LENGTH]
    # An address that nobody has verified is what its owner likes it to be.
    if claims.get("email_verified") is not True or not email.isprintable():
        logger.warning("sign-in refused from %s: the provider has not verified the e-mail", address)
        raise HTTPException(403, UNVERIFIED)

    # A provider's word is no guess: guesses at the password do not keep its owner out. Who has no role is counted.
    why = f"no role ({claims.get('provider')})"
    cookie = desk.sessions.open("oidc", address, email=email) or desk.admit(
        email, address, lambda _attempt: None, why, sign_in.NO_ROLE
    )
    return desk.let_in(request, cookie, safe_path(unquote(request.cookies.get(NEXT_COOKIE, "/"))))


def has_failed(path: str, status: int, headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether Streamlit's answer at LOGIN or CALLBACK leads nowhere: it says so to its log only."""
    if path == LOGIN:
        return not any(name == b"location" and b"://" in value for name, value in headers)
    begins = f"{USER_COOKIE_NAME}=".encode()
    set_now = [value[len(begins) :] for name, value in headers if name == b"set-cookie" and value.startswith(begins)]
    return status >= 400 or not any(value[:1] not in (b'"', b";") for value in set_now)  # noqa: PLR2004 - HTTP's errors
