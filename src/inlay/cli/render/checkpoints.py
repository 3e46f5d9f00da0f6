"""The checkpoints of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inlay.runs.reporter import bytes_shown

if TYPE_CHECKING:
    from inlay.training.checkpoint_commands import CheckpointDetails, CheckpointRow


def checkpoints_text(rows: list[CheckpointRow]) -> str:
    """A line for each checkpoint."""
    if not rows:
        return "no checkpoints"
    lines = [f"{'step':>7}  {'train loss':>10}  {'eval loss':>10}  {'size':>8}  state"]
    for row in rows:
        size = bytes_shown(row["size_bytes"]) if row["size_bytes"] else "?"
        state = ("best" if row["best"] else "whole") if row["valid"] else f"damaged: {row['fault']}"
        state += ", pinned" if row["pinned"] else ""
        losses = "  ".join(
            f"{row[k]:>10.4f}" if row[k] is not None else f"{'–':>10}" for k in ("train_loss", "eval_loss")
        )
        lines.append(f"{row['step']:>7}  {losses}  {size:>8}  {state}")
    return "\n".join(lines)


def checkpoint_text(details: CheckpointDetails) -> str:
    """One line a fact, then the files."""
    lines = [details["path"]]
    for name, value in details.items():
        if name not in ("path", "files", "inputs") and value is not None:
            lines.append(
                f"  {name.replace('_', ' '):<20} {value:.6g}"
                if isinstance(value, float)
                else f"  {name.replace('_', ' '):<20} {value}"
            )
    lines += [f"  {name.replace('_', ' '):<20} {digest[:12]}" for name, digest in details["inputs"].items()]
    lines += [f"  {name:<22} {bytes_shown(f['size']):>9}  {f['sha256'][:12]}" for name, f in details["files"].items()]
    return "\n".join(lines)


def steps_text(rows: list[CheckpointRow]) -> str:
    """The steps of checkpoints, and their size."""
    steps = ", ".join(str(row["step"]) for row in rows)
    size = bytes_shown(sum(row["size_bytes"] or 0 for row in rows))
    return f"the checkpoint{'s' if len(rows) > 1 else ''} of step{'s' if len(rows) > 1 else ''} {steps} ({size})"
