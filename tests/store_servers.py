"""Serve an object store on this machine: moto's S3, and before it a proxy that fails, is slow, or speaks as GCS."""

import contextlib
import http.client
import http.server
import subprocess
import sys
import threading
import time
import urllib.request

BUCKET = "bucket"
_MOTO = """
import logging, sys
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until the tests end, however they do
"""


@contextlib.contextmanager
def s3_server(bucket=BUCKET):
    """Yield the URL of an S3 server with one bucket, in a process of its own."""
    with subprocess.Popen([sys.executable, "-c", _MOTO], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        send(f"{url}/{bucket}", "PUT")
        yield url
        process.stdin.close()


def send(url, method, content=b""):
    """Send a request and return the answer's content."""
    request = urllib.request.Request(url, content, {"Content-Type": "text/plain"}, method=method)
    with urllib.request.urlopen(request) as answer:
        return answer.read()


class Proxy(http.server.ThreadingHTTPServer):
    """Pass requests on, but fail some of them.

    Attributes:
        fails: says of the method and the path of a request whether it is answered with 503.
        seconds: that each request waits.
        seen: "METHOD PATH" of each request that came.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, behind):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = behind.removeprefix("http://")
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.mend()

    def mend(self):
        self.fails, self.seconds, self.seen = lambda method, path: False, 0.0, []

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


_ANYONE = "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass(self):
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append(f"{self.command} {self.path}")
        time.sleep(self.server.seconds)
        if self.server.fails(self.command, self.path):
            self._answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
            return
        headers = {name.lower(): value for name, value in self.headers.items() if name.lower() != "host"}
        # GCS's XML interface is S3's, but for who asks, and for the header of a condition
        google = not headers.get("authorization", "").startswith("AWS4")
        if google:
            headers["authorization"] = _ANYONE
            if generation := headers.pop("x-goog-if-generation-match", None):
                headers |= {"If-None-Match": "*"} if generation == "0" else {"If-Match": f'"{generation}"'}
        behind = http.client.HTTPConnection(self.server.behind, timeout=60)
        with contextlib.closing(behind):
            behind.request(self.command, self.path, content, headers)
            answer = behind.getresponse()
            found = dict(answer.getheaders())
            if google and "ETag" in found:
                found["x-goog-generation"] = found["ETag"].strip('"')
            self._answer(answer.status, found, answer.read())

    def _answer(self, status, headers, content):
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        if self.command != "HEAD" or "Content-Length" not in headers:
            headers = {"Content-Length": str(len(content))}
        self.send_header("Content-Length", headers["Content-Length"])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

    def log_message(self, *_):
        pass
