"""README, model-index.yml and other pages against the configs and the code."""

import ast
import re

import pytest
import torch
import yaml
from helpers import PUBLISHED, ROOT, run_tool, shell_commands
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmpoolformer.adapt.zoo import find_config

README = (ROOT / 'README.md').read_text()
INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())

# Tables 3 and 4 of arXiv 2111.11418.
PUBLISHED_RESULTS = {
    ('retinanet', 's12'): {'box AP': 36.2},
    ('retinanet', 's24'): {'box AP': 38.9},
    ('retinanet', 's36'): {'box AP': 39.5},
    ('mask-rcnn', 's12'): {'box AP': 37.3, 'mask AP': 34.6},
    ('mask-rcnn', 's24'): {'box AP': 40.1, 'mask AP': 37.0},
    ('mask-rcnn', 's36'): {'box AP': 41.0, 'mask AP': 37.7},
    ('sem-fpn', 's12'): {'mIoU': 37.2},
    ('sem-fpn', 's24'): {'mIoU': 40.3},
    ('sem-fpn', 's36'): {'mIoU': 42.0},
    ('sem-fpn', 'm36'): {'mIoU': 42.4},
    ('sem-fpn', 'm48'): {'mIoU': 42.7},
}
RETRAINED = 'mIoU of the weights'  # by mmseg's authors, of the files that its metafile links


def results(model):
    """The published results, without those of other trainings."""
    metrics = [result['Metrics'].items() for result in model['Results']]
    return {key: value for items in metrics for key, value in items if key != RETRAINED}


def retrained(model):
    return next(
        (r['Metrics'][RETRAINED] for r in model['Results'] if RETRAINED in r['Metrics']), None
    )


TOP = [ROOT / name for name in ('README.md', 'CHANGELOG.md', 'CONTRIBUTING.md')]
PAGES = [*TOP, ROOT / 'dev' / 'gpu' / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]


def anchors(page):
    """What GitHub calls the headings of a page."""
    headings = re.findall(r'^#+ (.*)', page.read_text(), flags=re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r'\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)', page.read_text())
    targets = [(page.parent / path if path else page, anchor) for path, anchor in links]
    broken = [
        f'{target}#{anchor}'
        for target, anchor in targets
        if not target.exists() or (anchor and anchor not in anchors(target))
    ]
    assert not broken


by_model = pytest.mark.parametrize('model', INDEX['Models'], ids=lambda model: model['Name'])


def test_index_names_every_published_config():
    configs = [model['Config'] for model in INDEX['Models']]
    assert sorted(configs) == sorted(path.relative_to(ROOT).as_posix() for path in PUBLISHED)
    assert all(model['Name'] in model['Config'] for model in INDEX['Models'])


@by_model
def test_index_holds_the_published_results(model):
    method, rest = model['Name'].split('_poolformer-')
    assert results(model) == PUBLISHED_RESULTS[method, rest.split('_')[0]]


@by_model
def test_index_holds_the_weights_that_mmseg_links(model):
    method, rest = model['Name'].split('_poolformer-')
    if method != 'sem-fpn':
        assert 'Weights' not in model and retrained(model) is None
        return
    metafile = (
        find_config('mmseg::_base_/default_runtime.py').parents[1] / 'poolformer/metafile.yaml'
    )
    theirs = {m['Name'].split('_')[2]: m for m in yaml.safe_load(metafile.read_text())['Models']}
    linked = theirs[rest.split('_')[0]]
    # The maintained stack links copies on another server.
    assert model['Weights'].split('/')[3:] == linked['Weights'].split('/')[3:]
    assert retrained(model) == linked['Results']['Metrics']['mIoU']


@by_model
def test_index_parameters_are_those_of_the_model(model):
    cfg = Config.fromfile(ROOT / model['Config'])
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        built = MODELS.build(cfg.model)
    assert sum(p.numel() for p in built.parameters()) == model['Metadata']['Parameters']


