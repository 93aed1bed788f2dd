"""The HTTP beneath the test Hub: requests, answers, a log of all requests, and faults on demand."""

import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


@dataclass
class Reply:
    body: bytes | dict | list = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One request. `path` is as sent: names are unquoted after it has been split."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes = field(repr=False, default=b"")
    port: str = "api"

    def json(self) -> dict:
        return json.loads(self.body)


@dataclass
class Fault:
    """What happens to the next `times` requests of a method whose "port:address" holds a text.

    `action` is "drop" (the connection ends half-way), "corrupt" or "grow" (of what is put or got a byte is another, or
    one is added), or a function that is called before the request is answered.
    """

    method: str
    text: str
    action: str | Callable[[], None]
    times: int = 1


class Server:
    """Named ports on loopback, each answered by a function, one request after the other."""

    def __init__(self, answers: dict[str, Callable[[Call], Reply]]):
        self.lock = threading.RLock()
        self.requests: list[Call] = []
        self.faults: list[Fault] = []
        self.ports = {
            port: ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, port, answer))
            for port, answer in answers.items()
        }

    def url(self, port: str) -> str:
        return f"http://127.0.0.1:{self.ports[port].server_port}"

    def start(self) -> None:
        for port in self.ports.values():
            # How often it looks whether it is to stop: half a second otherwise.
            threading.Thread(target=port.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        for port in self.ports.values():
            port.shutdown()
            port.server_close()

    def next_fault(self, method: str, address: str) -> Fault | None:
        """The fault that a request has to suffer, which is then used up."""
        with self.lock:
            for fault in self.faults:
                if fault.method == method and fault.text in address and fault.times:
                    fault.times -= 1
                    return fault
        return None


def damaged(content: bytes, fault: Fault | None) -> bytes:
    """What arrives of a content that suffers a fault."""
    if fault is not None and fault.action == "corrupt":
        return content[:-1] + bytes(byte ^ 1 for byte in content[-1:])
    return content + b"\0" if content and fault is not None and fault.action == "grow" else content


def _handler(server: Server, port: str, answer: Callable[[Call], Reply]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # A body goes out at once, where it would wait 40 ms for the client to acknowledge the headers.
        disable_nagle_algorithm = True

        def log_message(self, *arguments):
            pass

        def respond(self):
            url = urlsplit(self.path)
            headers = {key.lower(): value for key, value in self.headers.items()}
            fault = server.next_fault(self.command, f"{port}:{self.path}")
            if fault is not None and fault.action == "drop" and self.command in ("PUT", "POST"):
                self.rfile.read(int(headers["content-length"]) // 2)
                return self.hang_up()
            body = damaged(self.read_body(headers), fault if self.command == "PUT" else None)
            call = Call(self.command, url.path, parse_qs(url.query), headers, body, port)
            with server.lock:
                server.requests.append(call)
                if fault is not None and callable(fault.action):
                    fault.action()
                reply = answer(call)
            return self.send(call, reply, fault if self.command == "GET" else None)

        def read_body(self, headers: dict[str, str]) -> bytes:
            if headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(headers.get("content-length", 0)))
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def send(self, call: Call, reply: Reply, fault: Fault | None) -> None:
            is_json = not isinstance(reply.body, bytes)
            body = damaged(json.dumps(reply.body).encode() if is_json else reply.body, fault)
            status, headers = reply.status, {"Accept-Ranges": "bytes"} | reply.headers
            if (match := re.fullmatch(r"bytes=(\d+)-", call.headers.get("range", ""))) and status == 200:
                start = int(match[1])
                status, headers["Content-Range"] = 206, f"bytes {start}-{len(body) - 1}/{len(body)}"
                body = body[start:]
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if is_json else "application/octet-stream")
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if fault is not None and fault.action == "drop":
                self.wfile.write(body[: len(body) // 2])
                self.hang_up()
            elif call.method != "HEAD":
                self.wfile.write(body)

        def hang_up(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_HEAD = do_POST = do_PUT = respond  # noqa: N815 - names that http.server asks for.

    return Handler
