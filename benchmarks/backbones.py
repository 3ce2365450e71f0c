"""Train other backbones beside ours on the digits set; write docs/reports/backbones.md.

RetinaNet and Semantic FPN with what a user would pick instead: see :mod:`study`.
"""

import statistics

import torch
from common import machine, markdown, write_json, write_page
from mmengine.config import Config
from mmengine.registry import init_default_scope
from study import (
    SIZE,
    budget,
    cost,
    findings,
    in_words,
    measure_speed,
    paired_table,
    parse_args,
    plot,
    score_cells,
    score_headings,
    train_all,
)

from mmpoolformer.registry import build_model

SWIN = dict(type='mmdet.SwinTransformer', embed_dims=96, depths=(2, 2, 6, 2), drop_path_rate=0.0)
PVT = dict(type='mmdet.PyramidVisionTransformerV2', embed_dims=64, num_layers=(2, 2, 2, 2))
CONVNEXT = dict(type='mmseg.TIMMBackbone', model_name='convnext_tiny', pretrained=False)
POOLFORMER = 'PoolFormer-S12'
# Each as its toolbox or timm has it, without stochastic depth, with the channels of its stages.
BACKBONES = {
    POOLFORMER: (
        dict(type='PoolFormer', arch='s12', layer_scale_init_value=0.01),
        (64, 128, 320, 512),
    ),
    'CAFormer-S18': (dict(type='MetaFormer', arch='caformer_s18'), (64, 128, 320, 512)),
    'ResNet-18': (dict(type='mmdet.ResNet', depth=18), (64, 128, 256, 512)),
    'ResNet-50': (dict(type='mmdet.ResNet', depth=50), (256, 512, 1024, 2048)),
    'Swin-T': (SWIN, (96, 192, 384, 768)),
    'PVTv2-B1': (PVT, (64, 128, 320, 512)),
    'ConvNeXt-T': (CONVNEXT, (96, 192, 384, 768)),
}
POOLFORMERS = 'https://github.com/sail-sg/poolformer/blob/main'
PVTS = 'https://github.com/whai362/PVT/blob/v2/segmentation/README.md'
# From ImageNet weights: box AP of RetinaNet (COCO, 12 epochs), mIoU of Semantic FPN (ADE20K, 40,000
# iterations of 32 images or 160,000 of 16), and who says so; metafiles are those of the toolboxes.
PUBLISHED = [
    ('PoolFormer-S12', 36.2, f'{POOLFORMERS}/detection/README.md', 37.2,
     f'{POOLFORMERS}/segmentation/README.md'),
    ('PoolFormer-S24', 38.9, f'{POOLFORMERS}/detection/README.md', 40.3,
     f'{POOLFORMERS}/segmentation/README.md'),
    ('ResNet-18', 31.7, 'mmdet::retinanet/retinanet_r18_fpn_1x_coco', None, ''),
    ('ResNet-50', 36.5, 'mmdet::retinanet/retinanet_r50_fpn_1x_coco', 37.49,
     'mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512'),
    ('PVT-Tiny', 36.6, 'mmdet::pvt/retinanet_pvt-t_fpn_1x_coco', 35.7, PVTS),
    ('PVT-Small', 40.4, 'mmdet::pvt/retinanet_pvt-s_fpn_1x_coco', 39.8, PVTS),
    ('PVTv2-B1', 41.2, 'mmdet::pvt/retinanet_pvtv2-b1_fpn_1x_coco', None, ''),
]  # fmt: skip


def main():
    args = parse_args(__doc__.splitlines()[0], 'backbones', BACKBONES, share=0.5)
    records = train_all(args.backbones, put, args)
    costs = {name: cost(build(name)) for name in args.backbones}
    models = {name: build(name) for name in args.backbones}
    measure_speed(costs, models, SIZE, args.rounds)
    content = dict(machine=machine('cpu'), iterations=budget(args), records=records, costs=costs)
    folder = args.out / 'backbones'
    write_json(folder / 'study.json', content)
    plot(records, costs, folder / 'study.png')
    print('\n'.join(results_table(records, costs)))
    write_page(args.out / 'backbones.md', page(content))


