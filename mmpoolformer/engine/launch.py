"""What ``tools/train.py`` and ``tools/test.py`` share, for detection and segmentation alike.

Problems a user can mend raise :class:`LaunchError`, which ends the program with one
message and without a stack trace.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import Runner

from ..adapt.own_data import OwnDataError
from ..adapt.swap import SwapError, swap_backbone
from ..adapt.zoo import OWN, SEPARATOR, find_config
from ..archs import METAFORMERS
from ..checkpoints import CheckpointError, register_loaders
from ..datasets.images import guard_decoders
from ..registry import BACKBONES, import_custom_modules
from ..utils.config_tree import find, type_of, walk
from ..utils.errors import DataError, LaunchError, first_line, last_line, printed
from ..utils.memory import keep_freed_memory, reuse_freed_memory
from .checkpointing import (
    CheckpointWriteError,
    ResumableRunner,
    SafeCheckpointHook,
    newest_intact_checkpoint,
)
from .checks import (
    CfgOptions,
    check_backbones,
    check_checkpoints,
    check_classes,
    check_data,
    check_evaluations,
    check_installed,
    check_options,
    check_work_dir,
    refuse_braces,
    similar_configs,
    warn_of_unread,
)
from .curves import leave_curves
from .distributed import (
    check_launcher,
    is_first,
    is_lost_connection,
    leave_out_amp,
    prepare_cpu,
)
from .hooks import CheckLoadedWeights, CheckLoss, CheckWarmUp, watch_outputs
from .lock import lock_work_dir
from .loops import build_loops
from .resuming import ResumeHook
from .signals import Terminated
from .start import find_start

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def run(main: Callable[[], None]) -> None:
    """Call ``main`` and turn the errors a user can mend into a message and exit code 1.

    A run that SIGTERM ended has the exit code that shells give it, 143.
    """
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')  # for names that are no text
    guard_decoders()
    try:
        main()
    except Terminated as stop:
        print(stop, file=sys.stderr)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would report the workers that end
        sys.exit(128 + signal.SIGTERM)
    except (LaunchError, CheckpointError, CheckpointWriteError, SwapError, OwnDataError) as error:
        sys.exit(printed(f'error: {error}'))
    except OSError as error:
        remedy = '. Make room or mend the disk; a training goes on with --resume'
        sys.exit(printed(f'error: {error}{remedy if error.errno in DISK_ERRORS else ""}'))
    except KeyboardInterrupt:
        sys.exit(130)


CONFIG_HELP = (
    'config file; or the name of a config of this package, such as '
    'retinanet_poolformer-s12_fpn_1x_coco; or one that mmdet or mmseg ships: mmdet::FOLDER/NAME.py'
)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share, as mmdet and mmseg name them."""
    parser.add_argument('config', help=CONFIG_HELP)
    parser.add_argument(
        '--work-dir', help='folder for logs, checkpoints and metrics (default: work_dirs/CONFIG)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        metavar='KEY=VALUE',
        help='override config entries, for example train_dataloader.batch_size=4; '
        'a list is written key="[a,b]" or key=a,b',
    )
    parser.add_argument(
        '--allow-pickle',
        action='store_true',
        help='read checkpoints that execute code; only for files whose author you trust',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes were started (default: none, a single process)',
    )
    # torch.distributed.launch passes it; torchrun sets the variable instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def find_config_file(name: str) -> Path:
    """Return the file of a config given by its path, its own name or its name in the zoo.

    A file of that path comes first; a name without a folder is one of this package's configs.

    Raises:
        LaunchError: There is none; names what there is.
    """
    path = Path(name)
    if path.is_file():
        return path
    is_bare = SEPARATOR not in name and path.name == name
    if SEPARATOR not in name and not is_bare:
        raise LaunchError(f'config not found: {path}. {similar_configs(path)}')
    try:
        return find_config(f'{OWN}{SEPARATOR}{name}' if is_bare else name)
    except FileNotFoundError as error:
        here = f'config not found: {path}. No such file here, and ' if is_bare else ''
        raise LaunchError(f'{here}{error}') from error


