"""`attrib serve`: pages for whoever has the token, at this machine's own address alone."""

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import attrib
from attrib.core.types import InputError
from attrib.view.explorer.server import LISTED, Explorer
from tests.support.graphs import random_graph

NUMBERS = list(range(0, 4 * LISTED, 2))


@pytest.fixture
def server() -> Iterator[Explorer]:
    def page_of(number: int) -> str:
        if number == 4:
            raise InputError("graph: <damaged>")
        return f"page {number}"

    with Explorer(NUMBERS, lambda number: f"<b>prompt {number}\u202e\x1b", page_of) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def asked(server: Explorer, path: str, host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_pages_and_the_list_in_parts(server: Explorer) -> None:
    base = f"/{server.token}"
    status, text = asked(server, f"{base}/")
    assert status == 200
    assert text.count("<li") == LISTED
    assert "<b>" not in text
    assert r"&lt;b&gt;prompt 398\u202e\x1b<" in text, "what is not seen is written out"
    assert f"{base}/list/{LISTED}" in text
    assert "earlier" not in text
    status, text = asked(server, f"{base}/list/{LISTED}")
    assert text.count("<li") == LISTED
    assert "prompt 400\\u202e" in text
    assert "earlier" in text
    assert "later" not in text
    assert asked(server, f"{base}/prompt/8") == (200, "page 8")


def test_others_get_nothing(server: Explorer) -> None:
    base = f"/{server.token}"
    for path in ("/", "/wrong/prompt/8", f"{base[:-1]}/prompt/8", "//prompt/8", "/%E2%80%AE/"):
        assert asked(server, path)[0] == 403
    assert asked(server, f"{base}/prompt/8", host="attacker.example:80")[0] == 403
    assert asked(server, f"{base}/prompt/8", host=f"localhost:{server.server_port}") == (200, "page 8")
    for path in ("/prompt/7", "/prompt/-1", "/prompt/", "/prompt/8/x", "/prompt/%C2%B2", "/list/x", "/../x", ""):
        assert asked(server, base + path)[0] == 404, path
    assert asked(server, f"{base}/prompt/4") == (500, "graph: &lt;damaged&gt;")
    assert server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_refused(server: Explorer) -> None:
    with pytest.raises(InputError, match=f"port: {server.server_port} cannot be listened at"):
        Explorer([], str, str, server.server_port)


def test_tokens_of_a_prompt_are_read_by_themselves(tmp_path: Path) -> None:
    graphs = [random_graph(0), random_graph(1, positions=3)]
    attrib.save(tmp_path / "g.h5", graphs)
    for where in (tmp_path, tmp_path / "g.h5"):
        with attrib.open_graphs(where) as opened:
            assert [opened.strings(number) for number in (0, 1, -1)] == [graphs[0].strings, graphs[1].strings, graphs[1].strings]
            with pytest.raises(InputError):
                opened.strings(2)
