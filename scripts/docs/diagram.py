"""Draw a Mermaid flowchart as an SVG picture when the site is built: it needs no script for that."""

from html import escape

import mmdr


def draw(text: str, title: str) -> str:
    """Return the picture of a flowchart as one block of HTML, with its title for screen readers.

    Raises:
        ValueError: the text is not Mermaid.
    """
    picture = mmdr.render(text).svg().strip().replace("<svg ", f'<svg aria-label="{escape(title)}" ', 1)
    return f'<div class="flowchart">{picture}</div>'
