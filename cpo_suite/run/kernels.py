"""The kernel that notebooks run in: this interpreter, whatever kernelspecs a user has."""

from __future__ import annotations

import sys
from typing import Any

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager


class Kernel(AsyncKernelManager):
    """A kernel in the interpreter that runs the suite; its progress bars are for a terminal."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(transport_encryption="auto", **kwargs)

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            env={"CPO_PLAIN_PROGRESS": "1"},
            display_name="CPO",
            language="python",
            metadata={"supported_encryption": ["curve"]},
        )
