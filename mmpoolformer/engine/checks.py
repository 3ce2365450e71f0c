"""Checks before a run: what it was given fits together and exists."""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from ..archs import is_integer
from ..checkpoints import local_path
from ..datasets.fit import check_fit
from ..datasets.problems import ERROR
from ..models import MetaFormer
from ..registry import BACKBONES
from ..utils.config_tree import braced, follow, type_of, walk
from ..utils.errors import LaunchError, first_line, join, printed, short, some
from .checkpointing import STARTED
from .lock import NAME as LOCK

INSTALL_HINTS = {
    'mmdet': 'pip install onedl-mmdetection (or the classic mmdet)',
    'mmseg': 'pip install onedl-mmsegmentation (or the classic mmsegmentation)',
}
# What of the top level of a config a run reads; mmengine's runners, mmdet's and these tools.
READ = {
    *inspect.signature(Runner.__init__).parameters, 'activation_checkpointing', 'broadcast_buffers',
    'compile', 'cudnn_benchmark', 'custom_imports', 'data_source', 'detect_anomalous_params',
    'efficient_conv_bn_eval', 'find_unused_parameters', 'model_wrapper_cfg', 'mp_start_method',
    'opencv_num_threads', 'resource_limit', 'runner_type', 'strategy', 'sync_bn', 'tta_model',
    'tta_pipeline', 'use_mlu',
}  # fmt: skip
UNREAD = 'mmengine, the toolboxes and these tools do not read it, only code of your own might'
# The data of the config that each phase of a run reads.
PHASES = {'train': ('train', 'val'), 'test': ('test',)}


class CfgOptions(DictAction):
    """mmengine's, which ends in a message where an option is none."""

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError, SyntaxError) as error:
            parser.error(f'{option_string} {join(values)}: write KEY=VALUE ({first_line(error)})')


def check_options(cfg: Config, options: dict) -> None:
    """Refuse overrides whose key looks like another one of the config, misspelt.

    A key that is new and like no other is an addition.

    Args:
        cfg: The config before the overrides.
        options: Dotted keys and values of ``--cfg-options``.

    Raises:
        LaunchError: Names the key and what it should probably be.
    """
    for dotted in options:
        keys = dotted.split('.')
        is_read = keys[0] in _read_of(cfg)
        places = [] if is_read else _places(cfg, keys[0])
        if places:
            places = ['.'.join([place, *keys[1:]]) for place in places]
            raise LaunchError(
                f'--cfg-options {dotted}: nothing reads {keys[0]} at the top of a config, but '
                f'where the file itself uses it; did you mean {join(places)}?'
            )
        node, done = follow(cfg, keys)
        known = list(node) if isinstance(node, (dict, Config)) else []
        # decay_type beside decay_rate is no misspelling.
        near = nearest(keys[done], known, 0.82) if done < len(keys) else None
        if near:
            meant = '.'.join([*keys[:done], near])
            raise LaunchError(
                f'--cfg-options {dotted}: there is no {keys[done]!r} in '
                f'{".".join(keys[:done]) or "the config"}; did you mean {meant}?'
            )
        if not is_read:
            print(printed(f'warning: --cfg-options {dotted}: {UNREAD}'), file=sys.stderr)
            continue
        is_part = done == len(keys) and isinstance(node, dict) and node
        if is_part and not isinstance(options[dotted], (dict, list, type(None))):
            raise LaunchError(
                f'--cfg-options {dotted}={options[dotted]!r}: it has the entries '
                f'{some(node)}: name one of them, as in {dotted}.{next(iter(node))}=…'
            )


