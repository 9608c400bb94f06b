"""One page of HTML with everything in it: script, style and data. A policy in the page forbids whatever else it could load or run."""

import base64
import hashlib
from functools import cache
from html import escape
from importlib.resources import files

_POLICY = (
    "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; img-src blob: data:; base-uri 'none'; form-action 'none'"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<div id="page">Unpacking…</div>
<noscript>This page is drawn by its script, which this browser does not run.</noscript>
<script type="application/octet-stream" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def page(title: str, data: bytes) -> str:
    """The explorer's page.

    Args:
        title: any text, which is never read as markup.
        data: what `packed` made.
    """
    script, style = _built("explorer.js"), _built("explorer.css")
    policy = _POLICY.format(script=_hash(script), style=_hash(style))
    return _PAGE.format(policy=policy, title=escape(title[:200]), style=style, data=base64.b64encode(data).decode(), script=script)


@cache
def _built(name: str) -> str:
    """A part of the bundle, which `make explorer` builds from web/."""
    return (files(__package__) / "built" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
