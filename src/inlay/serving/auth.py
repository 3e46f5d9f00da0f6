"""Who may ask for what: tokens with scopes and models, the Host check of a server on this machine, a salt for each principal.

Without tokens only this machine may ask, and everyone on it may. Routes are closed unless this file opens them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from inlay.errors import ConfigError, unknown_name
from inlay.serving.engine import Refusal

USER_SCOPES: Final = ("answer", "feedback", "metrics")
"""What a token may be used for; a line of the tokens file names some of them, joined by commas."""
OPEN_PATHS: Final = frozenset({"/health"})
"""Answered without a token."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_GUESSES_PER_MINUTE: Final = 60
_ADDRESSES: Final = 4096


@dataclass(frozen=True, slots=True)
class Token:
    """One line of a tokens file."""

    name: str
    sha256: bytes
    """Digest of the token; the token itself is nowhere."""
    scopes: frozenset[str]
    models: tuple[str, ...] = ()
    """Names of models that it may use: `support` allows every version and tag of it. None given: all."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a token by its name, or everybody on this machine."""

    name: str
    scopes: frozenset[str]
    models: tuple[str, ...] = ()
    salt: bytes = b""
    """Prefixes in the cache are shared only within one salt."""

    def may_use(self, *names: str) -> bool:
        """Whether a model with any of these names may be used and seen."""
        return not self.models or any(n == m or n.startswith(f"{m}:") for n in names for m in self.models)


def new_token(name: str, scopes: Sequence[str] = ("answer", "feedback"), models: Sequence[str] = ()) -> tuple[str, str]:
    """(a new token, its line for the tokens file). The token can be shown only now. Raises: ConfigError."""
    token = f"inlay-{secrets.token_urlsafe(32)}"
    line = " ".join([name, hashlib.sha256(token.encode()).hexdigest(), ",".join(scopes), ",".join(models)]).rstrip()
    _token_of_line(line, "new token", {*USER_SCOPES, "admin"})
    return token, line


def read_tokens(path: Path, *, admin: bool = False) -> tuple[Token, ...]:
    """The tokens of a file, `name sha256 scopes [models]` a line. An admin's tokens lie in a file of their own.

    Raises: ConfigError naming the line.
    """
    allowed = {"admin"} if admin else set(USER_SCOPES)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the tokens: {error}. Make one with: inlay serve token NAME.") from None
    found: list[Token] = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            token = _token_of_line(line, f"{path}:{number}", allowed)
            if any(token.name == other.name or token.sha256 == other.sha256 for other in found):
                raise ConfigError(f"{path}:{number}: token {token.name!r} stands there twice. Keep one of the lines.")
            found.append(token)
    if not found:
        raise ConfigError(f"{path}: holds no token. Add a line made by: inlay serve token NAME.")
    return tuple(found)


def _token_of_line(line: str, where: str, allowed: set[str]) -> Token:
    parts = line.split()
    if len(parts) not in (3, 4):
        raise ConfigError(f"{where}: {len(parts)} fields. A line is: name sha256 scopes [models].")
    name, digest, scopes = parts[:3]
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: {name!r} cannot name a token. Use letters, digits, '.', '_', '-' (at most 64).")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ConfigError(f"{where}: the second field is not a SHA-256 in hexadecimal. Keep digests there, not tokens.")
    for scope in scopes.split(","):
        if scope not in allowed:
            raise ConfigError(f"{where}: {unknown_name('scope', scope, allowed)}")
    models = tuple(part for part in parts[3].split(",") if part) if len(parts) == 4 else ()
    return Token(name, bytes.fromhex(digest), frozenset(scopes.split(",")), models)


