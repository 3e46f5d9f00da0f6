"""The class of every section, and types that several sections share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Auto = Literal["auto"]
PositiveInt = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
DtypeName = Literal["float32", "bfloat16", "float16"]


class Settings(BaseModel):
    """A frozen section, closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,  # `rank: true` and `rank: "8"` are mistakes, not 1 and 8
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


def is_changed(section: Settings, name: str) -> bool:
    """Whether a setting differs from its default. Pydantic's set of given fields would not do: a run's own config
    writes every setting out."""
    return bool(getattr(section, name) != type(section).model_fields[name].default)
