"""Data files to token ids: `reading` (files to rows and conversations), `encoding` (conversations to ids), `checks`."""

from inlay.data.example_tasks import ExampleTask, example_tasks
from inlay.data.reading.read import read_examples
from inlay.data.types import Example, Message

__all__ = ["Example", "ExampleTask", "Message", "example_tasks", "read_examples"]
