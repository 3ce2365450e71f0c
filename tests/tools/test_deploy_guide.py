"""Every command and every piece of Python in the guide to deployment, up to a service."""

import json
import shlex
import threading
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest
from helpers import ROOT, free_port, require_export, run_tool, shell_commands
from test_guides import blocks

require_export('fastapi', 'uvicorn')

GUIDE = (ROOT / 'docs' / 'guides' / 'deploy.md').read_text()
COMMANDS = [shlex.split(line) for line in shell_commands(GUIDE)]
EXPORTS = [command[2:] for command in COMMANDS if command[1] == 'tools/export.py']
USES = [command[1:] for command in COMMANDS if command[1] in ('tools/test.py', 'tools/predict.py')]
PYTHON = blocks('deploy.md', 'python')


def test_all_exports_are_there(here):
    assert len(EXPORTS) == 4
    for arguments in EXPORTS:
        assert (here / arguments[arguments.index('-o') + 1]).is_file()
    assert not list(here.glob('*.partial*'))


@pytest.mark.parametrize('command', USES, ids=' '.join)
def test_a_command_that_uses_a_file(command, here):
    tool, *arguments = command
    run_tool(tool[6:-3], *arguments)
    out = 'test_metrics.json' if 'test.py' in tool else 'predictions.json'
    assert list((here / 'work_dirs').rglob(out))


@pytest.mark.parametrize('code', PYTHON[:2], ids=['package', 'onnxruntime'])
def test_the_python_of_the_guide(code, here, capsys):
    exec(code, {})
    assert "'0', '1'" in capsys.readouterr().out


@pytest.fixture
def service(here):
    """Asks the guide's service on this machine."""
    import uvicorn

    scope = {}
    exec(PYTHON[2], scope)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(scope['app'], port=int(port), log_level='error'))
    thread = threading.Thread(target=server.run)
    started = threading.Event()
    startup = server.startup

    async def started_up(sockets=None):
        await startup(sockets)
        started.set()

    def ask(body):
        request = urllib.request.Request(f'http://127.0.0.1:{port}/detect', body)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    server.startup = started_up
    thread.start()
    try:
        assert started.wait(60)
        yield ask
    finally:
        server.should_exit = True
        thread.join()


def test_the_service_detects(service, here):
    found = service(next((here / 'photos').iterdir()).read_bytes())
    assert len(found['boxes']) == len(found['scores']) == len(found['names']) == 5
    assert np.all(np.diff(found['scores']) <= 0)


def test_the_service_refuses(service):
    _, small = cv2.imencode('.png', np.zeros((1, 400, 3), np.uint8))
    for body, words in (
        (b'', 'send the bytes'),
        (b'no image', 'send the bytes'),
        (small.tobytes(), 'takes images of'),
    ):
        with pytest.raises(urllib.error.HTTPError, match='415') as refused:
            service(body)
        assert words in json.load(refused.value)['detail']


def test_the_guide_names_every_format():
    from mmpoolformer.exporting import SUFFIXES

    for form, suffix in SUFFIXES.items():
        assert f'`{form}`' in GUIDE and f'`{suffix}`' in GUIDE
