"""mmcv with its compiled ops for one environment: a prebuilt wheel, one of the cache, or built.

Wheels are built once per Python, torch and whatever else changes the build, and kept. Parsing
torch's headers is nine tenths of a build, so they are precompiled first.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmpoolformer'
DEFAULT_CUDA_HOME = '/usr/local/cuda'
# What changes for which devices the ops are built, or how.
BUILD_VARIABLES = (
    *(f'FORCE_{device}' for device in ('CUDA', 'MLU', 'MPS', 'MUSA', 'NPU')),
    *('MMCV_CUDA_ARGS', 'MMCV_WITH_DIOPI'),
    *('NVCC_APPEND_FLAGS', 'NVCC_PREPEND_FLAGS', 'TORCH_CUDA_ARCH_LIST'),
)
FOR_CPU_ALONE = 'CUDA_VISIBLE_DEVICES= in front of make builds them for the CPU alone'
# What an environment is, asked after torch's installation.
DESCRIBE = """
import json, sys, sysconfig, warnings, torch
warnings.simplefilter('ignore')
reason, count = '', torch.cuda.device_count() if torch.cuda.is_available() else 0
if not count:
    try:
        torch.cuda.init()
    except Exception as error:
        reason = str(error).splitlines()[0]
print(json.dumps(dict(
    python=f'py{sys.version_info[0]}{sys.version_info[1]}-{sysconfig.get_platform()}',
    torch=torch.__version__, cuda=torch.version.cuda, reason=reason,
    capabilities=sorted(set(map(torch.cuda.get_device_capability, range(count)))),
)))
"""
# By its file, as mmcv itself needs packages that come later.
CHECK_OPS = """
import sys, torch
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location('mmcv._ext', sys.argv[1])
ops = module_from_spec(spec)
spec.loader.exec_module(ops)
boxes, scores = torch.tensor([[0., 0, 4, 4]]).repeat(2, 1), torch.tensor([1, 0.5])
assert ops.nms(boxes, scores, iou_threshold=0.5, offset=0).tolist() == [0], 'nms is wrong'
print(ops.get_compiling_cuda_version())
"""


class SetupError(Exception):
    """Something the user has to mend first."""


def call(*command, **kwargs):
    subprocess.run(command, check=True, **kwargs)


def pip(python, *args):
    call(python, '-m', 'pip', '--disable-pip-version-check', 'install', *args)


def install_mmcv(python, pin, wheels=None):
    """Install mmcv with its ops for this Python and torch.

    Args:
        pin: The requirement.
        wheels: Index, page or folder with prebuilt wheels, tried first.
    """
    found = describe(python)
    with tempfile.TemporaryDirectory() as folder:
        wheel = wheels and prebuilt_wheel(python, pin, wheels, found, Path(folder))
        # A wheel of this version that is there already may have been built for something else.
        options = '--quiet', '--no-deps', '--force-reinstall'
        pip(python, *options, wheel or built_wheel(python, pin, found))


# What the ops are built for --------------------------------------------------------------------


def build_variables():
    """Those that are set, but for the defaults."""
    values = {name: os.environ.get(name, '') for name in BUILD_VARIABLES}
    return {name: value for name, value in values.items() if value not in ('', '0')}


def is_forced():
    return os.environ.get('FORCE_CUDA') == '1'


def sees_gpu():
    """Whether there is a driver's program, and nothing hides its GPUs."""
    is_hidden = os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1')
    return bool(shutil.which('nvidia-smi')) and not is_hidden


