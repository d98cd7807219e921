"""A parser that keeps of a report what tests ask about."""

import json
import struct
import zlib
from html.parser import HTMLParser

from understudy.report import write_report

VOID = {"meta", "img", "wbr", "br", "link"}


class Report(HTMLParser):
    """Text, tables, attributes and scripts of a page; refuses tags that do not close in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.scripts, self.rows, self.text = [], [], {}, [], ""
        self.headings, self.sections = [], {}
        self.section = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append((tag, attributes))
        if tag == "section":
            self.section = attributes["id"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        names = [tag for tag, _ in self.open]
        if "script" in names or "style" in names:
            self.scripts[self.open[-1][1].get("id", str(len(self.scripts)))] = data
            return
        self.text += data
        self.sections[self.section] = self.sections.get(self.section, "") + data
        if {"td", "th"} & set(names):
            self.rows[-1][-1] += data

    def row(self, first):
        return next(row for row in self.rows if row and row[0] == first)

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def charts(self):
        return json.loads(self.scripts["charts"])


def read(folder):
    return Report(write_report(folder).read_text(encoding="utf-8"))


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def change(folder, **fields):
    (folder / "results.json").write_text(json.dumps(results_of(folder) | fields))
    return folder


def values(chart):
    """All inline rows of a chart, wherever Vega-Lite put them."""
    sources = [chart, *chart.get("layer", [])]
    return [row for source in sources for row in source.get("data", {}).get("values", [])]


def png(width=48, height=16):
    rows = b"".join(b"\0" + bytes((x * 5 + y * 9) % 256 for x in range(width)) for y in range(height))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) & 0xFFFFFFFF)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
