"""Distillation of a sentence encoder into a small BertModel: data, initial weights, loss and training loop.

train_builtin.py uses it, and has the command line, the export and the model card. It needs torch and transformers.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel

from minibert import SentenceEncoder
from minibert.repo import ModelRepo
from minibert.typing import Array, Float, Int

#: Number of vectors in one file of teacher vectors.
SHARD = 20_000
#: Number of steps between two checkpoints.
CHECKPOINT_STEPS = 200
#: The texts of this many batches are sorted by length, so that a batch has little padding.
_POOL = 64


class Recipe(NamedTuple):
    """The settings that decide the result, besides the texts and the teacher.

    Attributes:
        seed: The seed of all random numbers.
        texts: The number of texts, from the start of the corpus.
        epochs: The number of passes over the texts.
        batch: The number of texts in a batch.
        learning_rate: The largest learning rate, at the end of the warm-up.
        warm_up: The share of the steps in which the learning rate rises. Afterwards it falls linearly to 0.
        weight_decay: The weight decay of all matrices except the embeddings.
        similarity: The weight of the similarity term in the loss; see :func:`loss_of`.
        offset: The share of batches whose positions do not start at 0, so that all positions are trained.
        hidden_size: The student's hidden size.
        layers: The student's number of layers.
        heads: The student's number of attention heads.
        positions: The student's number of positions.
    """

    seed: int = 0
    texts: int = 340_000
    epochs: int = 4
    batch: int = 128
    learning_rate: float = 2e-3
    warm_up: float = 0.05
    weight_decay: float = 0.01
    similarity: float = 10.0
    offset: float = 0.25
    hidden_size: int = 128
    layers: int = 2
    heads: int = 2
    positions: int = 512


def digest(texts: Sequence[str]) -> str:
    """Return the SHA-256 of some texts."""
    found = hashlib.sha256()
    for text in texts:
        found.update(text.encode() + b"\n")
    return found.hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file completely, or not at all."""
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.replace(path)


def remember(path: Path, inputs: dict[str, Any]) -> None:
    """Write the inputs of the files beside ``path``. Raise SystemExit if these files were made from other inputs.

    So a continued run does not mix two recipes.
    """
    text = json.dumps(inputs, indent=1)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    elif (before := json.loads(path.read_text("utf-8"))) != json.loads(text):
        changed = [name for name in {**before, **inputs} if before.get(name) != inputs.get(name)]
        raise SystemExit(
            f"{path.parent} was made with another {', '.join(changed)}. Name another folder, or delete it."
        )


def teacher_vectors(teacher: Path, texts: Sequence[str], folder: Path) -> Float[Array, "N D"]:
    """Return the teacher's vectors in float16. Vectors that are in ``folder`` are not computed again.

    Each file in it has the vectors of :data:`SHARD` texts. The SHA-256 of the texts is the name of the file.
    """
    remember(folder / "inputs.json", {"teacher": ModelRepo.open(teacher).fingerprint})
    encoder = None
    shards = []
    for start in range(0, len(texts), SHARD):
        part = texts[start : start + SHARD]
        path = folder / f"{digest(part)}.npy"
        if not path.exists():
            encoder = encoder or SentenceEncoder(teacher, on_truncate="ignore")
            content = io.BytesIO()
            np.save(content, encoder.encode(part, normalize_embeddings=True).astype(np.float16))
            write_whole(path, content.getvalue())
            print(f"teacher: {start + len(part):,} of {len(texts):,} texts", flush=True)
        shards.append(np.load(path))
    return np.concatenate(shards)


