"""One training in a work dir at a time: two would replace each other's checkpoints."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import TextIO

from ..utils.errors import LaunchError

NAME = '.running'  # of the file that is locked; in it stands who has locked it
TAKEN = (errno.EACCES, errno.EAGAIN)


def lock_work_dir(work_dir: Path) -> TextIO:
    """Reserve a work dir for this process, until the returned file is closed or the process ends.

    The system holds the lock for the process, not for its file: whatever way the process ends, the
    next one is not kept out. Storage without locks is left without one.

    Raises:
        LaunchError: Another process has it; names that run and the remedy.
    """
    file = (work_dir / NAME).open('a+')
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in TAKEN:
            return file
        file.seek(0)
        other = file.read(1000).strip() or 'another process'
        file.close()
        raise LaunchError(
            f'{work_dir} is in use by {other}. Wait for it or end it, or give another --work-dir'
        ) from error
    file.truncate(0)
    file.write(
        f'process {os.getpid()} on {socket.gethostname()}, started {time.strftime("%F %T")}: '
        f'{shlex.join(sys.argv)}\n'
    )
    file.flush()
    return file
