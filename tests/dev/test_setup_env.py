"""The set-up script: what it demands, and what it tells where that is missing."""

import os
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from helpers import ROOT, load_tool

PYTHON = sys.executable


@pytest.fixture
def setup_env():
    """The functions of the script, and the dictionary of globals they share."""
    return load_tool('setup_env')


def function(setup_env, name):
    """A function of the script, and its globals to patch."""
    return setup_env[name], setup_env[name].__globals__


def test_python_of_this_test_is_found(setup_env):
    command, version = setup_env['find_python']('maintained', PYTHON)
    assert command == PYTHON
    assert version == '.'.join(map(str, sys.version_info[:3]))


def test_unsupported_python_is_named(setup_env, monkeypatch):
    find_python, scope = function(setup_env, 'find_python')
    monkeypatch.setitem(scope, 'python_version', lambda command: '3.13.0')
    with pytest.raises(setup_env['SetupError'], match=r'3\.10 to 3\.12.* is 3\.13\.0'):
        find_python('maintained', PYTHON)


def test_absent_python_is_named(setup_env):
    with pytest.raises(setup_env['SetupError'], match=r'tried no-such-python.*none of them runs'):
        setup_env['find_python']('classic', 'no-such-python')


def test_all_missing_prerequisites_are_named_together(setup_env, monkeypatch, tmp_path):
    check, scope = function(setup_env, 'check_prerequisites')
    monkeypatch.setenv('CXX', 'no-such-compiler')
    usage = namedtuple('usage', 'free')(free=1e9)
    monkeypatch.setattr(scope['shutil'], 'disk_usage', lambda path: usage)
    with pytest.raises(setup_env['SetupError']) as error:
        check(PYTHON, tmp_path / 'venv', '13.0')
    for words in ('no-such-compiler', 'apt-get install g++', 'GB of free disk', 'there are 1.0'):
        assert words in str(error.value)
    assert not list(tmp_path.iterdir())


def test_health_of_this_environment(setup_env, monkeypatch, capsys):
    check, scope = function(setup_env, 'check_health')
    # Shared by several clones, it is not to be pointed at this one by a test.
    elsewhere = 'the editable install belongs to another clone'
    monkeypatch.setitem(scope, 'install_project', lambda python: pytest.skip(elsewhere))
    # On a machine with a GPU, as far as that shows: the ops here are not built for one.
    late = 'import torch; torch.cuda.is_available = lambda: True; has_cuda = '
    monkeypatch.setitem(
        scope, 'HEALTH_CHECK', scope['HEALTH_CHECK'].replace('import torch; has_cuda = ', late)
    )
    assert check(PYTHON) == ''
    assert "mmcv's ops are for the CPU alone" in capsys.readouterr().out


@pytest.mark.parametrize('broken', ['', 'not an interpreter'])
def test_half_made_environment_is_made_anew(broken, setup_env, monkeypatch, tmp_path, capsys):
    ensure, scope = function(setup_env, 'ensure')
    venv = tmp_path / 'venv'
    (venv / 'bin').mkdir(parents=True)
    (venv / 'bin' / 'python').write_text(broken)
    (venv / 'pyvenv.cfg').touch()
    seen = []

    def install(venv, *args):
        seen.append(venv.exists())
        venv.mkdir()
        return ''

    monkeypatch.setitem(scope, 'check_prerequisites', lambda *args: None)
    monkeypatch.setitem(scope, 'install', install)
    ensure(venv, 'maintained', PYTHON)
    assert seen == [False]
    assert 'making it anew' in capsys.readouterr().out
    assert (venv / setup_env['STAMP']).is_file()


def test_complete_but_broken_environment_is_made_anew(setup_env, monkeypatch, tmp_path, capsys):
    ensure, scope = function(setup_env, 'ensure')
    venv = tmp_path / 'venv'
    monkeypatch.setitem(scope, 'check_prerequisites', lambda *args: None)

    def install(venv, *args):
        venv.mkdir()
        (venv / 'pyvenv.cfg').touch()
        return ''

    monkeypatch.setitem(scope, 'install', install)
    ensure(venv, 'maintained', PYTHON)
    (venv / 'leftover').touch()
    monkeypatch.setitem(scope, 'check_health', lambda python: "No module named 'mmcv._ext'")
    ensure(venv, 'maintained', PYTHON)
    assert not (venv / 'leftover').exists()
    assert "No module named 'mmcv._ext'" in capsys.readouterr().out


