"""The token mixers as they are defined, from the weights of ours."""

import torch
from torch.nn import functional as F


def plain_attention(mixer, x):
    batch, dim, height, width = x.shape
    out = torch.zeros_like(x)
    for b in range(batch):
        tokens = x[b].reshape(dim, -1).T
        query, key, value = (tokens @ mixer.qkv.weight.T).split(dim, dim=1)
        heads = []
        for h in range(dim // 32):
            part = slice(32 * h, 32 * h + 32)
            scores = query[:, part] @ key[:, part].T / 32**0.5
            heads.append(scores.softmax(dim=1) @ value[:, part])
        mixed = torch.cat(heads, dim=1) @ mixer.proj.weight.T
        out[b] = mixed.T.reshape(dim, height, width)
    return out


def plain_spatial_mlp(mixer, x):
    return (x.flatten(2) @ mixer.fc.weight.T).reshape(x.shape)


def plain_random(mixer, x):
    return torch.einsum('mn,bcn->bcm', mixer.random_matrix, x.flatten(2)).reshape(x.shape)


def plain_sep_conv(mixer, x):
    x = F.conv2d(x, mixer.pwconv1.weight)
    x = mixer.act1.scale * x.clamp(min=0).square() + mixer.act1.bias
    x = F.conv2d(x, mixer.dwconv.weight, padding=3, groups=x.shape[1])
    return F.conv2d(x, mixer.pwconv2.weight)