def scope_of(path: str) -> str:
    """The scope that a path asks for. A path that no line names asks for the most common one, so none is open by mistake."""
    if path == "/admin" or path.startswith("/admin/"):
        return "admin"
    return {"/metrics": "metrics", "/v1/feedback": "feedback"}.get(path, "answer")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on this host."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Auth:
    """Decides who may ask. Tokens are compared with every line, in constant time."""

    def __init__(
        self, tokens: Sequence[Token] = (), admin_tokens: Sequence[Token] = (), *, host: str = "127.0.0.1",
        secret: bytes | None = None, share_prefixes: bool = False,
    ) -> None:  # fmt: skip
        """Raises: ConfigError for a host that others reach and no tokens."""
        self.is_local = is_loopback(host)
        if not self.is_local and not tokens:
            raise ConfigError(
                f"host {host}: other machines reach it, and no tokens are set. "
                "Make one with `inlay serve token NAME` and start with --tokens FILE, or serve on 127.0.0.1."
            )
        self.tokens, self.admin_tokens = tuple(tokens), tuple(admin_tokens)
        self._secret = secret or secrets.token_bytes(32)
        self._share_prefixes = share_prefixes
        self._guesses: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def admit(self, path: str, headers: Mapping[bytes, Sequence[bytes]], address: str) -> Principal | None:
        """Who asks; None on a path that is open to all. Raises: Refusal 401, 403, 429."""
        if self.is_local:
            _require_local_host(headers.get(b"host", ()))
        if path in OPEN_PATHS:
            return None
        scope = scope_of(path)
        if scope == "admin" and not self.admin_tokens:
            raise Refusal(
                403, "No admin tokens are set, so nobody may administer this server. Start it with --admin-tokens FILE.",
                code="no_admin_tokens",
            )  # fmt: skip
        if not self.tokens and scope != "admin":
            return Principal("local", frozenset(USER_SCOPES), salt=self._salt("local"))
        token = self._token_of(headers.get(b"authorization", ()))
        if (
            token is None
        ):  # one who has a token is let in whatever others at the same address, as of a proxy, have tried
            self._require_few_guesses(address)
            self._count_guess(address)
            raise Refusal(401, "A valid token is needed: Authorization: Bearer TOKEN.", code="invalid_api_key")
        if scope not in token.scopes:
            raise Refusal(403, f"The token {token.name!r} has no scope {scope!r}.", code="missing_scope")
        return Principal(token.name, token.scopes, token.models, self._salt(token.name))

    def _token_of(self, headers: Sequence[bytes]) -> Token | None:
        """The line of the one token of a request; None where there is none, more than one, or an unknown one."""
        scheme, _, given = headers[0].partition(b" ") if len(headers) == 1 else (b"", b"", b"")
        if scheme.lower() != b"bearer" or not given.strip():
            return None
        digest = hashlib.sha256(given.strip()).digest()
        found = None
        for token in self.tokens + self.admin_tokens:  # all of them: the time says nothing about which one fits
            if hmac.compare_digest(token.sha256, digest):
                found = token
        return found

    def _salt(self, name: str) -> bytes:
        return b"" if self._share_prefixes else hmac.digest(self._secret, name.encode(), "sha256")

    def _require_few_guesses(self, address: str) -> None:
        since, count = self._guesses.get(address, (0.0, 0))
        left = since + 60 - time.monotonic()
        if count >= _GUESSES_PER_MINUTE and left > 0:
            raise Refusal(429, "Too many wrong tokens from this address.", code="too_many_guesses", retry_after_s=left)

    def _count_guess(self, address: str) -> None:
        now = time.monotonic()
        since, count = self._guesses.pop(address, (now, 0))
        self._guesses[address] = (since, count + 1) if now - since < 60 else (now, 1)
        if len(self._guesses) > _ADDRESSES:
            self._guesses.popitem(last=False)


def _require_local_host(hosts: Sequence[bytes]) -> None:
    """Raises: Refusal 403 for a name of elsewhere: a page of another site whose name was made to lead to this machine.
    A browser always names its host; only HTTP/1.0 clients do not."""
    for host in hosts:
        try:
            name = urlsplit(f"//{host.decode('ascii')}").hostname or ""
        except ValueError:  # UnicodeDecodeError is one
            name = ""
        if not is_loopback(name):
            raise Refusal(403, "This server answers to 127.0.0.1 and localhost only.", code="host_not_allowed")
