"""A hub on loopback: repositories of files, some of them gated, as its client asks for them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0" * 40


class HubServer:
    """Serves folders as `owner/name`; what is in `gated` tells of itself and gives no file."""

    def __init__(self, models: Mapping[str, Path], datasets: Mapping[str, Path]) -> None:
        self.kinds = {"models": dict(models), "datasets": dict(datasets)}
        self.gated: set[str] = set()
        self.sent: list[str] = []  # names of files that were fetched
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.serve(self, with_body=True)

            def do_HEAD(self) -> None:
                outer.serve(self, with_body=False)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def serve(self, handler: BaseHTTPRequestHandler, with_body: bool) -> None:
        parts = handler.path.partition("?")[0].strip("/").split("/")
        if parts[0] == "api" and len(parts) >= 4 and parts[1] in self.kinds:
            self._tell(handler, parts[1], "/".join(parts[2:4]), parts[4:])
        elif len(parts) > 4 and parts[2] == "resolve":
            self._file(handler, "/".join(parts[:2]), "/".join(parts[4:]), with_body)
        else:
            self._send(handler, 404, b"{}")

    def _tell(self, handler: BaseHTTPRequestHandler, kind: str, name: str, more: list[str]) -> None:
        folder = self.kinds[kind].get(name)
        if folder is None:
            self._send(handler, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif more == ["auth-check"]:
            closed = name in self.gated
            headers = {"X-Error-Code": "GatedRepo"} if closed else {}
            self._send(handler, 403 if closed else 200, b"{}", headers)
        elif more[:1] == ["tree"]:
            files = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
                for path in sorted(folder.iterdir())
            ]
            self._send(handler, 200, json.dumps(files).encode())
        else:
            files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
            about = {
                "id": name, "sha": COMMIT, "private": False, "siblings": files, "tags": [],
                "gated": "manual" if name in self.gated else False, "downloads": 0, "likes": 0,
            }  # fmt: skip
            self._send(handler, 200, json.dumps(about).encode())

    def _file(self, handler: BaseHTTPRequestHandler, name: str, file: str, with_body: bool) -> None:
        path = self.kinds["models"].get(name, Path()) / file
        if not path.is_file():
            self._send(handler, 404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        body = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if with_body:
            self.sent.append(file)
        self._send(handler, 200, body, headers, with_body)

    @staticmethod
    def _send(
        handler: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        with_body: bool = True,
    ) -> None:
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if with_body:
            handler.wfile.write(body)

    def __enter__(self) -> HubServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.http.shutdown()
        self.http.server_close()
