"""The card that other programs show for a link to the page: title, sentence and picture, in place of Gradio's own."""

from __future__ import annotations

import re
from pathlib import Path

from gradio.routes import templates
from jinja2.ext import Extension
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Route

PICTURE = Path(__file__).parents[2] / "assets" / "page.webp"
GRADIOS = re.compile(r'<meta\s+(?:property="og:|name="twitter:)[^>]*>\s*')
OWN = """
<meta name="description" content="{{ description }}" />
<meta property="og:type" content="website" />
<meta property="og:title" content="{{ config['title'] }}" />
<meta property="og:description" content="{{ description }}" />
<meta property="og:image" content="{{ config['root'] }}/card.webp" />
<meta name="twitter:card" content="summary_large_image" />
"""
"""The tags by the Open Graph protocol (https://ogp.me/); Gradio takes `root` from the request, behind proxies too."""


class LinkCard(Extension):
    """An extension that puts the page's own tags in place of those in the templates of Gradio's page."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """Return the template with the page's tags."""
        before, *after = GRADIOS.split(source)
        return before + OWN + "".join(after)


def link_card(description: str) -> Route:
    """Give the page its card, with a description, and return the route of the card's picture."""
    templates.env.add_extension(LinkCard)
    templates.env.globals["description"] = description

    async def answer(request: Request) -> FileResponse:
        return FileResponse(PICTURE)

    return Route("/card.webp", answer)
