"""The backbone with its kernels against the plain definition and against float64."""

from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Callable, Iterator
from functools import cache

import torch
from common import burst, in_turns
from torch import Tensor, nn

from mmpoolformer import PoolFormer
from mmpoolformer.ops import first_use
from mmpoolformer.ops.measured import DIRECTIONS, MOST_ERROR

from .rules import error_ratio
from .scale import Scale, Setting, distance, watched

OPTIONS = {'with_cp': dict(with_cp=True), 'frozen': dict(frozen_stages=1)}


def build(scale: Scale, setting: Setting, token_mixing: str, **options) -> nn.Module:
    """A backbone in training in which every part matters, with the same weights each time."""
    torch.manual_seed(0)
    options = dict(token_mixing=token_mixing, out_indices=scale.stages, **options)
    model = PoolFormer(scale.arch, **options)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter.data, std=parameter[0].numel() ** -0.5)
        else:
            nn.init.normal_(parameter.data, 0.3 if 'layer_scale' in name else 1, 0.1)
    return model.to(scale.device, setting.dtype).train()


def compare(scale: Scale, setting: Setting) -> Iterator[dict]:
    """As built, at every size."""
    for size in scale.image_sizes:
        yield from compare_one(scale, setting, size, 'eager')


def compare_variant(scale: Scale, variant: str) -> Iterator[dict]:
    """With checkpoints, frozen stages, compiled or as a CUDA graph; in float32 and under AMP."""
    if variant == 'graph' and scale.is_reduced:
        yield dict(variant=variant, result='not run: needs CUDA')
        return
    for setting in scale.settings[1:2] if scale.is_reduced else scale.settings[:2]:
        for size in {scale.image_sizes[0], scale.image_sizes[-1]}:
            yield from compare_one(scale, setting, size, variant)


def compare_one(
    scale: Scale, setting: Setting, size: tuple, variant: str, only: str | None = None
) -> Iterator[dict]:
    """One row, and if it is wrong one more for each operation whose kernels ran.

    Args:
        scale: How much is done.
        setting: How the model is trained.
        size: Height and width of the images.
        variant: ``eager``, ``with_cp``, ``frozen``, ``compile`` or ``graph``.
        only: The one operation that may have kernels.
    """
    options = OPTIONS.get(variant, {})
    plain = build(scale, setting, 'plain', **options)
    image = torch.randn(scale.batch, 3, *size, generator=torch.Generator().manual_seed(1))
    image = image.to(scale.device, setting.dtype)
    double = Setting('float64', torch.float64)
    exact = run(copy.deepcopy(plain).double(), image.double(), double, scale)
    expected = run(plain, image, setting, scale)

    def row(only: str | None) -> dict:
        with watched(only) as answers:
            actual = run(build(scale, setting, 'fused', **options), image, setting, scale, variant)
        # Features and gradients apart, as the ones are nearer to float64 than the others.
        pairs = [[distance(f[i], e) for f in (expected, actual)] for i, e in enumerate(exact)]
        return dict(
            setting=setting.name, size='x'.join(map(str, size)), variant=variant,
            features=pairs[0][1], plain_features=pairs[0][0],
            gradients=pairs[1][1], plain_gradients=pairs[1][0],
            ratio=max(error_ratio(triton, pytorch) for pytorch, triton in pairs),
            kernels=sorted({name for (name, *_), answer in answers.items() if answer}),
            refused=refused(scale, answers) if only is None else [],
        )  # fmt: skip

    whole = row(only)
    yield whole
    if whole['ratio'] > MOST_ERROR and only is None:
        for name in whole['kernels']:
            yield dict(operation=name, **row(name))


def refused(scale: Scale, answers: dict[tuple, bool]) -> list[str]:
    """Operations whose kernels cover a case and did not pass their first use."""
    device = torch.device(scale.device)
    return sorted({
        name
        for (name, _, sizes), answer in answers.items()
        if not answer and first_use.TRIALS[name].covers(device, *sizes)
    })  # fmt: skip


def run(
    model: nn.Module, image: Tensor, setting: Setting, scale: Scale, variant: str = 'eager'
) -> tuple[list[Tensor], list[Tensor]]:
    """Features and gradients of one training step.

    Without those of the first norms' biases, which are zero and their relative error anything.
    """
    forward = model
    if variant == 'compile':
        torch._dynamo.reset()
        forward = torch.compile(model, backend=scale.compiler)
    scaler = torch.amp.GradScaler(scale.device, enabled=setting.scales_loss)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def step() -> list[Tensor]:
        optimizer.zero_grad()
        with setting.context(scale.device, cache_enabled=variant != 'graph'):
            features = forward(image)
        scaler.scale(sum(map(weighted, features))).backward()
        return features

    features = captured(step, model) if variant == 'graph' else step()
    for _ in range(16 if setting.scales_loss else 0):  # until no gradient is infinite
        scaler.unscale_(optimizer)
        if all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None):
            break
        scaler.step(optimizer)
        scaler.update()
        features = step()
    gradients = [
        p.grad for name, p in model.named_parameters()
        if p.grad is not None and not name.endswith('norm1.bias')
    ]  # fmt: skip
    return [f.detach() for f in features], gradients


def weighted(feature: Tensor) -> Tensor:
    """A loss that gives every position a gradient of its own."""
    wide = torch.promote_types(feature.dtype, torch.float32)
    return (feature.to(wide) * _weights(feature.shape[1:], feature.device, wide)).mean()


@cache  # a CUDA graph takes no copy from the host
def _weights(shape: torch.Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(device, dtype)


def captured(step: Callable[[], list[Tensor]], model: nn.Module) -> list[Tensor]:
    """Capture a step as a CUDA graph, spoil what it wrote, and replay it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        features = step()
    with torch.no_grad():
        for tensor in [*features, *(p.grad for p in model.parameters() if p.grad is not None)]:
            tensor.fill_(float('nan'))
    graph.replay()
    torch.cuda.synchronize()
    return features


def time_small(scale: Scale) -> Iterator[dict]:
    """Milliseconds of fused and plain blocks as images get larger, waiting for Python included."""
    settings = scale.settings[: 1 if scale.is_reduced else 2]
    for setting, direction in itertools.product(settings, DIRECTIONS):
        models = {name: build(scale, setting, name) for name in ('fused', 'plain')}
        for batch, height, width in scale.small:
            image = torch.randn(batch, 3, height, width, device=scale.device)
            bursts = {
                name: _burst(model, image, setting, direction, scale)
                for name, model in models.items()
            }
            for once in bursts.values():
                once()
            times = in_turns(bursts, 1 if scale.is_reduced else 7)
            yield dict(
                direction=direction, setting=setting.name, pixels=batch * height * width,
                **{name: statistics.median(values) for name, values in times.items()},
            )  # fmt: skip


def _burst(
    model: nn.Module, image: Tensor, setting: Setting, direction: str, scale: Scale
) -> Callable[[], list[float]]:
    def step():
        with setting.context(scale.device), torch.set_grad_enabled(direction == 'training'):
            features = model(image)
        if direction == 'training':
            model.zero_grad()
            sum(f.float().mean() for f in features).backward()

    return lambda: burst(step, scale.device)
