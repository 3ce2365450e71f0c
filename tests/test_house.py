"""The rooms of the package: imports go downwards only, and files and functions stay readable."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest
from helpers import ROOT

PACKAGE = ROOT / 'mmpoolformer'
FILES = sorted(PACKAGE.rglob('*.py'))
# From the bottom to the top. Rooms of one floor do not import each other.
FLOORS = [
    ['utils', 'archs', 'version'],
    ['ops'],
    ['checkpoints'],
    ['models'],
    ['registry', 'deploy'],
    ['exporting'],
    ['datasets'],
    ['adapt'],
    ['engine'],
    ['__init__', '__main__'],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
TOOLBOXES = {'mmdet', 'mmseg'}
WITHOUT_TOOLBOXES = ('utils', 'ops', 'checkpoints', 'models')
LONGEST_FILE, LONGEST_FUNCTION = 420, 55
# Files that may be longer, each with its reason.
LONG_FILES = {}
# A Triton kernel holds its tile in registers: its parts would share a dozen arguments.
LONG_FUNCTIONS = {'mlp_kernel'}

by_file = pytest.mark.parametrize(
    'path', FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix()
)


def module_of(path):
    """The dotted name of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_of(path): path for path in FILES}


def imported(path):
    """The modules that a file imports, anywhere in it, each with its line."""
    module = module_of(path)
    package = module if path.name == '__init__.py' else module.rpartition('.')[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                outer = package.split('.')[: len(package.split('.')) - node.level + 1]
                base = '.'.join([*outer, base]).rstrip('.')
            for alias in node.names:
                inner = f'{base}.{alias.name}'
                yield (inner if inner in MODULES else base), node.lineno


def room(module):
    return [*module.split('.'), '__init__'][1]


def own(path):
    """What a file imports from the package itself."""
    return [(name, line) for name, line in imported(path) if name.split('.')[0] == PACKAGE.name]


def test_every_room_has_a_floor():
    assert {room(module) for module in MODULES} == set(FLOOR)


@by_file
def test_imports_go_downwards(path):
    here = room(module_of(path))
    upwards = [
        f'line {line}: {name}'
        for name, line in own(path)
        if room(name) != here and FLOOR[room(name)] >= FLOOR[here]
    ]
    assert not upwards


def test_no_module_imports_itself_through_others():
    # A package's own modules may name it: what they need of it stands before.
    graph = {}
    for module, path in MODULES.items():
        names = {name for name, _ in own(path)} - {module}
        graph[module] = {name for name in names if not module.startswith(f'{name}.')}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(' → '.join(error.args[1]))


@pytest.mark.parametrize(
    'path',
    [path for module, path in MODULES.items() if room(module) in WITHOUT_TOOLBOXES],
    ids=lambda path: path.relative_to(PACKAGE).as_posix(),
)
def test_the_model_knows_no_toolbox(path):
    assert not [name for name, _ in imported(path) if name.split('.')[0] in TOOLBOXES]


@by_file
def test_files_and_functions_are_short(path):
    text = path.read_text()
    name = path.relative_to(PACKAGE).as_posix()
    long = [
        f'{node.name}: {node.end_lineno - node.lineno + 1} lines'
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
        and node.name not in LONG_FUNCTIONS
    ]
    if text.count('\n') > LONGEST_FILE and name not in LONG_FILES:
        long.append(f'{name}: {text.count(chr(10))} lines')
    assert not long


# Names of torch without a promise; each is there from torch 2.1 to today.
PRIVATE_NAMES = {
    '_global_backward_hooks', '_global_backward_pre_hooks', '_global_forward_hooks',
    '_global_forward_pre_hooks',
}  # fmt: skip


def test_private_names_of_torch_are_those_of_every_torch():
    found = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('torch'):
                found |= {alias.name for alias in node.names if alias.name.startswith('_')}
    assert found == PRIVATE_NAMES
