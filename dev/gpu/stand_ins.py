"""Modules in the place of compiled ones that a machine does not have: using them is an error."""

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

# mmcv's compiled operations, and what mmcv and mmdet import at their top but a training step
# does not call.
NAMES = ('mmcv._ext', 'pycocotools', 'shapely', 'matplotlib', 'torchvision', 'PIL', 'scipy')


class AbsentError(ImportError):
    """Something was used that is not installed."""


class StandIn(ModuleType):
    """A module in which every name is an :class:`_Absent`."""

    __path__ = ()

    def __getattr__(self, name: str):
        return _part(self.__name__, name)


class _Absent(type):
    """A class that can be named, imported and inherited from, and raises when it is called."""

    def __getattr__(cls, name: str):
        return _part(cls.__module__, name)

    def __call__(cls, *_, **__):
        absent = cls.__mro__[-2].__module__  # of a class that inherits from it too
        raise AbsentError(f'{absent} is not on this machine')


def _part(whole: str, name: str) -> _Absent:
    if name.startswith('__'):
        raise AttributeError(name)
    return _Absent(name, (), dict(__module__=f'{whole}.{name}'))


class _Finder:
    """The last one asked: for modules that nobody else has found."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if any(name == absent or name.startswith(f'{absent}.') for absent in self.names):
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def install(names: tuple[str, ...] = NAMES) -> None:
    """Let an import of these modules succeed from now on where they are not installed."""
    sys.meta_path.append(_Finder(names))


def is_stand_in(name: str) -> bool:
    """Whether a module is one of ours."""
    return isinstance(importlib.import_module(name), StandIn)
