"""The peer of the 16-bit types: the packed pass in numpy, with each number that a GPU stores rounded as it stores it.

Sums, exponentials and roots are those of float32. So its error is what the storage alone costs, and the measure of what
a GPU may be off by: nobody chooses that.
"""

import contextlib
import dataclasses

import numpy as np

from minibert import SentenceEncoder
from minibert.engine import packed
from minibert.engine.fused_numpy import FusedCpu
from minibert.files.checkpoint import BertReader


class RoundedCpu(FusedCpu):
    """The fused operations on a CPU; their results are numbers that a storage holds."""

    def __init__(self, storage):
        super().__init__(np.float32)
        self.storage = storage

    def rounded(self, x):
        """Return ``x``, in place, as it is after it was stored."""
        x[...] = self.storage.widen(self.storage.narrow(x))
        return x

    def embed_layer_norm(self, *arguments):
        """Return what is stored of the embeddings."""
        return self.rounded(super().embed_layer_norm(*arguments))

    def linear(self, *arguments):
        """Return what is stored of a product. An activation reads it from there."""
        return self.rounded(super().linear(*arguments))

    def linear_activation(self, *arguments):
        """Return what is stored of an activation."""
        return self.rounded(super().linear_activation(*arguments))

    def attention(self, q, k, v, query_bias, *arguments):
        """Return what is stored of the heads. Queries with their bias go to the tensor cores as stored numbers."""
        return self.rounded(super().attention(self.rounded(q + query_bias), k, v, 0 * query_bias, *arguments))

    def add_layer_norm(self, *arguments):
        """Return what is stored of normalized rows."""
        return self.rounded(super().add_layer_norm(*arguments))

    def _weights(self, q, k, bias):
        """Return the weights, which go to the tensor cores as stored numbers, and the sums of them before that."""
        weights = q @ k
        if bias is not None:
            weights += bias
        weights = np.exp(weights - weights.max(axis=-1, keepdims=True))
        sums = weights.sum(axis=-1)
        return self.rounded(weights), sums


def rounded_encoder(folder, storage):
    """Return an encoder that computes so; its matrices are rounded, too."""
    encoder = SentenceEncoder(folder, on_truncate="ignore")
    repo = encoder._repo

    def stored(array):
        return storage.widen(storage.narrow(array)) if array.ndim == 2 else array

    @contextlib.contextmanager
    def worker(*_, **__):
        yield RoundedCpu(storage)

    params = packed.load(BertReader(repo.transformer_folder, repo.config, np.float32), repo.config, stored)
    encoder._pipeline = dataclasses.replace(encoder._pipeline, params=params)
    encoder._engine.worker = worker
    return encoder
