"""Serve a folder over HTTP with byte ranges, as GDAL asks for; prints its address."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class RangeHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the files of one folder."""

    folder = Path()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        file = self.folder / self.path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        data, asked = file.read_bytes(), self.headers.get("Range")
        first, last = 0, len(data) - 1
        if asked is not None:
            first, last = (int(text) for text in asked.removeprefix("bytes=").split("-"))
        body = data[first : last + 1]
        self.send_response(200 if asked is None else 206)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        if asked is not None:
            self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


if __name__ == "__main__":
    RangeHandler.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), RangeHandler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
