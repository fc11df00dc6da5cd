"""tools/train_builtin.py makes a model: the whole way, with a small teacher and a few texts."""

import json
import sys

import numpy as np
import pytest
from support import load, twin

from minibert import SentenceEncoder

pytestmark = pytest.mark.reference

WORDS = ["a", "man", "is", "playing", "the", "guitar", "cat", "hat", "no", "cafe", "owners", "happy"]
RECIPE = {"hidden_size": 16, "layers": 1, "heads": 2, "positions": 64, "batch": 8, "epochs": 4, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Return a file of 120 texts."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("".join(" ".join(rng.choice(WORDS, rng.integers(3, 9))) + "\n" for _ in range(120)), "utf-8")
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Return a file of pairs with scores."""
    path = tmp_path_factory.mktemp("sts") / "some-dev.csv"
    path.write_text("a man,the man,4.5\na cat,no hat,1.0\nthe guitar,guitar,5.0\nhappy owners,a hat,0.0\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def run(texts, pairs):
    """Return a function that runs the tool with a recipe, to two folders."""
    pytest.importorskip("torch")
    import train_builtin

    def run(work, output, **changes):
        command = ["train_builtin.py", str(twin("BertModel-128d")), str(texts), "--work", str(work)]
        command += ["--output", str(output), "--sts", str(pairs), "--recipe", json.dumps({**RECIPE, **changes})]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", command)
            train_builtin.main()
        return output

    return run


@pytest.fixture(scope="module")
def model(run, tmp_path_factory):
    """Return a model that was made without a stop, and the folder of its work beside it."""
    folder = tmp_path_factory.mktemp("model")
    return run(folder / "work", folder / "model")


def weights(folder):
    """Return the bytes of the weights."""
    return (folder / "model.safetensors").read_bytes()


def test_the_student_learns(run, texts, tmp_path):
    """The similarities of the trained model are much nearer to the teacher's than those of one hardly trained."""
    lines = texts.read_text("utf-8").splitlines()
    teacher = SentenceEncoder(twin("BertModel-128d")).encode(lines, normalize_embeddings=True)

    def distance(folder):
        vectors = SentenceEncoder(folder).encode(lines)
        return np.square(vectors @ vectors.T - teacher @ teacher.T).mean()

    untrained = distance(run(tmp_path / "a", tmp_path / "untrained", learning_rate=0.0))
    trained = distance(run(tmp_path / "b", tmp_path / "trained", epochs=12))

    assert trained < untrained / 2


def test_the_result_is_an_ordinary_repo(model):
    """sentence-transformers loads it, and gives minibert's vectors; the card has the scores and the recipe."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    texts = ["a man is playing the guitar", "no", "", "the cat the hat " * 30]
    encoder = SentenceEncoder(model, on_truncate="ignore")
    peer = sentence_transformers.SentenceTransformer(str(model), device="cpu")
    card = (model / "README.md").read_text("utf-8")

    assert encoder.max_seq_length == peer.max_seq_length == 64
    np.testing.assert_allclose(encoder.encode(texts), peer.encode(texts), rtol=0, atol=1e-6)
    assert "| some-dev |" in card
    assert "| learning_rate | 0.01 |" in card
    assert "{" not in card.replace("```", "")


def test_a_run_that_was_stopped_goes_on(run, model, tmp_path, monkeypatch):
    """Stopped in the middle and run again, it makes the very same model."""
    import distillation

    loss_of, calls = distillation.loss_of, []

    def stop_at_20(*arguments):
        calls.append(None)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return loss_of(*arguments)

    monkeypatch.setattr(distillation, "CHECKPOINT_STEPS", 7)
    monkeypatch.setattr(distillation, "loss_of", stop_at_20)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", tmp_path / "model")
    assert not (tmp_path / "model").exists()
    resumed = run(tmp_path / "stopped", tmp_path / "model")

    assert len(calls) == 20 + 60 - 14
    assert weights(resumed) == weights(model)


def test_another_seed_makes_another_model(run, model, tmp_path):
    """The seed decides, and nothing else that is random."""
    again = run(tmp_path / "again", tmp_path / "same")
    other = run(tmp_path / "other", tmp_path / "different", seed=1)

    assert weights(model) == weights(again)
    assert weights(model) != weights(other)


def test_loss_by_hand():
    """The loss is 1 minus the mean cosine, and a weight times the mean square of what similarities are off by."""
    torch = pytest.importorskip("torch")
    import distillation

    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    reduced = torch.tensor([[0.8, 0.6], [0.6, 0.8]])
    teacher = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]])

    assert distillation.loss_of(vectors, teacher, reduced, 0.0).item() == pytest.approx(1 - (0.8 + 1.0) / 2)
    assert distillation.loss_of(vectors, teacher, reduced, 2.0).item() == pytest.approx(0.1 + 2 * (2 * 0.36) / 4)


def test_the_mean_is_of_real_tokens(tmp_path):
    """The student's vector of a text does not depend on the padding beside it."""
    torch = pytest.importorskip("torch")
    import distillation

    recipe = distillation.Recipe(hidden_size=16, layers=1, positions=16)
    student = distillation.new_student(recipe, np.random.default_rng(0).normal(size=(9, 16)).astype(np.float32)).eval()
    texts = distillation.Texts(np.array([2, 5, 3, 2, 5, 6, 7, 8, 3], np.int32), np.array([0, 3, 9]))
    with torch.no_grad():
        alone = distillation.embed(student, *texts.batch(np.array([0])))
        beside = distillation.embed(student, *texts.batch(np.array([0, 1])))

    torch.testing.assert_close(alone[0], beside[0])


def test_all_positions_are_learned(run, model, tmp_path):
    """Texts of a few tokens move the embeddings of late positions, too; unless the recipe says that they need not."""

    def late_positions(folder):
        arrays, _ = load(folder / "model.safetensors")
        return arrays["embeddings.position_embeddings.weight"][40:].astype(np.float32)

    at_start = late_positions(run(tmp_path / "work", tmp_path / "at-start", offset=0.0))
    shift = np.abs(late_positions(model) - at_start).max(axis=1)

    assert (shift > 0).mean() > 0.5


def test_vectors_of_other_texts_are_not_used(tmp_path, monkeypatch):
    """Vectors that are there are used for the same texts only, however many texts another run had."""
    pytest.importorskip("torch")
    import distillation

    monkeypatch.setattr(distillation, "SHARD", 10)
    texts = [f"{'a man ' * (i % 5 + 1)}the hat {'no ' * (i // 5)}" for i in range(40)]
    expected = SentenceEncoder(twin("BertModel-128d")).encode(texts, normalize_embeddings=True).astype(np.float16)

    for chosen in (slice(15), slice(40), slice(12, 40), slice(15)):
        vectors = distillation.teacher_vectors(twin("BertModel-128d"), texts[chosen], tmp_path)
        np.testing.assert_array_equal(vectors, expected[chosen])
    made = len(list(tmp_path.glob("*.npy")))
    distillation.teacher_vectors(twin("BertModel-128d"), texts, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == made


def test_two_recipes_do_not_mix(run, model):
    """A folder with another run's checkpoint is refused, and the message says what differs."""
    before = weights(model)

    with pytest.raises(SystemExit, match="another seed, epochs"):
        run(model.parent / "work", model, seed=2, epochs=1)
    assert weights(model) == before
