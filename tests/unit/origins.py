"""What the tests of sources fetch: archives made in memory, files of a small server; and how a fetch fails."""

import hashlib
import io
import tarfile
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import pytest

from rayrec.errors import InputError
from rayrec.sources import fetch

WHAT = "dataset toy"
NOISE = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(250))  # does not compress


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(
    members: dict[str, bytes], mode: Literal["w", "w:gz"] = "w:gz", extra: tuple[tarfile.TarInfo, ...] = ()
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return buffer.getvalue()


def failure(source: str, cache: Path) -> str:
    with pytest.raises(InputError) as error:
        fetch([source], what=WHAT, cache=cache)
    message = str(error.value)
    assert message.startswith(f"{WHAT}: ")
    assert "\n" not in message
    return message


def leftovers(cache: Path) -> list[Path]:
    """What a failed fetch must not leave: any file that is no lock."""
    return [path for path in cache.rglob("*") if path.is_file() and path.parent.name != "locks"]


class Server:
    """Serves ``content[path]``; ``declared`` lies about a length; ``hits`` counts requests."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.declared: dict[str, int] = {}
        self.headers: dict[str, str] = {}
        self.hits: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                outer.hits.append(f"{self.command} {path}")
                if (body := outer.content.get(path)) is None:
                    return self.send_error(404)
                self.send_response(200)
                self.send_header("Content-Length", str(outer.declared.get(path, len(body))))
                self.send_header("ETag", f'"{sha256(body)}"')
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)
                return None

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, *args: object) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def offer(self, path: str, content: bytes, options: str = "") -> str:
        self.content[path] = content
        return f"{self.url}{path}#sha256={sha256(content)}{options}"