def put(cfg: Config, name: str):
    """Put a backbone into a config of RetinaNet or Semantic FPN."""
    backbone, channels = BACKBONES[name]
    stages = tuple(cfg.model.backbone.get('out_indices', range(4)))
    cfg.model.backbone = dict(backbone, out_indices=stages)
    cfg.model.neck.in_channels = [channels[stage] for stage in stages]
    cfg.custom_imports = dict(imports=['mmpoolformer', 'mmdet.models', 'mmseg.models'])


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    init_default_scope('mmdet')
    backbone = build_model(dict(BACKBONES[name][0], out_indices=(0, 1, 2, 3)), 'mmdet')
    backbone.eval()  # of some of mmdet's this returns nothing
    return backbone


# Report --------------------------------------------------------------------------------------


def page(content: dict) -> list[str]:
    records, costs = content['records'], content['costs']
    seeds = sorted({record['seed'] for record in records})
    hours = sum(record['cpu_seconds'] for record in records) / 3600
    name, versions = content['machine']['name'], content['machine']['torch']
    return [
        '# Other backbones',
        '',
        'Made by `benchmarks/backbones.py`; do not edit. What a user would pick instead of '
        'PoolFormer, trained with the same budget on the '
        '[digits](../guides/train.md#the-digits-data-set).',
        '',
        *results_table(records, costs),
        '',
        f'Scores: mean ± standard deviation over {len(seeds)} seeds. Parameters, GMACs and '
        'milliseconds for one image are those of the backbone as built, in float32. «training» '
        'is the CPU time of one run with its evaluation, the mean of both tasks.',
        '',
        '![Scores of all runs, and milliseconds](backbones/study.png)',
        '',
        'A dot per seed, a line at the mean.',
        '',
        *findings(records),
        '',
        *paired_table(records, list(costs), POOLFORMER),
        '',
        '## What so small a budget cannot show',
        '',
        '- Which is best after a full training: nothing starts from ImageNet weights here, and '
        'what learns soon is ahead. Batch norms see four images at a time.',
        f'- {in_words(content["iterations"])} for all, without stochastic depth. The recipe was '
        'made for PoolFormer, which has a LayerScale of 0.01, and not tuned for the others.',
        '- Digits on textures ask for little context.',
        '',
        '## What was published',
        '',
        'From ImageNet weights, by others and not repeated here. The paper compares PoolFormer-S12 '
        'with ResNet-18 and S24 with ResNet-50 and PVT (Tables 3 and 4); ResNet’s numbers are '
        'those of the toolboxes here. More of ours: [model zoo](models.md).',
        '',
        *published(),
        '',
        '## Budget',
        '',
        f'{len(records)} trainings, {hours:.1f} hours of a core in all, of {name}; '
        f'torch {versions}. [All numbers](backbones/study.json).',
    ]


def published() -> list[str]:
    rows = []
    for name, box_ap, detection, miou, segmentation in PUBLISHED:
        of_boxes, of_labels = f'{box_ap} ({_link(detection)})', '–'
        if miou is not None:
            of_labels = f'{miou} ({_link(segmentation)})'
        rows.append((name, of_boxes, of_labels))
    return markdown(('backbone', 'RetinaNet 1×, box AP', 'Semantic FPN, mIoU'), rows)


def _link(source: str) -> str:
    return f'[source]({source})' if source.startswith('https') else f'`{source}`'


def results_table(records: list[dict], costs: dict[str, dict]) -> list[str]:
    rows = []
    for name, its in costs.items():
        minutes = statistics.mean(r['cpu_seconds'] for r in records if r['contender'] == name) / 60
        rows.append((
            name,
            *score_cells(records, name),
            f'{its["parameters"] / 1e6:.1f} M',
            f'{its["macs"] / 1e9:.2f}',
            f'{its["milliseconds"][str(SIZE)]:.1f}',
            f'{minutes:.1f}',
        ))  # fmt: skip
    costs_of = 'parameters', f'GMACs, {SIZE}²', f'ms, {SIZE}²', 'training, CPU min'
    return markdown(('backbone', *score_headings(), *costs_of), rows)


if __name__ == '__main__':
    main()
