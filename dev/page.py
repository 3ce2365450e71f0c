"""The page that the demo ends with: a table, and the pictures of each model."""

import os
from html import escape
from pathlib import Path
from typing import NamedTuple

from mmpoolformer.utils.files import replace_file

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: auto; padding: 1rem; }
table { border-collapse: collapse; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #8886; text-align: right; }
th:first-child, td:first-child { text-align: left; }
pre { overflow-x: auto; padding: .6rem; background: #8882; border-radius: .4rem; }
figure { margin: 0; display: flex; flex-wrap: wrap; gap: .6rem; }
img { max-width: 100%; background: white; border-radius: .3rem; }
"""


class Section(NamedTuple):
    """One model on the page.

    Attributes:
        title: Its name.
        commands: What was run with it.
        pictures: Files below the page's folder, by heading.
    """

    title: str
    commands: list[str]
    pictures: dict[str, list[Path]]


def write_page(
    path: Path, headings: tuple[str, ...], rows: list[tuple[str, ...]], sections: list[Section]
) -> Path:
    """Write the page; returns its path."""
    body = ['<h1>PoolFormer on digits</h1>', table(headings, rows)]
    for section in sections:
        body.append(f'<h2>{escape(section.title)}</h2>')
        body.append(f'<pre>{escape(os.linesep.join(section.commands))}</pre>')
        for heading, pictures in section.pictures.items():
            images = ''.join(image(picture, path.parent) for picture in pictures)
            body.append(f'<h3>{escape(heading)}</h3>\n<figure>{images}</figure>')
    head = f'<meta charset="utf-8"><title>PoolFormer on digits</title><style>{STYLE}</style>'
    lines = [
        '<!doctype html>',
        f'<html lang="en"><head>{head}</head>',
        '<body>',
        *body,
        '</body></html>',
    ]
    replace_file(path, '\n'.join(lines) + '\n')
    return path


def table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [''.join(f'<th>{escape(cell)}</th>' for cell in headings)]
    lines += [''.join(f'<td>{escape(cell)}</td>' for cell in row) for row in rows]
    return '<table>{}</table>'.format('\n'.join(f'<tr>{line}</tr>' for line in lines))


def image(path: Path, folder: Path) -> str:
    source = escape(path.relative_to(folder).as_posix())
    return f'<img src="{source}" alt="{escape(path.stem)}">'
