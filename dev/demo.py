"""Train a detector and a segmentor on the digits data set, on two CPU cores, and use them.

Ends with one table and a page of pictures: curves, predictions beside the ground truth, and where
the models look. Trainings that are done already are not done again.
"""

import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from drawing import draw
from mmengine.config import Config
from page import Section, write_page
from rich.console import Console
from rich.table import Table
from training import TrainingError, side_by_side, train_once

from mmpoolformer.utils.progress import Bars

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / 'data' / 'digits'
OUT = ROOT / 'work_dirs' / 'demo'
CONFIGS = (
    ROOT / 'configs' / 'detection' / 'retinanet_poolformer-s12_fpn_digits.py',
    ROOT / 'configs' / 'segmentation' / 'sem-fpn_poolformer-s12_digits.py',
)
PREDICTED, EXPLAINED = 4, 2  # validation images
USING = Lock()  # the toolboxes build models in one thread at a time
PICTURE = 'predictions.png'
HEADINGS = ('model', 'box mAP', 'mAP50', 'mIoU', 'seconds', 'parameters')


def main():
    started = time.time()
    os.chdir(ROOT)  # the configs name data/digits
    try:
        if not DATA.exists():
            call('make_digits_dataset', DATA)
        with Bars() as bars:
            runs = [(config, bars) for config in CONFIGS]
            results, sections = zip(*side_by_side(train_and_use, runs, len(runs), bars))
    except TrainingError as error:
        sys.exit(f'error: {error}')
    except subprocess.CalledProcessError as error:
        sys.exit(f'error: this failed, see above: {shlex.join(map(str, error.cmd))}')
    rows = [row_of(result) for result in results]
    page = write_page(OUT / 'index.html', HEADINGS, rows, sections)
    show_table(rows)
    print(f'{time.time() - started:.0f} s; the pictures: {page.relative_to(ROOT)}')


def train_and_use(config: Path, bars: Bars, threads: int) -> tuple[dict, Section]:
    """The result of a training, and its part of the page."""
    result = train_once(config, OUT / config.stem, bars, threads)
    with USING:
        return result, use(result)


def call(tool: str, *arguments) -> str:
    """Run a program of ``tools/`` as a user would; return its command line."""
    words = [f'tools/{tool}.py', *(relative(argument) for argument in arguments)]
    line = shlex.join(['python', *words])
    # Through this process, as the bars of a training may be on the screen.
    command = [sys.executable, *words]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(f'$ {line}\n{run.stdout}', end='', flush=True)
    run.check_returncode()
    return line


def relative(argument) -> str:
    path = Path(argument)
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else argument)


def use(result: dict) -> Section:
    """Draw, predict and explain with a trained model; add its number of parameters."""
    config, folder = Path(result['config']), OUT / result['model']
    checkpoint = (folder / 'last_checkpoint').read_text()
    result['parameters'] = draw(Config.fromfile(config), checkpoint, DATA, folder / PICTURE)
    images = sorted((DATA / 'images' / 'validation').glob('*.jpg'))
    predictions, explanations = folder / 'predictions', folder / 'explanations'
    model = config, checkpoint
    with ThreadPoolExecutor() as pool:
        tools = (
            pool.submit(call, 'predict', *model, *images[:PREDICTED], '--out', predictions),
            pool.submit(call, 'explain', *model, *images[:EXPLAINED], '--out', explanations),
        )
        commands = [tool.result() for tool in tools]
    pictures = {
        'How it learned': [folder / 'curves.png'],
        'Predictions beside the ground truth': [folder / PICTURE],
        'Predictions of tools/predict.py': sorted((predictions / 'pictures').iterdir()),
        'Where it looks, by tools/explain.py': sorted(explanations.glob('*_cam.png')),
        'Its features': sorted(explanations.glob('*_features.png')),
    }
    return Section(result['model'], commands, pictures)


def row_of(result: dict) -> tuple[str, ...]:
    metrics = result['metrics']
    found = (metrics.get(name) for name in ('coco/bbox_mAP', 'coco/bbox_mAP_50', 'mIoU'))
    return (
        result['model'],
        *('–' if value is None else f'{value:.3g}' for value in found),
        f'{result["seconds"]:.0f}',
        f'{result["parameters"] / 1e6:.2f} M',
    )


def show_table(rows: list[tuple[str, ...]]):
    table = Table(title='Digits on textures, from random weights')
    for heading in HEADINGS:
        table.add_column(heading, justify='left' if heading == 'model' else 'right')
    for row in rows:
        table.add_row(*row)
    Console(width=100).print(table)


if __name__ == '__main__':
    main()
