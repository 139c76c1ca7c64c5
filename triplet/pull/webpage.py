"""Web pages that arrive where a file was expected, such as Google Drive's."""

from html.parser import HTMLParser
from urllib.parse import urlencode, urljoin, urlsplit, urlunsplit


class WebPage(HTMLParser):
    """Parser for the title of a page and the target of its download form.

    For a large file, Google Drive sends a page that warns of the missing virus scan; its form (GET, hidden
    ``confirm`` and ``uuid``) leads to the file. Quota and sign-in pages have no such form.

    Attributes:
        title: title of the page; '' for none.
        confirmed: URL that the form leads to; None if the page has no form with ``confirm``.
    """

    def __init__(self, page: bytes, url: str) -> None:
        super().__init__()
        self.title = ""
        self.confirmed: str | None = None
        self._url, self._action, self._in_title = url, "", False
        self._fields: dict[str, str] = {}
        self.feed(page.decode("utf-8", "replace"))
        self.title = " ".join(self.title.split())[:100]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._in_title = tag == "title"
        if tag == "form":
            self._action, self._fields = given.get("action", ""), {}
        elif tag == "input" and given.get("type") == "hidden" and "name" in given:
            self._fields[given["name"]] = given.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False
        if tag == "form" and "confirm" in self._fields:
            action = urlsplit(urljoin(self._url, self._action))
            self.confirmed = urlunsplit(action._replace(query=urlencode(self._fields)))

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
