"""What must hold of every page that a report writes."""

import re
from html.parser import HTMLParser
from pathlib import Path

LOADING = {"base", "embed", "iframe", "image", "img", "link", "object", "script"}
EXPERIMENT_FIGURES = {
    "ablation",
    "auc_by_history",
    "auc_by_popularity",
    "calibration",
    "cold_warm",
    "confusion",
    "cost",
    "training",
}
ADDRESSES = {"action", "data", "href", "poster", "src", "srcset", "xlink:href"}


class Reader(HTMLParser):
    """The tags of a page and the addresses in its attributes and styles; what is only text does not count."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.styles: list[str] = []
        self.feed(page)
        self.close()
        for style in self.styles:
            self.addresses += re.findall(r"(?:url\(|@import)\s*[\"']?([^\"'\s)]*)", style)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ADDRESSES:
                self.addresses.append(value or "")
            else:
                self.styles.append(value or "")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "style":
            self.styles.append(data)


def assert_needs_no_network(page: str) -> None:
    """It loads nothing and links only to places within itself."""
    read = Reader(page)
    assert read.tags & LOADING == set()
    assert read.addresses  # a figure refers to its own shapes
    assert [address for address in read.addresses if not address.startswith("#")] == []
    assert "default-src 'none'" in page


def assert_ids_are_unique(page: str) -> None:
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(set(ids)) == len(ids)


def assert_same_files(one: Path, other: Path) -> None:
    """The same names, and byte for byte the same content."""
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names and names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def table_captions(page: str) -> list[str]:
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page, flags=re.DOTALL)
    return [caption for caption in captions if "tables/" in caption]


def outside_figures(page: str) -> str:
    return re.sub(r"<svg.*?</svg>|<style.*?</style>", "", page, flags=re.DOTALL)
