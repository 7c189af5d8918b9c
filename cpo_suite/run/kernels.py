"""The kernel that notebooks run in: this interpreter, gone when the runner is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from typing import Any, TextIO

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager


class ThisInterpreter(KernelSpecManager):
    """Whatever kernelspecs a user has, notebooks run in the interpreter that runs the suite."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(
            argv=command,
            display_name="CPO",
            language="python",
            metadata={"supported_encryption": ["curve"]},
        )


class Kernel(AsyncKernelManager):
    """A kernel that dies with the runner, and remembers that a signal ended it."""

    signalled: int | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            kernel_spec_manager=ThisInterpreter(), transport_encryption="auto", **kwargs
        )

    async def _async_start_kernel(self, **kwargs: Any) -> None:
        # nbclient's own handler shuts the kernel down, and the cell looks like any dead kernel.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(RuntimeError, NotImplementedError):
                loop.add_signal_handler(number, self._stop, number)
        await super()._async_start_kernel(**kwargs)

    start_kernel = _async_start_kernel

    def _stop(self, number: int) -> None:
        type(self).signalled = number
        process = getattr(self.provisioner, "process", None)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


class LiveStream:
    """Passes a kernel's streams on; outside a terminal a redrawn line becomes a new one."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if not self.stream.isatty():
            text = re.sub(r"\r(?!\n)[ \r]*", "\n", text)
            text = re.sub(r"\n\n+", "\n", text) if text.strip() else ""
        self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()
