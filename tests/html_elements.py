"""The elements of a page, for tests that look at one."""

from __future__ import annotations

from html.parser import HTMLParser


class Elements(HTMLParser):
    """The names of all elements, their attributes, and whether every one is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "input":
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
