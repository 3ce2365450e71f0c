"""``python -m mmpoolformer``: the programs of ``tools/``, from a checkout and from the wheel."""

import os
import runpy
import subprocess
import sys
import zipfile

import pytest
from helpers import ROOT

COMMANDS = {path.stem.replace('_', '-') for path in (ROOT / 'tools').glob('*.py')}
RETINANET = 'retinanet_poolformer-s12_fpn_1x_coco'


@pytest.fixture
def mmpoolformer(monkeypatch, capsys):
    """Run a command in this process; what it printed, its error and its exit code."""

    def call(*args):
        monkeypatch.setattr(sys, 'argv', ['-m', *map(str, args)])
        monkeypatch.setattr(sys, 'path', [*sys.path])
        try:
            runpy.run_module('mmpoolformer', run_name='__main__')
            code = 0
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return printed.out, printed.err, code

    return call


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """Run a command of the wheel, away from the repository."""
    site = tmp_path_factory.mktemp('site')
    zipfile.ZipFile(wheel).extractall(site)

    def call(*args):
        return subprocess.run(
            [sys.executable, '-m', 'mmpoolformer', *args],
            env=dict(os.environ, PYTHONPATH=str(site)),
            cwd=tmp_path_factory.mktemp('elsewhere'),
            capture_output=True,
            text=True,
        )

    return call


def listed(text):
    return dict(line.split(None, 1) for line in text.splitlines() if line.startswith('  '))


@pytest.mark.parametrize('args', [(), ('--help',), ('help',)], ids=str)
def test_every_tool_is_listed_with_what_it_does(args, mmpoolformer):
    out, _, code = mmpoolformer(*args)
    assert code == 0 and set(listed(out)) == COMMANDS
    assert all(len(line) > 20 for line in listed(out).values()), 'each has a docstring'


@pytest.mark.parametrize(
    'name, words', [('chekc-dataset', 'did you mean check-dataset?'), ('xyz', 'there are check-')]
)
def test_an_unknown_command_is_refused_with_the_nearest(name, words, mmpoolformer):
    out, error, code = mmpoolformer(name)
    assert code == 2 and not out
    assert f'no command {name}; {words}' in error


def test_a_command_is_its_script(mmpoolformer, tmp_path):
    out, _, code = mmpoolformer(
        'swap-backbone', RETINANET, '--arch', 's24', '-o', tmp_path / 'a.py'
    )
    assert code == 0 and "+        arch='s24'," in out
    assert (tmp_path / 'a.py').is_file()


def test_the_error_of_a_script_is_that_of_its_command(mmpoolformer):
    assert mmpoolformer('train', 'gone')[2].startswith('error: config not found: gone')


@pytest.mark.parametrize('name', ['get-flops', 'get_flops', 'get_flops.py'])
def test_names_of_scripts_are_names_of_commands(name, mmpoolformer):
    out, _, code = mmpoolformer(name, '--help')
    assert code == 0 and '--backbone-only' in out


def test_the_wheel_has_the_commands(installed):
    run = installed()
    assert run.returncode == 0, run.stderr
    assert set(listed(run.stdout)) == COMMANDS


def test_the_wheel_finds_its_own_configs_by_name(installed):
    run = installed('train', RETINANET)
    assert run.returncode == 1 and 'Traceback' not in run.stderr
    assert 'error: data not found' in run.stderr and 'instances_train2017.json' in run.stderr


def test_no_console_script_stands_beside_them(wheel):
    # It would be the first line of RECORD, from which onedl-mim takes the package's folder.
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if 'entry_points' in name]
