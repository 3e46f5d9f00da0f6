"""The message for a command line that cannot be parsed, with the option or setting that was probably meant."""

from __future__ import annotations

from typing import Any

from typer import TyperException

_MOVED = {
    "--methods": "inlay compare-methods DATA|CONFIG --methods A,B",
    "--folds": "inlay cross-validate DATA|CONFIG --folds K",
    "--harness": "inlay harness RUN --tasks A,B",
    "--limit": "inlay harness RUN --tasks A,B --limit N",
    "--prompt": "--set eval.prompts=[TEXT]",
}
"""Options that other verbs or settings have taken the place of."""
_USED_BY = {
    "advise": ("advise.", "eval."),
    "chat": ("generation.",),
    "compare": ("eval.",),
    "eval": ("eval.",),
    "generate": ("generation.",),
}
"""By verb, the sections whose settings come first where several have a setting of the same name."""


def usage_text(error: TyperException) -> str:
    """`inlay VERB: what is wrong. What was meant. See: inlay VERB --help`, in one line."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "inlay"
    message = getattr(error, "format_message", lambda: str(error))()
    option = getattr(error, "option_name", None)
    is_unknown = hasattr(error, "possibilities")
    if is_unknown and option in _MOVED:
        message = f"{message.partition(' (')[0]}. Write: {_MOVED[option]}."
    elif setting := _as_setting(option, context):
        message = f"{message.partition(' (')[0]}. {setting}"
    elif near := getattr(error, "possibilities", None):
        message = f"{message.partition(' (')[0]}. Did you mean {' or '.join(near)}?"
    return f"{command}: {' '.join(message.split())} See: {command} --help"


def _as_setting(option: str | None, context: Any) -> str | None:
    """`--set section.key=VALUE` for an option that is a setting here, of a verb that takes settings; else None."""
    verb = getattr(context, "command", None)
    if option is None or verb is None or not any("--set" in parameter.opts for parameter in verb.params):
        return None
    from inlay.config.load import setting_paths
    from inlay.config.other_trainers import counterpart, in_words

    name = option.lstrip("-").replace("-", "_")
    found = counterpart(name)
    meant = [path for path in setting_paths() if path.rpartition(".")[2] == name]
    meant = sorted(meant or (found.settings if found else ()), key=lambda path: _rank(path, verb.name))
    if meant:
        return f"Settings are given as --set {meant[0]}=VALUE; what it means: inlay config explain {name}."
    return f"{in_words(name, found)}." if found else None


def _rank(path: str, verb: str) -> int:
    sections = _USED_BY.get(verb, ())
    return next((n for n, section in enumerate(sections) if path.startswith(section)), len(sections))