def test_environment_that_stays_broken_is_an_error(setup_env, monkeypatch, tmp_path):
    ensure, scope = function(setup_env, 'ensure')
    attempts = []

    def install(venv, *args):
        venv.mkdir()
        (venv / 'pyvenv.cfg').touch()
        attempts.append(venv)
        return 'still broken'

    monkeypatch.setitem(scope, 'check_prerequisites', lambda *args: None)
    monkeypatch.setitem(scope, 'install', install)
    monkeypatch.setitem(scope, 'CACHE', tmp_path / 'cache')
    with pytest.raises(setup_env['SetupError'], match='still broken'):
        ensure(tmp_path / 'venv', 'maintained', PYTHON)
    assert len(attempts) == 2  # with a wheel of mmcv built anew for the second
    assert not (tmp_path / 'venv' / setup_env['STAMP']).exists()


@pytest.fixture
def make_environment(setup_env, monkeypatch, tmp_path):
    """Make sure of an environment; returns what FORCE_CUDA was if anything was installed."""
    ensure, scope = function(setup_env, 'ensure')
    monkeypatch.setenv('FORCE_CUDA', '0')  # whatever is set is put back in the end
    seen = []

    def install(venv, *args):
        venv.mkdir(exist_ok=True)
        (venv / 'pyvenv.cfg').touch()
        seen.append(os.environ.get('FORCE_CUDA'))
        return ''

    monkeypatch.setitem(scope, 'install', install)
    monkeypatch.setitem(scope, 'check_prerequisites', lambda *args: None)
    monkeypatch.setitem(scope, 'check_health', lambda python: broken['problem'])
    broken = {'problem': ''}

    def make(force_cuda, problem=''):
        seen.clear()
        broken['problem'] = problem
        os.environ.pop('FORCE_CUDA', None)
        if force_cuda is not None:
            os.environ['FORCE_CUDA'] = force_cuda
        ensure(tmp_path / 'venv', 'maintained', PYTHON)
        return seen

    return make


@pytest.mark.parametrize(
    ('first', 'second', 'is_made_anew'),
    [
        (None, None, False),
        (None, '0', False),
        (None, '1', True),
        ('1', '1', False),
        ('1', None, False),  # it stays what it was made for
        ('1', '0', True),
    ],
)
def test_environment_is_made_anew_for_other_devices(first, second, is_made_anew, make_environment):
    assert make_environment(first) == [first]
    assert make_environment(second) == ([second] if is_made_anew else [])


def test_environment_is_repaired_for_the_devices_it_was_made_for(make_environment):
    make_environment('1')
    assert make_environment(None, problem='broken') == ['1']


def test_a_folder_that_is_no_environment_is_left_alone(setup_env, tmp_path):
    (tmp_path / 'thesis.tex').touch()
    with pytest.raises(setup_env['SetupError'], match='holds other things'):
        setup_env['ensure'](tmp_path, 'maintained', PYTHON)
    assert (tmp_path / 'thesis.tex').exists()


def test_an_environment_keeps_the_python_it_was_made_with(setup_env, monkeypatch, tmp_path):
    ensure, scope = function(setup_env, 'ensure')
    venv = tmp_path / 'venv'
    subprocess.run([PYTHON, '-m', 'venv', '--without-pip', venv], check=True)
    used = []
    monkeypatch.setitem(scope, 'find_python', lambda *args: pytest.fail('looked for another one'))
    monkeypatch.setitem(scope, 'check_prerequisites', lambda *args: None)
    monkeypatch.setitem(scope, 'install', lambda venv, interpreter, *_: used.append(interpreter))
    ensure(venv, 'maintained', None)
    (interpreter,) = used
    assert Path(interpreter).is_relative_to(sys.base_prefix) and Path(interpreter).exists()


@pytest.mark.parametrize('stack', ['maintained', 'classic'])
def test_every_stack_pins_torch_and_mmcv(stack, setup_env):
    assert stack in setup_env['PYTHONS']
    pins = (ROOT / 'requirements' / f'{stack}.txt').read_text()
    for name in ('torch', 'torchvision', '(?:onedl-)?mmcv', 'timm'):
        assert re.search(rf'^{name}={{2,3}}\d', pins, flags=re.M), name


def test_make_passes_the_place_of_prebuilt_wheels_on():
    command = ['make', '-n', 'setup', 'MMCV_WHEELS=https://example.org/a b']
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "--mmcv-wheels 'https://example.org/a b'" in run.stdout
