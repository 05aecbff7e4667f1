"""A hub that does not answer is asked once, for seconds."""

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from vicjoint import library

constants = pytest.importorskip("huggingface_hub.constants")


class Refuses(BaseHTTPRequestHandler):
    asked = 0

    def do_HEAD(self):
        Refuses.asked += 1
        self.send_response(403)
        self.end_headers()

    def log_message(self, *given): ...


@pytest.fixture
def hub(monkeypatch):
    """Asks a hub at an address; whether the hub's library is offline afterwards."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(library, "HUB_SECONDS", 0.5)
    library.ask_once.cache_clear()

    def ask(port: int) -> bool:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        library.ask_hub()
        return constants.HF_HUB_OFFLINE

    yield ask
    library.ask_once.cache_clear()


def test_one_that_does_not_answer(hub):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        assert hub(silent.getsockname()[1]) and time.monotonic() - began < 5


def test_one_that_is_not_there(hub):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert hub(port)


def test_one_that_answers_is_asked_once(hub):
    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert not hub(server.server_port) and not hub(server.server_port) and Refuses.asked == 1
        server.shutdown()
        thread.join()


def test_offline_is_offline(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(library, "answers_at", lambda address: pytest.fail("asked"))
    assert hub(1)
