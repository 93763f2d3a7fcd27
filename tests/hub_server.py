"""A hub on loopback: it serves model directories to huggingface_hub, and can misbehave."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A running server: its repositories, its faults, and the requests that it got."""

    repositories: dict[str, Path]
    address: str = ""
    gated: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)  # path -> in how many answers the connection ends half way
    corrupt: set[str] = field(default_factory=set)  # paths whose content arrives with a bit flipped
    hold: set[str] = field(default_factory=set)  # paths whose content does not come while they are here
    held: threading.Event = field(default_factory=threading.Event)  # set once somebody waits for one of them
    pace: float = 0.0  # seconds a megabyte, as a slow network has them
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range header
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fetched(self) -> list[str]:
        """Return the files whose content was requested, in order."""
        return [
            path.split(f"/resolve/{COMMIT}/")[1] for method, path, _ in self.requests if self._is_file(method, path)
        ]

    @staticmethod
    def _is_file(method: str, path: str) -> bool:
        return method == "GET" and "/resolve/" in path


def _entry(path: Path, name: str) -> dict[str, object]:
    content = path.read_bytes()
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(content)}
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if path.suffix in (".safetensors", ".bin"):
        digest = hashlib.sha256(content).hexdigest()
        return {**entry, "oid": blob, "lfs": {"oid": digest, "size": len(content), "pointerSize": 130}}
    return {**entry, "oid": blob}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        api = path.startswith("/api/models/")
        owner, name, *rest = path.removeprefix("/api/models/" if api else "/").split("/")
        repository = f"{owner}/{name}"
        folder = self.hub.repositories.get(repository)
        if repository in self.hub.gated:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, body)
        elif folder is None:
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        elif api and rest[0] == "revision":
            self._send(
                200, json.dumps({"_id": "0", "id": repository, "sha": COMMIT, "siblings": []}).encode(), {}, body
            )
        elif api and rest[0] == "tree":
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            listing = [_entry(file, file.relative_to(folder).as_posix()) for file in files]
            self._send(200, json.dumps(listing).encode(), {}, body)
        else:
            self._send_file(folder, "/".join(rest[2:]), body)

    def _send_file(self, folder: Path, name: str, body: bool) -> None:
        if not (folder / name).is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body)
            return
        content = (folder / name).read_bytes()
        entry = _entry(folder / name, name)
        lfs = entry.get("lfs")
        headers = {
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
            "ETag": f'"{lfs["oid"] if lfs else entry["oid"]}"',
        }
        if name in self.hub.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        status = 200
        if "Range" in self.headers:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            status = 206
        with self.hub.lock:
            cut = body and self.hub.cut.get(name, 0) > 0
            if cut:
                self.hub.cut[name] -= 1
        content = content[start:]
        while body and name in self.hub.hold:
            self.hub.held.set()
            time.sleep(0.05)
        time.sleep(self.hub.pace * len(content) / 1e6 if body else 0)
        self._send(status, content, headers, body, stop=len(content) // 2 if cut else None)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool, stop: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content[:stop])
        if stop is not None:
            self.close_connection = True


@contextmanager
def serve(repositories: dict[str, Path]) -> Iterator[Hub]:
    """Run a hub with these model directories, by name, until the block ends."""
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
