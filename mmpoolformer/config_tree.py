"""Look at the dictionaries that a config is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


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


def type_of(node: Any) -> str:
    """The name of the type that a config's dictionary asks for, without scope or module."""
    kind = node.get('type') if isinstance(node, dict) else None
    return str(getattr(kind, '__name__', kind)).split('.')[-1]
