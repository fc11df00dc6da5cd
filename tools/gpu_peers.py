"""sentence-transformers on a GPU for tools/gpu_check.py. A dry run uses the CPU and float32."""

import gc
import importlib.metadata
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minibert.typing import Array

AS_CALLED, AT_BEST, UNPADDED = "as called", "at its best", "unpadded"
#: The implementation of transformers' attention for each variant.
ATTENTION = {AS_CALLED: "", AT_BEST: "sdpa", UNPADDED: "flash_attention_2"}
#: The batch sizes to try; and those of a dry run.
BATCHES, DRY_BATCHES = (128, 256, 512, 1024), (2, 4)
DEFAULT_BATCH = 32


def missing(variant: str) -> str:
    """Return why a variant cannot be measured here, or ""."""
    if lacking := [name for name in ("torch", "sentence-transformers") if not installed(name)]:
        return f"{', '.join(lacking)} is not installed"
    if variant == UNPADDED and not installed("flash_attn") and not installed("kernels"):
        return "neither flash_attn nor kernels is installed"
    return ""


def installed(package: str) -> bool:
    """Return whether a package is installed. A folder with its name, such as our kernels, does not count."""
    return any(importlib.metadata.distributions(name=package))


def load(folder: Path, variant: str, *, dry: bool) -> Any:
    """Return a SentenceTransformer of a variant, in float16 on the GPU."""
    import torch
    from sentence_transformers import SentenceTransformer

    options: dict[str, Any] = {"dtype": torch.float32 if dry else torch.float16}
    if ATTENTION[variant]:
        options["attn_implementation"] = ATTENTION[variant]
    return SentenceTransformer(str(folder), device="cpu" if dry else "cuda", model_kwargs=options)


def encode(model: Any, texts: Sequence[str], batch: int) -> Array:
    """Return the vectors of texts, in float32, on the host."""
    return np.asarray(model.encode(list(texts), batch_size=batch, show_progress_bar=False), np.float32)


def best_batch(pass_over: Callable[[int], object], *, dry: bool) -> tuple[int, dict[str, float]]:
    """Return the fastest batch size, and the seconds of each size: the minimum of two passes."""
    seconds: dict[str, float] = {}
    for size in DRY_BATCHES if dry else BATCHES:
        times = []
        for _ in range(2):
            start = time.perf_counter()
            pass_over(size)
            times.append(time.perf_counter() - start)
        seconds[str(size)] = round(min(times), 5)
    return int(min(seconds, key=lambda size: seconds[size])), seconds


def tokenize(model: Any, texts: Sequence[str], **options: Any) -> Any:
    """Return the output of the model's tokenizer for texts, truncated at the model's limit."""
    return model.tokenizer(list(texts), truncation=True, max_length=model.max_seq_length, **options)


def lengths(model: Any, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each text."""
    return list(map(len, tokenize(model, texts)["input_ids"]))


def prepare(model: Any, texts: Sequence[str], batch: int) -> list[dict[str, Any]]:
    """Return the texts as padded batches of token ids on the model's device, longest first."""
    longest_first = [texts[i] for i in np.argsort(lengths(model, texts), kind="stable")[::-1]]
    parts = [longest_first[start : start + batch] for start in range(0, len(texts), batch)]
    inputs = [tokenize(model, part, padding=True, return_tensors="pt") for part in parts]
    return [{name: tensor.to(model.device) for name, tensor in each.items()} for each in inputs]


def forward(model: Any, batches: Sequence[dict[str, Any]]) -> None:
    """Compute the vectors of prepared batches. They stay on the device. Do not wait for them."""
    import torch

    with torch.inference_mode():
        for batch in batches:
            model(dict(batch))


def compiled(model: Any) -> Any:
    """Return the model with its transformer compiled by torch at the first call, for any shape."""
    import torch

    transformer = model[0].auto_model
    transformer.forward = torch.compile(transformer.forward, dynamic=True)  # the model calls this
    return model


def graphs() -> int:
    """Return the number of graphs that torch has compiled in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def release() -> None:
    """Free the memory that torch keeps from earlier models, and reset its peak."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory() -> int:
    """Return torch's peak memory on the GPU since :func:`release`, in bytes."""
    import torch

    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0


def median(times: Sequence[float]) -> float:
    """Return the median with five digits."""
    return float(f"{statistics.median(times):.5g}")
