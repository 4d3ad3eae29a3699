"""The words of a page, read by Python's own HTML parser: the tests' opinion is independent of the templates."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "link", "input", "hr", "source", "area", "base", "col", "embed", "track", "wbr"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    def all(self, tag: str) -> list[Node]:
        own = [self] if self.tag == tag else []
        return own + [found for child in self.children if isinstance(child, Node) for found in child.all(tag)]

    def classed(self, name: str) -> list[Node]:
        own = [self] if name in self.attributes.get("class", "").split() else []
        return own + [found for child in self.children if isinstance(child, Node) for found in child.classed(name)]

    def by_id(self, name: str) -> Node:
        (found,) = [node for node in self.everything() if node.attributes.get("id") == name]
        return found

    def everything(self) -> list[Node]:
        return [self] + [found for child in self.children if isinstance(child, Node) for found in child.everything()]

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("document", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Node(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag in {"p", "li"} and self.open[-1].tag != tag:
            return
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read_html(text: str) -> Node:
    """The tree of a page; fails when elements are not closed in order."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert [node.tag for node in reader.open] == ["document"], "elements left open"
    return reader.root
