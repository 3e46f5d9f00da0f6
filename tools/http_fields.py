"""The tables of docs/http.md: the fields of each body, and the limits, from the code that holds them."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields

from pydantic import BaseModel

from inlay.config.describe import allowed
from inlay.serving import limits, schemas

_LONGEST_VALUE = 60


def table_of(body: type[BaseModel]) -> str:
    """The fields of a body that its parent class does not have."""
    inherited = getattr(body.__base__, "model_fields", {})
    rows = ["| field | value | meaning |", "|---|---|---|"]
    for name, field in body.model_fields.items():
        if name not in inherited:
            value = allowed(field).removesuffix(" or null").replace("|", "\\|")
            shown = value if len(value) <= _LONGEST_VALUE else "see the meaning"
            required = " (required)" if field.is_required() else ""
            rows.append(f"| `{name}`{required} | {shown} | {field.description} |")
    return "\n".join(rows) + "\n"


def table_of_limits() -> str:
    """The limits of a server, with their defaults."""
    tree = ast.parse(inspect.getsource(limits.Limits)).body[0]
    assert isinstance(tree, ast.ClassDef)
    meanings: dict[str, str] = {}
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            meanings[ast.unparse(node.target)] = " ".join(str(after.value.value).split())
    rows = ["| limit | default | meaning |", "|---|---|---|"]
    for field in fields(limits.Limits):
        default = "none" if field.default is None else f"{field.default:,g}"
        rows.append(f"| `{field.name}` | {default} | {meanings[field.name]} |")
    return "\n".join(rows) + "\n"


TABLES = {
    "request": lambda: table_of(schemas.SamplingFields),
    "request of OpenAI's routes": lambda: table_of(schemas.OpenAIFields),
    "conversation": lambda: table_of(schemas.ChatRequest),
    "text": lambda: table_of(schemas.CompletionRequest),
    "prompt": lambda: table_of(schemas.GenerateRequest),
    "server's limits": table_of_limits,
}
"""By what stands after `fields of a` in the page."""
