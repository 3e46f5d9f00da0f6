"""The versions that are installed: the lock, the ranges, and which warnings end a test."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
USED_FROM_INSIDE = ("transformers", "peft", "bitsandbytes", "liger-kernel")


def asked() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    return [found for found in map(Requirement, lines) if found.name != "inlay"]


def locked() -> list[Requirement]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def test_the_lock_has_one_version_of_every_package_that_is_asked_for_and_within_its_range() -> None:
    here = default_environment()
    versions = {r.name: next(iter(r.specifier)).version for r in locked() if not r.marker or r.marker.evaluate(here)}
    for requirement in asked():
        if requirement.name == "torch":  # keeps its range, so that a CPU wheel fits beside the lock
            assert "torch" not in versions
        elif requirement.marker is None or requirement.marker.evaluate(here):
            found = versions.get(requirement.name) or versions[requirement.name.lower()]
            assert requirement.specifier.contains(found, prereleases=True), f"{requirement}: {found}. Run make lock."


def test_a_library_that_is_used_from_inside_is_bound_to_minor_versions_that_were_tried() -> None:
    for requirement in asked():
        if requirement.name in USED_FROM_INSIDE:
            (lower,), (upper,) = (
                [tuple(map(int, s.version.split("."))) for s in requirement.specifier if s.operator == sign]
                for sign in (">=", "<")
            )
            assert upper[0] == lower[0], requirement
            assert upper[1] - lower[1] <= 2, requirement


def test_a_deprecation_of_a_library_is_listed_while_a_warning_of_our_own_code_fails_its_test(tmp_path: Path) -> None:
    (tmp_path / "test_warnings.py").write_text(
        "import warnings\n"
        "def as_if_in(module, text, kind):\n"
        "    warnings.warn_explicit(text, kind, 'file.py', 1, module=module)\n"
        "def test_library():\n"
        "    as_if_in('inlay.generation.generate', '`past_key_values` is deprecated', FutureWarning)\n"
        "def test_python():\n"
        "    as_if_in('inlay.runs.folder', 'utcnow() is slated for removal in Python 3.99', DeprecationWarning)\n"
        "def test_numbers():\n"
        "    as_if_in('inlay.evaluation.metrics', 'invalid value encountered', RuntimeWarning)\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
    ]
    done = subprocess.run([*command, tmp_path, tmp_path], capture_output=True, text=True, cwd=tmp_path)
    assert "2 failed, 1 passed, 1 warning" in done.stdout
    assert "FutureWarning: `past_key_values` is deprecated" in done.stdout
    assert "::test_python" in done.stdout
    assert "::test_numbers" in done.stdout
