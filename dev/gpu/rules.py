"""From what was measured to the table of the package; :mod:`mmpoolformer.ops.measured` decides."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

from mmpoolformer.ops.measured import MOST_ERROR
from mmpoolformer.utils.files import replace_file

# Distances from float64 below it are the same: float32 has no more digits in its sums.
LEAST_ERROR = 1e-5
LARGEST = 1e9  # in place of inf and nan, which JSON does not have


def error_ratio(actual: float, plain: float) -> float:
    """A distance from float64 over the plain definition's."""
    ratio = actual / max(plain, LEAST_ERROR) if math.isfinite(plain) else LARGEST
    return min(max(ratio, 1 / LARGEST), LARGEST) if math.isfinite(ratio) else LARGEST


def is_wrong(record: dict) -> bool:
    """Whether a record of a step says that kernels are wrong, or that the step failed."""
    return (
        'error' in record
        or ('failed' in record and record['contender'].startswith('ours'))
        or record.get('ratio', 0) > MOST_ERROR
        or record.get('sanitizer') == 'hit'
        or bool(record.get('refused'))
    )


def device_entry(records: Iterable[dict]) -> dict:
    """What the table says of a device.

    Args:
        records: Of all steps, each step once.
    """
    operations, backbone = {}, {}
    for record in records:
        name = record.get('operation')
        if name:
            empty = dict(error_ratio=None, sanitizer='not run', cases={})
            known = operations.setdefault(name, empty)
            if 'ratio' in record:
                known['error_ratio'] = max(known['error_ratio'] or 0, record['ratio'])
            if 'sanitizer' in record:
                known['sanitizer'] = record['sanitizer']
            if 'pytorch' in record and 'used' in record:
                known['cases'][record['case']] = _two(record, 'triton', 'pytorch')
        elif 'pixels' in record:
            row = dict(pixels=record['pixels'], **_two(record, 'fused', 'plain'))
            backbone.setdefault(record['direction'], []).append(row)
    return dict(operations=operations, backbone=backbone)


def _two(record: dict, *keys: str) -> dict:
    return {key: record[key] for key in keys}


def write_table(path: Path, device: str, software: dict, entry: dict) -> None:
    """Replace what a table says of a device.

    Args:
        path: The table; it need not be there.
        device: The name of the device.
        software: Versions that it was measured with.
        entry: What :func:`device_entry` made of the measurements.
    """
    content = json.loads(path.read_text()) if path.exists() else dict(devices={})
    content['devices'][device] = dict(software=software, **entry)
    replace_file(path, json.dumps(content, indent=1) + '\n')
