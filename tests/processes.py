"""Jobs as processes of their own: start them, watch what they write, end them by id."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 600.0  # seconds to wait for anything; a busy machine is slow, a hanging job is a failure


def environment(cache: Path, **more: str) -> dict[str, str]:
    """This process's environment without what a Ray of this process has put there, and with this Python first."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return kept | {"PATH": path, "RAYREC_CACHE": str(cache), "PYTHONUNBUFFERED": "1", "COLUMNS": "100", **more}


@dataclass(frozen=True)
class Finished:
    """How a process ended and what it wrote."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        return (self.out + self.err).splitlines()

    def checked(self) -> "Finished":
        """Itself, where the process ended well."""
        assert self.code == 0, f"exit code {self.code} after {self.seconds:.0f} s\n{self.out}\n{self.err}"
        return self


class Running:
    """A process whose output goes to files: what it leaves behind can then not keep a pipe open."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        log.mkdir(parents=True, exist_ok=True)
        self._files = log / "out", log / "err"
        self._started = time.monotonic()
        with self._files[0].open("ab") as out, self._files[1].open("ab") as err:
            self._popen = subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        self.process = psutil.Process(self._popen.pid)

    @property
    def ended(self) -> bool:
        return self._popen.poll() is not None

    def output(self) -> str:
        return "".join(path.read_text(errors="replace") for path in self._files)

    def wait(self, timeout: float = PATIENCE) -> Finished:
        code = self._popen.wait(timeout)
        out, err = (path.read_text(errors="replace") for path in self._files)
        return Finished(code, out, err, time.monotonic() - self._started)

    def family(self) -> list[psutil.Process]:
        """Its descendants as they are now."""
        try:
            return self.process.children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> list[psutil.Process]:
        """The training workers below it, by id."""
        return sorted((p for p in self.family() if title(p).startswith("ray::RayTrainWorker")), key=lambda p: p.pid)

    def kill(self) -> None:
        """kill -9, of this process alone."""
        self._popen.kill()
        self._popen.wait()

    def end(self) -> None:
        """End it and everything below it."""
        family = self.family()
        if not self.ended:
            self._popen.terminate()
            try:
                self._popen.wait(5)
            except subprocess.TimeoutExpired:
                self.kill()
        end_all(family, grace=2)


@contextmanager
def running(command: list[str], env: dict[str, str], log: Path) -> Iterator[Running]:
    """A process that does not outlive the block."""
    started = Running(command, env, log)
    try:
        yield started
    finally:
        started.end()


def job(name: str, *options: str) -> list[str]:
    """The command of ``jobs/{name}.py``."""
    return [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *options]


def run(command: list[str], env: dict[str, str], log: Path) -> Finished:
    """Run to the end."""
    with running(command, env, log) as started:
        return started.wait()


def measured(command: list[str], env: dict[str, str], log: Path, timeout: float = 3000) -> tuple[float, float]:
    """Run to the end: seconds, and the most bytes that the process and all below it held, shared ones counted once."""
    peak, over = 0.0, threading.Event()
    with running(command, env, log) as started:

        def watch() -> None:
            nonlocal peak
            while not over.wait(0.5):
                peak = max(peak, sum(map(held, [started.process, *started.family()])))

        thread = threading.Thread(target=watch)
        thread.start()
        began = time.monotonic()
        try:
            started.wait(timeout).checked()
            seconds = time.monotonic() - began
        finally:
            over.set()
            thread.join()
    return seconds, peak


def held(process: psutil.Process) -> float:
    """Bytes of a process; of what it shares its share."""
    try:
        return float(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0


def end_all(processes: list[psutil.Process], grace: float = 10.0) -> None:
    """Let them end, then kill those that did not; a process is known by id and start time, so never a stranger."""
    left = outliving(processes, grace)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    outliving(left, 10.0)


def outliving(processes: list[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Those still alive after ``timeout`` seconds; a zombie is dead: in a container nothing may reap an orphan."""
    end = time.monotonic() + timeout
    while (left := [process for process in processes if is_alive(process)]) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def is_alive(process: psutil.Process) -> bool:
    """It runs, and is neither a zombie nor another process under the same id."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(happened: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
    """Poll; AssertionError where it never happens."""
    end = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < end, f"waited {timeout:.0f} s for {what}"
        time.sleep(0.1)  # what is polled reads logs, and two cores train meanwhile


def title(process: psutil.Process) -> str:
    """Its command line, which Ray replaces by what the process is; empty once it is gone."""
    try:
        return " ".join(process.cmdline()).strip()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
