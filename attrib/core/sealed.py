"""A page of HTML with everything in it: script, style and data. A policy in the page forbids whatever else it could load or run."""

import base64
import hashlib
from collections.abc import Sequence
from html import escape

LONGEST_TITLE = 200
"""Characters of a title."""

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
{body}
{scripts}</body>
</html>
"""


def sealed(title: str, body: str, *, style: str = "", scripts: Sequence[str] = (), styles_itself: bool = False) -> str:
    """A page whose policy lets its own style and scripts in, by their hashes, and nothing else; no address is ever asked.

    Args:
        title: any text, which is never read as markup.
        body: HTML, in which all that comes from elsewhere is escaped already.
        style: of the whole page.
        scripts: run in order, behind the body.
        styles_itself: whether scripts write style of their own into the page, as plotly.js does; it is let in then, whatever it says.
    """
    style_source = "'unsafe-inline'" if styles_itself else _source(style)
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_source, scripts)) or _NONE}; style-src {style_source}; img-src blob: data:; "
        "base-uri 'none'; form-action 'none'"
    )
    written = "".join(f"<script>{script}</script>\n" for script in scripts)
    return _PAGE.format(policy=policy, title=escape(title[:LONGEST_TITLE]), style=style, body=body, scripts=written)


_NONE = "'none'"


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
