"""``benchmarks/token_mixers.py`` trains, measures and reports, and goes on where it was."""

import json

import pytest
from helpers import load_tool, run_tool, tool_error


@pytest.fixture(scope='module')
def study(tmp_path_factory, digits_root):
    """A study of one mixer and one seed with two iterations, run twice."""
    folder = tmp_path_factory.mktemp('study')
    (folder / 'work').mkdir()
    (folder / 'work' / 'digits').symlink_to(digits_root)
    args = ['--mixers', 'identity', '--seeds', 3, '--iterations', 2, '--rounds', 1]
    times = []
    for _ in range(2):
        run_tool('token_mixers', *args, '--work-dir', folder / 'work', '--out', folder)
        times.append({p: p.stat().st_mtime_ns for p in folder.glob('work/*/result.json')})
    return folder, times


def test_every_task_is_trained_once(study):
    _, (first, again) = study
    assert len(first) == 2 and again == first


def test_report(study):
    folder, _ = study
    content = json.loads((folder / 'token-mixers' / 'study.json').read_text())
    assert {(r['task'], r['contender'], r['seed']) for r in content['records']} == {
        ('RetinaNet', 'identity', 3),
        ('Semantic FPN', 'identity', 3),
    }
    segmentation = next(r for r in content['records'] if r['task'] == 'Semantic FPN')
    metrics = json.loads(next(folder.glob('work/semantic*/val_metrics.json')).read_text())
    assert segmentation['score'] == metrics['mIoU']
    page = (folder / 'token-mixers.md').read_text()
    assert f'| {segmentation["score"]:.1f} ± 0.0 |' in page and '11.4 M' in page
    assert (folder / 'token-mixers' / 'study.png').stat().st_size > 5000


def test_costs_of_the_mixers():
    tool = load_tool('token_mixers')
    costs = {mixer: tool['cost'](tool['build'](mixer, tool['SIZE'])) for mixer in tool['MIXERS']}
    # Multiplications of 6 blocks of the third stage's channel MLP, at 8×8 positions, and so on.
    layers, dims = (2, 2, 6, 2), (64, 128, 320, 512)
    positions = [(tool['SIZE'] // 4 // 2**i) ** 2 for i in range(4)]
    mlps = sum(n * 8 * d * d * p for n, d, p in zip(layers, dims, positions, strict=True))
    inputs, kernels = (3, *dims[:3]), (49, 9, 9, 9)
    embeds = sum(k * c * d * p for k, c, d, p in zip(kernels, inputs, dims, positions, strict=True))
    assert costs['identity']['macs'] == costs['pooling']['macs'] == mlps + embeds
    spatial = sum(n * d * p * p for n, d, p in zip(layers, dims, positions, strict=True))
    assert costs['spatial_mlp']['macs'] == costs['random']['macs'] == mlps + embeds + spatial
    assert costs['random']['frozen'] == sum(n * p * p for n, p in zip(layers, positions))
    attention = sum(
        n * (4 * d * d * p + 2 * d * p * p) for n, d, p in zip(layers, dims, positions, strict=True)
    )
    assert costs['attention']['macs'] == mlps + embeds + attention


def test_errors(capsys):
    assert 'at least 2' in tool_error(capsys, 'token_mixers', '--iterations', 1)
    assert 'pooling' in tool_error(capsys, 'token_mixers', '--mixers', 'pool')
