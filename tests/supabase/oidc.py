"""A small OIDC provider: it asks nobody anything, redirects at once, and can be told to lie."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.supabase.project import _served

CLIENT_ID, CLIENT_SECRET = "mivra", "a secret of the client"
SECRETS = """
[auth]
redirect_uri = "http://localhost:{{port}}/oauth2callback"
cookie_secret = "{cookie_secret}"
client_id = "{client_id}"
client_secret = "{client_secret}"
server_metadata_url = "{url}/.well-known/openid-configuration"
"""


@dataclass
class Provider:
    """What a test knows of the provider, and tells it to say."""

    algorithm: str = "RS256"
    url: str = ""
    claims: dict[str, object] = field(default_factory=dict)
    """Of the person who comes: email, email_verified and whatever else."""
    lies: dict[str, str] = field(default_factory=dict)
    """nonce, state, iss or aud: said instead of the right one."""
    signs_with_another_key: bool = False
    denies: bool = False
    """The person does not agree."""
    is_down: bool = False
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)
    """Paths that were asked for."""

    def __post_init__(self) -> None:
        self.key, self.other_key = self._key(), self._key()

    def secrets(self) -> str:
        """A secrets.toml for a dashboard that trusts this provider."""
        return SECRETS.format(
            cookie_secret=secrets.token_hex(32), client_id=CLIENT_ID, client_secret=CLIENT_SECRET, url=self.url
        )

    def _key(self) -> Any:
        if self.algorithm == "ES256":
            return ec.generate_private_key(ec.SECP256R1())
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def jwk(self) -> dict[str, Any]:
        algorithm = ECAlgorithm if self.algorithm == "ES256" else RSAAlgorithm
        return {**json.loads(algorithm.to_jwk(self.key.public_key())), "kid": "1", "alg": self.algorithm, "use": "sig"}

    def id_token(self, nonce: str) -> str:
        now = int(time.time())
        said = {"iss": self.url, "aud": CLIENT_ID, "sub": "1", "iat": now, "exp": now + 300, "nonce": nonce}
        lies = {name: value for name, value in self.lies.items() if name != "state"}
        key = self.other_key if self.signs_with_another_key else self.key
        return jwt.encode({**said, **self.claims, **lies}, key, self.algorithm, headers={"kid": "1"})


@contextmanager
def open_provider(algorithm: str = "RS256") -> Iterator[Provider]:
    """A provider that listens, for as long as the block lasts."""
    provider = Provider(algorithm)
    with _served(_app(provider)) as provider.url:
        yield provider


def _app(provider: Provider) -> Starlette:
    async def discovery(_request: Request) -> Response:
        return JSONResponse(
            {
                "issuer": provider.url,
                "authorization_endpoint": f"{provider.url}/authorize",
                "token_endpoint": f"{provider.url}/token",
                "jwks_uri": f"{provider.url}/jwks",
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": [provider.algorithm],
                "code_challenge_methods_supported": ["S256"],
            }
        )

    async def authorize(request: Request) -> Response:
        asked = dict(request.query_params)
        assert asked["client_id"] == CLIENT_ID
        state = provider.lies.get("state", asked["state"])
        if provider.denies:
            return RedirectResponse(f"{asked['redirect_uri']}?{urlencode({'error': 'access_denied', 'state': state})}")
        code = secrets.token_urlsafe(8)
        provider.codes[code] = asked
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': state})}")

    async def token(request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        asked = provider.codes.pop(form.get("code", ""), None)
        basic = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        if asked is None or request.headers.get("authorization") != f"Basic {basic}":
            return JSONResponse({"error": "invalid_grant"}, 400)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        if base64.urlsafe_b64encode(digest).decode().rstrip("=") != asked["code_challenge"]:
            return JSONResponse({"error": "invalid_grant"}, 400)
        id_token = provider.id_token(asked["nonce"])
        return JSONResponse({"access_token": "unused", "token_type": "Bearer", "expires_in": 300, "id_token": id_token})

    async def jwks(_request: Request) -> Response:
        return JSONResponse({"keys": [provider.jwk()]})

    def watched(handler: Any) -> Any:
        async def answer(request: Request) -> Response:
            provider.answered.append(request.url.path)
            return Response("down", 503) if provider.is_down else await handler(request)

        return answer

    return Starlette(
        routes=[
            Route("/.well-known/openid-configuration", watched(discovery)),
            Route("/authorize", watched(authorize)),
            Route("/token", watched(token), methods=["POST"]),
            Route("/jwks", watched(jwks)),
        ]
    )
