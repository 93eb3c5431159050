"""The metadata server of a TPU VM, on loopback."""

from collections.abc import Iterator
import contextlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import threading

_PATH = "/computeMetadata/v1/instance/attributes/"


@contextlib.contextmanager
def serving(attributes: dict[str, str]) -> Iterator[str]:
    """Answers for one VM; yields the address, for GCE_METADATA_IP."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = attributes.get(self.path.removeprefix(_PATH))
            text = (found or "").encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Keeps quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
