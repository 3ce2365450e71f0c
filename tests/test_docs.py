"""README, model-index.yml and other pages against the configs and the code."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import PUBLISHED, ROOT, TINY, load_tool, run_tool, shell_commands
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmpoolformer import PoolFormer
from mmpoolformer.adapt.zoo import find_config
from mmpoolformer.engine.launch import find_config_file

README = (ROOT / 'README.md').read_text()
CHINESE = (ROOT / 'README_zh-CN.md').read_text()
SWAP, TRAIN = ((ROOT / 'docs' / 'guides' / name).read_text() for name in ('swap.md', 'train.md'))
FENCE = re.compile(r'^```.*?^```', flags=re.M | re.S)
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


TOP = [ROOT / name for name in ('README.md', 'README_zh-CN.md', 'CHANGELOG.md', 'CONTRIBUTING.md')]
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


READMES = [README, CHINESE]
by_language = pytest.mark.parametrize('readme', READMES, ids=['English', 'Chinese'])


@by_language
@by_model
def test_readme_row_of_a_model(model, readme):
    config, name = model['Config'], model['Name']
    (row,) = [line for line in readme.splitlines() if line.startswith(f'| [{name}]')]
    assert f'({config})' in row
    assert ', '.join(f'{key} {value}' for key, value in results(model).items()) in row
    weights = f'[mIoU {retrained(model)}]({model["Weights"]})' if 'Weights' in model else '–'
    assert row.endswith(f'| {model["Metadata"]["Parameters"] / 1e6:.1f} M | {weights} |')


def test_readme_gives_the_commands_of_its_models_once():
    commands = [line.split('#')[0].split() for line in shell_commands(README)]
    assert ['tools/dist_train.sh', 'NAME', '8'] in commands
    assert ['tools/dist_test.sh', 'NAME', 'CHECKPOINT', '8'] in commands
    assert all(find_config_file(model['Name']).is_file() for model in INDEX['Models'])


def test_readme_fits_on_a_few_screens():
    assert README.count('\n') <= 150 and CHINESE.count('\n') <= 150


def parts(readme):
    """What both languages share, by heading: code without its comments, tables, links, numbers."""
    pieces = re.split(r'^(#+) .*\n', FENCE.sub(lambda match: hide(match[0]), readme), flags=re.M)
    return [(level, *facts(text)) for level, text in zip(pieces[1::2], pieces[2::2], strict=True)]


def hide(block):
    """A block of code on one line, without comments."""
    return '\0' + re.sub(r' *#.*', '', block).replace('\n', '\1') + '\0'


def facts(text):
    code = re.findall('\0.*?\0', text)
    text = re.sub('\0.*?\0', '', text)
    tables = [line.count('|') for line in text.splitlines() if line.startswith('|')]
    links = sorted(set(re.findall(r'\]\(([^)]*)\)', text)) - {'README.md', 'README_zh-CN.md'})
    names = sorted(set(re.findall(r'`([^`]*)`', text)))
    numbers = sorted(re.findall(r'\d+(?:\.\d+)*', text))
    return code, tables, links, names, numbers


def test_readme_says_the_same_in_chinese():
    english, chinese = map(parts, READMES)
    for one, other in zip(english, chinese, strict=True):
        assert one == other


@by_language
def test_readme_names_paths_that_exist(readme):
    paths = re.findall(
        r'(?<![\w/.])(?:tools|benchmarks|dev|demo|configs|requirements)/[\w./-]+\w', readme
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


@pytest.mark.parametrize('page', [README, SWAP], ids=['README', 'guide'])
def test_swap_on_the_command_line_runs(page, tmp_path, monkeypatch):
    tool = 'python tools/swap_backbone.py '
    (line,) = (line for line in shell_commands(page) if line.startswith(tool))
    arguments = line.removeprefix(tool)
    monkeypatch.chdir(tmp_path)
    run_tool('swap_backbone', *arguments.split())
    (written,) = tmp_path.glob('*.py')
    assert Config.fromfile(written).model.backbone.arch == 's24'


def test_python_of_the_backbone_alone_runs():
    (code,) = re.findall(r'## The backbone alone\n\n```python\n(.*?)```', SWAP, flags=re.S)
    scope = {}
    exec(code, scope)
    assert [f.shape[2] for f in scope['features']] == [56, 28, 14, 7]


@pytest.mark.parametrize('scope, name', [('mmdet', 'detection'), ('mmseg', 'segmentation')])
def test_config_snippet_of_the_guide_builds(scope, name, tmp_path):
    (code,) = re.findall(r'In any config:\n\n```python\n(.*?)```', SWAP, flags=re.S)
    base = next(p for p in PUBLISHED if p.parent.name == name and 's12' in p.name)
    (tmp_path / 'own.py').write_text(f'_base_ = {str(base)!r}\n{code}')
    cfg = Config.fromfile(tmp_path / 'own.py')
    assert cfg.model.backbone.init_cfg.checkpoint.endswith('poolformer_s12.pth.tar')
    init_default_scope(scope)
    with torch.device('meta'):
        MODELS.build(cfg.model)


def test_checkpoint_commands_of_the_guide_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = PoolFormer(TINY).state_dict()
    torch.save(weights, 'poolformer_s12.pth.tar')
    (tmp_path / 'work_dirs' / 'my_model').mkdir(parents=True)
    torch.save(dict(state_dict=weights, meta={}), 'work_dirs/my_model/epoch_12.pth')
    page = (ROOT / 'docs' / 'guides' / 'checkpoints.md').read_text()
    for line in shell_commands(page):
        python, script, *arguments = line.split('#')[0].split()
        assert python == 'python'
        run_tool(Path(script).stem, *arguments)
    assert (tmp_path / 'poolformer_s12.safetensors').is_file()
    assert list(tmp_path.glob('my_model-*.pth'))


# Commands with a model or data of the reader's. The rest of these pages is run elsewhere.
PARSED = [
    line.split('#')[0].split()
    for page in (README, SWAP, TRAIN)
    for line in shell_commands(page)
    if line.startswith('python tools/') and 'swap_backbone.py' not in line
]


@pytest.mark.parametrize('command', PARSED, ids=' '.join)
def test_options_of_a_command_exist(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what is to be written is not there
    _, script, *arguments = command
    monkeypatch.setattr(sys, 'argv', [script, *arguments])
    load_tool(Path(script).stem)['parse_args']()


def test_scripts_of_several_processes_say_how_they_are_called():
    page = (ROOT / 'docs' / 'guides' / 'distributed.md').read_text()
    for line in [*shell_commands(page), *shell_commands(README)]:
        script, *arguments = line.split('#')[0].split()
        if script.endswith('.sh'):
            usage = subprocess.run([ROOT / script], capture_output=True, text=True).stderr
            words = usage.split(Path(script).name)[1].split('[')[0].split()
            assert len(arguments) == len(words)
    for name in re.findall(r'`([A-Z_]{4,})`', page):
        scripts = ''.join(path.read_text() for path in (ROOT / 'tools').glob('*.sh'))
        assert name in scripts or name == 'SIGTERM', name


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


WRITTEN = [
    *TOP,
    *(
        path
        for folder in ('docs', 'docs/guides', 'docs/reports')
        for path in (ROOT / folder).glob('*.md')
    ),
]


@pytest.mark.parametrize('page', WRITTEN, ids=lambda path: path.name)
def test_lines_are_short(page):
    lines = [line for line in page.read_text().splitlines() if not line.startswith('|')]
    assert max(map(len, lines)) <= 120
