"""Find one's way in the dictionaries and lists that a config is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config


def walk(node: Any, path: tuple = ()) -> Iterator[tuple[tuple, dict]]:
    """Find the dictionaries in a config or a part of one, outer before inner.

    Args:
        node: A dictionary, a list or tuple with dictionaries somewhere in it, or a value.
        path: Keys and list positions that lead to ``node``.

    Yields:
        The path of a dictionary, and the dictionary.
    """
    if isinstance(node, dict):
        yield path, node
        children = list(node.items())
    elif isinstance(node, (list, tuple)):
        children = list(enumerate(node))
    else:
        return
    for key, child in children:
        yield from walk(child, (*path, key))


def follow(node: Any, path: Sequence) -> tuple[Any, int]:
    """Go along a path as far as it leads.

    Args:
        node: A config or a part of one.
        path: Keys and list positions; positions may be text, as in dotted paths.

    Returns:
        What lies there, and how many keys led to it.
    """
    for done, key in enumerate(path):
        if isinstance(node, (list, tuple)) and str(key).isdigit() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, (dict, Config)) and key in node:
            node = node[key]
        else:
            return node, done
    return node, len(path)


def find(node: Any, path: Sequence) -> Any:
    """What lies at a path, see :func:`follow`; ``None`` where it leads nowhere."""
    found, done = follow(node, path)
    return found if done == len(path) else None


def has(node: Any, *keys: str) -> bool:
    """Whether a part of a config is a dictionary with one of the keys."""
    return isinstance(node, dict) and any(key in node for key in keys)


def type_of(node: Any) -> str:
    """The name of the type that a config's dictionary asks for, without scope or module."""
    kind = node.get('type') if isinstance(node, dict) else None
    return str(getattr(kind, '__name__', kind)).split('.')[-1]


def braced(node: Any) -> str | None:
    """A text in a part of a config that cannot be written into a config file.

    mmengine replaces what stands in double braces when it reads one, by regular expressions that
    may stand there, too: a name could end its quotes and become code.
    """
    if isinstance(node, str):
        return node if '{{' in node else None
    children = node if isinstance(node, (list, tuple)) else ()
    if isinstance(node, dict):
        children = (*node, *node.values())
    return next((text for child in children if (text := braced(child)) is not None), None)


def unsync_batch_norms(model: dict) -> None:
    """Turn ``SyncBN``, which exists on GPUs only, into ``BN``, in place."""
    for _, node in walk(model):
        if type_of(node) in ('SyncBN', 'MMSyncBN'):
            node['type'] = 'BN'
