"""The model `auto`: each query goes to the adapter that a router finds for it, or to the base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from inlay.adapters.router import Router
from inlay.errors import ConfigError
from inlay.serving.names import Asker, Choice
from inlay.serving.server import Server

AUTO: Final = "auto"
HEADER: Final = "X-Inlay-Route"


@dataclass(frozen=True, slots=True)
class AutoModel:
    """A router, as `Names` asks it."""

    router: Router

    def choose(self, asker: Asker) -> Choice:
        """The model for the last message of the user. The answer says which, and how probable it was."""
        routed = self.router.choose(asker.text)
        model = routed.arm or "base"
        return Choice(model, {HEADER: f"{model.encode('ascii', 'replace').decode()} p={routed.probability:.2f}"})

    def summary(self) -> str:
        """The arms."""
        return f"by the query: {', '.join(self.router.arms)}, or the base"


def add_router(server: Server, router: Router, where: str) -> None:
    """Makes `auto` a model of a server whose adapters are loaded. Raises: ConfigError where one of the router is missing."""
    adapters = server.names.adapters()
    served = {*adapters, *(adapter.ref for adapter in adapters.values())}
    missing = [arm for arm in router.arms if arm not in served]
    if missing:
        raise ConfigError(
            f"{where}: routes to {', '.join(missing)}, not served here. Add it to --adapters; it was judged in that version."
        )
    server.names.aliases[AUTO] = AutoModel(router)
