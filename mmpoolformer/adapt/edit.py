"""Change a copy of a config, and keep account of what was changed and why."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from mmengine.config import Config

from ..utils.config_tree import find, has, type_of


class Change(NamedTuple):
    """One entry that an edit changed.

    Attributes:
        key: Dotted path in the config, as for ``--cfg-options``.
        old: Value before, ``None`` where there was none.
        new: Value after.
        reason: Why.
    """

    key: str
    old: Any
    new: Any
    reason: str

    def __str__(self) -> str:
        return f'{self.key}: {_short(self.old)} → {_short(self.new)} ({self.reason})'


class Edit:
    """A copy of a config that is being changed.

    Paths are tuples of keys and list positions.

    Attributes:
        cfg: The copy.
        changes: What was changed in it so far, in order.
    """

    def __init__(self, cfg: Config):
        # to_dict copies; without a text, Config would read the file again.
        self.cfg = Config(cfg.to_dict(), cfg_text=cfg.text or None, filename=cfg.filename)
        self.changes: list[Change] = []

    def get(self, path: tuple) -> Any:
        """What lies at a path.

        Raises:
            KeyError: There is nothing; an ``IndexError`` in a list.
        """
        node = self.cfg
        for key in path:
            node = node[key]
        return node

    def find(self, path: tuple) -> Any:
        """What lies at a path, an empty dictionary where there is nothing."""
        return find(self.cfg, path) or {}

    def set(self, path: tuple, value: Any, reason: str) -> None:
        """Change the entry at a path, if its value is another one, and note it."""
        parent, key = self.get(path[:-1]), path[-1]
        is_list = isinstance(parent, (list, tuple))
        old = parent[key] if is_list else parent.get(key)
        if isinstance(old, tuple) and isinstance(value, list):
            value = tuple(value)  # some modules insist on it
        if old == value and (old is not None or is_list or key in parent):
            return
        self.changes.append(Change('.'.join(map(str, path)), copy.deepcopy(old), value, reason))
        parent[key] = value


def _short(value: Any, length: int = 100) -> str:
    if has(value, 'type'):
        arguments = ', '.join(
            f'{k}={v!r}' for k, v in value.items() if k not in ('type', 'init_cfg')
        )
        text = f'{type_of(value)}({arguments})'
    else:
        text = repr(value)
    return text if len(text) <= length else f'{text[: length - 1]}…'