def warn_of_unread(cfg: Config, path: Path, inherited: frozenset = frozenset()) -> None:
    """Name what a config file assigns and neither it nor a run reads.

    Where a base file used a variable, another value in the file that inherits it comes too late.

    Args:
        cfg: The complete config.
        path: Its file. Those that it inherits are looked into, too, but for the toolboxes' own.
        inherited: Names that the files read which inherit this one.
    """
    if path.suffix != '.py':
        return
    source = path.read_text(encoding='utf-8')
    tree = ast.parse(source)
    assigned: dict[str, ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            assigned.update({t.id: node.value for t in node.targets if isinstance(t, ast.Name)})
    if '_base_' not in assigned:
        return
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    used = {name.id for name in names if isinstance(name.ctx, ast.Load)} | _read_of(cfg) | inherited
    for name in assigned:
        if name not in used and not name.startswith('_'):
            places = join(_places(cfg, name))
            remedy = f'nothing reads {name}: set {places}' if places else f'{name}: {UNREAD}'
            print(printed(f'warning: {path}: {remedy}'), file=sys.stderr)
    for text in ast.walk(assigned['_base_']):
        base = text.value if isinstance(text, ast.Constant) else None
        if isinstance(base, str) and '::' not in base and (path.parent / base).is_file():
            from_bases = frozenset(re.findall(r'_base_\.(\w+)', source))
            warn_of_unread(cfg, path.parent / base, inherited | from_bases)


def _read_of(cfg: Config) -> set[str]:
    """Names at the top of a config that are read; a model's own data_preprocessor goes first."""
    has_own = 'data_preprocessor' in (cfg.get('model') or {})
    return READ - {'data_preprocessor'} if has_own else READ


def _places(cfg: Config, name: str) -> list[str]:
    """Where a config has entries that a variable of this name may have been meant for."""
    key = 'pipeline' if name.endswith('_pipeline') else name
    split = name.removesuffix('pipeline') if key != name else ''
    nodes = [at for at, node in walk(cfg.to_dict()) if at and at[0] in READ and key in node]
    places = ['.'.join(map(str, (*at, key))) for at in nodes]
    return [place for place in places if place.startswith(split)][:3]


def refuse_braces(cfg: Config) -> None:
    """Refuse texts that would become something else where a copy of the config is read.

    Raises:
        LaunchError: Names the text.
    """
    text = braced(cfg.to_dict())
    if text is not None:
        raise LaunchError(
            f'the config holds {short(text)}: mmengine replaces what stands in double braces when '
            'it reads a config, such as the copy in the work dir. Rename it'
        )


def check_backbones(cfg: Config) -> None:
    """Refuse arguments that our backbones do not have, before anything is built.

    Raises:
        LaunchError: Names the argument and the nearest that exists.
    """
    parameters = list(inspect.signature(MetaFormer).parameters)
    for path, node in walk(cfg.model, ('model',)):
        if type_of(node) not in BACKBONES:
            continue
        for name in node:
            if name not in (*parameters, 'type', 'style', '_scope_'):
                near = nearest(name, parameters)
                remedy = f'did you mean {near}?' if near else f'it has {", ".join(parameters)}'
                where = '.'.join(map(str, path))
                raise LaunchError(f'{where}: {type_of(node)} has no argument {name!r}; {remedy}')


def check_installed(cfg: Config, path: Path) -> None:
    """Refuse a config of a toolbox that is not installed, and an mmcv without its ops.

    Args:
        cfg: The complete config.
        path: Its file, for the message.

    Raises:
        LaunchError: Names what is missing and how to install it.
    """
    scopes = {cfg.default_scope}
    for _, node in walk(cfg.to_dict()):
        if isinstance(node.get('type'), str) and '.' in node['type']:
            scopes.add(node['type'].split('.')[0])
    for scope in sorted(scopes):
        if find_spec(scope) is None:
            hint = INSTALL_HINTS.get(scope, f'install the package that provides {scope}')
            raise LaunchError(f'{path} needs {scope}, which is not installed: {hint}')
    if find_spec('mmcv._ext') is None:
        raise LaunchError(
            'mmcv is installed without its compiled ops, which mmdet and mmseg need: '
            'run `make setup`, or rebuild mmcv with --no-build-isolation beside the installed torch'
        )


def check_checkpoints(cfg: Config, phase: str, checkpoint: str | None = None) -> None:
    """Refuse checkpoint files that do not exist.

    Args:
        cfg: The complete config.
        phase: A key of :data:`PHASES`.
        checkpoint: What is read in the place of the config's ``load_from``.

    Raises:
        LaunchError: Names the file.
    """
    checkpoints = [('load_from', checkpoint or cfg.get('load_from'))]
    if phase == 'train':
        pretrained = (node for _, node in walk(cfg.model) if node.get('type') == 'Pretrained')
        checkpoints += [('init_cfg', node.get('checkpoint')) for node in pretrained]
    for key, checkpoint in checkpoints:
        path = checkpoint and local_path(checkpoint)
        if path and not path.exists():
            where = '' if key == 'load_from' else f' ({key})'
            raise LaunchError(f'checkpoint not found: {path}{where}. Give an existing file')


def check_data(cfg: Config, phase: str) -> None:
    """Refuse a config whose annotation files or image folders do not exist.

    Args:
        cfg: The complete config.
        phase: A key of :data:`PHASES`.

    Raises:
        LaunchError: Names all of them, and how to get the data.
    """
    paths = []
    for split in PHASES[phase]:
        loader = cfg.get(f'{split}_dataloader') or {}
        paths += _data_paths(loader.get('dataset') or {})
        for _, evaluator in walk(cfg.get(f'{split}_evaluator')):
            if _is_on_disk(evaluator):
                paths += [evaluator.get('ann_file'), evaluator.get('seg_prefix')]
    local = [local_path(path) for path in paths if path]
    missing = [str(path) for path in dict.fromkeys(local) if path and not path.exists()]
    if missing:
        source = cfg.get(
            'data_source',
            'set data_root, or data_prefix and ann_file, of each data set to where it is',
        )
        raise LaunchError(
            'data not found:\n  '
            + '\n  '.join(missing)
            + f'\nlooked for from {Path.cwd()}.\nHow to get it: {source}'
        )


def check_classes(cfg: Config) -> None:
    """Refuse a model that is built for other classes than its data sets have.

    Raises:
        LaunchError: Names what disagrees, and the remedy.
    """
    init_default_scope(cfg.default_scope)
    problems = list(check_fit(cfg))
    for problem in problems:
        if problem.level != ERROR:
            print(printed(f'warning: {problem.where}: {problem.detail}'), file=sys.stderr)
    errors = [f'{p.where}: {p.kind}: {p.detail}' for p in problems if p.level == ERROR]
    if errors:
        raise LaunchError('the model does not fit its data.\n' + '\n'.join(errors))


def check_evaluations(cfg: Config) -> None:
    """Refuse a training that ends before its first evaluation would come.

    Raises:
        LaunchError: Names both.
    """
    train_cfg = cfg.get('train_cfg') or {}
    sampler = (cfg.get('train_dataloader') or {}).get('sampler') or {}
    if 'max_epochs' in train_cfg and type_of(sampler) == 'InfiniteSampler':
        raise LaunchError(
            'train_cfg counts epochs, and the InfiniteSampler of train_dataloader never ends one: '
            "take type='DefaultSampler', or max_iters"
        )
    for key in ('max_epochs', 'max_iters'):
        last, begin = train_cfg.get(key), train_cfg.get('val_begin', 1)
        if cfg.get('val_cfg') and is_integer(last) and is_integer(begin) and begin > last > 0:
            raise LaunchError(
                f'train_cfg.val_begin is {begin} and {key} {last}: nothing would be evaluated. Set '
                'val_begin lower, or val_cfg, val_dataloader and val_evaluator to None'
            )


def check_work_dir(work_dir: Path) -> None:
    """Make the work dir, and refuse one that cannot be written to.

    Raises:
        LaunchError: Names it and the reason.
    """
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=work_dir):
            pass
    except OSError as error:
        raise LaunchError(f'cannot write to the work dir {work_dir}: {error}') from error
    for path in (work_dir / 'config.py', work_dir / LOCK, work_dir / STARTED):
        if path.is_symlink():
            raise LaunchError(
                f'{path} is a link, and a run would write to {path.resolve()}: remove it, or give '
                'another --work-dir'
            )


