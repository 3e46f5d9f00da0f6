"""The class of every section, and types that several sections share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationInfo, field_validator
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

    @field_validator("*", mode="before")
    @classmethod
    def _whole_numbers_in_any_notation(cls, value: Any, info: ValidationInfo) -> Any:
        return _whole(value, cls.model_fields[str(info.field_name)].annotation)


def _whole(value: Any, annotation: Any) -> Any:
    """`1e3` as 1000 where a setting takes whole numbers and no others; entries of lists and mappings too."""
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return _whole(value, arguments[0])
    if kind in (Union, UnionType):
        found = [_whole(value, member) for member in arguments]
        return value if float in arguments else next((new for new in found if new is not value), value)
    if isinstance(value, list) and kind is list:
        return [_whole(item, arguments[0]) for item in value]
    if isinstance(value, Mapping) and kind is dict:
        return {_whole(key, arguments[0]): _whole(item, arguments[1]) for key, item in value.items()}
    return int(value) if annotation is int and isinstance(value, float) and value.is_integer() else value


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
