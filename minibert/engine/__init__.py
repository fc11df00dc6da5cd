"""The fast path: the packed forward pass, made of fused operations, and these operations for each device."""
