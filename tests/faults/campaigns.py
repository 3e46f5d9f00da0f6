"""What is done to runs, and what must come of it: bit-identical to the unbroken run in the end, or a clear error with
nothing lost, or a deviation that the run has recorded.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lab import INTERNAL, Lab, Tally, at_event, differing, kill, lose_power
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from inlay.engine.handwritten.model import HandwrittenEngine
from inlay.engine.lm_head import Head
from inlay.errors import InlayError
from inlay.methods.adapter_state import AdapterState
from inlay.runs.folder import Run
from inlay.storage import verified
from inlay.training import checkpoint as checkpoints
from training_runs import outcome, stop_after


def is_clear(ended: Any) -> bool:
    """A message and not a traceback."""
    return ended.code in (1, 2, 3, 130, 143) and "Traceback" not in ended.text


# --- kills ---------------------------------------------------------------------------------------------------


def kills_at_events(lab: Lab, numbers: Iterable[int], power: bool = False) -> Tally:
    tally = Tally("power lost at a file event: what no fsync reached is cut" if power else "SIGKILL at a file event")
    for number in numbers:
        run = lab.fresh()
        ended = lab.train(run, at_event(run, number, lose_power(run) if power else kill))
        if ended.code == -signal.SIGKILL:
            lab.ends_whole(run, tally, f"{tally.what} {number}")
        elif ended.code == 0:
            tally.ends["the run was over before"] += 1
        else:
            tally.problem(f"event {number}: ended with {ended.code}: {ended.text[-600:]}")
        shutil.rmtree(run, ignore_errors=True)
    return tally


def kills_at_random_times(lab: Lab, count: int) -> Tally:
    tally = Tally("SIGKILL at a random time, the resume killed too")
    for number in range(count):
        run = lab.fresh()
        for _ in range(2):
            pid = lab.start(run)
            time.sleep(lab.random.uniform(0, lab.whole_s))
            os.kill(pid, signal.SIGKILL)
            ended = lab.wait(pid)
            if ended.code not in (0, -signal.SIGKILL):
                tally.problem(f"random kill {number}: ended with {ended.code}: {ended.text[-600:]}")
        lab.ends_whole(run, tally, f"random kill {number}")
        shutil.rmtree(run, ignore_errors=True)
    return tally


def signals_at_events(lab: Lab, count: int) -> Tally:
    tally = Tally("SIGINT, SIGTERM, and both, at a random file event")
    for number in range(count):
        run, at = lab.fresh(), lab.random.randint(1, lab.events)
        numbers = lab.random.choice([[signal.SIGINT], [signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]])

        def send(_: Any, numbers: list[int] = numbers) -> None:
            for one in numbers:
                os.kill(os.getpid(), one)

        ended = lab.train(run, at_event(run, at, send))
        if ended.code not in (0, 130, 143) and not (ended.code == INTERNAL and "KeyboardInterrupt" in ended.text):
            tally.problem(f"signals {numbers} at {at}: ended with {ended.code}: {ended.text[-600:]}")
        else:
            lab.ends_whole(run, tally, f"signals {number} {numbers} at event {at}")
        shutil.rmtree(run, ignore_errors=True)
    return tally


def kill_and_resume(lab: Lab, cycles: int) -> Tally:
    """One run, killed again and again at a random file event."""
    tally, run, done = Tally(f"one run of {lab.tree['train']['max_steps']} steps, killed and resumed"), lab.fresh(), 0
    for cycle in range(cycles):
        ended = lab.train(run, at_event(run, lab.random.randint(1, 45), kill))
        if ended.code == 0:
            break
        if ended.code != -signal.SIGKILL:
            tally.problem(f"cycle {cycle}: ended with {ended.code}: {ended.text[-600:]}")
            return tally
        done += 1
    lab.ends_whole(run, tally, "the last resume")
    tally.what += f" {done} times"
    return tally


# --- damage --------------------------------------------------------------------------------------------------


def stopped(lab: Lab, step: int = 4) -> Path:
    run = lab.fresh()
    ended = lab.train(run, reporter=stop_after(step))
    assert ended.code == 130, ended.text
    return run


DAMAGES = ("bit flip", "truncated", "zeroed range", "missing", "swapped", "extra file", "emptied", "grown")


def damage(draw: random.Random, kind: str, victim: Path, others: list[Path]) -> bool:
    """Damages the file, or its folder; False where that happened to change nothing."""
    before = victim.read_bytes()
    content = bytearray(before)
    if kind == "bit flip" and content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "truncated":
        del content[draw.randrange(len(content) + 1) :]
    elif kind == "zeroed range" and content:
        start = draw.randrange(len(content))
        end = min(len(content), start + draw.choice([1, 16, 512, 4096]))
        content[start:end] = bytes(end - start)
    elif kind == "missing":
        victim.unlink()
        return True
    elif kind == "swapped":
        other = draw.choice([path for path in others if path != victim])
        content = bytearray(other.read_bytes())
        other.write_bytes(before)
    elif kind == "extra file":
        victim.with_name(draw.choice(["x", "adapter.safetensors.tmp", ".hidden", "optimizer-2.bin"])).write_bytes(b"x")
        return True
    elif kind == "emptied":
        content = bytearray()
    elif kind == "grown":
        content += draw.randbytes(draw.choice([1, 100]))
    victim.write_bytes(content)
    return bytes(content) != before


def same_state(a: Any, b: Any) -> bool:
    equal = [
        x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
        for x, y in ((a[0].tensors, b[0].tensors), (a[1], b[1]))
    ]
    return all(equal) and a[0].settings == b[0].settings and a[2:] == b[2:]


def damaged_loads(lab: Lab, count: int, intact: int) -> Iterator[Tally]:
    """One checkpoint of a run, or the adapter of a finished one, is damaged and then read."""
    source, finished = stopped(lab), lab.unbroken()
    folder = source / "checkpoints"
    truth = {c.step: checkpoints.load(c) for c in checkpoints.listed(folder)}
    newest = max(truth)
    tally = Tally("a damaged checkpoint is read (bits, lengths, ranges, missing, swapped, extra files)")
    work = lab.folder / "damaged"
    for number in range(count * 4 // 5):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(folder, work)
        kind = DAMAGES[number % len(DAMAGES)]
        files = sorted(p for p in (work / f"step-{newest:06d}").iterdir())
        victim = lab.random.choice(files)
        others = [p for p in work.rglob("*") if p.is_file()]
        hit = {newest}
        before = {p: p.read_bytes() for p in others}
        changed = damage(lab.random, kind, victim, others)
        hit = {int(p.parent.name[5:]) for p in others if not p.exists() or p.read_bytes() != before[p]} or (
            hit if changed else set()
        )
        found, _ = checkpoints.newest_valid(work)
        expected = max(set(truth) - hit, default=None)
        if expected is None:
            ok = found is None
        else:
            ok = found is not None and found.step == expected and same_state(checkpoints.load(found), truth[expected])
        if ok:
            tally.ends["found, and the newest whole one taken" if hit else "changed no byte, loaded"] += 1
        else:
            tally.problem(f"{kind} of {victim.name}: took {found}")
    yield tally
    tally = Tally("a damaged adapter folder is read")
    for number in range(count - count * 4 // 5):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(finished.adapter, work)
        kind, files = DAMAGES[number % len(DAMAGES)], sorted(work.iterdir())
        victim = lab.random.choice(files)
        changed = damage(lab.random, kind, victim, files)
        try:
            verified(work)
        except InlayError:
            tally.ends["refused"] += 1
        else:
            if changed:
                tally.problem(f"{kind} of adapter/{victim.name} was not seen")
            else:
                tally.ends["changed no byte, loaded"] += 1
    yield tally
    tally = Tally("intact checkpoints and adapters are read")
    for number in range(intact):
        if number % 2:
            verified(finished.adapter)
            AdapterState.read(finished.adapter)
            tally.ends["no alarm"] += 1
        else:
            found, faults = checkpoints.newest_valid(folder)
            if faults or found is None or not same_state(checkpoints.load(found), truth[newest]):
                tally.problem(f"false alarm: {faults}")
            else:
                tally.ends["no alarm"] += 1
    yield tally


def damaged_resumes(lab: Lab, count: int) -> Tally:
    """Any file of a stopped run is damaged, and the run resumed with nothing prepared beforehand."""
    tally, source = Tally("any file of a stopped run is damaged, then it is resumed"), stopped(lab)
    run = source.with_name("damaged-run")
    for _number in range(count):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(source, run)
        files = sorted(p for p in run.rglob("*") if p.is_file() and p.name not in (".lock", ".lock.pid", "log.txt"))
        files = [p for p in files if lab.random.random() < 0.3 or p.parent == run] or files
        kind, victim = lab.random.choice(DAMAGES[:5] + DAMAGES[6:]), lab.random.choice(files)
        before = {p: p.read_bytes() for p in files}
        damage(lab.random, kind, victim, files)
        case = f"{kind} of {victim.relative_to(run)}"
        ended = lab.train(run, real=True)
        if ended.code == 0:
            wrong = differing(outcome(Run(run)), lab.whole)
            if not wrong:
                tally.ends["bit-identical after resume"] += 1
            elif wrong == ["metrics"] and "metrics.jsonl is not what was written" in (run / "log.txt").read_text():
                tally.ends["weights bit-identical, lost metrics said and set aside"] += 1
            else:
                tally.problem(f"{case}: resumed without a word, differs in {wrong}")
        elif not is_clear(ended):
            tally.problem(f"{case}: {ended.code} {ended.text[-600:]}")
        else:
            for path, content in before.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            lab.ends_whole(run, tally, f"{case}, refused ({ended.text[:200]}), put back", "clear error, nothing lost")
    return tally


# --- what the disk refuses -----------------------------------------------------------------------------------

_LIBC = ctypes.CDLL(None, use_errno=True)
_BIND, _REMOUNT, _READ_ONLY = 4096, 32, 1


def can_mount(folder: Path) -> bool:
    try:
        with small_disk(folder / "probe", "64k"):
            return True
    except (subprocess.CalledProcessError, OSError):
        return False


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True, capture_output=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _plenty(lab: Any) -> None:
    """The disk fills up after its room was looked at."""
    usage = shutil.disk_usage
    shutil.disk_usage = lambda path: usage(path)._replace(free=10**12)


def full_disks(lab: Lab, sizes: Iterable[int]) -> Tally:
    """The disk takes so many more bytes and then no more."""
    tally = Tally("the disk is full after so many bytes (ENOSPC)")
    with small_disk(lab.folder / "disk", "64m") as disk:
        for room in sizes:
            run, filler = disk / "run", disk / "filler"
            filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - room)))
            ended = lab.train(run, _plenty)
            filler.unlink()
            if ended.code == 0:
                tally.ends["it was enough"] += 1
            elif is_clear(ended) and "disk is full" in ended.text:
                if any(run.rglob("step-*")) and any(
                    not _is_whole(c.path) for c in checkpoints.listed(run / "checkpoints")
                ):
                    tally.problem(f"{room} bytes: a checkpoint is not whole")
                lab.ends_whole(run, tally, f"{room} bytes", "clear error, then bit-identical after resume")
            else:
                tally.problem(f"{room} bytes: {ended.code} {ended.text[-600:]}")
            shutil.rmtree(run, ignore_errors=True)
    return tally


def _is_whole(folder: Path) -> bool:
    try:
        verified(folder)
    except InlayError:
        return False
    return True


def read_only_disks(lab: Lab, count: int) -> Tally:
    tally = Tally("the disk becomes read-only at a file event (EROFS)")
    for _ in range(count):
        run, number = lab.fresh(), lab.random.randint(8, lab.events)

        def freeze(_: Any, run: Path = run) -> None:
            here = os.fsencode(run)
            assert _LIBC.mount(here, here, None, _BIND, None) == 0
            assert _LIBC.mount(None, here, None, _BIND | _REMOUNT | _READ_ONLY, None) == 0

        ended = lab.train(run, at_event(run, number, freeze))
        while _LIBC.umount2(os.fsencode(run), 0) == 0:
            pass
        _refused(lab, tally, run, ended, f"read-only at event {number}", "read-only")
    return tally


def closed_folders(lab: Lab, count: int) -> Tally:
    tally = Tally("the folder is closed to us at a file event (EACCES)")
    (lab.folder / "runs").mkdir(exist_ok=True)
    for folder in (lab.folder, lab.folder / "runs"):
        folder.chmod(0o777)
    for _ in range(count):
        run, number = lab.fresh(), lab.random.randint(8, lab.events)

        def close(_: Any, run: Path = run) -> None:
            for path in [run, *(p for p in run.rglob("*") if p.is_dir())]:
                path.chmod(0o555)

        def arm(lab: Any, run: Path = run, number: int = number, close: Any = close) -> None:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            at_event(run, number, close)(lab)

        ended = lab.train(run, arm)
        for path in [run, *(p for p in run.rglob("*") if p.is_dir())]:
            path.chmod(0o755)
        _refused(lab, tally, run, ended, f"closed at event {number}", "no permission")
    return tally


def _refused(lab: Lab, tally: Tally, run: Path, ended: Any, case: str, word: str) -> None:
    if ended.code == 0:
        tally.ends["the run was over before"] += 1
    elif is_clear(ended) and word in ended.text:
        lab.ends_whole(run, tally, case, "clear error, then bit-identical after resume")
    else:
        tally.problem(f"{case}: {ended.code} {ended.text[-600:]}")
    shutil.rmtree(run, ignore_errors=True)


# --- numbers and memory --------------------------------------------------------------------------------------


def not_finite(lab: Lab, count: int, kinds: Sequence[str]) -> Tally:
    tally = Tally(f"NaN or infinity in {', '.join(kinds)}")
    for number in range(count):
        run, kind = lab.fresh(), kinds[number % len(kinds)]
        value = lab.random.choice([float("nan"), float("inf"), -float("inf")])
        at = lab.random.randint(1, 20 if kind == "logits" else 5)  # five steps, five looks of the proofs
        case = f"{value} in {kind} {at}"
        ended = lab.train(run, lambda lab, k=kind, v=value, a=at: _inject(lab, k, v, a))
        bad = [
            p
            for p in run.rglob("*.safetensors")
            if not all(torch.isfinite(t.float()).all() for t in load_file(p).values())
        ]
        if bad:
            tally.problem(f"{case}: on the disk in {[str(p.relative_to(run)) for p in bad]}")
        elif ended.code == 0:
            wrong = differing(outcome(Run(run)), lab.whole)
            if wrong:
                tally.problem(f"{case}: went unnoticed, differs in {wrong}")
            else:
                tally.ends["met nothing that counts, bit-identical"] += 1
        elif is_clear(ended):
            lab.ends_whole(run, tally, case, "clear error, then bit-identical after resume")
        else:
            tally.problem(f"{case}: {ended.code} {ended.text[-600:]}")
        shutil.rmtree(run, ignore_errors=True)
    return tally


def _inject(lab: Lab, kind: str, value: float, at: int) -> None:
    """In the child: the value appears in the forward pass, the look of a proof or the optimizer step of that number."""
    model, calls = lab.job.model, [0]
    parameter = next(p for n, p in model.named_parameters() if p.requires_grad and "lora_A" in n)

    def due() -> bool:
        calls[0] += 1
        return calls[0] == at

    def in_logits(head: Head, hidden: Any) -> Any:
        logits = whole(head, hidden)
        return logits + value if due() else logits

    def in_proof(module: Any, arguments: Any, output: Any) -> Any:
        if due():
            output.logits = output.logits + value
        return output

    def in_gradient(engine: Any, *batch: Any) -> Any:
        nll = add_gradient(engine, *batch)
        if due() and parameter.grad is not None:
            parameter.grad.view(-1)[0] = value
        return nll

    def in_state(optimizer: Any, *_: Any) -> None:
        if due():
            target = parameter.data if kind == "weight" else optimizer.state[parameter]["exp_avg"]
            target.view(-1)[0] = value

    if kind == "logits":
        whole, Head.logits = Head.logits, in_logits  # type: ignore[method-assign]
    elif kind == "proof":
        model.get_base_model().register_forward_hook(in_proof)
    elif kind == "gradient":
        add_gradient, HandwrittenEngine.add_gradient = HandwrittenEngine.add_gradient, in_gradient  # type: ignore[method-assign]
    else:
        register_optimizer_step_post_hook(in_state)


def out_of_memory(lab: Lab, count: int) -> Tally:
    """`lab` has no dropout: its draws depend on the micro batch."""
    tally = Tally("out of memory in a forward pass")
    for _number in range(count):
        run, at = lab.fresh(), lab.random.randint(1, 30)

        def shortage(lab: Any, at: int = at) -> None:
            calls, whole = [0], Head.logits

            def logits(head: Head, hidden: Any) -> Any:
                calls[0] += 1
                if calls[0] == at:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
                return whole(head, hidden)

            Head.logits = logits  # type: ignore[method-assign]

        ended = lab.train(run, shortage)
        case = f"out of memory at pass {at}"
        if ended.code == 0:
            wrong = differing(outcome(Run(run)), lab.whole)
            recorded = bool(Run(run).record.out_of_memory)
            if not wrong:
                tally.ends["went on, recorded, bit-identical" if recorded else "met nothing, bit-identical"] += 1
            elif _near(run, lab) and recorded:
                tally.ends["went on with a smaller micro batch, recorded, weights within 1e-5"] += 1
            elif _near(run, lab) and "no memory to check it" in (run / "log.txt").read_text():
                tally.ends["went on with the autograd engine, recorded, weights within 1e-5"] += 1
            else:
                tally.problem(f"{case}: differs in {wrong}")
        elif is_clear(ended):
            lab.ends_whole(run, tally, case, "clear error, then bit-identical after resume")
        else:
            tally.problem(f"{case}: {ended.code} {ended.text[-600:]}")
        shutil.rmtree(run, ignore_errors=True)
    return tally


def _near(run: Path, lab: Lab) -> bool:
    from safetensors.torch import load

    one, other = load_file(run / "adapter" / "adapter_model.safetensors"), load(lab.whole["files"]["adapter"])
    return all(torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-5) for name in other)


# --- clocks and company --------------------------------------------------------------------------------------

HOUR_S, YEAR_S = 3600, 365 * 24 * 3600


def clocks(lab: Lab, count: int) -> Tally:
    tally = Tally("the clock jumps by an hour or ten years between two starts")
    for number in range(count):
        run, jump_s = lab.fresh(), (HOUR_S, -HOUR_S, 10 * YEAR_S, -10 * YEAR_S)[number % 4]
        lab.train(run, reporter=stop_after(lab.random.randint(1, 4)))
        for path in [run, *run.rglob("*")]:  # what lies there is younger or older than now
            os.utime(path, (time.time() - jump_s,) * 2)
        ended = lab.train(run, lambda lab, jump_s=jump_s: _jump(jump_s), reporter=stop_after(4))
        if ended.code not in (0, 130):
            tally.problem(f"clock {jump_s}: {ended.code} {ended.text[-600:]}")
            continue
        lab.ends_whole(run, tally, f"clock {jump_s} s")
        shutil.rmtree(run, ignore_errors=True)
    return tally


def _jump(by_s: int) -> None:
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + by_s
    time.time_ns = lambda: now_ns() + by_s * 10**9


def two_trainers(lab: Lab, count: int) -> Tally:
    tally = Tally("two trainers on one run")
    for number in range(count):
        run = stopped(lab, 1)
        pids = [lab.start(run), lab.start(run)]
        ends = [lab.wait(pid) for pid in pids]
        refused = [e for e in ends if e.code == 2 and "another process" in e.text]
        if sorted(e.code for e in ends) not in ([0, 2], [0, 0]) or len(refused) != sum(e.code == 2 for e in ends):
            tally.problem(f"two trainers {number}: {ends}")
        elif refused and not any(f"pid {pid}" in refused[0].text for pid in pids):
            tally.problem(f"the refusal names no owner: {refused[0].text}")
        else:
            lab.ends_whole(
                run, tally, "two trainers", "one refused by pid, bit-identical" if refused else "one after the other"
            )
        shutil.rmtree(run, ignore_errors=True)
    return tally
