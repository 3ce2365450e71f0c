"""Names and colours of classes, as files of other people give them."""

from ..archs import is_integer

LONGEST_CLASS = 200  # characters of a name


def are_class_names(classes: object) -> bool:
    """Whether these are names that can be printed."""
    return isinstance(classes, (list, tuple)) and all(
        isinstance(name, str) and name.isprintable() and len(name) <= LONGEST_CLASS
        for name in classes
    )


def are_colours(palette: object) -> bool:
    """Whether these are colours of three bytes."""
    return isinstance(palette, (list, tuple)) and all(
        isinstance(colour, (list, tuple))
        and len(colour) == 3
        and all(is_integer(part) and 0 <= part < 256 for part in colour)
        for colour in palette
    )
