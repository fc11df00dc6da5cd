"""The fused operations of the packed forward pass, once for each kind of device, with the same signatures.

Each is defined by a composition of :mod:`minibert.ops`, against which its implementations are tested.
"""
