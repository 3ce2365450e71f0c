"""``import mmpoolformer`` registers everything, whatever is installed and imported first."""

import json
import subprocess
import sys

import pytest

# The toolboxes are looked for anew in each case, what they need is imported once.
SERVER = """
import json
import os
import sys
import traceback
import matplotlib.pyplot, mmcv.ops, mmengine.runner, pycocotools.mask, scipy, timm, torch
try:
    import transformers
except ImportError:
    pass
assert not {'mmdet', 'mmseg', 'mmpoolformer'} & set(sys.modules)
for line in sys.stdin:
    code, out, err = json.loads(line)
    child = os.fork()
    if not child:
        for stream, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), stream)
        try:
            exec(code, {'__name__': '__main__'})
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    os.waitpid(child, 0)
    print('done', flush=True)
"""
CHECK = """
import sys
for name in {hidden!r}:
    sys.modules[name] = None  # as if it were not installed
{imports}
from importlib import import_module
from mmengine.registry import MODELS
tiny = dict(layers=(1, 1, 1, 1), embed_dims=(8, 8, 8, 8))
registries = [(MODELS, '')]
for toolbox in {installed!r}:
    registry = import_module(toolbox + '.registry').MODELS
    registries += [(registry, ''), (registry, toolbox + '.'), (MODELS, toolbox + '.')]
for registry, scope in registries:
    backbone = registry.build(dict(type=scope + 'PoolFormer', arch=tiny))
    assert type(backbone) is mmpoolformer.PoolFormer
    for arch in mmpoolformer.ARCHS:
        assert registry.get(scope + f'poolformer_{{arch}}_feat') is not None
print('registered in', len(registries))
"""
TOOLBOXES = {'mmdet', 'mmseg'}


@pytest.fixture(scope='module')
def server():
    with subprocess.Popen(
        [sys.executable, '-c', SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def execute(server, tmp_path):
    """Execute code in a process of its own; what it wrote to stdout and stderr."""

    def call(code):
        paths = [str(tmp_path / name) for name in ('stdout', 'stderr')]
        print(json.dumps([code, *paths]), file=server.stdin, flush=True)
        assert server.stdout.readline() == 'done\n'
        return [open(path).read() for path in paths]

    return call


@pytest.mark.parametrize(
    'installed, imports',
    [
        (['mmdet', 'mmseg'], ['mmpoolformer', 'mmdet.models', 'mmseg.models']),
        (['mmdet', 'mmseg'], ['mmseg.models', 'mmdet.models', 'mmpoolformer']),
        (['mmdet', 'mmseg'], ['mmdet.registry', 'mmpoolformer']),
        (['mmdet'], ['mmpoolformer']),
        (['mmdet'], ['mmdet.models', 'mmpoolformer']),
        (['mmseg'], ['mmpoolformer']),
        (['mmseg'], ['mmseg.models', 'mmpoolformer']),
        ([], ['mmpoolformer']),
    ],
    ids=lambda names: '+'.join(names) or 'none',
)
def test_types_resolve(installed, imports, execute):
    code = CHECK.format(
        hidden=sorted(TOOLBOXES - set(installed)),
        imports='\n'.join(f'import {name}' for name in imports),
        installed=installed,
    )
    out, errors = execute(code)
    assert out.endswith(f'registered in {1 + 3 * len(installed)}\n'), errors


@pytest.mark.parametrize('toolbox', sorted(TOOLBOXES))
def test_named_types_build_their_arch_and_take_style(toolbox):
    import mmpoolformer

    models = pytest.importorskip(f'{toolbox}.registry').MODELS
    for name, arch in mmpoolformer.ARCHS.items():
        cfg = dict(type=f'poolformer_{name}_feat', style='pytorch', out_indices=(0,))
        assert models.build(cfg).arch == arch


def test_a_broken_toolbox_is_named_and_does_not_stop_the_other(execute, tmp_path):
    (tmp_path / 'mmdet').mkdir()
    (tmp_path / 'mmdet' / '__init__.py').write_text("raise ModuleNotFoundError('no such mmcv')")
    code = f'import sys; sys.path.insert(0, {str(tmp_path)!r})\n'
    code += "import mmpoolformer, mmseg.registry as r; print(r.MODELS.get('mmseg.PoolFormer'))"
    out, errors = execute(code)
    assert 'mmpoolformer' in out
    assert 'mmdet is installed but cannot be imported' in errors
    assert 'no such mmcv' in errors