@by_model
def test_readme_row_of_a_model(model):
    config, name = model['Config'], model['Name']
    (row,) = [line for line in README.splitlines() if line.startswith(f'| [{name}]')]
    assert f'({config})' in row
    assert ', '.join(f'{key} {value}' for key, value in results(model).items()) in row
    if 'Weights' in model:
        assert f'<br>[weights]({model["Weights"]}) of mmseg: {retrained(model)} |' in row
    assert f'{model["Metadata"]["Parameters"] / 1e6:.1f} M' in row
    checkpoint = 'epoch_12.pth' if 'coco' in name else 'iter_40000.pth'
    assert f'`tools/dist_train.sh {config} 8`' in row
    assert f'`tools/dist_test.sh {config} work_dirs/{name}/{checkpoint} 8`' in row


def test_readme_names_paths_that_exist():
    paths = re.findall(
        r'(?<![\w/.])(?:tools|benchmarks|dev|configs|requirements)/[\w./-]+\w', README
    )
    assert paths
    for path in set(paths):
        assert (ROOT / path).exists(), path


def test_readme_swap_in_python_takes_five_lines(tmp_path, monkeypatch):
    (code,) = re.findall(r'In Python:\n\n```python\n(.*?)```', README, flags=re.S)
    assert len(code.splitlines()) <= 5
    monkeypatch.chdir(tmp_path)
    base = find_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    Config.fromfile(base).dump('my_config.py')
    exec(code, {})
    model = Config.fromfile('my_config_poolformer-s24.py').model
    assert (model.backbone.type, model.backbone.arch) == ('PoolFormer', 's24')


def test_readme_swap_on_the_command_line_runs(tmp_path, monkeypatch):
    tool = 'python tools/swap_backbone.py '
    (line,) = (line for line in shell_commands(README) if line.startswith(tool))
    arguments = line.removeprefix(tool)
    monkeypatch.chdir(tmp_path)
    run_tool('swap_backbone', *arguments.split())
    (written,) = tmp_path.glob('*.py')
    assert Config.fromfile(written).model.backbone.arch == 's24'


def test_readme_python_runs():
    (code,) = re.findall(r'The backbone alone:\n\n```python\n(.*?)```', README, flags=re.S)
    scope = {}
    exec(code, scope)
    assert [f.shape[2] for f in scope['features']] == [56, 28, 14, 7]


@pytest.mark.parametrize('scope, name', [('mmdet', 'detection'), ('mmseg', 'segmentation')])
def test_readme_config_snippet_builds(scope, name, tmp_path):
    (code,) = re.findall(r'By hand, in any config:\n\n```python\n(.*?)```', README, flags=re.S)
    base = next(p for p in PUBLISHED if p.parent.name == name and 's12' in p.name)
    (tmp_path / 'own.py').write_text(f'_base_ = {str(base)!r}\n{code}')
    cfg = Config.fromfile(tmp_path / 'own.py')
    assert cfg.model.backbone.init_cfg.checkpoint.endswith('poolformer_s12.pth.tar')
    init_default_scope(scope)
    with torch.device('meta'):
        MODELS.build(cfg.model)


def test_every_test_that_the_promises_name_exists():
    page = (ROOT / 'docs' / 'reliability.md').read_text()
    named = set(re.findall(r'`(test_\w+)', page)) - set(re.findall(r'`(test_\w+)\.py`', page))
    files = set(re.findall(r'`(test_\w+\.py)`', page))
    paths = list((ROOT / 'tests').rglob('test_*.py'))
    written = {
        node.name
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    # «`test_…_that_pass…`» stands for several.
    named = {name for name in named if f'`{name}…' not in page and name != 'test_'}
    assert named and not named - written
    assert not files - {path.name for path in paths}


PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'CHANGELOG.md']
PAGES += [path for folder in ('docs', 'docs/guides') for path in (ROOT / folder).glob('*.md')]


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.name)
def test_lines_are_short(page):
    lines = [line for line in page.read_text().splitlines() if not line.startswith('|')]
    assert max(map(len, lines)) <= 120
