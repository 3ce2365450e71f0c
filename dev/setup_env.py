"""Make a virtual environment with one of the two OpenMMLab stacks and this project in it.

A complete and working environment is left as it is; a broken or half-made one is repaired.
Runs on any Python 3.8 or newer, without packages.
"""

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from mmcv_wheel import (
    CACHE,
    SetupError,
    build_problems,
    build_variables,
    call,
    driver_problem,
    install_mmcv,
    is_forced,
    pip,
    sees_gpu,
)

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = {'maintained': ((3, 10), (3, 12)), 'classic': ((3, 10), (3, 11))}
# The CUDA that the pinned torch is built for, to know before it is downloaded.
TORCH_CUDA = {'maintained': '13.0', 'classic': '12.1'}
DISK_GB = 9
STAMP = 'mmpoolformer-stack'
BUILD_TOOLS = ['pip', 'wheel', 'ninja', 'packaging', 'psutil', 'setuptools>=80,<81']
WITHOUT_CUDA = "mmcv's ops are for the CPU alone"
# Importing these loads every compiled part: mmcv's ops, torchvision's, OpenCV, SciPy.
HEALTH_CHECK = (
    'import mmcv._ext, mmcv.ops, mmdet.apis, mmseg.apis, timm, mim, skimage, sklearn; '
    'import matplotlib.pyplot, rich, yaml, pytest, xdist, hypothesis, ruff, transformers; '
    'import pytorch_grad_cam, globox, torch.utils.tensorboard; '
    'import torch; has_cuda = mmcv.ops.get_compiling_cuda_version() != "not available"; '
    f'print("" if has_cuda or not torch.cuda.is_available() else "{WITHOUT_CUDA}"); '
    'import mmpoolformer; print(mmpoolformer.__file__)'
)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--stack', choices=sorted(PYTHONS), default='maintained')
    parser.add_argument('--python', help='interpreter to use (default: the first that fits)')
    parser.add_argument('--venv', type=Path, help='folder (default: .venv, .venv-classic)')
    parser.add_argument(
        '--mmcv-wheels',
        metavar='WHERE',
        help='index, page or folder with prebuilt wheels of mmcv for the pinned torch, which are '
        'used if they fit (default: build one)',
    )
    return parser.parse_args()


def main():
    args = parse_args()
    default = '.venv' if args.stack == 'maintained' else f'.venv-{args.stack}'
    venv = (args.venv or ROOT / default).absolute()
    started = time.time()
    try:
        ensure(venv, args.stack, args.python, args.mmcv_wheels)
    except SetupError as error:
        sys.exit(f'error: {error}')
    except subprocess.CalledProcessError as error:
        sys.exit(f'error: this failed, see above: {shlex.join(map(str, error.cmd))}')
    except OSError as error:
        sys.exit(f'error: {error}')
    print(f'{args.stack} stack ready in {venv} ({time.time() - started:.0f} s)', flush=True)


def ensure(venv, stack, requested, wheels=None):
    """Check the environment, and make or repair it where needed."""
    requirements = ROOT / 'requirements' / f'{stack}.txt'
    python = venv / 'bin' / 'python'
    present = python_version(str(python))
    if not requested and supports(stack, present):
        interpreter, version = base_python(python), present  # whatever it was made with
    else:
        interpreter, version = find_python(stack, requested)
    stamp_file = venv / STAMP
    present_stamp = stamp_file.read_text() if stamp_file.is_file() else ''
    keep_choices(present_stamp)
    stamp = f'{version} {hashlib.sha256(requirements.read_bytes()).hexdigest()}'
    stamp = '\n'.join([stamp, *(f'{name}={value}' for name, value in build_variables().items())])
    if present_stamp == stamp:
        problem = check_health(python)
        if not problem:
            return
        print(f'{venv} is broken, making it anew:\n{problem}', flush=True)
        remove(venv)
    elif venv.exists() and present != version:
        print(f'{venv} has no working Python {version}, making it anew', flush=True)
        remove(venv)
    stamp_file.unlink(missing_ok=True)
    check_prerequisites(interpreter, venv, TORCH_CUDA[stack], wheels)

    problem = install(venv, interpreter, requirements, wheels)
    if problem:
        print(f'{venv} does not work, making it anew once:\n{problem}', flush=True)
        remove(venv)
        shutil.rmtree(CACHE / 'wheels', ignore_errors=True)
        problem = install(venv, interpreter, requirements)
    if problem:
        raise SetupError(f'the environment does not work:\n{problem}')
    stamp_file.write_text(stamp)


def keep_choices(stamp):
    """Set what mmcv was built with here and the caller leaves open."""
    for line in stamp.splitlines()[1:]:
        os.environ.setdefault(*line.split('=', 1))


def remove(venv):
    """Delete an environment, and never a folder that is something else."""
    if not (venv / 'pyvenv.cfg').is_file() and any(venv.iterdir()):
        raise SetupError(
            f'{venv} holds other things than a virtual environment: '
            'remove it yourself, or give VENV another folder'
        )
    (venv / STAMP).unlink(missing_ok=True)  # so that an interrupted removal is noticed
    shutil.rmtree(venv)


def supports(stack, version):
    lowest, highest = PYTHONS[stack]
    return bool(version) and lowest <= tuple(map(int, version.split('.')[:2])) <= highest


