"""The site of the documentation: it builds strictly, whole, and asks no other server."""

import re

import pytest
from helpers import ROOT

import mmpoolformer

for _name in ('mkdocs', 'material', 'mkdocstrings'):
    pytest.importorskip(_name, reason="the extra 'docs' is not installed: make docs")

# What a page loads by itself, unlike what it links.
LOADED = re.compile(
    r'<(?:script|img|iframe)[^>]*src="([^"]*)"|<link[^>]*rel="stylesheet"[^>]*href="([^"]*)"'
)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp('site')
    build(load_config(str(ROOT / 'mkdocs.yml'), strict=True, site_dir=str(folder)))
    return folder


def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob('*.html'))
    assert len(pages) > 30
    for page in pages:
        loaded = [a or b for a, b in LOADED.findall(page.read_text())]
        assert loaded and not [url for url in loaded if re.match(r'(\w+:)?//', url)], page


def test_api_has_all_that_is_public(site):
    page = (site / 'api.html').read_text()
    for name in {*mmpoolformer.__all__} - {'__version__'}:
        shown = rf'id="mmpoolformer\.([\w.]+\.)?{name}"|<code>{name}</code>'
        assert re.search(shown, page), name


def test_docstrings_show_no_markup(site):
    text = re.sub(r'<[^>]*>', '', (site / 'api.html').read_text())
    assert not re.findall(r':(?:class|func|meth|mod|attr):|~mmpoolformer', text)


def test_links_out_of_the_docs_lead_to_pages_of_the_site(site):
    page = (site / 'speed.html').read_text()
    assert 'href="source/mmpoolformer/ops/pool_mix.py.html"' in page
    assert 'count_include_pad' in (site / 'source/mmpoolformer/ops/pool_mix.py.html').read_text()
