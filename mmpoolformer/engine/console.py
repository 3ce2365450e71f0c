"""What a run prints, and what only its log file needs."""

from __future__ import annotations

import logging

from mmengine.logging import MMLogger

# The starts of mmengine's messages that nobody reads on a screen: some take hundreds of lines, and
# others are for who writes a toolbox.
FOR_THE_FILE = (
    'Config:\n',
    'Hooks will be executed in the following order',
    '\n' + '-' * 60 + '\nSystem environment',
    'Distributed training is not used',
    'Exp name: ',
    'The prefix is not set in metric class',
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
)


class ForTheScreen(logging.Filter):
    """Keep from a handler what only the log file needs."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(FOR_THE_FILE)


def quieten_console(logger: MMLogger) -> None:
    """Leave to the log file what is in :data:`FOR_THE_FILE`, and say where that is.

    A logger without a file goes on printing everything.
    """
    files = [h for h in logger.handlers if isinstance(h, logging.FileHandler)]
    if not files:
        return
    for handler in logger.handlers:
        filters = [type(each) for each in handler.filters]
        if handler not in files and ForTheScreen not in filters:
            handler.addFilter(ForTheScreen())
    logger.info(f'config, hooks and environment are in {files[-1].baseFilename}')
