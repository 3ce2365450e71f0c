"""Make a checkpoint ready to publish: weights alone, and a hash at the end of its name.

Optimizer state and training history are dropped. Of two sets of weights the averaged one (EMA)
is kept: mmengine saves it as ``state_dict``, timm as ``state_dict_ema``.
"""

import argparse
import hashlib
import sys
from pathlib import Path

from mmpoolformer.checkpoints import CheckpointError, read_checkpoint, save_state_dict


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('src', help='checkpoint of a training run')
    parser.add_argument('dst', type=Path, help='NAME.pth; NAME-HASH.pth is written')
    parser.add_argument('--allow-pickle', action='store_true', help='read files that execute code')
    args = parser.parse_args()
    try:
        print(publish(args.src, args.dst, args.allow_pickle))
    except (CheckpointError, OSError) as error:
        sys.exit(f'error: {error}')


def publish(src: str, dst: Path, allow_pickle: bool = False) -> Path:
    checkpoint = read_checkpoint(src, allow_pickle)
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{src} holds {type(checkpoint).__name__}, not a checkpoint')
    averaged = 'state_dict_ema' in checkpoint
    weights = checkpoint.get('state_dict_ema' if averaged else 'state_dict', checkpoint)
    if averaged or 'ema_state_dict' in checkpoint:
        print('the averaged weights (EMA) are kept')
    kept = {'state_dict': weights}
    if 'meta' in checkpoint:
        kept['meta'] = checkpoint['meta']
    dropped = [key for key in checkpoint if key not in kept and weights is not checkpoint]
    if dropped:
        print(f'dropped: {" ".join(dropped)}')
    save_state_dict(kept, dst)
    digest = hashlib.sha256(dst.read_bytes()).hexdigest()[:8]
    return dst.replace(dst.with_name(f'{dst.stem}-{digest}{dst.suffix}'))


if __name__ == '__main__':
    main()
