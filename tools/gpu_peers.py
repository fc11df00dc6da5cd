"""sentence-transformers on a GPU, as tools/gpu_check.py measures it; in a dry run on the CPU, in float32."""

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
#: What each variant asks of transformers' attention.
ATTENTION = {AS_CALLED: "", AT_BEST: "sdpa", UNPADDED: "flash_attention_2"}
#: The batch sizes that are tried for the best one; in a dry run, the others.
BATCHES, DRY_BATCHES = (128, 256, 512, 1024), (2, 4)
DEFAULT_BATCH = 32


def missing(variant: str) -> str:
    """Return why a variant cannot be measured here; "" if it can."""
    if lacking := [name for name in ("torch", "sentence-transformers") if not installed(name)]:
        return f"{', '.join(lacking)} is not installed"
    if variant == UNPADDED and not installed("flash_attn") and not installed("kernels"):
        return "neither flash_attn nor kernels is installed"
    return ""


def installed(package: str) -> bool:
    """Return whether a package is installed; a folder of its name, such as our kernels, does not count."""
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
    """Return the batch size of the fastest pass, and the seconds of each size: the better of two passes."""
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
    """Return what the model's tokenizer makes of texts, cut at the model's own limit."""
    return model.tokenizer(list(texts), truncation=True, max_length=model.max_seq_length, **options)


def lengths(model: Any, texts: Sequence[str]) -> list[int]:
    """Return how many tokens each text has."""
    return list(map(len, tokenize(model, texts)["input_ids"]))


def prepare(model: Any, texts: Sequence[str], batch: int) -> list[dict[str, Any]]:
    """Return the texts as padded batches of token ids where the model is, the longest first."""
    longest_first = [texts[i] for i in np.argsort(lengths(model, texts), kind="stable")[::-1]]
    parts = [longest_first[start : start + batch] for start in range(0, len(texts), batch)]
    inputs = [tokenize(model, part, padding=True, return_tensors="pt") for part in parts]
    return [{name: tensor.to(model.device) for name, tensor in each.items()} for each in inputs]


def forward(model: Any, batches: Sequence[dict[str, Any]]) -> None:
    """Ask for the vectors of prepared batches; they stay where they are, and nobody waits for them."""
    import torch

    with torch.inference_mode():
        for batch in batches:
            model(dict(batch))


def compiled(model: Any) -> Any:
    """Return the model with its transformer compiled by torch, when it is first called, for any shape."""
    import torch

    transformer = model[0].auto_model
    transformer.forward = torch.compile(transformer.forward, dynamic=True)  # which is what the model calls
    return model


def graphs() -> int:
    """Return how many graphs torch has compiled in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def release() -> None:
    """Give back what torch keeps of models before, and forget how much it was."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory() -> int:
    """Return the most bytes that torch has held on the GPU since :func:`release`."""
    import torch

    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0


def median(times: Sequence[float]) -> float:
    """Return the median, with five digits."""
    return float(f"{statistics.median(times):.5g}")
