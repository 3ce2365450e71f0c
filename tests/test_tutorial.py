"""The notebook: its commands exist, it is small, and it runs from the first cell to the last."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from helpers import ROOT, load_tool

NOTEBOOK = ROOT / 'demo' / 'tutorial.ipynb'
CELLS = json.loads(NOTEBOOK.read_text())['cells']
CODE = ''.join(''.join(cell['source']) for cell in CELLS if cell['cell_type'] == 'code')
# The strings in run(…), put together.
COMMANDS = [
    re.sub(r'\{\w+\}', 'x', ''.join(re.findall(r"f?'(.*?)'", call)))
    for call in re.findall(r"run\(\s*((?:f?'[^']*'\s*)+)", CODE)
]


def test_the_notebook_is_small():
    assert NOTEBOOK.stat().st_size < 1_000_000


@pytest.mark.parametrize('command', COMMANDS)
def test_options_of_a_command_of_the_notebook_exist(command, tmp_path, monkeypatch):
    script, *arguments = shlex.split(command)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [script, *arguments])
    load_tool(Path(script).stem)['parse_args']()


@pytest.mark.long
def test_the_notebook_runs():
    nbformat = pytest.importorskip('nbformat')
    client = pytest.importorskip('nbclient').NotebookClient
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client(notebook, timeout=1800, resources=dict(metadata=dict(path=str(ROOT / 'demo')))).execute()
    made = ROOT / 'work_dirs' / 'tutorial'
    assert (made / 'detector.onnx').is_file() and list((made / 'why').glob('*_cam.png'))
    assert len(nbformat.writes(notebook)) < 1_000_000
