"""The explorer's page: its bundle, and the data that it draws."""

import base64
from functools import cache
from importlib.resources import files

from attrib.core.sealed import sealed

_BODY = """<div id="page">Unpacking…</div>
<noscript>This page is drawn by its script, which this browser does not run.</noscript>
<script type="application/octet-stream" id="data">{data}</script>"""


def page(title: str, data: bytes) -> str:
    """The explorer's page.

    Args:
        title: any text, which is never read as markup.
        data: what `packed` made.
    """
    body = _BODY.format(data=base64.b64encode(data).decode())
    return sealed(title, body, style=_built("explorer.css"), scripts=[_built("explorer.js")])


@cache
def _built(name: str) -> str:
    """A part of the bundle, which `make explorer` builds from web/."""
    return (files(__package__) / "built" / name).read_text(encoding="utf-8")
