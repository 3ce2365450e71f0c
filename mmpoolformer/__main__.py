"""The programs of ``tools/`` as commands: ``python -m mmpoolformer train CONFIG``."""

from __future__ import annotations

import ast
import runpy
import sys
from difflib import get_close_matches
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
# In a wheel the tools lie where mim looks for them, in a checkout beside the package.
FOLDERS = (PACKAGE / '.mim' / 'tools', PACKAGE.parent / 'tools')
USAGE = 'usage: python -m mmpoolformer COMMAND …'


def commands() -> dict[str, Path]:
    """The scripts of the package by the names of their commands."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), None)
    if folder is None:
        sys.exit(f'error: no tools in {FOLDERS[0]} or {FOLDERS[1]}: install the package again')
    return {path.stem.replace('_', '-'): path for path in sorted(folder.glob('*.py'))}


def overview(known: dict[str, Path]) -> str:
    """The commands, each with the first line of its script."""
    width = max(map(len, known))
    lines = [f'  {name:<{width}}  {_first_line(path)}' for name, path in known.items()]
    end = 'python -m mmpoolformer COMMAND --help says more.'
    return '\n'.join([USAGE, '', *lines, '', end])


def main() -> None:
    """Run a command as its script would be, from the same arguments to the same exit code."""
    known = commands()
    if len(sys.argv) < 2 or sys.argv[1] in ('-h', '--help', 'help'):
        print(overview(known))
        return
    name = sys.argv[1].removesuffix('.py').replace('_', '-')
    if name not in known:
        near = get_close_matches(name, known, n=1)
        remedy = f'did you mean {near[0]}?' if near else f'there are {", ".join(known)}'
        print(f'error: there is no command {sys.argv[1]}; {remedy}', file=sys.stderr)
        sys.exit(2)
    script = known[name]
    sys.argv = [str(script), *sys.argv[2:]]
    sys.path.insert(0, str(script.parent))  # as Python does for a script
    runpy.run_path(str(script), run_name='__main__')


def _first_line(script: Path) -> str:
    text = ast.get_docstring(ast.parse(script.read_text())) or ''
    return text.partition('\n')[0]


if __name__ == '__main__':
    main()