def _data_paths(dataset: dict) -> Iterator[str]:
    """The annotation files and image folders that a dataset, wrapped or not, will open."""
    for _, node in walk(dataset):
        root = node.get('data_root') or ''
        annotations = node.get('ann_file')
        parts = [
            *(annotations if isinstance(annotations, (list, tuple)) else [annotations]),
            *(part for key, part in (node.get('data_prefix') or {}).items() if _is_read(key, node)),
        ]
        if _is_on_disk(node) and 'pipeline' in node:
            yield root
            yield from (os.path.join(root, part) for part in parts if part)


def _is_read(prefix: str, dataset: dict) -> bool:
    """Whether a dataset opens a folder: mmdet's without maps of segments often name theirs."""
    if prefix != 'seg' or 'Panoptic' in type_of(dataset):
        return True
    return any(
        step.get('with_seg') or 'Panoptic' in type_of(step)
        for _, step in walk(dataset.get('pipeline') or [])
    )


def _is_on_disk(node: dict) -> bool:
    backend = (node.get('backend_args') or {}).get('backend', 'local')
    return backend in ('local', 'disk', 'hard_disk')


def nearest(name: str, known: Iterable[str], likeness: float = 0.75) -> str | None:
    """The known name that ``name`` is probably a misspelling of."""
    matches = get_close_matches(name, list(map(str, known)), n=1, cutoff=likeness)
    return matches[0] if matches else None


def similar_configs(path: Path) -> str:
    """What there is beside a config that is not, for the message."""
    if path.parent.is_dir():
        names = sorted(p.name for p in path.parent.glob('*.py'))
        return f'In {path.parent} there are: {", ".join(names) or "no configs"}'
    return f'There is no folder {path.parent}'
