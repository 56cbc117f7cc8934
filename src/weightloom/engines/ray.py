"""Jobs on a Ray cluster, or on a Ray of this machine's own where no address is given.

What is computed there comes back and is written here: workers need no folder in common, only the same
versions of this package and of torch, and the data sets in their caches.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from weightloom.engines.base import (
    TRIES,
    Engine,
    Job,
    Payload,
    Told,
    answer_of,
    call_job,
    engines,
    gives_up,
    name_of,
    versions,
)
from weightloom.errors import DataUnavailableError, InputError, WeightloomError
from weightloom.unfinished import WholeStep
from weightloom.whole import whole_number

_SECONDS = 5.0
"""How long an address has to answer."""

_LONGEST = 24
"""Characters of the temporary folder's path, beyond which there is no room for Ray's own."""

_TOKEN = "; a cluster with a token wants RAY_AUTH_MODE=token and the same token here"


@engines.register("ray")
class RayEngine(Engine):
    """Jobs as Ray's tasks, a processor each; Ray does them again where a worker or a machine is lost.

    Without an ``address`` Ray is started on this machine for ``workers`` jobs at a time, and ended again.
    ``auto`` is the cluster that this machine belongs to.

    Raises:
        DataUnavailableError: Ray is not installed.
        InputError: nothing answers at the address.
    """

    def __init__(self, *, workers: int = 1, address: str | None = None) -> None:
        workers = whole_number(workers, "workers", 1, 1024)
        self._ray = ray = _import_ray()
        self._started = not ray.is_initialized()
        self._flying: dict[Any, int] = {}
        self._guard: _Guard | None = None
        if not self._started:  # by our caller, who ends it too
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            if address is not None:
                _knock(address)
            # Workers import from the folder that this is called in, which may be anybody's.
            with contextlib.chdir(sys.prefix):
                if address is None:
                    self._guard = _Guard(str(Path(ray.__file__).parent))
                    own = {"include_dashboard": False, "_temp_dir": self._guard.folder}
                    ray.init(address="local", num_cpus=workers, **own, **quiet)
                else:
                    ray.init(address=address, **quiet)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            self._unguard()
            where = f"no Ray cluster at {address}" if address else "Ray does not start on this machine"
            # Ray is silent about a token that is missing, and tries for a while.
            hint = "" if isinstance(error, ValueError | ConnectionRefusedError | TimeoutError) else _TOKEN
            raise InputError(f"{where} ({_first_line(error)}){hint}") from None
        except BaseException:
            self._unguard()
            raise

    def map(
        self, function: Job, payloads: Sequence[Payload], told: Told = lambda *_: None
    ) -> Iterator[tuple[int, Any]]:
        """See :meth:`Engine.map`. No more is handed over than keeps the cluster busy, as it is then."""
        ray, waiting, flying = self._ray, deque(range(len(payloads))), self._flying
        task = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_call_there)
        wanted = versions()
        try:
            while waiting or flying:
                room = max(2, 2 * int(ray.cluster_resources().get("CPU", 0))) - len(flying)
                for _ in range(min(room, len(waiting))):
                    number = waiting.popleft()
                    flying[task.remote(name_of(function), payloads[number])] = number
                done, _ = ray.wait(list(flying), num_returns=1)
                for reference in done:
                    number = flying.pop(reference)
                    yield number, self._answer(reference, f"job {number + 1} of {len(payloads)}", wanted)
        finally:
            self._cancel()

    def close(self) -> None:
        """Cancel what is running; leave the cluster, or end the one that was started."""
        self._cancel()
        if self._started and self._ray.is_initialized():
            self._ray.shutdown()
        self._unguard()

    def _unguard(self) -> None:
        if self._guard is not None:
            self._guard.end()
            self._guard = None

    def _answer(self, reference: Any, what: str, wanted: dict[str, str]) -> Any:
        faults = self._ray.exceptions
        try:
            said = self._ray.get(reference)
        except (faults.WorkerCrashedError, faults.NodeDiedError, faults.OutOfMemoryError):
            raise gives_up(what) from None
        except faults.RayError as error:
            raise WeightloomError(
                f"the cluster cannot do {what} ({_first_line(error)}); is Weightloom on every machine?"
            ) from error
        if said["versions"] != wanted:
            raise InputError(
                f"{said['machine']} has {_shown(said['versions'])}, this machine {_shown(wanted)}: "
                "the results would not be the same"
            )
        return answer_of(said)

    def _cancel(self) -> None:
        for reference in self._flying:
            with suppress(Exception):  # it is done, or the cluster has gone
                self._ray.cancel(reference, force=True)
        self._flying.clear()


class _Guard:
    """The process that ends a Ray of this machine's own, and removes its folder, when this process has gone.

    It hears of that by the end of its input, so that it needs no last word of a process that is killed.
    """

    def __init__(self, package: str) -> None:
        parent = tempfile.gettempdir()
        if len(parent) > _LONGEST:  # Ray's sockets lie below, and such a path has 107 bytes
            parent = "/tmp"
        script = str(Path(__file__).with_name("_ray_guard.py"))
        with WholeStep():
            self.folder = tempfile.mkdtemp(prefix="weightloom-ray-", dir=parent)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", script, str(os.getpid()), package, self.folder],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError:
                os.rmdir(self.folder)
                raise

    def end(self) -> None:
        """Everything that Ray left is gone after it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _call_there(name: str, payload: Payload) -> dict[str, Any]:
    """In a worker of the cluster: the job on one thread, as everywhere."""
    import torch

    torch.set_num_threads(1)
    return {"versions": versions(), "machine": socket.gethostname(), **call_job(name, payload)}


def _import_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise DataUnavailableError("the engine ray needs Ray: pip install 'weightloom[ray]'") from None
    return ray


def _knock(address: str) -> None:
    """Raise OSError or ValueError unless something listens at ``address``: Ray itself tries for minutes."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("an address is HOST:PORT, ray://HOST:PORT, or auto")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines or [type(error).__name__])[0][:300].rstrip(".")
    return text.removeprefix(f"[Errno {getattr(error, 'errno', None)}] ")


def _shown(found: dict[str, str]) -> str:
    return " and ".join(f"{name} {number}" for name, number in found.items())
