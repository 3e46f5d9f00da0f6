"""Explained settings."""

from __future__ import annotations

import textwrap

from inlay.config.render import ExplainedSetting, default_text


def explanation_text(rows: list[ExplainedSetting], columns: int) -> str:
    """Name, values, default and description of each setting."""
    lines = []
    for row in rows:
        lines += textwrap.wrap(row.get("elsewhere", ""), columns, subsequent_indent="  ")
        if row["setting"] is None:
            continue
        lines += textwrap.wrap(
            f"{row['setting']}  ({row['type']}; {default_text(row)})", columns, subsequent_indent="  "
        )
        lines += textwrap.wrap(row["doc"] or "", columns - 4, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)
