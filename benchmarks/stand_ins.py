"""What a CPU without a network lacks of mmdet's models, as small or by its definition."""

import atexit
import json
from functools import cache
from pathlib import Path
from shutil import rmtree
from string import ascii_lowercase
from tempfile import mkdtemp

from torch import nn

TEXTS = ('cat', 'dog')  # the classes that models of images and texts are asked for
WIDTH = 768  # of BERT, which GLIP's heads are made for


@cache
def tiny_bert():
    """A folder with a BERT of one layer and the letters as its vocabulary, random."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    _bridge_to_transformers_5()
    folder = Path(mkdtemp(prefix='tiny-bert-'))
    atexit.register(rmtree, folder, ignore_errors=True)
    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', '?']
    words = [*special, *ascii_lowercase, *(f'##{letter}' for letter in ascii_lowercase)]
    (folder / 'vocab.txt').write_text('\n'.join(words))
    BertTokenizerFast(str(folder / 'vocab.txt')).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=WIDTH, num_hidden_layers=1, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    (folder / 'config.json').write_text(json.dumps(config.to_dict(), default=str))
    return str(folder)


def _bridge_to_transformers_5():
    """What mmdet/models/language_models/bert.py asks for and transformers 5 no longer has.

    The tokenizer's ``batch_encode_plus``, and masks of three axes.
    """
    from mmdet.models.language_models import bert
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    if hasattr(PreTrainedTokenizerBase, 'batch_encode_plus'):
        return
    PreTrainedTokenizerBase.batch_encode_plus = PreTrainedTokenizerBase.__call__

    class BertModel(bert.HFBertModel):
        def forward(self, *args, attention_mask=None, position_ids=None, **kwargs):
            if attention_mask is not None and attention_mask.dim() == 3:
                attention_mask = attention_mask[:, None]
            if position_ids is not None:
                position_ids = position_ids.long()
            return super().forward(
                *args, attention_mask=attention_mask, position_ids=position_ids, **kwargs
            )

    bert.HFBertModel = BertModel


def masked_convolution(self, x, mask=None):
    """mmcv's MaskedConv2d by its definition: zero outside of the mask."""
    out = nn.Conv2d.forward(self, x)
    return out if mask is None else out * mask


def put_stand_ins():
    """Let mmcv's masked convolution run on the CPU; leave StrongSORT's AFLink at random weights."""
    from mmcv.ops import MaskedConv2d
    from mmdet.models.task_modules.tracking import aflink

    MaskedConv2d.forward = masked_convolution
    aflink.load_checkpoint = lambda model, checkpoint: None


def mend_grounding_dino():
    """Give the decoder the width that it is handed, as in mmdet 3.3.0.

    Since dino_layers.py takes ``num_feats=query.shape[2]``, the encoding of the boxes is twice as
    wide as ``ref_point_head`` of GroundingDinoTransformerDecoder, in grounding_dino_layers.py.
    """
    from mmdet.models.layers.transformer.grounding_dino_layers import (
        GroundingDinoTransformerDecoder as Decoder,
    )
    from mmdet.models.layers.transformer.utils import MLP

    build = Decoder._init_layers

    def init_layers(self):
        build(self)
        self.ref_point_head = MLP(self.embed_dims * 4, self.embed_dims, self.embed_dims, 2)

    Decoder._init_layers = init_layers
