"""GET /v1/models, /health, /ready: what is served, and whether."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request

from inlay.serving import replies
from inlay.serving.auth import Principal
from inlay.serving.limits import require_ready
from inlay.serving.route import ERRORS, StrictRoute
from inlay.serving.schemas import Name
from inlay.serving.server import Server, principal_of, server_of

router = APIRouter(route_class=StrictRoute)


@router.get("/health", responses=ERRORS)
async def health(request: Request) -> replies.Health:
    """Answers while the server lives, and says what its engine does."""
    state = server_of(request).engine.state()
    return replies.Health(
        status=state.condition, why=state.why, running=state.running, waiting=state.waiting, figures=dict(state.figures)
    )


@router.get("/ready", responses=ERRORS)
async def ready(request: Request) -> replies.Health:
    """The same while requests are taken; 503 otherwise."""
    require_ready(server_of(request).engine.state())
    return await health(request)


@router.get("/v1/models", responses=ERRORS)
async def models(request: Request) -> replies.ModelList:
    """Every model that the token may use."""
    server, who = server_of(request), principal_of(request)
    return replies.ModelList(object="list", data=[_listed(server, who, name) for name in server.names.visible(who)])


@router.get("/v1/models/{model:path}", responses=ERRORS)
async def model(model: Annotated[Name, Path()], request: Request) -> replies.ListedModel:
    """One model."""
    server, who = server_of(request), principal_of(request)
    return _listed(server, who, model)


def _listed(server: Server, who: Principal, name: str) -> replies.ListedModel:
    """Raises: Refusal 404 for a name that the token may not see."""
    names = server.names
    alias = names.aliases.get(name) if who.may_use(name) else None
    if alias is not None:
        kind, found = "alias", None
        note = alias.summary()
    else:
        found = names.resolve(name, who)
        kind = "adapter" if found.adapter else "base"
        note = found.adapter.note if found.adapter else ""
    return replies.ListedModel(
        id=found.name if found else name, object="model", created=names.started, owned_by="inlay",
        inlay=replies.ServedModel(
            kind=kind, ref=found.ref if found else None, identity=(found.identity if found else None) or None,
            context_length=server.engine.state().context_length, note=note,
        ),
    )  # fmt: skip
