"""Train every token mixer in the same frame on the digits set; write docs/reports/token-mixers.md.

RetinaNet and Semantic FPN with the S12 frame: see :mod:`study`.
"""

import torch
from common import machine, markdown, write_json, write_page
from study import (
    SIZE,
    TASKS,
    budget,
    cost,
    findings,
    in_words,
    mean,
    measure_speed,
    paired_table,
    parse_args,
    plot,
    score_cells,
    score_headings,
    train_all,
)

from mmpoolformer import MetaFormer
from mmpoolformer.models.token_mixers import is_of_one_size

MIXERS = ('identity', 'random', 'pooling', 'spatial_mlp', 'sep_conv', 'attention')
FRAME = 'poolformer_s12'
SPEED_SIZES = (SIZE, 512)


def main():
    args = parse_args(__doc__.splitlines()[0], 'mixers', MIXERS)
    records = train_all(args.mixers, put, args)
    costs = {mixer: cost(build(mixer, SIZE)) for mixer in args.mixers}
    for size in SPEED_SIZES:
        # A matrix over the positions of a large image would not fit.
        fitting = [mixer for mixer in costs if size == SIZE or not is_of_one_size(mixer)]
        measure_speed(costs, {mixer: build(mixer, size) for mixer in fitting}, size, args.rounds)
    write(args, records, costs)


def put(cfg, mixer: str):
    """Put the frame with a mixer into a config."""
    cfg.model.backbone.update(type='MetaFormer', arch=FRAME, token_mixers=mixer, input_size=SIZE)


def build(mixer: str, size: int) -> MetaFormer:
    torch.manual_seed(0)
    return MetaFormer(FRAME, token_mixers=mixer, input_size=size).eval()


# Report --------------------------------------------------------------------------------------


def write(args, records: list[dict], costs: dict[str, dict]):
    """Write the numbers, the plot and the page."""
    content = dict(machine=machine('cpu'), iterations=budget(args), records=records, costs=costs)
    folder = args.out / 'token-mixers'
    write_json(folder / 'study.json', content)
    plot(records, costs, folder / 'study.png')
    print('\n'.join(results_table(records, costs)))
    write_page(args.out / 'token-mixers.md', page(content))


def page(content: dict) -> list[str]:
    records, costs = content['records'], content['costs']
    seeds = sorted({record['seed'] for record in records})
    hours = sum(record['seconds'] for record in records) / 3600
    name, versions = content['machine']['name'], content['machine']['torch']
    return [
        '# Token mixers',
        '',
        'Made by `benchmarks/token_mixers.py`; do not edit. Is it the frame or the mixer that '
        'counts (arXiv 2111.11418), asked again on dense prediction: every token mixer in the '
        'same frame (S12), trained with the same budget on the '
        '[digits](../guides/train.md#the-digits-data-set). '
        'How to use them: [MetaFormer](../metaformer.md).',
        '',
        *results_table(records, costs),
        '',
        f'Mean ± standard deviation over {len(seeds)} seeds. Parameters (in brackets: frozen '
        'ones), GMACs and milliseconds for one image are those of the backbone as built, in '
        'float32; «–» where the matrices over positions would not fit.',
        '',
        '![Scores of all runs, and milliseconds](token-mixers/study.png)',
        '',
        'A dot per seed, a line at the mean.',
        '',
        '## What it shows',
        '',
        *[line + without_mixer(records, task) for line, task in zip(findings(records), TASKS)],
        '',
        *paired_table(records, list(costs), 'pooling'),
        '',
        '## Budget',
        '',
        f'- {in_words(content["iterations"])}, LayerScale 0.01. The recipe was made for pooling, '
        'and not tuned for the others.',
        '- So small a budget shows what a mixer learns soon, not where it ends.',
        '- No position embeddings: attention and identity know positions only from the '
        'convolutions between the stages and their padding.',
        f'- {len(records)} trainings, {hours:.1f} hours in all, on one core each, of {name}; '
        f'torch {versions}. [All numbers](token-mixers/study.json).',
    ]


def without_mixer(records: list[dict], task: str) -> str:
    """What the frame alone is worth, in a sentence."""
    means = {record['contender']: mean(records, task, record['contender']) for record in records}
    best = max(means.values())
    if 'identity' not in means or not best:
        return ''
    share = 100 * means['identity'] / best
    return f' The frame without any mixer reaches {share:.0f} % of the best.'


def results_table(records: list[dict], costs: dict[str, dict]) -> list[str]:
    rows = []
    for mixer, its in costs.items():
        frozen = f' (+ {its["frozen"] / 1e6:.1f})' if its['frozen'] else ''
        rows.append((
            mixer,
            *score_cells(records, mixer),
            f'{its["parameters"] / 1e6:.1f} M{frozen}',
            f'{its["macs"] / 1e9:.2f}',
            *(f'{its["milliseconds"][str(size)]:.1f}' if str(size) in its['milliseconds'] else '–'
              for size in SPEED_SIZES),
        ))  # fmt: skip
    sizes = [f'ms on one core, {size}²' for size in SPEED_SIZES]
    return markdown(('mixer', *score_headings(), 'parameters', f'GMACs, {SIZE}²', *sizes), rows)


if __name__ == '__main__':
    main()
