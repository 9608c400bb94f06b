"""A server of explorer pages for this machine alone: each graph is read and packed when its page is asked for."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from html import escape
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from attrib.core.shown import harmless
from attrib.core.types import AttribError, InputError
from attrib.view.terminal import so_many

LISTED = 200
"""Prompts in one page of the list."""
_LIST_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = "body{font:14px/1.6 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color-scheme:light dark}"
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class Explorer(HTTPServer):
    """Serves the pages of some prompts at a loopback address whose path begins with a random token.

    One request is answered after another, since one reader sits before it and files are read under one lock anyway.
    """

    def __init__(self, numbers: Sequence[int], title_of: Callable[[int], str], page_of: Callable[[int], str], port: int = 0) -> None:
        """Listen at once; `serve_forever` answers.

        Args:
            numbers: of the prompts, in the order of the list.
            title_of, page_of: a prompt's text, and its whole page.
            port: 0 for any that is free.

        Raises:
            InputError: where the port is taken, or not allowed.
        """
        self.numbers, self.title_of, self.page_of = numbers, title_of, page_of
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(f"port: {port} cannot be listened at: {error}. Choose another, or 0 for any that is free.") from error

    @property
    def address(self) -> str:
        """Where the list of prompts is."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    server: Explorer
    server_version, sys_version = "attrib", ""

    def do_GET(self) -> None:
        # another site's script may reach a loopback port under a name of its own, so the name is looked at too
        if self.headers.get("Host") not in {f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")}:
            return self._answer(403, "This server answers at 127.0.0.1 alone.")
        _, token, *rest = self.path.partition("?")[0].split("/")
        if not secrets.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode()):
            return self._answer(403, "The address lacks its token. Take it whole from the terminal.")
        match rest:
            case [""]:
                self._answer(200, self._list(0), _LIST_POLICY)
            case ["list", first] if first.isascii() and first.isdigit() and len(first) < 10:
                self._answer(200, self._list(int(first)), _LIST_POLICY)
            case ["prompt", number] if number.isascii() and number.isdigit() and len(number) < 19:
                self._page(int(number))
            case _:
                self._answer(404, "There is no such page.")

    def _page(self, number: int) -> None:
        if number not in self.server.numbers:
            return self._answer(404, f"There is no prompt {number}.")
        try:
            made = self.server.page_of(number)
        except AttribError as error:
            return self._answer(500, escape(str(error)))
        self._answer(200, made)

    def _list(self, first: int) -> str:
        shown = self.server.numbers[first : first + LISTED]
        base = f"/{self.server.token}"
        lines = [f'<li value="{number}"><a href="{base}/prompt/{number}">{escape(self._title(number))}</a></li>' for number in shown]
        ways = [
            f'<a href="{base}/list/{at}">{name}</a>'
            for name, at in (("earlier", first - LISTED), ("later", first + LISTED))
            if 0 <= at < len(self.server.numbers)
        ]
        return (
            f"<!doctype html><html lang=en><meta charset=utf-8><title>attrib</title><style>{_STYLE}</style><h1>Prompts</h1>"
            f"<ol>{''.join(lines)}</ol><p>{so_many(len(self.server.numbers), 'prompt')}. {' '.join(ways)}</p></html>"
        )

    def _title(self, number: int) -> str:
        try:
            return harmless(self.server.title_of(number)[:200]) or "(empty)"
        except AttribError as error:
            return f"cannot be read: {error}"

    def _answer(self, status: int, text: str, policy: str = "") -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        headers: Mapping[str, Any] = _HEADERS | {"Content-Length": str(len(body))} | ({"Content-Security-Policy": policy} if policy else {})
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: addresses hold the token."""
