"""Google Cloud Storage on loopback, as far as TensorFlow, TensorStore and gcloud use it.

TensorStore and gcloud are told its address. TensorFlow knows only Google's: it is led here as by
a company's proxy, with a certificate of our own for Google's names.
"""

import base64
from collections.abc import Callable, Iterator
import contextlib
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
from pathlib import Path
import re
import ssl
import sys
import threading
from typing import Any
import urllib.parse

_OBJECT = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)")
_COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a client that was killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class FakeBucket:
    """All buckets there are; any name is one.

    Attributes:
      objects: content and generation by (bucket, name).
      requests: (method, path) of each so far.
      fails: asked before each request; a status to answer it with, or None.
    """

    def __init__(self, folder: Path):
        import trustme

        self.objects: dict[tuple[str, str], tuple[bytes, int]] = {}
        self.requests: list[tuple[str, str]] = []
        self.fails: Callable[[str, str], int | None] = lambda method, path: None
        self._generation = 0
        self._uploads: dict[str, tuple[tuple[str, str], bytes]] = {}
        self._lock = threading.RLock()
        authority = trustme.CA()
        self._certificate_file = folder / "authority.pem"
        authority.cert_pem.write_to_path(str(self._certificate_file))
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        names = ("www.googleapis.com", "storage.googleapis.com")
        authority.issue_cert(*names).configure_cert(self._tls)
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @contextlib.contextmanager
    def serving(self) -> Iterator["FakeBucket"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self) -> dict[str, str]:
        """What leads a process here, and nowhere else."""
        return {
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{self.url}/storage/v1/",
            "STORAGE_EMULATOR_HOST": self.url,
            "GOOGLE_CLOUD_PROJECT": "p",
            "HTTPS_PROXY": self.url,
            "no_proxy": "127.0.0.1,localhost",
            "CURL_CA_BUNDLE": str(self._certificate_file),
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "NO_GCE_CHECK": "true",
        }

    def names(self, prefix: str = "") -> list[str]:
        """gs:// names of the objects below a prefix."""
        with self._lock:
            found = sorted(f"gs://{bucket}/{name}" for bucket, name in self.objects)
        return [name for name in found if name.startswith(prefix)]

    def upload(self, folder: Path, target: str) -> None:
        """Copies a folder into gs://BUCKET/NAME."""
        bucket, _, base = target.removeprefix("gs://").partition("/")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self._put((bucket, f"{base}/{path.relative_to(folder)}"), path.read_bytes())

    def download(self, source: str, folder: Path) -> None:
        """Copies gs://BUCKET/NAME into a folder."""
        bucket, _, base = source.removeprefix("gs://").partition("/")
        with self._lock:
            objects = dict(self.objects)
        for (found, name), (content, _) in objects.items():
            if found == bucket and name.startswith(f"{base}/") and not name.endswith("/"):
                path = folder / name.removeprefix(f"{base}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    # ------------------------------------------------------------------ the API
    def answer(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content for a request."""
        path, _, query_text = target.partition("?")
        query = dict(urllib.parse.parse_qsl(query_text, keep_blank_values=True))
        with self._lock:
            self.requests.append((method, target))
            if status := self.fails(method, target):
                return status, {}, b"{}"
            if path.startswith("/upload/"):
                return self._receive(method, path, query, headers, body)
            if match := _COPY.fullmatch(path):
                source, to = _key(match[1], match[2]), _key(match[3], match[4])
                if source not in self.objects:
                    return _error(404)
                self._put(to, self.objects[source][0])
                size = str(len(self.objects[source][0]))
                done = {"done": True, "objectSize": size, "totalBytesRewritten": size}
                return _json({**done, "resource": self._describe(to)})
            if match := re.fullmatch(r"/storage/v1/b/([^/]+)/o", path):
                return _json(self._list(match[1], query))
            if match := re.fullmatch(r"/storage/v1/b/([^/]+)", path):
                return _json({"kind": "storage#bucket", "name": match[1], "location": "US"})
            if path.endswith("/storageLayout"):
                return _json({"hierarchicalNamespace": {"enabled": False}})
            if match := _OBJECT.fullmatch(path):
                return self._object(method, _key(match[1], match[2]), query, headers)
            bucket, _, name = urllib.parse.unquote(path[1:]).partition("/")
            return self._media((bucket, name), headers)

    def _put(self, key: tuple[str, str], content: bytes) -> dict[str, Any]:
        with self._lock:
            self._generation += 1
            self.objects[key] = (content, self._generation)
            return self._describe(key)

    def _describe(self, key: tuple[str, str]) -> dict[str, Any]:
        content, generation = self.objects[key]
        return {
            "kind": "storage#object",
            "bucket": key[0],
            "name": key[1],
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "updated": "2026-01-01T00:00:00.000Z",
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "storageClass": "STANDARD",
            "mediaLink": f"{self.url}/storage/v1/b/{key[0]}/o/"
            f"{urllib.parse.quote(key[1], safe='')}?alt=media",
        }

    def _list(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        first, last = query.get("startOffset", ""), query.get("endOffset")
        items, prefixes = [], set()
        for key in sorted(self.objects):
            name = key[1]
            if key[0] != bucket or not name.startswith(prefix) or name < first:
                continue
            if last is not None and name >= last:
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                prefixes.add(prefix + head + delimiter)
            else:
                items.append(self._describe(key))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def _object(
        self, method: str, key: tuple[str, str], query: dict[str, str], headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        if refusal := self._precondition(key, query):
            return refusal
        if key not in self.objects:
            return _error(404)
        if method == "DELETE":
            del self.objects[key]
            return 204, {}, b""
        if query.get("alt") == "media":
            return self._media(key, headers)
        return _json(self._describe(key))

    def _precondition(
        self, key: tuple[str, str], query: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes] | None:
        generation = str(self.objects[key][1]) if key in self.objects else "0"
        if query.get("ifGenerationMatch", generation) != generation:
            return _error(412)
        if query.get("ifGenerationNotMatch") == generation and generation != "0":
            return _error(304)
        return None

    def _media(
        self, key: tuple[str, str], headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        if key not in self.objects:
            return _error(404)
        content, generation = self.objects[key]
        more = {
            "Content-Type": "application/octet-stream",
            "x-goog-generation": str(generation),
            "x-goog-stored-content-length": str(len(content)),
        }
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        if not match:
            return 200, more, content
        start, stop = int(match[1]), int(match[2] or len(content) - 1) + 1
        if start >= len(content):
            return 416, more | {"Content-Range": f"bytes */{len(content)}"}, b""
        stop = min(stop, len(content))
        span = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
        return 206, more | span, content[start:stop]

    def _receive(
        self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if method == "PUT":
            return self._receive_part(query["upload_id"], headers, body)
        bucket = path.split("/")[5]
        kind = query.get("uploadType")
        if kind == "multipart":
            boundary = re.search(r"boundary=\"?([^\";]+)", headers["content-type"])
            assert boundary is not None
            _, *parts, _ = body.split(b"--" + boundary[1].strip("'").encode())
            # Some end lines as the standard says, some do not.
            described, content = (
                re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1]
                .removesuffix(b"\n")
                .removesuffix(b"\r")
                for part in parts
            )
            name = query.get("name") or json.loads(described)["name"]
        else:
            name = query.get("name") or json.loads(body)["name"]
            content = body
        key = (bucket, name)
        if refusal := self._precondition(key, query):
            return refusal
        if kind != "resumable":
            return _json(self._put(key, content))
        upload = str(len(self._uploads))
        self._uploads[upload] = (key, b"")
        host = headers.get("host", "")
        scheme = "https" if host.endswith("googleapis.com") else "http"
        return 200, {"Location": f"{scheme}://{host}{path}?upload_id={upload}"}, b""

    def _receive_part(
        self, upload: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        key, content = self._uploads[upload]
        said = headers.get("content-range", f"bytes 0-/{len(body)}")
        content += body
        self._uploads[upload] = (key, content)
        total = said.rpartition("/")[2]
        if total == "*" or len(content) < int(total):
            return 308, {"Range": f"bytes=0-{len(content) - 1}"} if content else {}, b""
        return _json(self._put(key, content))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        bucket = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_CONNECT(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.connection = bucket._tls.wrap_socket(self.connection, server_side=True)
                self.rfile = self.connection.makefile("rb")
                self.wfile = self.connection.makefile("wb", buffering=0)

            def finish(self) -> None:
                super().finish()
                # After CONNECT it is not the one that the server closes.
                self.connection.close()

            def _answer(self) -> None:
                # TensorFlow gives a length, too, and sends chunks.
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = self._chunks()
                else:
                    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, more, content = bucket.answer(self.command, self.path, headers, body)
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def _chunks(self) -> bytes:
                body = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _answer

            def log_message(self, *_: object) -> None:
                """Keeps quiet."""

        return Handler


def _key(bucket: str, name: str) -> tuple[str, str]:
    return bucket, urllib.parse.unquote(name)


def _json(content: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _error(status: int) -> tuple[int, dict[str, str], bytes]:
    if status == 304:
        return 304, {}, b""
    content = {"error": {"code": status, "message": "refused"}}
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()
