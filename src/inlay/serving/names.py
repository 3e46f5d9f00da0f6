"""Names of models, looked up once, at the door. Behind it only digests exist, so no name can lead to another's adapter."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from inlay.errors import nearest
from inlay.serving.auth import Principal
from inlay.serving.engine import Refusal, ServedAdapter

LONGEST_NAME: Final = 256


@dataclass(frozen=True, slots=True)
class Asker:
    """The facts of a request that may decide which model answers it."""

    id: str
    """Of the answer; feedback names it."""
    principal: str
    user: str | None = None
    safety_identifier: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """By name in lower case."""
    text: str = ""
    """The last message of the user, or the prompt."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The model that was chosen for a request, by the name of a base or adapter."""

    model: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """Added to the answer."""


class Alias(Protocol):
    """A name that stands for several models: an A/B test, a router."""

    def choose(self, asker: Asker) -> Choice:
        """The model that answers this request. Raises: Refusal."""
        raise NotImplementedError

    def summary(self) -> str:
        """One line for `/v1/models`."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Target:
    """The base or adapter that answers a request."""

    name: str
    """Of the library or the base: the name that led to it, never a client's text."""
    adapter: ServedAdapter | None
    """None: the base alone."""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str | None:
        """Digest of the adapter's weights."""
        return self.adapter.digest if self.adapter else None

    @property
    def identity(self) -> str | None:
        """Digest of the adapter with its tokenizer and template."""
        return self.adapter.identity if self.adapter else None

    @property
    def ref(self) -> str | None:
        """NAME:VERSION, for people."""
        return self.adapter.ref if self.adapter else None


class Names:
    """The models that this server has. `base` is the id of the base; `base` as a word means it, too."""

    def __init__(self, base: str, base_identity: str = "") -> None:
        self.base, self.base_identity = base, base_identity
        self.started = int(time.time())
        self.aliases: dict[str, Alias] = {}
        self._adapters: dict[str, ServedAdapter] = {}
        self._held: Counter[str] = Counter()

    def put(self, name: str, adapter: ServedAdapter) -> ServedAdapter | None:
        """From now on the name leads to this adapter. Gives the one that it led to before."""
        before = self._adapters.get(name)
        self._adapters[name] = adapter
        return before

    def remove(self, name: str) -> ServedAdapter | None:
        """The adapter that the name led to; from now on it leads nowhere."""
        return self._adapters.pop(name, None)

    def adapters(self) -> dict[str, ServedAdapter]:
        """Every adapter by the name under which it was put."""
        return dict(self._adapters)

    def resolve(self, model: str, who: Principal, asker: Asker | None = None) -> Target:
        """The model that a name leads to for this principal. Raises: Refusal 404 with the nearest name that it may see."""
        alias = self.aliases.get(model)
        if alias is not None and who.may_use(model):
            choice = alias.choose(asker or Asker("", who.name))
            target = self._target(choice.model, None)
            if target is not None:
                return Target(target.name, target.adapter, choice.headers)
            raise Refusal(
                503, f"model: {model!r} leads to a model that is not loaded.", code="alias_without_model", param="model"
            )
        target = self._target(model, who)
        if target is None:
            guess = nearest(model, self.visible(who)) if len(model) <= LONGEST_NAME else None
            hint = f"Did you mean {guess!r}? " if guess else ""
            shown = repr(model[:80])
            raise Refusal(
                404,
                f"model: {shown} is not served. {hint}GET /v1/models lists what is.",
                code="model_not_found",
                param="model",
            )
        return target

    def visible(self, who: Principal) -> list[str]:
        """Names that this principal may use: the base, adapters, aliases."""
        names = [name for name, adapter in self._adapters.items() if who.may_use(name, adapter.ref)]
        names += [name for name in self.aliases if who.may_use(name)]
        return [self.base] * who.may_use(self.base, "base") + sorted(names)

    def is_used(self, digest: str) -> bool:
        """Whether any name leads to these weights."""
        return any(adapter.digest == digest for adapter in self._adapters.values())

    @contextmanager
    def held(self, target: Target) -> Iterator[None]:
        """While a request has it, its adapter is not taken out of memory."""
        digest = target.digest
        if digest is None:
            yield
            return
        self._held[digest] += 1
        try:
            yield
        finally:
            self._held[digest] -= 1
            if not self._held[digest]:
                del self._held[digest]

    def is_held(self, digest: str) -> bool:
        """Whether a request that was let in still has these weights."""
        return digest in self._held

    def _target(self, model: str, who: Principal | None) -> Target | None:
        """The model that a name leads to; None for an unknown one, and for one that the principal may not see."""
        if model in (self.base, "base") and (who is None or who.may_use(self.base, "base")):
            return Target(self.base, None)
        for name, adapter in self._adapters.items():
            if model in (name, adapter.ref) and (who is None or who.may_use(name, adapter.ref)):
                return Target(name if model == name else adapter.ref, adapter)
        versions = {
            adapter.digest: adapter for adapter in self._adapters.values() if adapter.ref.rpartition(":")[0] == model
        }
        if len(versions) == 1:
            adapter = next(iter(versions.values()))
            if who is None or who.may_use(model, adapter.ref):
                return Target(adapter.ref, adapter)
        return None
