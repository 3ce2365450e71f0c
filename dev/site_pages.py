"""Pages of the site that do not lie in ``docs/``, and links that leave it. A hook of MkDocs.

README, changelog and the like become pages. A link to any other file or folder of the repository
leads to a page that shows it, so that the site needs no other server.
"""

import json
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
# Files of the repository, and the pages that they become.
PAGES = {
    'README.md': 'index.md',
    'README_zh-CN.md': 'zh-CN.md',
    'docs/README.md': 'contents.md',  # else MkDocs takes it for the first page
    'CONTRIBUTING.md': 'contributing.md',
    'CHANGELOG.md': 'changelog.md',
    'dev/gpu/README.md': 'gpu.md',
    'demo/tutorial.ipynb': 'tutorial.md',
}
LANGUAGES = {'.py': 'python', '.sh': 'bash', '.yml': 'yaml', '.json': 'json'}
LINK = re.compile(r'(\]\()(?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)')
FENCE = re.compile(r'^```.*?^```', flags=re.M | re.S)


def on_files(files, config):
    """Add the pages above, and one for each file or folder that a page links."""
    for name, uri in PAGES.items():
        if name.startswith('docs/'):
            files.remove(files.get_file_from_path(name.removeprefix('docs/')))
        files.append(File.generated(config, uri, content=_text(name)))
    for file in [file for file in files if file.is_documentation_page()]:
        for path in _targets(file):
            if _is_outside(path) and files.get_file_from_path(_page_of(path)) is None:
                page = File.generated(config, _page_of(path), content=_shown(path))
                page.inclusion = page.inclusion.NOT_IN_NAV
                files.append(page)
    return files


def on_page_markdown(markdown, page, config, files):
    """Lead links that leave ``docs/`` to the pages that stand for their targets."""
    here = _source(page.file.src_uri)

    def lead(match):
        path = _resolve(here, match[2])
        if not _is_outside(path) and here.startswith('docs/') and path not in PAGES:
            return match[0]
        uri = posixpath.relpath(_page_of(path), posixpath.dirname(page.file.src_uri) or '.')
        return f'{match[1]}{uri}{match[3] or ""})'

    return _outside_of_fences(markdown, lambda text: LINK.sub(lead, text))


def _text(name: str) -> str:
    """A file as Markdown; of a notebook the cells, and the pictures that they showed."""
    text = (ROOT / name).read_text()
    return '\n\n'.join(map(_cell, json.loads(text)['cells'])) if name.endswith('.ipynb') else text


def _cell(cell: dict) -> str:
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'markdown':
        return source
    parts = [f'```python\n{source}\n```']
    for output in cell['outputs']:
        shown = output.get('data', {})
        if 'text' in output:
            parts.append('```text\n{}\n```'.format(''.join(output['text']).rstrip()))
        elif 'image/png' in shown or 'image/jpeg' in shown:
            kind = 'image/png' if 'image/png' in shown else 'image/jpeg'
            width = output.get('metadata', {}).get(kind, {}).get('width', 300)
            picture = ''.join(shown[kind].split())
            parts.append(f'<img src="data:{kind};base64,{picture}" width="{width}" alt="output">')
    return '\n\n'.join(parts)


def on_page_content(html, page, config, files):
    """Show Sphinx's roles in docstrings as code, as an editor does."""
    html = re.sub(r':\w+:(?=<code>)', '', html)
    html = re.sub(r'<code>([^<&]*) &lt;[\w.]+&gt;</code>', r'\1', html)
    return html.replace('<code>~mmpoolformer.', '<code>')


def _targets(file) -> list[str]:
    """What the page links, as paths in the repository."""
    here = _source(file.src_uri)
    if here is None:
        return []
    return [_resolve(here, link) for _, link, _ in LINK.findall(FENCE.sub('', file.content_string))]


def _source(uri: str) -> str | None:
    """The file of the repository that a page is made of."""
    names = {page: name for name, page in PAGES.items()}
    return names.get(uri, f'docs/{uri}')


def _resolve(here: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), link))


def _is_outside(path: str) -> bool:
    return path not in PAGES and not path.startswith('docs/') and (ROOT / path).exists()


def _page_of(path: str) -> str:
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix('docs/') if path.startswith('docs/') else f'source/{path}.md'


def _shown(path: str) -> str:
    """The page of a file or folder: its text, or the names in it."""
    full = ROOT / path
    if full.is_dir():
        names = sorted(
            f'{child.name}/' if child.is_dir() else child.name
            for child in full.iterdir()
            if not child.name.startswith(('.', '__pycache__'))
        )
        return '\n'.join([f'# {path}/', '', *(f'- `{name}`' for name in names)])
    language = LANGUAGES.get(full.suffix, 'text')
    return f'# {path}\n\n````{language}\n{full.read_text()}\n````\n'


def _outside_of_fences(markdown: str, change) -> str:
    """Change a page everywhere but in its blocks of code."""
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return ''.join([*parts, change(markdown[end:])])
