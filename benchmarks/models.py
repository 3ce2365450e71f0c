"""Make the page of the model zoo: every config of model-index.yml with what is known of it.

Counts multiply-accumulates and memory with ``tools/get_flops.py`` and keeps them in
docs/reports/models/counts.json; the rest is read from the index and from the benchmark of speed.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import yaml
from common import REPORTS, ROOT, markdown, write_json, write_page

TABLES = {
    'retinanet': 'RetinaNet, COCO',
    'mask-rcnn': 'Mask R-CNN, COCO',
    'sem-fpn': 'Semantic FPN, ADE20K',
}
SPEEDS = {'as built': 'ours', 'folded and compiled': 'ours, deploy + compile'}
RETRAINED = 'mIoU of the weights'
PAPER = '[arXiv 2111.11418](https://arxiv.org/abs/2111.11418)'


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=REPORTS, help='folder of the report')
    parser.add_argument(
        '--keep-counts', action='store_true', help='read the counts that are there, count nothing'
    )
    return parser.parse_args()


def main():
    args = parse_args()
    kept = args.out / 'models' / 'counts.json'
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Models']
    if not args.keep_counts:
        write_json(kept, {model['Name']: count(model['Config']) for model in index})
    speeds = json.loads((REPORTS / 'benchmarks' / 'cpu-inference.json').read_text())
    write_page(args.out / 'models.md', page(index, json.loads(kept.read_text()), speeds))


def count(config: str) -> dict:
    """What ``tools/get_flops.py`` finds for one image of the recipe's size."""
    print(f'counting {config}', flush=True)
    command = [sys.executable, ROOT / 'tools' / 'get_flops.py', ROOT / config]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return read_counts(run.stdout)


def read_counts(output: str) -> dict:
    """The image, GMACs of the whole and of the backbone, and MiB, of what the tool prints."""
    macs = {
        part: float(re.search(rf'{part}\W+[\d.]+ M\W+([\d.]+) G', output)[1])
        for part in ('whole', 'backbone')
    }
    weights, maps = re.search(r'(\d+) MiB of weights and at most (\d+) MiB', output).groups()
    return dict(
        image=re.search(r'image of (\S+)', output)[1],
        gmacs=macs['whole'],
        backbone_gmacs=macs['backbone'],
        weights_mebibytes=int(weights),
        maps_mebibytes=int(maps),
    )


def page(index: list[dict], counts: dict, speeds: dict) -> list[str]:
    """The lines of the page.

    Args:
        index: The models of ``model-index.yml``.
        counts: What :func:`count` returned, by name.
        speeds: The benchmark's ``cpu-inference.json``.
    """
    lines = [
        '# Model zoo',
        '',
        'Made by `benchmarks/models.py` from [model-index.yml](../../model-index.yml); do not '
        f'edit. Results are the paper’s ({PAPER}, Tables 3 and 4), by the official code. The '
        'configs hold its recipe and were not trained again here.',
    ]
    for method, heading in TABLES.items():
        models = [model for model in index if model['Name'].startswith(method)]
        lines += ['', f'## {heading}', '', *table(models, counts, '../../')]
    return [*lines, '', *notes(), '', '## Speed of the backbones', '', *speed_table(index, speeds)]


def table(models: list[dict], counts: dict, root: str) -> list[str]:
    """A row per model; the column of weights only where there are some."""
    has_weights = any('Weights' in model for model in models)
    headings = ['config', 'published', 'image', 'parameters', 'GMACs', 'of these the backbone']
    headings += ['MiB of weights', 'MiB of maps']
    headings += ['trained again by mmseg'] if has_weights else []
    rows = []
    for model in models:
        found = counts[model['Name']]
        metrics = {k: v for result in model['Results'] for k, v in result['Metrics'].items()}
        again = metrics.pop(RETRAINED, None)
        row = [
            f'[{model["Name"]}]({root}{model["Config"]})',
            ', '.join(f'{name} {value}' for name, value in metrics.items()),
            found['image'],
            f'{model["Metadata"]["Parameters"] / 1e6:.1f} M',
            f'{found["gmacs"]:.1f}',
            f'{found["backbone_gmacs"]:.1f}',
            found['weights_mebibytes'],
            found['maps_mebibytes'],
        ]
        if has_weights:
            row.append(f'mIoU {again}: [weights]({model["Weights"]})' if again else '–')
        rows.append(row)
    return markdown(headings, rows)


def notes() -> list[str]:
    return [
        'GMACs and memory are those of one image of inference in float32 on the CPU, by '
        '`python tools/get_flops.py CONFIG`, which '
        '[says what it counts](../guides/curves.md#count); «maps» is the most that they take at '
        'one time. Training takes more: [memory](memory.md). The weights are another training of '
        'the same recipe, by mmseg’s authors, with the stem '
        '[left frozen](../metaformer.md#weights-of-mmpretrain-and-mmseg), and the mIoU beside them '
        'is the one that the metafile of mmseg 1.2.2 lists. Its logs have 37.07, 40.36, 41.81, '
        '42.35 and 42.76, as its README says. No other weights of whole models are linked here; '
        'those of the backbones load [from every source](../guides/checkpoints.md).',
        '',
        '```shell',
        'tools/dist_train.sh NAME 8            # 8 GPUs; with fewer, add --auto-scale-lr',
        'python tools/test.py NAME WEIGHTS     # a file or a URL',
        '```',
    ]


def speed_table(index: list[dict], speeds: dict) -> list[str]:
    """Milliseconds of the backbones, where the benchmark has them."""
    archs = list(dict.fromkeys(model['Metadata']['Architecture'][0] for model in index))
    rows = []
    for arch in archs:
        wanted = dict(
            mode='inference', dtype='float32', size='512x512', batch=1, arch=arch[-3:].lower()
        )
        found = {
            record['contender']: f'{record["milliseconds"]:.0f}'
            for record in speeds['records']
            if wanted.items() <= record.items()
        }
        rows.append([arch, *(found.get(name, 'not measured') for name in SPEEDS.values())])
    machine = speeds['machine']
    return [
        *markdown(['backbone', *(f'ms, {name}' for name in SPEEDS)], rows),
        '',
        f'One image of 512×512 in float32 on {machine["name"]}, torch {machine["torch"]}, by '
        '`benchmarks/speed.py`: [all measurements](benchmarks.md).',
    ]


if __name__ == '__main__':
    main()