def read_config(path: Path) -> Config:
    """Read a config file, without importing what its ``custom_imports`` names.

    Raises:
        LaunchError: It cannot be read.
    """
    try:
        return Config.fromfile(path, import_custom_modules=False)
    except Exception as error:  # whatever a config file's own code raises
        raise LaunchError(f'cannot read {path}: {type(error).__name__}: {error}') from error


def load_config(args: argparse.Namespace, arch: str | None = None) -> Config:
    """Read the config of the command line, with its overrides and work dir.

    The copy that mmengine leaves in the work dir is named ``config.py``: under the
    config's own name it would be a second hit where mim looks a bare name up.

    Args:
        args: See :func:`add_common_arguments`.
        arch: The MetaFormer that replaces the config's backbone, see :func:`swap_backbone`.

    Raises:
        LaunchError: No such file, a config that does not parse, or a toolbox that it
            needs and that is not installed.
        SwapError: The model takes no pyramid backbone.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    path = find_config_file(args.config)
    cfg, name = read_config(path), path.stem
    if arch is not None:
        cfg = swap_backbone(cfg, arch)
        name = f'{name}_{arch if arch in METAFORMERS else f"poolformer-{arch}"}'
    warn_of_unread(cfg, path)
    _complete(cfg, args.cfg_options, path)
    refuse_braces(cfg)
    cfg = Config(cfg.to_dict(), cfg_text=cfg.text, filename='config.py')
    cfg.launcher = args.launcher
    cfg.setdefault('experiment_name', name)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', name)
    check_installed(cfg, path)
    check_backbones(cfg)
    register_loaders(replace=True, allow_pickle=args.allow_pickle)
    if args.allow_pickle:
        _allow_pickle(cfg.model)
    return cfg


def override(cfg: Config, options: dict | None) -> None:
    """Change a config as ``--cfg-options`` says.

    Raises:
        LaunchError: An option looks like a misspelt key, see :func:`check_options`.
    """
    if options:
        check_options(cfg, options)
        cfg.merge_from_dict(options)


def _complete(cfg: Config, options: dict | None, path: Path) -> None:
    """Apply the overrides, import what the config needs, and see that it describes a run."""
    try:
        override(cfg, options)
        import_custom_modules(cfg)
    except LaunchError:
        raise
    except Exception as error:  # whatever the imported modules raise
        raise LaunchError(f'cannot read {path}: {type(error).__name__}: {error}') from error
    for key in ('model', 'default_scope'):
        if not cfg.get(key):
            raise LaunchError(
                f'{path} has no {key!r}: it is not a detection or segmentation config'
            )


def _allow_pickle(model: dict) -> None:
    """Let our backbones, which read their checkpoints themselves, read those that hold code."""
    for _, node in walk(model):
        if type_of(node) in BACKBONES:
            for _, init_cfg in walk(node.get('init_cfg')):
                init_cfg['allow_pickle'] = True


def build_runner(cfg: Config, phase: str, checkpoint: str | None = None) -> Runner:
    """Build mmengine's runner once everything it will need has been found.

    Args:
        cfg: The complete config.
        phase: ``'train'`` or ``'test'``.
        checkpoint: What is tested; or what a training resumes from, see :func:`find_start`.

    Raises:
        LaunchError: Data or a checkpoint that the config names does not exist, or a part of
            the config cannot be built.
    """
    if phase == 'train' and not torch.cuda.is_available():
        keep_freed_memory()
    else:
        reuse_freed_memory()
    if phase == 'train':
        _prepare_training(cfg)
        checkpoint = find_start(cfg, checkpoint)
    check_checkpoints(cfg, phase, checkpoint)
    check_data(cfg, phase)
    check_classes(cfg)
    check_work_dir(Path(cfg.work_dir))
    if cfg.launcher != 'none':
        check_launcher(cfg.launcher)
    if phase == 'train':
        leave_out_amp(cfg)
    writes = phase == 'train' and is_first(cfg.launcher)
    lock = lock_work_dir(Path(cfg.work_dir)) if writes else None
    if cfg.launcher != 'none' and not torch.cuda.is_available():
        prepare_cpu(cfg)
    runner_type = cfg.get('runner_type', 'Runner')
    runner_class = ResumableRunner if runner_type == 'Runner' else RUNNERS.get(runner_type)
    if runner_class is None:
        raise LaunchError(f'runner_type={runner_type!r} is unknown: leave it out, or Runner')
    try:
        runner = runner_class.from_cfg(cfg)
    # From unknown names, bad arguments, and packages that a part needs.
    except (KeyError, TypeError, ValueError, ImportError) as error:
        message = error.args[0] if error.args else error
        raise LaunchError(f'the config cannot be built: {message}') from error
    runner.lock = lock
    # The config, which was copied, says neither.
    if phase == 'train' and checkpoint is not None:
        runner._load_from, runner._resume = checkpoint, True
    elif phase == 'test':  # tools/test.py loads it
        runner._load_from = None
    for hook in (CheckLoadedWeights(), CheckLoss(), CheckWarmUp(), ResumeHook()):
        runner.register_hook(hook)
    return runner


def train(runner: Runner) -> None:
    """Train, draw the curves, and turn what goes wrong with files on the way into a message.

    Raises:
        LaunchError: A file of the data set is missing or broken.
        CheckpointWriteError: A checkpoint cannot be written.
    """
    build_loops(runner, 'train')
    try:
        runner.train()
    except (DataError, FileNotFoundError) as error:
        _check_work_dir_is_there(runner, error)
        last, _ = newest_intact_checkpoint(Path(runner.work_dir))
        left = f'go on with --resume from {last}' if last else 'there is no checkpoint yet'
        raise LaunchError(
            f'stopped at iteration {runner.iter + 1}: {last_line(error)}. Mend it '
            f'(tools/check_dataset.py finds all of its kind), then {left}'
        ) from error
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise LaunchError(
            f'another process of this run ended, at iteration {runner.iter + 1}: '
            f'{first_line(error)}. Its own output says why; go on with --resume'
        ) from error
    except KeyboardInterrupt:
        last, _ = newest_intact_checkpoint(Path(runner.work_dir))
        left = f'--resume goes on from {last}' if last else 'there is no checkpoint yet'
        print(f'stopped by Ctrl-C at iteration {runner.iter + 1}: {left}', file=sys.stderr)
        raise
    finally:  # of a run that was stopped, too
        leave_curves(Path(runner.work_dir), runner.logger)
        if runner.lock is not None:
            runner.lock.close()


def _check_work_dir_is_there(runner: Runner, error: Exception) -> None:
    work_dir = Path(runner.work_dir)
    missing = Path(getattr(error, 'filename', None) or '')
    if not work_dir.is_dir() or work_dir in missing.absolute().parents:
        raise LaunchError(
            f'stopped at iteration {runner.iter + 1}: {missing} is not there any more. The work '
            f'dir {work_dir} was removed or moved while the run wrote to it: put it back and go '
            'on with --resume, or start anew'
        ) from error


def test(runner: Runner) -> dict:
    """Test, and turn what goes wrong with files on the way into a message.

    Returns:
        The metrics.

    Raises:
        LaunchError: A file of the data set is missing or broken.
    """
    build_loops(runner, 'test')
    watch_outputs(runner.model)
    try:
        return runner.test()
    except (DataError, FileNotFoundError) as error:
        raise LaunchError(
            f'{last_line(error)}. Mend it; tools/check_dataset.py finds all of its kind'
        ) from error


def _prepare_training(cfg: Config) -> None:
    """Let checkpoints be whole, and early stopping count before they are written."""
    check_evaluations(cfg)
    HOOKS.register_module(module=SafeCheckpointHook, force=True)
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if type_of(hook) == 'CheckpointHook':
        hook['type'] = 'SafeCheckpointHook'
    for _, hook in walk(cfg.get('custom_hooks')):
        if type_of(hook) == 'EarlyStoppingHook':  # counts before what it counts is saved
            hook.setdefault('priority', 'LOW')


def require(cfg: Config, key: str, option: str):
    """Return the config entry that a command-line option works on.

    Args:
        cfg: The config.
        key: Dotted path of the entry.
        option: The option that needs it, for the message.

    Raises:
        LaunchError: The config has no such entry, or it is empty.
    """
    entry = find(cfg, key.split('.'))
    if not entry:
        raise LaunchError(f'{option} needs {key}, which the config does not have: add it')
    return entry