class Texts(NamedTuple):
    """Texts as token ids, in one flat array.

    Attributes:
        ids: All ids.
        starts: The start of each text, and the end of the last one.
    """

    ids: Int[Array, "T"]
    starts: Int[Array, "N+1"]

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.starts) - 1

    def batch(self, rows: Int[Array, "B"]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the padded ids of some texts, and their attention mask. Both are ``(B, S)``."""
        lengths = self.starts[rows + 1] - self.starts[rows]
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = np.concatenate([self.ids[self.starts[row] : self.starts[row + 1]] for row in rows])
        return torch.from_numpy(ids), torch.from_numpy(mask)


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], limit: int) -> Texts:
    """Return the ids of ``texts``, truncated to ``limit`` tokens."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    ids, lengths = [], []
    for start in range(0, len(texts), SHARD):
        found = [each.ids for each in tokenizer.encode_batch_fast(list(texts[start : start + SHARD]))]
        lengths += [len(each) for each in found]
        ids.append(np.concatenate([np.array(each, np.int32) for each in found]))
    return Texts(np.concatenate(ids), np.concatenate([[0], np.cumsum(lengths)]))


def principal_directions(vectors: Float[Array, "N D"], width: int) -> Float[Array, "D width"]:
    """Return the orthonormal directions that keep most of the dot products: a PCA without centring."""
    moments = np.zeros((vectors.shape[1],) * 2)
    for start in range(0, len(vectors), SHARD):
        block = vectors[start : start + SHARD].astype(np.float64)
        moments += block.T @ block
    _, directions = np.linalg.eigh(moments)
    return directions[:, ::-1][:, :width].astype(np.float32)


def new_student(recipe: Recipe, word_embeddings: Float[Array, "V width"]) -> Any:
    """Return a BertModel with these word embeddings. The other weights have BERT's random initialisation."""
    torch.manual_seed(recipe.seed)
    config = BertConfig(
        vocab_size=len(word_embeddings),
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=4 * recipe.hidden_size,
        max_position_embeddings=recipe.positions,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    student = BertModel(config, add_pooling_layer=False)
    with torch.no_grad():
        student.embeddings.word_embeddings.weight.copy_(torch.from_numpy(word_embeddings))
    return student


def embed(student: Any, ids: torch.Tensor, mask: torch.Tensor, offset: int = 0) -> torch.Tensor:
    """Return the student's vectors of a batch, ``(B, D)``: the mean over tokens, scaled to length 1."""
    positions = torch.arange(offset, offset + ids.shape[1])[None]
    hidden = student(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
    return normalize((hidden * mask[..., None]).sum(1))


def loss_of(vectors: torch.Tensor, teacher: torch.Tensor, reduced: torch.Tensor, weight: float) -> torch.Tensor:
    """Return the distance of the student from the teacher in a batch.

    The first term is 1 minus the cosine with the teacher's vector, reduced to the student's width. The second term
    compares all similarities in the batch with those of the teacher's full vectors.

    Args:
        vectors: The student's vectors, ``(B, D)``, of length 1.
        teacher: The teacher's vectors, of length 1.
        reduced: The teacher's vectors, reduced to ``(B, D)``, of length 1.
        weight: The weight of the second term.
    """
    cosine = 1 - (vectors * reduced).sum(1).mean()
    difference = vectors @ vectors.T - teacher @ teacher.T
    return cosine + weight * difference.square().mean()


def batches(lengths: Int[Array, "N"], recipe: Recipe) -> Iterator[Int[Array, "B"]]:
    """Yield the rows of each batch of each epoch. A batch has texts of similar length. The seed decides the order."""
    for epoch in range(recipe.epochs):
        rng = np.random.default_rng((recipe.seed, epoch))
        order = rng.permutation(len(lengths))
        for start in range(0, len(order), _POOL * recipe.batch):
            pool = order[start : start + _POOL * recipe.batch]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            cut = [pool[i : i + recipe.batch] for i in range(0, len(pool), recipe.batch)]
            for i in rng.permutation(len(cut)):
                yield cut[i]


def train(
    student: Any,
    texts: Texts,
    teacher: Float[Array, "N D"],
    directions: Float[Array, "D width"],
    recipe: Recipe,
    folder: Path,
) -> None:
    """Train ``student`` in place. A stopped run continues from its last checkpoint in ``folder``."""
    plan = list(batches(np.diff(texts.starts), recipe))
    embeddings = student.embeddings.parameters()
    others = [p for name, p in student.named_parameters() if not name.startswith("embeddings.")]
    groups = [
        {"params": [p for p in others if p.ndim == 2], "weight_decay": recipe.weight_decay},
        {"params": [*embeddings, *(p for p in others if p.ndim == 1)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    rising = max(1, round(recipe.warm_up * len(plan)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rising, (len(plan) - step) / max(1, len(plan) - rising))
    )
    checkpoint = folder / "checkpoint.pt"
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        first = state["step"]
        for each, name in ((student, "student"), (optimizer, "optimizer"), (schedule, "schedule")):
            each.load_state_dict(state[name])
        print(f"training: taken up at step {first:,}", flush=True)
    reduction = torch.from_numpy(directions)
    recent: list[float] = []
    student.train()
    for step, rows in enumerate(plan[first:], first):
        ids, mask = texts.batch(rows)
        rng = np.random.default_rng((recipe.seed, recipe.epochs, step))
        shifted = rng.random() < recipe.offset
        offset = int(rng.integers(recipe.positions - ids.shape[1] + 1)) if shifted else 0
        targets = torch.from_numpy(teacher[rows].astype(np.float32))
        loss = loss_of(embed(student, ids, mask, offset), targets, normalize(targets @ reduction), recipe.similarity)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == len(plan):
            print(f"training: step {step + 1:,} of {len(plan):,}, loss {np.mean(recent):.4f}", flush=True)
            recent.clear()
            state = {"step": step + 1, "student": student.state_dict(), "optimizer": optimizer.state_dict()}
            content = io.BytesIO()
            torch.save({**state, "schedule": schedule.state_dict()}, content)
            write_whole(checkpoint, content.getvalue())
    student.eval()
