"""An HTML page as a test reads it."""

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img"}


class Page(HTMLParser):
    """A page; raises AssertionError if its tags are not balanced.

    Attributes:
        text: what a reader sees.
        headings: of sections.
        tables: rows of cells, by caption.
        images: the attributes of each.
        captions: of the pictures.
        addresses: everything that a browser would load or follow.
        ids: of the elements.
        tags: names of all elements.
    """

    def __init__(self, file: Path):
        super().__init__()
        self.text, self.headings, self.tables, self.images, self.captions = "", [], {}, [], []
        self.addresses, self.ids, self.tags, self.open, self.own = [], set(), set(), [], ""
        self.feed(file.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        found = dict(attributes)
        self.ids.add(found.get("id"))
        self.addresses += [found[key] for key in ("href", "src", "action", "data", "srcset") if key in found]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(found)
        if tag == "tr":
            self.rows.append([])
        if tag == "table":
            self.rows = []
        self.own = "" if tag in ("caption", "th", "td", "h2", "figcaption") else self.own

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "caption":
            self.tables[self.own] = self.rows
        if tag in ("th", "td"):
            self.rows[-1].append(self.own)
        if tag == "h2":
            self.headings.append(self.own)
        if tag == "figcaption":
            self.captions.append(self.own)

    def handle_data(self, data):
        self.own += data
        if "style" not in self.open:
            self.text += data