def driver_problem(torch_cuda):
    """What keeps a torch that is built for a version of CUDA from a GPU here, if that shows."""
    if is_forced() or not sees_gpu():
        return None
    run = subprocess.run(['nvidia-smi'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = run.stdout.decode(errors='replace').strip()
    if run.returncode:
        last_line = output.splitlines()[-1:] or [f'exit code {run.returncode}']
        return f'an NVIDIA driver that runs (nvidia-smi: {last_line[0]}); {FOR_CPU_ALONE}'
    version = re.search(r'CUDA[\w ]*Version: *(\d+)\.(\d+)', output)
    if version and int(version[1]) < major(torch_cuda):
        return (
            f'a newer NVIDIA driver: this one supports CUDA {version[1]}.{version[2]}, the pinned '
            f'torch is built for {torch_cuda} and would not find the GPU; {FOR_CPU_ALONE}'
        )
    return None


def build_problems(python, torch_cuda, for_cuda):
    """What a build needs and does not find.

    Args:
        python: Any interpreter of the version that is built for.
        torch_cuda: The version of CUDA that torch is built for.
        for_cuda: Whether the ops are built for CUDA.
    """
    problems = []
    if not shutil.which(compiler()[0]):
        problems.append(f'a C++17 compiler ({compiler()[0]}), for example: apt-get install g++')
    code = (
        'import sysconfig, os; '
        'assert os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h"))'
    )
    if subprocess.run([python, '-c', code], stderr=subprocess.DEVNULL).returncode:
        problems.append(f'the C headers of {python}, for example: apt-get install python3-dev')
    if os.environ.get('MMCV_WITH_OPS') == '0':
        problems.append('the compiled ops of mmcv: unset MMCV_WITH_OPS, which is 0')
    if os.environ.get('FORCE_CUDA', '') not in ('', '0', '1'):
        problems.append(f'FORCE_CUDA=1 or 0: mmcv ignores {os.environ["FORCE_CUDA"]}')
    if for_cuda:
        problems += cuda_problems(torch_cuda)
    return problems


def cuda_problems(torch_cuda):
    nvcc, version = find_nvcc(), nvcc_version()
    if version is None:
        wanted = f'the CUDA toolkit {major(torch_cuda)}.x, whose nvcc builds the ops for the GPU'
        yield f'{wanted} ({nvcc} does not run); {FOR_CPU_ALONE}'
    elif major(version) != major(torch_cuda):
        yield (
            f'a CUDA toolkit {major(torch_cuda)}.x in CUDA_HOME: {nvcc} is {version}, torch is '
            f'built for {torch_cuda} and refuses others; {FOR_CPU_ALONE}'
        )
    if is_forced() and not sees_gpu() and not os.environ.get('TORCH_CUDA_ARCH_LIST'):
        yield 'TORCH_CUDA_ARCH_LIST beside FORCE_CUDA=1 where no GPU is, for example 8.0;9.0+PTX'


def find_nvcc():
    """The compiler that torch takes."""
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH')
    on_path = None if home else shutil.which('nvcc')
    return on_path or os.path.join(home or DEFAULT_CUDA_HOME, 'bin', 'nvcc')


def nvcc_version():
    try:
        run = subprocess.run([find_nvcc(), '--version'], stdout=subprocess.PIPE)
    except OSError:
        return None
    version = re.search(r'release (\d+\.\d+)', run.stdout.decode(errors='replace'))
    return version and version[1]


def major(version):
    return int(version.split('.')[0])


def compiler():
    return shlex.split(os.environ.get('CXX', 'c++'))


def describe(python):
    """What wheels of mmcv depend on, and whether their ops are for a GPU."""
    run = subprocess.run([python, '-c', DESCRIBE], check=True, stdout=subprocess.PIPE)
    found = json.loads(run.stdout.decode().splitlines()[-1])
    if not found['capabilities'] and sees_gpu() and not is_forced():
        raise SetupError(
            f'torch {found["torch"]} does not find the GPU of nvidia-smi: {found["reason"]}. mmcv '
            f'would be built without its ops for it. Update the driver; {FOR_CPU_ALONE}, '
            'FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=8.0 for the GPUs of another machine'
        )
    return dict(found, device='cuda' if found['capabilities'] or is_forced() else 'cpu')


# Wheels ----------------------------------------------------------------------------------------


def prebuilt_wheel(python, pin, wheels, found, folder):
    """Download a wheel that fits; ``None``, and a line that says why, without one."""
    where = ['--find-links', wheels]
    where += ['--no-index'] if os.path.isdir(wheels) else ['--index-url', wheels]
    command = [python, '-m', 'pip', '--disable-pip-version-check', 'download', '--no-deps']
    command += ['--only-binary', ':all:', '--dest', folder, *where, pin]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wheel = next(folder.glob('*.whl'), None)
    lines = run.stdout.decode(errors='replace').strip().splitlines()
    problem = ops_problem(python, wheel, found['device']) if wheel else lines[-1]
    if problem:
        print(f'      no prebuilt wheel from {wheels}: {problem}', flush=True)
        return None
    print(f'      prebuilt: {wheel.name}', flush=True)
    return wheel


def ops_problem(python, wheel, device):
    """Why the ops of a wheel are not for this Python, torch and device, if they are not."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as content:
        ops = [name for name in content.namelist() if re.fullmatch(r'mmcv/_ext.*\.so', name)]
        if not ops:
            return f'{wheel.name} has no compiled ops'
        command = [python, '-c', CHECK_OPS, content.extract(ops[0], folder)]
        run = subprocess.run(command, capture_output=True)
    if run.returncode:
        lines = run.stderr.decode(errors='replace').strip().splitlines()
        return f'{wheel.name} does not run: {(lines or ["it crashes"])[-1]}'
    if device == 'cuda' and run.stdout.decode().strip() == 'not available':
        return f'{wheel.name} is for the CPU alone'
    return None


def built_wheel(python, pin, found):
    """A wheel of the cache, built there if it has none that was built in the same way."""
    folder = CACHE / 'wheels' / f'{pin.replace("==", "-")}-{cache_key(found)}'
    if not folder.is_dir():
        problems = build_problems(python, found['cuda'], found['device'] == 'cuda')
        if problems:
            raise SetupError('to build mmcv, missing are:\n  ' + '\n  '.join(problems))
        partial = folder.with_name(f'{folder.name}.{os.getpid()}')
        partial.mkdir(parents=True)
        try:
            build_mmcv(python, pin, partial)
            if not folder.exists():  # another run may have been faster
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return next(folder.glob('*.whl'))


def cache_key(found):
    """The name under which a wheel is kept: whatever changes the build."""
    key = f'{found["python"]}-torch{found["torch"]}-{found["device"]}'
    how = build_variables()
    if found['device'] == 'cuda':
        how.update(nvcc=nvcc_version())
        if how.get('TORCH_CUDA_ARCH_LIST', 'native') == 'native':
            how.update(capabilities=found['capabilities'])
    if not how:
        return key
    digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()
    return f'{key}-{digest[:12]}'


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
