"""``import mmpoolformer`` registers everything, whatever is installed and imported first."""

import subprocess
import sys

import pytest

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
def test_types_resolve(installed, imports):
    code = CHECK.format(
        hidden=sorted(TOOLBOXES - set(installed)),
        imports='\n'.join(f'import {name}' for name in imports),
        installed=installed,
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert run.stdout.endswith(f'registered in {1 + 3 * len(installed)}\n'), run.stderr


@pytest.mark.parametrize('toolbox', sorted(TOOLBOXES))
def test_named_types_build_their_arch_and_take_style(toolbox):
    import mmpoolformer

    models = pytest.importorskip(f'{toolbox}.registry').MODELS
    for name, arch in mmpoolformer.ARCHS.items():
        cfg = dict(type=f'poolformer_{name}_feat', style='pytorch', out_indices=(0,))
        assert models.build(cfg).arch == arch


def test_a_broken_toolbox_is_named_and_does_not_stop_the_other(tmp_path):
    (tmp_path / 'mmdet').mkdir()
    (tmp_path / 'mmdet' / '__init__.py').write_text("raise ModuleNotFoundError('no such mmcv')")
    code = "import mmpoolformer, mmseg.registry as r; print(r.MODELS.get('mmseg.PoolFormer'))"
    run = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        env={'PYTHONPATH': str(tmp_path), 'PATH': ''},
    )
    assert 'mmpoolformer' in run.stdout
    assert 'mmdet is installed but cannot be imported' in run.stderr
    assert 'no such mmcv' in run.stderr
