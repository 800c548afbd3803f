"""A server of the web for the files of a folder: with ranges or without, failing now and then, or slow."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class FileServer:
    """What a server does, and what it was asked for."""

    root: Path
    url: str = ""
    ranges: bool = True
    broken: int = 0  # so many of the next answers end in the middle of the file
    busy: int = 0  # so many of the next answers are 503
    slow_seconds: float = 0.0  # before each piece of a file
    piece_bytes: int = 4096
    gets: list[tuple[str, str | None]] = field(default_factory=list)  # path and range of each GET


@contextmanager
def serving(root: Path, **options) -> Iterator[FileServer]:
    """Serve a folder until the block ends."""
    server = FileServer(root, **options)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self._answer(body=False)

        def do_GET(self):
            server.gets.append((self.path, self.headers.get("Range")))
            self._answer(body=True)

        def _answer(self, *, body):
            if server.busy and body:
                server.busy -= 1
                return self.send_error(503)
            path = server.root / unquote(urlsplit(self.path).path).lstrip("/")
            if path.is_dir():
                names = "".join(f'<a href="{each.name}">{each.name}</a>' for each in sorted(path.iterdir()))
                content = f"<html>{names}</html>".encode()
            elif path.is_file():
                content = path.read_bytes()
            else:
                return self.send_error(404)
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if server.ranges and asked:
                begin, end = int(asked[1]), int(asked[2] or len(content) - 1) + 1
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {begin}-{min(end, len(content)) - 1}/{len(content)}")
                content = content[begin:end]
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if not body:
                return None
            if server.broken:
                server.broken -= 1
                content = content[: len(content) // 2]
            for start in range(0, len(content), server.piece_bytes):
                time.sleep(server.slow_seconds)
                self.wfile.write(content[start : start + server.piece_bytes])
            self.close_connection = True
            return None

        def log_message(self, *arguments):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.daemon_threads = True
    server.url = f"http://127.0.0.1:{web.server_port}"
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        web.shutdown()
        web.server_close()
        thread.join()
