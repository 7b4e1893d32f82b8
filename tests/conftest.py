"""One thread for every test: the models are tiny, and threads of a busy machine wait for each other.

Ctrl-C ends the processes that tests start, however pytest was started itself.
"""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported, and by the processes tests start
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a script, and inherited
    signal.signal(signal.SIGINT, signal.default_int_handler)

Answer = Callable[[str, str, Mapping[str, str], bytes], tuple[int, Mapping[str, str], bytes]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: add --run-slow"))


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Start a web server on this machine that answers a request (method, path, headers, body) with what a
    function makes of it (status, headers, body); gives its address."""
    with ExitStack() as stack:

        def start(answer: Answer) -> str:
            class Handler(BaseHTTPRequestHandler):
                def reply(self) -> None:
                    sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                    status, headers, body = answer(self.command, self.path, self.headers, sent)
                    self.send_response(status)
                    for name, value in ({"Content-Length": str(len(body))} | dict(headers)).items():
                        self.send_header(name, value)
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(body)

                do_GET = do_HEAD = do_POST = reply  # noqa: N815

                def log_message(self, *words: object) -> None:
                    """Not among the output of the tests."""

            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
            thread = Thread(target=server.serve_forever, args=(0.01,))  # seconds to notice the shutdown
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield start
