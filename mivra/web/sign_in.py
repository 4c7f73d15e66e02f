"""The desk before the door: sign-in and sign-out, drawn by the server, without a script."""

from __future__ import annotations

import html
import ipaddress
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Final
from urllib.parse import parse_qs, quote, urlsplit
from uuid import UUID

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from mivra.errors import MivraError
from mivra.store import Store, one
from mivra.web.limits import body_of
from mivra.web.sessions import Sessions

WRONG: Final = "E-mail and password do not match an account with a role here."
NO_ROLE: Final = "This account has no role here. Ask an admin of this dashboard to add its e-mail."
AWAY: Final = "The database cannot be asked, so nobody is let in; the console says why. Try again in a moment."
AUTH_AWAY: Final = "Supabase Auth does not answer, so no password can be checked. Try again in a moment."
AUTH_BUSY: Final = "Supabase Auth has had too many sign-ins. Try again in a few minutes."
AUTH_REFUSES: Final = "Supabase Auth refuses this dashboard. Its operator finds the reason in the console's log."
SECOND_FACTOR: Final = "This account has a second factor, which a password alone does not replace. Sign in another way."
PROVIDER_FAILED: Final = "The sign-in did not come to an end. Try again."
FOREIGN: Final = "This form was sent by another site. Open this page anew and try again."

FORM_BYTES: Final = 4096
"""An e-mail and a password are not longer."""
EMAIL_LENGTH: Final = 200
"""As the database has it."""
FORM_S: Final = 10.0
AT_ONCE: Final = 8
"""Passwords looked at at the same time: a slow Auth does not take the threads of the pages."""
NEXT_S: Final = 600
"""For so long it is remembered where somebody wanted to go, while a provider asks them who they are."""

NEXT_COOKIE: Final = "mivra_next"
STATIC: Final = Path(__file__).parent / "static"
SERVED: Final = {"sign_in.css": "text/css", "logo.svg": "image/svg+xml"}
HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
}
FORM: Final = Template(
    '<form method="post" action="/sign-in"><input type="hidden" name="next" value="$next">'
    '<label>E-mail<input name="email" type="email" value="$email" autocomplete="username" maxlength="200" required>'
    '</label><label>Password<input name="password" type="password" autocomplete="current-password" required></label>'
    "<button>Sign in</button></form>"
)
LINK: Final = Template('<a class="button" href="/sign-in/with/$name?next=$next">Sign in with $title</a>')
OUT: Final = '<form method="post" action="/sign-out"><button>Sign out</button></form>'
PAGE: Final = Template((STATIC / "sign_in.html").read_text(encoding="utf-8"))

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Desk:
    """Lets people in: by a password, or by what a provider said of them."""

    sessions: Sessions
    store: Callable[[], Store]
    verify: Callable[[str, str], UUID | None] | None
    """The user of an e-mail and a password, None for a wrong one; HTTPException when that cannot be known."""
    providers: dict[str, str]
    """Titles of the OIDC providers by name."""
    login_url: Callable[[str], str]
    """Where the sign-in at a provider begins."""
    origin: str | None
    """Scheme and host of MIVRA_PUBLIC_URL."""
    limiter: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(AT_ONCE))

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/sign-in", self._ask, methods=["GET"]),
                Route("/sign-in", self._sign_in, methods=["POST"]),
                Route("/sign-in/with/{provider}", self._leave, methods=["GET"]),
                Route("/sign-in/{name}", _static, methods=["GET"]),
                Route("/sign-out", self._ask_out, methods=["GET"]),
                Route("/sign-out", self._sign_out, methods=["POST"]),
            ]
        )

    def page(self, sentence: str = "", status: int = 200, next_path: str = "/", email: str = "") -> Response:
        """The sign-in page, with what went wrong."""
        form = FORM.substitute(next=html.escape(next_path), email=html.escape(email)) if self.verify else ""
        links = "".join(
            LINK.substitute(name=quote(name), next=quote(next_path, safe=""), title=html.escape(title))
            for name, title in self.providers.items()
        )
        return document("Sign in", form + links, sentence, status)

    def let_in(self, request: Request, cookie: str, next_path: str) -> Response:
        """To where they wanted to go, with a new session; the one that this browser had is closed."""
        self.sessions.close(request.cookies.get(self.sessions.cookie_name), address_of(request))
        response = RedirectResponse(next_path, 303, {"Cache-Control": "no-store"})
        # Lax, not Strict: a browser that comes back from a provider, or from a link in a mail, brings it along.
        # Without an age: it ends with the browser at the latest.
        response.set_cookie(
            self.sessions.cookie_name, cookie, httponly=True, samesite="lax", path="/", secure=self.sessions.secure
        )
        return response

    def admit(self, email: str, address: str, who: Callable[[int], str | None], why: str, sentence: str) -> str:
        """What the cookie of a new session holds; HTTPException for who has tried too often or is nobody here.

        `why` goes to the audit trail, the sentence to the page.
        """
        begun = one(self.store().call("begin_sign_in", email=email, address=address))
        if begun["attempt"] is None:
            minutes = math.ceil(begun["wait_seconds"] / 60)
            in_time = f"in {minutes} minutes" if minutes > 1 else "in a minute"
            wait = {"Retry-After": str(begun["wait_seconds"])}
            raise HTTPException(429, f"Too many attempts. Try again {in_time}.", wait)
        try:
            cookie = who(begun["attempt"])
        except (MivraError, HTTPException):
            # Nobody's password was looked at.
            with suppress(MivraError):
                self.store().call("take_back_sign_in", attempt=begun["attempt"])
            raise
        if cookie is None:
            self.store().call("sign_in_failed", email=email, address=address, why=why)
            logger.warning("sign-in refused from %s", address)
            raise HTTPException(401, sentence)
        return cookie

    def refused(self, error: MivraError | HTTPException, next_path: str = "/", email: str = "") -> Response:
        """The sign-in page for who was not let in, or cannot be now."""
        if isinstance(error, HTTPException):
            response = self.page(error.detail, error.status_code, next_path, email)
            response.headers.update(error.headers or {})
            return response
        logger.warning("nobody can sign in: %s", error)
        return self.page(AWAY, 503, next_path, email)

    async def _ask(self, request: Request) -> Response:
        failed = PROVIDER_FAILED if "failed" in request.query_params else ""
        return self.page(failed, next_path=safe_path(request.query_params.get("next", "/")))

    async def _leave(self, request: Request) -> Response:
        provider = request.path_params["provider"]
        if provider not in self.providers:
            return self.page(PROVIDER_FAILED, 404)
        response = RedirectResponse(self.login_url(provider), 303, HEADERS)
        path = safe_path(request.query_params.get("next", "/"))
        response.set_cookie(
            NEXT_COOKIE, quote(path), NEXT_S, httponly=True, samesite="lax", secure=self.sessions.secure
        )
        return response

    async def _sign_in(self, request: Request) -> Response:
        form = await _form(request) if self._is_ours(request) else None
        if form is None:
            return self.page(FOREIGN, 403)
        email, next_path = form.get("email", "").strip()[:EMAIL_LENGTH], safe_path(form.get("next", "/"))
        try:
            if self.verify is None or not (email and email.isprintable() and form.get("password")):
                raise HTTPException(401, WRONG)
            args = (email, form["password"], address_of(request))
            cookie = await anyio.to_thread.run_sync(self._by_password, *args, limiter=self.limiter)
            return await anyio.to_thread.run_sync(self.let_in, request, cookie, next_path)
        except (MivraError, HTTPException) as error:
            return self.refused(error, next_path, email)

    def _by_password(self, email: str, password: str, address: str) -> str:
        def who(attempt: int) -> str | None:
            assert self.verify  # noqa: S101 - asked before
            user_id = self.verify(email, password)
            return self.sessions.open("password", address, user_id=user_id, attempt=attempt) if user_id else None

        return self.admit(email, address, who, "wrong password, or no role", WRONG)

    async def _ask_out(self, _request: Request) -> Response:
        return document("Sign out", OUT)

    async def _sign_out(self, request: Request) -> Response:
        if not self._is_ours(request):
            return document("Sign out", "", FOREIGN, 403)
        cookie = request.cookies.get(self.sessions.cookie_name)
        await anyio.to_thread.run_sync(self.sessions.close, cookie, address_of(request))
        response = RedirectResponse("/sign-in", 303, HEADERS)
        response.delete_cookie(self.sessions.cookie_name, secure=self.sessions.secure, httponly=True, samesite="lax")
        return response

    def _is_ours(self, request: Request) -> bool:
        """Whether a page of this dashboard sent the form: every browser says so of a POST."""
        origin = request.headers.get("origin")
        own = self.origin or f"{request.url.scheme}://{request.headers['host']}"
        if request.headers.get("sec-fetch-site", "same-origin") != "same-origin" or origin != own:
            logger.warning("refused a form from %s, sent by %.100s", address_of(request), origin)
            return False
        return True


