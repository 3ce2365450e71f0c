"""Draw docs/images/*.svg, the drawings of docs/how-it-works.md.

python dev/drawings.py
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use('agg')
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from mmpoolformer import ARCHS

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / 'docs' / 'images'
INK, PALE, WHITE = '#1d2433', '#e8ecf7', '#ffffff'
MIXER, MLP, NORM, SCALE = '#f7c873', '#9cc9f2', '#dfe3ee', '#f2ded0'
# Maps that one block keeps for its backward, in float32 on the CPU: name and channels over C.
KEPT = {
    'plain': [
        ('x', 1, PALE),
        ('n1', 1, NORM),
        ('P−1', 1, MIXER),
        ('y', 1, PALE),
        ('n2', 1, NORM),
        ('fc1', 4, MLP),
        ('GELU', 4, MLP),
        ('fc2', 1, MLP),
    ],
    'fused': [
        ('x', 1, PALE),
        ('y', 1, PALE),
        ('n2', 1, NORM),
        ('fc1', 4, MLP),
        ('GELU', 4, MLP),
        ('fc2', 1, MLP),
    ],
    'fused, with_cp': [('x', 1, PALE)],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=OUT, help='folder of the drawings')
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        save(draw(), out / f'{name}.svg')


def pyramid():
    """Stem and stages of PoolFormer-S12, with what they hand on."""
    figure, axis = canvas(11, 3.1)
    arch = ARCHS['s12']
    box(axis, 0.7, 2.1, 1.1, 0.8, 'image\nH × W', WHITE)
    for i, (blocks, channels) in enumerate(zip(arch.layers, arch.embed_dims)):
        x = 2.9 + 2.2 * i
        down = 'conv 7×7, stride 4' if i == 0 else 'conv 3×3, stride 2'
        arrow(axis, (x - 2.2 + (0.55 if i == 0 else 0.75), 2.1), (x - 0.75, 2.1))
        box(axis, x, 2.1, 1.5, 1.1, f'stage {i}\n{blocks} blocks\n{channels} channels', MIXER)
        note(axis, x, 2.82, down)
        arrow(axis, (x, 1.55), (x, 1.1))
        box(axis, x, 0.8, 1.1, 0.5, 'norm', NORM)
        arrow(axis, (x, 0.55), (x, 0.28))
        note(axis, x, 0.12, f'H/{4 << i} × W/{4 << i}')
    return figure


def block():
    """The MetaFormer block: two halves of one shape."""
    figure, axis = canvas(12.2, 3.3)
    y = 1.35
    note(axis, 0.2, y, 'x', 13)
    arrow(axis, (0.35, y), (0.75, y))
    x, starts = 1.25, []
    for middle, colour, caption in (
        ('token mixer', MIXER, 'mixes positions, channel by channel'),
        ('channel MLP', MLP, 'mixes channels, position by position'),
    ):
        start = x - 0.72
        starts.append(start)
        for width, text, fill in (
            (0.9, 'norm', NORM),
            (1.35, middle, colour),
            (1.2, 'LayerScale', SCALE),
        ):
            centre = x - 0.45 + width / 2
            box(axis, centre, y, width, 0.8, text, fill)
            arrow(axis, (centre + width / 2, y), (centre + width / 2 + 0.28, y))
            x += width + 0.28
        plus = x - 0.27
        axis.add_patch(plt.Circle((plus, y), 0.18, fc=WHITE, ec=INK, lw=1.3, zorder=3))
        note(axis, plus, y, '+', 13)
        skip(axis, start, plus, y, 2.45)
        note(axis, (start + plus) / 2, 2.65, 'shortcut')
        note(axis, (start + plus) / 2, 0.65, caption)
        arrow(axis, (plus + 0.18, y), (plus + 0.72, y))
        x = plus + 1.17
    note(axis, x - 0.28, y, 'next', 12)
    mixers = 'pooling (PoolFormer) · attention and sep_conv (CAFormer, ConvFormer) · identity'
    note(axis, 6.1, 0.2, f'token mixers: {mixers}')
    return figure


def pooling():
    """The first half of a block, as operations over the map."""
    figure, axis = canvas(11, 3.4)
    rows = (
        (
            2.55,
            'as the paper writes it',
            ['μ, σ of x', 'n = γ(x−μ)/σ+β', 'P(n)', 'P(n) − n', '· s', '+ x'],
            [NORM, NORM, MIXER, MIXER, SCALE, PALE],
        ),
        (0.85, 'as it is computed', ['σ of x', 'y = x + k (P(x) − x)'], [NORM, MIXER]),
    )
    for y, title, steps, colours in rows:
        axis.text(0.1, y + 0.62, title, ha='left', va='center', fontsize=12.5, weight='bold')
        note(axis, 0.25, y, 'x', 13)
        x = 0.45
        for step, colour in zip(steps, colours):
            width = 0.62 + 0.088 * len(step)
            arrow(axis, (x, y), (x + 0.25, y))
            box(axis, x + 0.25 + width / 2, y, width, 0.66, step, colour)
            x += 0.25 + width
        arrow(axis, (x, y), (x + 0.3, y))
        note(axis, x + 0.45, y, 'y', 13)
    note(axis, 8.3, 0.85, 'k = s γ / σ, one factor per sample and channel', 11)
    return figure


def kept():
    """The maps that a block keeps for its backward, as squares of C channels."""
    figure, axis = canvas(11, 3.6)
    side, y = 0.52, 2.95
    for mode, maps in KEPT.items():
        axis.text(0.1, y, mode, ha='left', va='center', fontsize=12.5, weight='bold')
        x = 1.75
        for name, channels, colour in maps:
            for k in range(channels):
                square(axis, x + k * side, y - side / 2, side, colour)
            note(axis, x + channels * side / 2, y - 0.45, name, 9.5)
            x += channels * side + 0.1
        total = sum(channels for _, channels, _ in maps)
        note(axis, x + 0.45, y, f'= {total}', 12)
        y -= 1.15
    return figure


DRAWINGS = dict(pyramid=pyramid, block=block, pooling=pooling, kept=kept)


# Parts ---------------------------------------------------------------------------------------


def canvas(width, height):
    """A white card with units of inches."""
    figure = plt.figure(figsize=(width, height), facecolor=WHITE)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.set_axis_off()
    return figure, axis


def box(axis, x, y, width, height, text, colour):
    corner = x - width / 2, y - height / 2
    style = 'round,pad=0,rounding_size=0.08'
    patch = FancyBboxPatch(corner, width, height, style, fc=colour, ec=INK, lw=1.2, zorder=2)
    axis.add_patch(patch)
    axis.text(x, y, text, ha='center', va='center', fontsize=12, color=INK, zorder=4)


def square(axis, x, y, side, colour):
    axis.add_patch(plt.Rectangle((x, y), side, side, fc=colour, ec=INK, lw=0.9))


def arrow(axis, start, end):
    axis.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle='-|>', mutation_scale=11, lw=1.3, color=INK, shrinkA=0, shrinkB=0
        )
    )


def skip(axis, start, end, y, top):
    """A shortcut around a branch."""
    axis.plot([start, start, end], [y, top, top], color=INK, lw=1.3, zorder=1)
    arrow(axis, (end, top), (end, y + 0.18))


def note(axis, x, y, text, size=11.5):
    axis.text(x, y, text, ha='center', va='center', fontsize=size, color=INK, zorder=4)


def save(figure, path):
    """Write an SVG whose letters are text and whose bytes do not change from run to run."""
    style = {'svg.fonttype': 'none', 'svg.hashsalt': 'mmpoolformer', 'font.family': 'sans-serif'}
    with plt.rc_context(style):
        figure.savefig(path, metadata=dict(Date=None))
    plt.close(figure)


if __name__ == '__main__':
    main()
