"""To look into BERT: every result of the reference forward pass, and why two texts are similar.

``SentenceEncoder.trace`` returns a :class:`Trace`, and ``SentenceEncoder.explain`` a :class:`Similarity`. Both compute
with the reference, :mod:`minibert.model`, in float64.
"""

from minibert.study.similar import Similarity
from minibert.study.traces import Edit, Trace, without

__all__ = ["Edit", "Similarity", "Trace", "without"]