def document(title: str, body: str, sentence: str = "", status: int = 200, refresh_s: int = 0) -> Response:
    """A small page of its own; with refresh_s it tries again by itself."""
    said = f'<p class="said" role="alert">{html.escape(sentence)}</p>' if sentence else ""
    refresh = {"Refresh": str(refresh_s), "Retry-After": str(refresh_s)} if refresh_s else {}
    return HTMLResponse(PAGE.substitute(title=title, said=said, body=body), status, {**HEADERS, **refresh})


def safe_path(path: str) -> str:
    """The path if it leads to a page of this dashboard, else the first page."""
    is_plain = path.isprintable() and "\\" not in path and path.startswith("/") and not path.startswith("//")
    is_page = is_plain and not path.startswith(("/sign-", "/api", "/auth/", "/oauth2callback", "/_stcore"))
    return path if is_page and len(path) <= FORM_BYTES // 4 and not urlsplit(path).netloc else "/"


def address_of(request: Request) -> str:
    """Of the client; behind a proxy on this machine as the proxy tells it."""
    told = request.client.host if request.client else ""
    try:
        # What follows a "%" may be any text.
        return str(ipaddress.ip_address(told.partition("%")[0]))
    except ValueError:
        return "unknown"


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in SERVED:
        return document("Not found", "", "There is nothing here.", 404)
    return FileResponse(STATIC / name, media_type=SERVED[name], headers={"Cache-Control": "max-age=3600"})


async def _form(request: Request) -> dict[str, str] | None:
    """The fields of a form; None for what is none."""
    try:
        text = (await body_of(request, FORM_BYTES, FORM_S)).decode("utf-8")
        return {name: values[0] for name, values in parse_qs(text, max_num_fields=10).items()}
    except (HTTPException, ValueError):
        return None
