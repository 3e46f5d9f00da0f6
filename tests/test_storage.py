"""What is on the disk is whole: after a kill, on a full disk, and with two writers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inlay import storage
from inlay.errors import RunError, StorageError


def _env() -> dict[str, str]:
    return {"PYTHONPATH": str(Path(storage.__file__).parents[1]), "PATH": os.environ["PATH"]}


def test_a_folder_that_cannot_be_filled_does_not_appear(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.write_folder(tmp_path / "x", fill, {})
    assert list(tmp_path.iterdir()) == []


def write_a(folder: Path) -> None:
    (folder / "a").write_text("abc")


def test_an_earlier_folder_survives_a_kill_between_the_two_renames(tmp_path: Path) -> None:
    storage.write_folder(tmp_path / "adapter", write_a, {"step": 1})
    (tmp_path / "adapter").rename(tmp_path / ".staging-old-adapter-77")
    (tmp_path / ".staging-new-adapter-77").mkdir()
    storage.sweep_staging(tmp_path)
    assert storage.verified(tmp_path / "adapter")["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(
    "fault",
    [
        "changed",
        "longer",
        "missing",
        "extra",
        "no manifest",
        "manifest without files",
        "manifest edited",
        "manifest longer",
    ],
)
def test_verified_names_what_is_wrong(tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "x"
    storage.write_folder(folder, write_a, {})
    storage.verified(folder)
    named = "a"
    if fault == "changed":
        (folder / "a").write_text("abd")
    elif fault == "longer":
        (folder / "a").write_text("abcd")
    elif fault == "missing":
        (folder / "a").unlink()
    elif fault == "extra":
        (folder / "b").write_text("")
        named = "b"
    elif fault == "manifest longer":  # by what JSON does not count
        named = "no usable manifest"
        with (folder / "manifest.json").open("a") as file:
            file.write("\n")
    elif fault == "manifest edited":
        named = "no usable manifest"
        manifest = folder / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"sha256"', '"sha255"', 1))
    else:
        named = "no usable manifest"
        (folder / "manifest.json").write_text("{}" if "without" in fault else "")
    with pytest.raises(StorageError, match=named):
        storage.verified(folder)


def test_a_torn_last_line_is_dropped_and_any_other_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert storage.read_lines(path) == []
    storage.append_line(path, {"step": 1, "note": "two\u2028lines"})
    storage.append_line(path, {"step": 2})
    path.write_bytes(path.read_bytes() + b'{"step": 3')
    assert [line["step"] for line in storage.read_lines(path)] == [1, 2]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(StorageError, match=r"metrics\.jsonl:2: damaged"):
        storage.read_lines(path)


def test_not_a_number_is_refused(tmp_path: Path) -> None:
    for write in (storage.write_json, storage.append_line):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write(tmp_path / "x", {"loss": float("nan")})
    assert not (tmp_path / "x").exists() or not (tmp_path / "x").read_text()


def test_a_second_owner_is_refused_at_once_by_name_and_a_kill_frees_the_folder(tmp_path: Path) -> None:
    code = "import sys,time\nfrom pathlib import Path\nfrom inlay.storage import owned\nwith owned(Path(sys.argv[1])):\n print(1,flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=_env())
    assert child.stdout is not None
    child.stdout.readline()
    began = time.monotonic()
    with pytest.raises(RunError, match=rf"pid {child.pid}\b"), storage.owned(tmp_path):
        pass
    assert time.monotonic() - began < 1
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with storage.owned(tmp_path):
        pass


def test_a_folder_that_is_moved_aside_and_the_one_in_its_place_are_held_apart(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with storage.owned(folder):
        moved = storage.move_aside(folder)
        folder.mkdir()
        with storage.owned(folder):
            assert (folder / storage.OWNER).read_text() == str(os.getpid())
    with storage.owned(folder), storage.owned(moved):
        pass


def test_what_the_disk_refuses_is_one_line_that_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a part of this path is a file") as caught:
        storage.write_file(tmp_path / "file" / "x", "")
    assert "\n" not in str(caught.value)
    with pytest.raises(StorageError, match="the disk is full"), storage.explained(tmp_path):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(StorageError, match="no permission"), storage.explained(tmp_path):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(RuntimeError, match="something else"), storage.explained(tmp_path):
        raise RuntimeError("something else")


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="MB free, but the run needs"):
        storage.require_space(tmp_path / "not" / "there", 10**18)


def test_a_user_without_a_home_has_a_cache_that_ends_with_the_process(tmp_path: Path) -> None:
    code = (
        "import pwd\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody\n"  # as in a container whose user has no passwd entry
        "from inlay.models.base import find_base\n"
        "from inlay.storage import cache_folder, write_file\n"
        "write_file(cache_folder('digests') / 'a', 'b')\n"
        "print(cache_folder('digests'), find_base('builtin:nano').name)\n"
        "try: find_base('~/base')\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], env=_env() | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True
    )
    assert ended.stdout.split()[1:] == ["builtin:nano", "ModelError"], ended.stderr
    assert Path(ended.stdout.split()[0]).parent.parent == tmp_path
    assert list(tmp_path.iterdir()) == []
    with_cache = subprocess.run(
        [sys.executable, "-c", code], env=_env() | {"XDG_CACHE_HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert with_cache.stdout.split()[0] == str(tmp_path / "inlay" / "digests")


def test_a_name_that_an_ascii_environment_cannot_read_is_told_apart_from_one_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "mödel").mkdir()
    program = "from pathlib import Path; from inlay.storage import path_exists; print(path_exists(Path('m\\xf6del')))"
    env = _env() | {"PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    for utf8, expected in (("1", "True"), ("0", "this environment lets Python read only ASCII. Set LC_ALL=C.UTF-8")):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False,
            env=env | {"PYTHONUTF8": utf8},
        )  # fmt: skip
        assert expected in done.stdout + done.stderr
