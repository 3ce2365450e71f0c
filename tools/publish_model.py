"""Make a checkpoint ready to publish: weights alone, and a hash at the end of its name.

Optimizer state and training history are dropped. Of two sets of weights the averaged one (EMA)
is kept: mmengine saves it as ``state_dict``, timm as ``state_dict_ema`` or ``model_ema``.
"""

import argparse
import hashlib
import sys
from pathlib import Path

from mmpoolformer.checkpoints import CheckpointError, read_checkpoint, save_state_dict, unwrap
from mmpoolformer.utils.files import aside

EMA = ('state_dict_ema', 'model_ema')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('src', help='checkpoint of a training run')
    parser.add_argument('dst', type=Path, help='NAME.pth; NAME-HASH.pth is written')
    parser.add_argument('--allow-pickle', action='store_true', help='read files that execute code')
    args = parser.parse_args()
    if args.dst.suffix != '.pth':
        parser.error(f'{args.dst}: give a .pth name, as mm tools expect')
    try:
        print(publish(args.src, args.dst, args.allow_pickle))
    except CheckpointError as error:
        sys.exit(f'error: {error}')


def publish(src: str, dst: Path, allow_pickle: bool = False) -> Path:
    """Write the published file and return its path; neither ``src`` nor ``dst`` is touched."""
    checkpoint = read_checkpoint(src, allow_pickle)
    parts = checkpoint if isinstance(checkpoint, dict) else {}
    averaged = [key for key in EMA if isinstance(parts.get(key), dict)]
    kept = {'state_dict': unwrap(checkpoint, src, tuple(averaged) or ('state_dict', 'model'))}
    for key, tensor in kept['state_dict'].items():
        if tensor.is_complex():
            raise CheckpointError(f'{src} holds complex numbers in {key}, which no weights are')
        if not tensor.isfinite().all():
            raise CheckpointError(f'{src} holds NaN or Inf in {key}')
    if averaged or 'ema_state_dict' in checkpoint:
        print('the averaged weights (EMA) are kept')
    if checkpoint.keys() != kept['state_dict'].keys():
        if 'meta' in checkpoint:
            kept['meta'] = checkpoint['meta']
        wrappers = {'state_dict', 'model', *averaged, *kept}
        dropped = sorted(map(str, checkpoint.keys() - wrappers))
        print(f'dropped: {" ".join(dropped) or "nothing"}')
    with aside(dst) as partial:
        save_state_dict(kept, partial)
        digest = hashlib.sha256(partial.read_bytes()).hexdigest()[:8]
        return partial.replace(dst.with_name(f'{dst.stem}-{digest}{dst.suffix}'))


if __name__ == '__main__':
    main()
