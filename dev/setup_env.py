"""Make a virtual environment with one of the two OpenMMLab stacks and this project in it.

A complete and working environment is left as it is; a broken or half-made one is repaired.
Runs on any Python 3.8 or newer, without packages.

mmcv's compiled ops are built once per Python and torch version and kept in a cache. Parsing
torch's headers is nine tenths of that build, so they are precompiled first.
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

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmpoolformer'
PYTHONS = {'maintained': ((3, 10), (3, 12)), 'classic': ((3, 10), (3, 11))}
DISK_GB = 9
STAMP = 'mmpoolformer-stack'
BUILD_TOOLS = ['pip', 'wheel', 'ninja', 'packaging', 'psutil', 'setuptools>=80,<81']
# Importing these loads every compiled part: mmcv's ops, torchvision's, OpenCV, SciPy.
HEALTH_CHECK = (
    'import mmcv._ext, mmcv.ops, mmdet.apis, mmseg.apis, timm, mim, skimage, sklearn; '
    'import matplotlib.pyplot, rich, yaml, pytest, xdist, hypothesis, ruff, transformers; '
    'import pytorch_grad_cam, globox, torch.utils.tensorboard; '
    'import mmpoolformer; print(mmpoolformer.__file__)'
)


class SetupError(Exception):
    """Something the user has to mend first."""


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--stack', choices=sorted(PYTHONS), default='maintained')
    parser.add_argument('--python', help='interpreter to use (default: the first that fits)')
    parser.add_argument('--venv', type=Path, help='folder (default: .venv, .venv-classic)')
    return parser.parse_args()


def main():
    args = parse_args()
    default = '.venv' if args.stack == 'maintained' else f'.venv-{args.stack}'
    venv = (args.venv or ROOT / default).absolute()
    started = time.time()
    try:
        ensure(venv, args.stack, args.python)
    except SetupError as error:
        sys.exit(f'error: {error}')
    except subprocess.CalledProcessError as error:
        sys.exit(f'error: this failed, see above: {shlex.join(map(str, error.cmd))}')
    except OSError as error:
        sys.exit(f'error: {error}')
    print(f'{args.stack} stack ready in {venv} ({time.time() - started:.0f} s)', flush=True)


def ensure(venv, stack, requested):
    """Check the environment, and make or repair it where needed."""
    requirements = ROOT / 'requirements' / f'{stack}.txt'
    python = venv / 'bin' / 'python'
    present = python_version(str(python))
    if not requested and supports(stack, present):
        interpreter, version = base_python(python), present  # whatever it was made with
    else:
        interpreter, version = find_python(stack, requested)
    stamp = f'{version} {hashlib.sha256(requirements.read_bytes()).hexdigest()}'
    stamp_file = venv / STAMP
    if stamp_file.is_file() and stamp_file.read_text() == stamp:
        problem = check_health(python)
        if not problem:
            return
        print(f'{venv} is broken, making it anew:\n{problem}', flush=True)
        remove(venv)
    elif venv.exists() and present != version:
        print(f'{venv} has no working Python {version}, making it anew', flush=True)
        remove(venv)
    stamp_file.unlink(missing_ok=True)
    check_prerequisites(interpreter, venv)

    problem = install(venv, interpreter, requirements)
    if problem:
        print(f'{venv} does not work, making it anew once:\n{problem}', flush=True)
        remove(venv)
        shutil.rmtree(CACHE / 'wheels', ignore_errors=True)
        problem = install(venv, interpreter, requirements)
    if problem:
        raise SetupError(f'the environment does not work:\n{problem}')
    stamp_file.write_text(stamp)


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


def check_prerequisites(interpreter, venv):
    """Name everything that is missing before anything starts."""
    missing = []
    if not shutil.which(compiler()[0]):
        missing.append(f'a C++17 compiler ({compiler()[0]}), for example: apt-get install g++')
    if shutil.which('nvidia-smi') and not (shutil.which('nvcc') or os.environ.get('CUDA_HOME')):
        missing.append(
            'the CUDA toolkit (nvcc), with which mmcv builds its ops for the GPU here; '
            'CUDA_VISIBLE_DEVICES= in front of make builds them for the CPU alone'
        )
    code = (
        'import ensurepip, venv, sysconfig, os; '
        'assert os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h"))'
    )
    if subprocess.run([interpreter, '-c', code], stderr=subprocess.DEVNULL).returncode:
        missing.append(
            f'the venv module and the C headers of {interpreter}, '
            'for example: apt-get install python3-venv python3-dev'
        )
    parent = next(folder for folder in venv.parents if folder.exists())
    free_gb = shutil.disk_usage(parent).free / 1e9
    if not venv.exists() and free_gb < DISK_GB:
        missing.append(f'{DISK_GB} GB of free disk space at {parent} (there are {free_gb:.1f})')
    if missing:
        raise SetupError('missing prerequisites:\n  ' + '\n  '.join(missing))


def compiler():
    return shlex.split(os.environ.get('CXX', 'c++'))


def install(venv, interpreter, requirements):
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
    pip(python, '--quiet', '--no-deps', mmcv_wheel(python, mmcv_pin))
    step(4, f'the rest of {requirements.relative_to(ROOT)}')
    pip(python, '--quiet', '-r', requirements)
    step(5, 'mmpoolformer, editable')
    install_project(python)
    return check_health(python)


def step(number, what):
    print(f'[{number}/5] {what}', flush=True)


def call(*command, **kwargs):
    subprocess.run(command, check=True, **kwargs)


def pip(python, *args):
    call(python, '-m', 'pip', '--disable-pip-version-check', 'install', *args)


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
        package = run.stdout.decode().strip().splitlines()[-1:]
        if package == [str(ROOT / 'mmpoolformer' / '__init__.py')]:
            return ''
        if attempt == 0 and (package or b"No module named 'mmpoolformer'" in run.stderr):
            install_project(python)
    return run.stderr.decode() or f'mmpoolformer is imported from {package}'


def mmcv_wheel(python, pin):
    """Return a wheel of mmcv with its ops for this Python and torch, built or from the cache."""
    code = (
        'import sys, sysconfig, torch; gpu = "cuda" if torch.cuda.is_available() else "cpu"; '
        'python = f"py{sys.version_info[0]}{sys.version_info[1]}-{sysconfig.get_platform()}"; '
        'print(f"{python}-torch{torch.__version__}-{gpu}")'
    )
    key = subprocess.run([python, '-c', code], check=True, stdout=subprocess.PIPE)
    folder = CACHE / 'wheels' / f'{pin.replace("==", "-")}-{key.stdout.decode().strip()}'
    if not folder.is_dir():
        partial = folder.with_name(f'{folder.name}.{os.getpid()}')
        partial.mkdir(parents=True)
        try:
            build_mmcv(python, pin, partial)
            if not folder.exists():  # another run may have been faster
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return next(folder.glob('*.whl'))


def build_mmcv(python, pin, folder):
    """Build mmcv's wheel into a folder, with torch's headers precompiled."""
    header = folder / 'torch_types.hpp'
    header.write_text('#include <torch/types.h>\n')
    flags = '-O2 -g0 -fwrapv -DNDEBUG'
    code = (
        'import sysconfig, torch; from torch.utils.cpp_extension import include_paths; '
        'paths = [*include_paths(), sysconfig.get_paths()["include"]]; '
        'old_abi = not torch._C._GLIBCXX_USE_CXX11_ABI; '
        'print(*["-I" + p for p in paths], "-D_GLIBCXX_USE_CXX11_ABI=0" if old_abi else "")'
    )
    torch_flags = subprocess.run(
        [python, '-W', 'ignore', '-c', code],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ).stdout.decode()
    print('      precompiling the headers of torch', flush=True)
    call(
        *compiler(),
        *shlex.split(f'{flags} -fPIC -std=c++17 -w {torch_flags}'),
        '-DTORCH_EXTENSION_NAME=_ext',
        '-DTORCH_API_INCLUDE_EXTENSION_H',
        *('-x', 'c++-header', header, '-o', f'{header}.gch'),
    )
    # A precompiled header that does not fit is passed over, and the plain one is read.
    env = dict(os.environ, CFLAGS=f'{flags} -include {header}')
    env.setdefault('MAX_JOBS', str(os.cpu_count()))
    log = CACHE / 'mmcv-build.log'
    command = [python, '-m', 'pip', 'wheel', '-v', '--no-cache-dir', '--no-deps']
    command += ['--no-build-isolation', '--no-binary', ':all:', '-w', folder, pin]
    with log.open('w') as log_file:
        build = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)
        show_compilation(build.stdout, log_file)
        failed = build.wait()
    header.unlink()
    Path(f'{header}.gch').unlink()
    if failed:
        last_lines = '\n'.join(log.read_text().splitlines()[-30:])
        raise SetupError(f'mmcv did not build; the end of {log}:\n{last_lines}')


def show_compilation(lines, log_file):
    """Copy the build's output to a log and show ninja's «[12/78]» as a progress bar."""
    started = time.time()
    for line in lines:
        text = line.decode(errors='replace')
        log_file.write(text)
        found = re.match(r'\s*\[(\d+)/(\d+)\]', text)
        if not found:
            continue
        done, total = map(int, found.groups())
        bar = '#' * (30 * done // total)
        message = f'      compiling [{bar:30}] {done}/{total}, {time.time() - started:.0f} s'
        if sys.stdout.isatty():
            print(f'\r{message}', end='\n' if done == total else '', flush=True)
        elif done % 10 == 0 or done == total:
            print(message, flush=True)


if __name__ == '__main__':
    main()
