"""`GET /widget.js`: the chat bubble for other people's pages, as one script.

Its sources are small modules in `web/widget/`. A page should load one file and no more, so they are joined here into one
function: modules in the order of their imports, `import` and `export` taken off, comments left out. That is all that the
building is: the sources import named things from relative files, and no two of them may define the same name.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from litestar import Request, Response, get

MAIN = Path(__file__).parent / "web" / "widget" / "main.js"

_IMPORT = re.compile(r"""^import \{(?:(?! as )[\w$, ])*\} from "(\.{1,2}/[^"]+)";\n""", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const|let)\b)", re.MULTILINE)
_DEFINED = re.compile(r"^(?:async )?(?:function\*?|class|const|let) ([\w$]+)", re.MULTILINE)
# Whole lines only: within a line it could be part of a string.
_COMMENT = re.compile(r"^[ \t]*(?:/\*\*(?:(?!\*/).)*\*/|//[^\n]*)\n", re.MULTILINE | re.DOTALL)
_LEFT = re.compile(r"^(?:import|export)\b.*", re.MULTILINE)

# The file is public and the same for everybody. It is loaded by pages of other origins, also with `integrity`, which needs CORS.
HEADERS = {
    "Cache-Control": "public, max-age=300",
    "Access-Control-Allow-Origin": "*",
    "Cross-Origin-Resource-Policy": "cross-origin",
}


def joined(main: Path = MAIN) -> str:
    """`main` and all that it imports, as one classic script. Raises `ValueError` for what this way of joining cannot do."""
    modules: dict[Path, str] = {}
    _collect(main.resolve(), modules, ())
    owner: dict[str, Path] = {}
    for path, text in modules.items():
        for name in _DEFINED.findall(text):
            if name in owner:
                raise ValueError(f"{path.name} and {owner[name].name} both define {name}")
            owner[name] = path
    return '(() => {\n"use strict";\n' + "".join(modules.values()) + "})();\n"


def _collect(path: Path, modules: dict[Path, str], importing: tuple[Path, ...]) -> None:
    if path in importing:
        raise ValueError(f"{path.name} imports itself through {importing[-1].name}")
    if path in modules:
        return
    text = _COMMENT.sub("", path.read_text(encoding="utf-8"))
    for name in _IMPORT.findall(text):
        _collect((path.parent / name).resolve(), modules, (*importing, path))
    text = _EXPORT.sub("", _IMPORT.sub("", text))
    if left := _LEFT.search(text):
        raise ValueError(f"{path.name}: this import or export cannot be joined: {left[0]}")
    modules[path] = re.sub(r"\n{2,}", "\n", text.lstrip("\n"))


@cache
def _script() -> tuple[bytes, str]:
    body = joined().encode()
    return body, f'"{hashlib.sha256(body).hexdigest()[:20]}"'


@get("/widget.js", include_in_schema=False)
async def widget(request: Request[Any, Any, Any]) -> Response[bytes]:
    """The script. What it asks of the server, and for whom, is between the page's key and `POST /rag/ask`."""
    body, tag = _script()
    headers = {**HEADERS, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(b"", status_code=304, headers=headers)
    return Response(body, media_type="text/javascript", headers=headers)  # Litestar adds the charset
