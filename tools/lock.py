"""Writes requirements.lock: a version of every package that inlay and its extras install, but of torch.

    python tools/lock.py             renews requirements.lock
    python tools/lock.py --oldest    prints the oldest versions that pyproject.toml allows

Both files are constraints (`pip install -c FILE …`). torch, and what torch alone asks for, keep the range of
pyproject.toml in requirements.lock, so that a CPU wheel fits beside it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OF_TORCH = ("torch", "triton", "nvidia-", "cuda-")


def pinned(*options: str) -> list[str]:
    """Lines `name==version ; marker`, as uv resolves pyproject.toml."""
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "pyproject.toml",
        "--quiet",
        "--no-header",
        "--no-annotate",
    ]
    found = subprocess.run([*command, *options], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return [line for line in found.stdout.splitlines() if "==" in line]


def main() -> None:
    if sys.argv[1:] == ["--oldest"]:
        print("\n".join(pinned("--resolution", "lowest-direct", "--extra", "dev")))
        return
    lines = pinned("--all-extras", "--universal", "--python-version", "3.11", "--upgrade")
    free = [line for line in lines if line.startswith(OF_TORCH)]
    kept = [line for line in lines if line not in free]
    top = "# Written by `make lock`; torch keeps the range of pyproject.toml. Use: pip install -c requirements.lock …\n"
    (ROOT / "requirements.lock").write_text(top + "\n".join(kept) + "\n", encoding="utf-8")
    print(f"requirements.lock: {len(kept)} packages; free: {len(free)} of torch")


if __name__ == "__main__":
    main()
