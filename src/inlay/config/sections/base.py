"""The class of every section, and types that several sections share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Auto = Literal["auto"]
PositiveInt = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
DtypeName = Literal["float32", "bfloat16", "float16"]
Tree = dict[str, Any]
"""Settings as YAML nests them, section to setting to value. Nothing of it is checked."""
Assignments = Mapping[str, Any]
"""Values by setting, whose name may be dotted (`train.seed`). Nothing of it is checked."""


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


@dataclass(frozen=True)
class OneOf:
    """Marks a text setting that must be one of the names of a table."""

    names: Collection[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, name: str) -> str:
        if name not in self.names:
            raise PydanticCustomError("one_of", "unknown name")
        return name


def is_changed(section: Settings, name: str) -> bool:
    """Whether a setting differs from its default. Pydantic's set of given fields would not do: a run's own config
    writes every setting out."""
    return bool(getattr(section, name) != type(section).model_fields[name].default)