def find_python(stack, requested):
    """Return the path and the version of an interpreter that the stack supports."""
    lowest, highest = PYTHONS[stack]
    names = [f'python3.{minor}' for minor in (11, 12, 10) if minor <= highest[1]]
    candidates = [requested] if requested else ['python3', *names]
    seen = []
    for name in candidates:
        for command in (name, pyenv_python(name)):
            version = command and python_version(command)
            if supports(stack, version):
                return command, version
            if version:
                seen.append(f'{command} is {version}')
    raise SetupError(
        f'the {stack} stack needs Python {lowest[0]}.{lowest[1]} to {highest[0]}.{highest[1]}; '
        f'tried {", ".join(candidates)} ({"; ".join(seen) or "none of them runs"}). '
        'Install one, or name it: make setup PYTHON=/path/to/python3.11'
    )


def python_version(command):
    """Return the version that an interpreter prints, or None where it does not run."""
    code = 'import platform; print(platform.python_version())'
    try:
        run = subprocess.run(
            [command, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError:
        return None
    return run.stdout.decode().strip() if run.returncode == 0 else None


def base_python(python):
    """Return the interpreter that a virtual environment was made with."""
    code = 'import sys; print(sys.base_prefix + "/bin/python3." + str(sys.version_info[1]))'
    return subprocess.run([python, '-c', code], stdout=subprocess.PIPE).stdout.decode().strip()


def pyenv_python(name):
    """Return the interpreter behind a pyenv shim, which fails unless its version is active."""
    if not shutil.which('pyenv'):
        return None
    found = (
        subprocess.run(['pyenv', 'whence', name], stdout=subprocess.PIPE).stdout.decode().split()
    )
    if not found:
        return None
    prefix = subprocess.run(['pyenv', 'prefix', found[-1]], stdout=subprocess.PIPE)
    return os.path.join(prefix.stdout.decode().strip(), 'bin', name)


def check_prerequisites(interpreter, venv, torch_cuda, wheels=None):
    """Name everything that is missing before anything starts."""
    missing = []
    code = 'import ensurepip, venv'
    if subprocess.run([interpreter, '-c', code], stderr=subprocess.DEVNULL).returncode:
        missing.append(
            f'the venv module of {interpreter}, for example: apt-get install python3-venv'
        )
    driver = driver_problem(torch_cuda)
    if driver:
        missing.append(driver)
    if not wheels:  # else what only a build needs is asked for if it comes to that
        missing += build_problems(interpreter, torch_cuda, is_forced() or sees_gpu())
    parent = next(folder for folder in venv.parents if folder.exists())
    free_gb = shutil.disk_usage(parent).free / 1e9
    if not venv.exists() and free_gb < DISK_GB:
        missing.append(f'{DISK_GB} GB of free disk space at {parent} (there are {free_gb:.1f})')
    if missing:
        raise SetupError('missing prerequisites:\n  ' + '\n  '.join(missing))


def install(venv, interpreter, requirements, wheels=None):
    """Install everything, in an order in which each step finds what it builds against.

    Returns:
        What the health check found wrong, or an empty string.
    """
    python = venv / 'bin' / 'python'
    pins = re.findall(r'^[\w-]+.*', requirements.read_text(), flags=re.M)
    torch_pins = [pin for pin in pins if pin.startswith('torch')]
    mmcv_pin = next(pin for pin in pins if re.match(r'(onedl-)?mmcv=', pin))

    step(1, f'virtual environment {venv}')
    call(interpreter, '-m', 'venv', venv)
    pip(python, '--quiet', '--upgrade', *BUILD_TOOLS)
    step(2, f'{" ".join(torch_pins)} (several GB)')
    pip(python, *torch_pins)
    step(3, f'{mmcv_pin} with its compiled ops')
    install_mmcv(python, mmcv_pin, wheels)
    step(4, f'the rest of {requirements.relative_to(ROOT)}')
    pip(python, '--quiet', '-r', requirements)
    step(5, 'mmpoolformer, editable')
    install_project(python)
    return check_health(python)


def step(number, what):
    print(f'[{number}/5] {what}', flush=True)


def install_project(python):
    pip(python, '--quiet', '--no-deps', '--no-build-isolation', '--editable', ROOT)


def check_health(python):
    """Import what matters; point the editable install here if it belongs to another clone.

    Returns:
        The error, or an empty string.
    """
    for attempt in range(2):
        run = subprocess.run(
            [python, '-W', 'ignore', '-c', HEALTH_CHECK],
            capture_output=True,
            cwd='/',
            env={key: value for key, value in os.environ.items() if key != 'PYTHONPATH'},
        )
        output = run.stdout.decode().strip().splitlines()
        package = output[-1:]
        if package == [str(ROOT / 'mmpoolformer' / '__init__.py')]:
            if WITHOUT_CUDA in output:
                print(f'{WITHOUT_CUDA}, and there is a GPU: make setup FORCE_CUDA=1', flush=True)
            return ''
        if attempt == 0 and (package or b"No module named 'mmpoolformer'" in run.stderr):
            install_project(python)
    return run.stderr.decode() or f'mmpoolformer is imported from {package}'


if __name__ == '__main__':
    main()
