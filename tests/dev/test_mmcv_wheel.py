"""Where mmcv's ops come from, and what would leave out the GPU without a word."""

import re
import shutil
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import ROOT, load_tool

PYTHON = sys.executable
CUDA = '13.0'
PIN = 'onedl-mmcv==2.3.6'
# As the set-up describes an environment.
FOUND = dict(
    python='py311-linux-x86_64', torch='2.13.0+cu130', cuda=CUDA, reason='', capabilities=[],
    device='cpu',
)  # fmt: skip
ON_H100 = dict(FOUND, device='cuda', capabilities=[[9, 0]])


@pytest.fixture
def mmcv_wheel(tmp_path, monkeypatch):
    """The module, with a cache of its own."""
    load_tool('setup_env')
    module = sys.modules['mmcv_wheel']
    monkeypatch.setattr(module, 'CACHE', tmp_path / 'cache')
    return module


@pytest.fixture
def executable(mmcv_wheel, tmp_path, monkeypatch):
    """Make a program that prints something: all that is on the path, beside a compiler."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    (folder / 'c++').symlink_to(shutil.which('c++'))
    monkeypatch.setenv('PATH', str(folder))
    monkeypatch.setattr(mmcv_wheel, 'DEFAULT_CUDA_HOME', str(tmp_path / 'no-cuda'))
    for name in (*mmcv_wheel.BUILD_VARIABLES, 'MMCV_WITH_OPS', 'CUDA_HOME', 'CUDA_PATH', 'CXX'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '99')  # not hidden, and torch finds none

    def make(name, output, code=0):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\necho '{output}'\nexit {code}\n")
        path.chmod(0o755)
        return path

    return make


def smi(cuda):
    return f'| NVIDIA-SMI 580.65.06   Driver Version: 580.65.06   CUDA Version: {cuda}     |'


def nvcc(cuda):
    return f'Cuda compilation tools, release {cuda}, V{cuda}.88'


# Before anything is downloaded ----------------------------------------------------------------


@pytest.mark.parametrize(
    ('output', 'code', 'words'),
    [
        (smi('12.4'), 0, ['newer NVIDIA driver', '12.4', '13.0', 'CUDA_VISIBLE_DEVICES= ']),
        (
            'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.', 9,
            ['driver that runs', 'could not communicate', 'CUDA_VISIBLE_DEVICES= '],
        ),
        ('', 6, ['driver that runs', 'exit code 6']),
        (smi('13.0'), 0, None),
        (smi('14.1'), 0, None),
        ('NVIDIA-SMI of another kind', 0, None),
    ],
    ids=['old', 'failed', 'silent', 'fits', 'newer', 'unknown'],
)  # fmt: skip
def test_a_driver_that_torch_cannot_use_is_named(output, code, words, mmcv_wheel, executable):
    executable('nvidia-smi', output, code)
    problem = mmcv_wheel.driver_problem(CUDA)
    assert all(word in problem for word in words) if words else problem is None


@pytest.mark.parametrize(
    ('version', 'words'),
    [
        (None, ['CUDA toolkit 13.x', 'does not run', 'CUDA_VISIBLE_DEVICES= ']),
        ('12.6', ['CUDA toolkit 13.x', 'CUDA_HOME', 'is 12.6', 'built for 13.0']),
        ('13.0', []),
        ('13.1', []),  # torch takes another minor version
    ],
)
def test_another_cuda_toolkit_than_torchs_is_named(version, words, mmcv_wheel, executable):
    if version:
        executable('nvcc', nvcc(version))
    problems = mmcv_wheel.build_problems(PYTHON, CUDA, for_cuda=True)
    assert len(problems) == bool(words)
    assert all(word in problems[0] for word in words)


def test_the_toolkit_is_the_one_that_torch_takes(mmcv_wheel, executable, tmp_path, monkeypatch):
    executable('../cuda/bin/nvcc', nvcc('12.0'))
    monkeypatch.setattr(mmcv_wheel, 'DEFAULT_CUDA_HOME', str(tmp_path / 'cuda'))
    assert mmcv_wheel.nvcc_version() == '12.0'
    executable('nvcc', nvcc('13.0'))
    assert mmcv_wheel.nvcc_version() == '13.0'
    executable('../other/bin/nvcc', nvcc('11.8'))
    monkeypatch.setenv('CUDA_HOME', str(tmp_path / 'other'))
    assert mmcv_wheel.nvcc_version() == '11.8'


@pytest.mark.parametrize(
    ('variables', 'words'),
    [
        (dict(FORCE_CUDA='1'), 'TORCH_CUDA_ARCH_LIST'),
        (dict(FORCE_CUDA='1', TORCH_CUDA_ARCH_LIST='8.0'), None),
        (dict(FORCE_CUDA='ON'), 'mmcv ignores ON'),
        (dict(MMCV_WITH_OPS='0'), 'unset MMCV_WITH_OPS'),
    ],
    ids=str,
)
def test_variables_of_a_build_that_cannot_work(
    variables, words, mmcv_wheel, executable, monkeypatch
):
    executable('nvcc', nvcc(CUDA))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    problems = mmcv_wheel.build_problems(PYTHON, CUDA, for_cuda=mmcv_wheel.is_forced())
    assert (words in problems[0]) if words else problems == []


@pytest.mark.parametrize('hidden', ['', '-1'])
def test_a_gpu_that_is_hidden_asks_for_nothing(hidden, mmcv_wheel, executable, monkeypatch):
    executable('nvidia-smi', smi('11.4'))
    assert mmcv_wheel.sees_gpu()
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', hidden)
    assert not mmcv_wheel.sees_gpu() and mmcv_wheel.driver_problem(CUDA) is None


@pytest.mark.parametrize('wheels', [None, '/wheels'])
def test_all_of_it_is_named_before_anything_starts(wheels, executable, tmp_path):
    setup_env = load_tool('setup_env')
    executable('nvidia-smi', smi('12.4'))
    executable('nvcc', nvcc('12.4'))
    with pytest.raises(setup_env['SetupError']) as error:
        setup_env['check_prerequisites'](PYTHON, tmp_path / 'venv', CUDA, wheels)
    assert 'newer NVIDIA driver' in str(error.value)
    # What a build needs, only where one is sure.
    assert ('CUDA toolkit 13.x' in str(error.value)) is (wheels is None)


def test_the_cuda_of_the_pinned_torch_is_known():
    version = torch.__version__.split('+')[0]
    pinned = {
        stack: f'torch==={version}\n' in (ROOT / 'requirements' / f'{stack}.txt').read_text()
        for stack in ('maintained', 'classic')
    }
    (stack,) = (stack for stack in pinned if pinned[stack])
    assert load_tool('setup_env')['TORCH_CUDA'][stack] == torch.version.cuda


# After torch is there --------------------------------------------------------------------------


def test_no_ops_for_the_cpu_alone_beside_a_gpu_that_torch_does_not_find(
    mmcv_wheel, executable, monkeypatch
):
    executable('nvidia-smi', smi(CUDA))
    executable('nvcc', nvcc(CUDA))
    monkeypatch.setattr(mmcv_wheel, 'built_wheel', lambda *_: pytest.fail('built'))
    with pytest.raises(mmcv_wheel.SetupError) as error:
        mmcv_wheel.install_mmcv(PYTHON, PIN)
    for words in ('does not find the GPU', 'river', 'CUDA_VISIBLE_DEVICES= ', 'FORCE_CUDA=1'):
        assert words in str(error.value)


def test_a_wheel_for_the_cpu_alone_is_kept_under_the_name_of_old():
    key = load_tool('mmcv_wheel')['cache_key']
    assert key(FOUND) == 'py311-linux-x86_64-torch2.13.0+cu130-cpu'


@pytest.mark.parametrize(
    ('variables', 'found', 'toolkit'),
    [
        (dict(FORCE_CUDA='1'), FOUND, CUDA),
        (dict(TORCH_CUDA_ARCH_LIST='8.0'), ON_H100, CUDA),
        (dict(TORCH_CUDA_ARCH_LIST='9.0'), ON_H100, CUDA),
        (dict(MMCV_CUDA_ARGS='-lineinfo'), ON_H100, CUDA),
        ({}, dict(ON_H100, capabilities=[[8, 0], [9, 0]]), CUDA),
        ({}, ON_H100, '13.1'),
        ({}, dict(ON_H100, torch='2.12.0+cu130'), CUDA),
    ],
    ids=str,
)
def test_what_changes_a_build_has_a_wheel_of_its_own(
    variables, found, toolkit, mmcv_wheel, executable, monkeypatch
):
    executable('nvcc', nvcc(CUDA))
    usual = mmcv_wheel.cache_key(FOUND), mmcv_wheel.cache_key(ON_H100)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    executable('nvcc', nvcc(toolkit))
    assert mmcv_wheel.cache_key(found) not in usual


def test_architectures_by_request_do_not_depend_on_the_gpu_here(
    mmcv_wheel, executable, monkeypatch
):
    executable('nvcc', nvcc(CUDA))
    monkeypatch.setenv('TORCH_CUDA_ARCH_LIST', '8.0;9.0')
    key = mmcv_wheel.cache_key(ON_H100)
    assert key == mmcv_wheel.cache_key(dict(ON_H100, capabilities=[[8, 9]]))


def test_a_build_without_its_tools_is_refused(mmcv_wheel, executable):
    # As with prebuilt wheels none of which fits.
    with pytest.raises(mmcv_wheel.SetupError, match=r'CUDA toolkit 13\.x'):
        mmcv_wheel.built_wheel(PYTHON, PIN, ON_H100)
    assert not mmcv_wheel.CACHE.exists()


# Prebuilt wheels -------------------------------------------------------------------------------


def ops_of_this_environment():
    folder = Path(find_spec('mmcv').origin).parent
    return next(folder.glob('_ext*.so'))


def make_wheel(folder, ops):
    """A wheel of the pin for this Python, of its ops alone."""
    name, version = PIN.replace('-', '_').split('==')
    tag = f'cp{sys.version_info[0]}{sys.version_info[1]}'
    path = folder / f'{name}-{version}-{tag}-{tag}-linux_x86_64.whl'
    with zipfile.ZipFile(path, 'w') as wheel:
        wheel.writestr(
            f'{name}-{version}.dist-info/METADATA',
            f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n',
        )
        wheel.writestr(f'{name}-{version}.dist-info/WHEEL', f'Wheel-Version: 1.0\nTag: {tag}\n')
        if ops is not None:
            wheel.writestr('mmcv/_ext.cpython.so', ops)
    return path


def test_prebuilt_wheel_is_used_where_it_fits(mmcv_wheel, tmp_path, capsys):
    page, folder = tmp_path / 'page', tmp_path / 'download'
    page.mkdir()
    wheel = make_wheel(page, ops_of_this_environment().read_bytes())
    chosen = mmcv_wheel.prebuilt_wheel(PYTHON, PIN, str(page), FOUND, folder)
    assert chosen == folder / wheel.name
    assert f'prebuilt: {wheel.name}' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('made_for', 'device', 'problem'),
    [
        ('not available', 'cpu', None),
        ('not available', 'cuda', 'for the CPU alone'),
        ('13.0', 'cuda', None),
    ],
)
def test_ops_for_the_cpu_alone_do_not_fit_a_gpu(
    made_for, device, problem, mmcv_wheel, executable, tmp_path
):
    python = executable('python', made_for)  # says what the ops say
    found = mmcv_wheel.ops_problem(python, make_wheel(tmp_path, b''), device)
    assert problem in found if problem else found is None


@pytest.mark.parametrize(
    ('ops', 'problem'),
    [('nothing', 'No matching distribution'), (None, 'no compiled ops'), (b'?', 'does not run')],
)
def test_prebuilt_wheel_that_does_not_fit_is_named_and_one_is_built(
    ops, problem, mmcv_wheel, tmp_path, capsys, monkeypatch
):
    if ops != 'nothing':
        make_wheel(tmp_path, ops)
    built, installed = tmp_path / 'built.whl', []
    monkeypatch.setattr(mmcv_wheel, 'describe', lambda *_: FOUND)
    monkeypatch.setattr(mmcv_wheel, 'built_wheel', lambda *_: built)
    monkeypatch.setattr(mmcv_wheel, 'pip', lambda python, *args: installed.append(args))
    mmcv_wheel.install_mmcv(PYTHON, PIN, str(tmp_path))
    assert re.search(f'no prebuilt wheel .*{problem}', capsys.readouterr().out)
    # One of the same version that is there already may be for something else.
    assert built in installed[0] and '--force-reinstall' in installed[0]


def test_pages_and_indices_are_asked_with_the_pin_and_for_wheels_alone(
    mmcv_wheel, tmp_path, monkeypatch
):
    commands = []

    def run(command, **_):
        commands.append(command)
        return type('Run', (), dict(stdout=b'ERROR: nothing there'))

    monkeypatch.setattr(mmcv_wheel.subprocess, 'run', run)
    mmcv_wheel.prebuilt_wheel(PYTHON, PIN, 'https://example.org/simple', FOUND, tmp_path)
    line = ' '.join(map(str, commands[0]))
    assert line.endswith(PIN) and '--only-binary :all:' in line and '--no-deps' in line
    for option in ('--index-url', '--find-links'):
        assert f'{option} https://example.org/simple' in line
