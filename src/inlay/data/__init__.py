"""Data files to examples: strict reading, format detection, parsing."""

from inlay.data.domain import Domain, domains
from inlay.data.reading.detection import DetectedFormat, detect
from inlay.data.reading.formats import FORMATS, Format, parse
from inlay.data.reading.read import ReadResult, read_examples, stream_examples
from inlay.data.reading.sources import content_hash, rows
from inlay.data.types import Example, Message, Row, Source

__all__ = [
    "FORMATS",
    "DetectedFormat",
    "Domain",
    "Example",
    "Format",
    "Message",
    "ReadResult",
    "Row",
    "Source",
    "content_hash",
    "detect",
    "domains",
    "parse",
    "read_examples",
    "rows",
    "stream_examples",
]
