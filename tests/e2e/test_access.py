"""Readable and reachable for everyone: axe-core finds nothing serious, light or dark, before a run and after it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from .visitor import Visitor


def serious(page: Page) -> list[str]:
    """What axe-core calls serious or critical, with the elements."""
    found = Axe().run(page).response["violations"]
    return [
        f"{violation['id']}: {[(node['html'][:160], node['failureSummary']) for node in violation['nodes']]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_is_in_the_way(visit: Callable[..., Page], scheme: str):
    page = visit(color_scheme=scheme)
    page.add_style_tag(content="* { transition: none !important; }")  # colours halfway are nobody's choice
    visitor = Visitor(page)
    visitor.ask("a cat", steps=2)
    visitor.generate()
    visitor.wait_until("finished")
    visitor.expect_result()
    assert serious(page) == []
    Visitor(page, "i2i")
    page.locator("#i2i-photo").wait_for()
    assert serious(page) == []
