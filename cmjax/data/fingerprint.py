"""Fingerprints of data sets: keys of every example, for what is kept of them."""

import numpy as np

from cmjax.data.base import ArraySource, Source, Subset
from cmjax.data.on_demand import CHUNK, KeptSource, OnDemandSource
from cmjax.system.content import content_key


def fingerprint(source: Source) -> str:
    """A key that differs where any image or label of a source does, or their order.

    Arrays are read whole; of examples that are decoded when they are asked for the files are read and nothing is
    decoded; any other source gives all its examples.
    """
    if isinstance(source, ArraySource):
        return content_key(source.images, source.labels, source.num_classes)
    if isinstance(source, Subset):
        return content_key(fingerprint(source.source), source.rows)
    if isinstance(source, KeptSource):
        return fingerprint(source.source)
    if isinstance(source, OnDemandSource) and source.key is not None:
        return content_key(source.key(), source.shape, source.num_classes, source.length)
    starts = range(0, len(source), CHUNK)
    batches = (source.gather(np.arange(start, min(start + CHUNK, len(source)))) for start in starts)
    return content_key(source.num_classes, *(content_key(batch) for batch in batches))
