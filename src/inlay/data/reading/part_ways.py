"""The way out for parts of a turn that are not text: thoughts, calls of tools, and their results."""

from __future__ import annotations

from typing import Final

_THOUGHT: Final = ' Write the thought as text in "reasoning_content" of the turn.'
_CALL: Final = (
    ' Write the call into "tool_calls" of an assistant turn: '
    '[{"type": "function", "function": {"name": "…", "arguments": {…}}}].'
)
_RESULT: Final = ' Write the result as a turn of its own behind the call: {"role": "tool", "content": "…"}.'
_WAYS: Final = {
    **dict.fromkeys(("thinking", "reasoning", "thought", "reasoningContent"), _THOUGHT),
    "redacted_thinking": " It is encrypted, so no model can learn from it. Take it out.",
    **dict.fromkeys(("tool_use", "server_tool_use", "tool_call", "function_call", "toolUse", "functionCall"), _CALL),
    **dict.fromkeys(
        ("tool_result", "web_search_tool_result", "function_call_output", "toolResult", "functionResponse"), _RESULT
    ),
}
"""By the type of a part, or the field that it stands in."""


def way_out(name: object) -> str:
    """A sentence with a space before it, by the type or the field of a part; empty where none is known."""
    return _WAYS.get(name, "") if isinstance(name, str) else ""
