import io

import numpy as np
import pytest
import torch
from torch import Tensor

from relabel import sample_memory as module
from relabel.sample_memory import History, ProbabilityStore, SampleMemory, blocks, class_type, per_sample

CPU = torch.device("cpu")
ONE, TWO = torch.tensor([0.8, 0.1, 0.1]), torch.tensor([0.2, 0.2, 0.6])


def history(*epochs: Tensor, capacity: int = 2) -> History:
    made = History(len(epochs[0]), capacity, *epochs[0].shape[1:], dtype=epochs[0].dtype)
    for epoch in epochs:
        made.add()[:] = epoch
    return made


def sample_memory() -> SampleMemory:
    """Rows 0 and 2 seen once, row 3 twice, row 1 never."""
    made = SampleMemory(4, 3)
    made.add_prediction(torch.tensor([3, 0]), torch.stack([ONE, TWO]))
    made.add_prediction(torch.tensor([2, 3]), torch.stack([TWO, TWO]))
    return made


def test_the_average_is_over_a_row_s_own_visits() -> None:
    uniform = torch.full((3,), 1 / 3)
    expected = torch.stack([TWO, uniform, TWO, (ONE + TWO) / 2])
    torch.testing.assert_close(sample_memory().mean[:], expected)
    assert sample_memory().visits.tolist() == [1, 0, 1, 2]


def test_the_newest_prediction_is_kept_beside_the_average() -> None:
    uniform = torch.full((3,), 1 / 3)
    made = sample_memory()
    torch.testing.assert_close(made.latest[:], torch.stack([TWO, uniform, TWO, TWO]))
    made.forget_predictions()
    torch.testing.assert_close(made.latest[:], torch.stack([TWO, uniform, TWO, TWO]))
    made.add_prediction(torch.tensor([3, 1]), torch.stack([ONE, TWO]))
    torch.testing.assert_close(made.latest[:], torch.stack([TWO, TWO, TWO, ONE]))


def test_the_newest_prediction_is_a_copy() -> None:
    made, probability = SampleMemory(2, 3), ONE[None].clone()
    made.add_prediction(torch.tensor([1]), probability)
    probability.zero_()
    torch.testing.assert_close(made.latest[1:][0], ONE)


def test_forgetting_starts_the_average_anew_and_keeps_the_memory() -> None:
    made = sample_memory()
    made.memory = {"soft_label": torch.ones(4, 3)}
    made.forget_predictions()
    made.add_prediction(torch.tensor([3]), ONE[None])
    torch.testing.assert_close(made.mean[:][3], ONE)
    made.add_prediction(torch.tensor([3]), TWO[None])
    torch.testing.assert_close(made.mean[:][3], (ONE + TWO) / 2)
    assert made.memory["soft_label"][:].all()


@pytest.mark.parametrize("classes", [3, 100])
def test_what_is_put_aside_stays_and_the_average_starts_anew(classes: int) -> None:
    made, probability = SampleMemory(2, classes), torch.rand(2, classes).softmax(dim=1)
    assert (made.early[:] - 1 / classes).abs().max() < 1e-3
    made.add_prediction(torch.arange(2), probability)
    expected = made.mean[:].clone()
    made.put_aside()
    made.add_prediction(torch.arange(2), probability.flip(0))
    assert torch.equal(made.early[:], expected)
    assert torch.equal(made.mean[:], made.latest[:])


def test_predictions_are_kept_in_float32_and_without_a_graph() -> None:
    made = SampleMemory(2, 3)
    probability = ONE[None].bfloat16().requires_grad_()
    made.add_prediction(torch.tensor([1]), probability)
    for found in (made.mean[:], made.latest[:]):
        assert found.dtype == torch.float32
        assert not found.requires_grad


def test_memory_is_read_and_written_by_row() -> None:
    made = SampleMemory(4, 3)
    made.memory = {"soft_label": torch.zeros(4, 3), "seen": torch.zeros(4, dtype=torch.long)}
    rows = torch.tensor([3, 1])
    values: dict[str, Tensor] = {
        "soft_label": torch.stack([ONE, TWO]).double().requires_grad_(),
        "seen": torch.tensor([7, 8]),
    }
    made.write(rows, values)
    read = made.read(rows.flip(0), CPU)
    torch.testing.assert_close(read["soft_label"], torch.stack([TWO, ONE]))
    assert made.memory["seen"][:].tolist() == [0, 8, 0, 7]
    assert read["soft_label"].dtype == torch.float32
    assert not read["soft_label"].requires_grad


def test_what_was_read_stays_when_the_memory_is_written() -> None:
    made = SampleMemory(2, 3)
    made.memory = {"soft_label": torch.zeros(2, 3)}
    rows = torch.tensor([0, 1])
    read = made.read(rows, CPU)
    made.write(rows, {"soft_label": torch.ones(2, 3)})
    assert not read["soft_label"].any()


def test_memory_of_any_shape_keeps_its_number_format() -> None:
    made = SampleMemory(4, 3)
    made.memory = {"losses": torch.zeros(4, 2, 3, 2, dtype=torch.half)}
    made.write(torch.tensor([2]), {"losses": torch.full((1, 2, 3, 2), 0.5)})
    assert made.memory["losses"][:].dtype == torch.half
    assert made.read(torch.tensor([2, 0]), CPU)["losses"].flatten(1).mean(dim=1).tolist() == [0.5, 0]


def test_a_history_is_read_oldest_epoch_first() -> None:
    made = SampleMemory(4, 3)
    made.memory = {"losses": history(torch.arange(8).reshape(4, 2), torch.arange(8, 16).reshape(4, 2))}
    read = made.read(torch.tensor([2, 0]), CPU)["losses"]
    assert read.tolist() == [[[4, 5], [12, 13]], [[0, 1], [8, 9]]]


def test_a_history_goes_on_with_the_epochs_it_keeps() -> None:
    made = history(*(torch.full((3,), number) for number in range(4)), capacity=4)
    read = made[:]
    made.keep([1, 3])
    assert made[:].tolist() == [[1, 3]] * 3
    made.add()[:] = 4
    made.add()[1:] = 5
    assert made[:][1:].tolist() == [[1, 3, 4, 5]] * 2
    assert read.tolist() == [[0, 1, 2, 3]] * 3, "what was read stays"
    assert len(made) == 3
    with pytest.raises(ValueError, match="empty"):
        made.add()
    made.keep([])
    assert made[:].shape == (3, 0)


def test_a_memory_may_be_longer_than_the_rows() -> None:
    """Features of trusted images outside of the source stand behind those of its rows."""
    made = SampleMemory(2, 3)
    made.memory = {"features": torch.arange(6.0).reshape(3, 2)}
    assert made.read(torch.tensor([1]), CPU)["features"].tolist() == [[2, 3]]


def test_an_empty_memory_reads_and_writes_nothing() -> None:
    made = SampleMemory(2, 3)
    assert made.read(torch.tensor([0]), CPU) == {}
    made.write(torch.tensor([0]), {})
    assert made.memory == {}


@pytest.mark.parametrize("classes", [3, 100])
def test_the_state_goes_through_a_file(classes: int) -> None:
    made, probability = SampleMemory(4, classes), torch.rand(4, classes).softmax(dim=1)
    made.add_prediction(torch.arange(4), probability)
    made.put_aside()
    made.add_prediction(torch.arange(4), probability.roll(1, dims=0))
    soft_label = ProbabilityStore(4, classes)
    soft_label[:] = probability.flip(0)
    made.memory = {
        "soft_label": soft_label,
        "features": torch.rand(5, 2),
        "losses": history(torch.rand(4, 2).half(), torch.rand(4, 2).half(), capacity=3),
    }
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    restored = SampleMemory(4, classes)
    restored.load_state_dict(torch.load(file, weights_only=True))
    rows = torch.tensor([2, 0])
    for _ in range(2):
        assert torch.equal(restored.mean[:], made.mean[:])
        assert torch.equal(restored.early[:], made.early[:])
        assert torch.equal(restored.latest[:], made.latest[:])
        read, expected = restored.read(rows, CPU), made.read(rows, CPU)
        assert list(read) == list(expected)
        assert all(torch.equal(read[name], expected[name]) for name in read)
        for each in (restored, made):  # they go on alike
            each.add_prediction(rows, probability[:2])
            each.write(rows, {"soft_label": probability[1:3]})
            losses = each.memory["losses"]
            assert isinstance(losses, History)
            losses.keep([len(losses[:1][0]) - 1])
            losses.add()[:] = 2


@pytest.mark.parametrize("classes", [2, 32_767, 32_768, 32_769, 100_000])
def test_ids_of_any_number_of_classes_fit_their_type(classes: int) -> None:
    largest = torch.tensor(classes - 1)
    assert largest.to(class_type(classes)) == largest
    assert classes > 32_767 or class_type(classes) == torch.int16, "two bytes where they do"


@pytest.mark.parametrize("classes", [2, 64, 65, 1000])
def test_distributions_are_uniform_at_first_and_what_was_written_after(classes: int) -> None:
    made = ProbabilityStore(50, classes)
    assert made.shape == (50, classes)
    assert len(made) == 50
    torch.testing.assert_close(made[:], torch.full((50, classes), 1 / classes), rtol=1e-3, atol=0)
    generator = torch.Generator().manual_seed(0)
    peaked = (8 * torch.randn(20, classes, generator=generator)).softmax(dim=1)
    rows = torch.randperm(50, generator=generator)[:20]
    made[rows] = peaked
    assert made[rows].dtype == torch.float32
    torch.testing.assert_close(made[rows], peaked, rtol=0, atol=0 if classes <= 64 else 2e-3)
    torch.testing.assert_close(made[:].sum(dim=1), torch.ones(50))
    torch.testing.assert_close(made[5:9], made[:][5:9], rtol=0, atol=0)


def test_beyond_64_classes_the_largest_shares_stay_and_the_others_are_levelled() -> None:
    made = ProbabilityStore(1, 100)
    probability = torch.arange(1.0, 101)[None] / 5050
    made[:] = probability
    torch.testing.assert_close(made[:][0, 68:], probability[0, 68:], rtol=1e-3, atol=0)
    torch.testing.assert_close(made[:][0, :68], probability[0, :68].mean().expand(68), rtol=5e-3, atol=0)


def test_an_average_over_many_classes_follows_what_changes() -> None:
    """A class that is not among the largest at first must get there."""
    made, generator = SampleMemory(1, 1000), torch.Generator().manual_seed(0)
    expected = torch.zeros(1, 1000)
    for epoch in range(60):
        favourites = torch.zeros(1, 1000)
        favourites[0, [3, 500] if epoch < 20 else [500, 900]] = 12.0
        probability = (favourites + torch.randn(1, 1000, generator=generator)).softmax(dim=1)
        made.add_prediction(torch.tensor([0]), probability)
        expected += probability / 60
    found = made.mean[:]
    assert (found - expected).abs().sum() < 0.05
    assert found.topk(3).indices.sort().values.tolist() == [[3, 500, 900]]


def test_a_copy_of_distributions_is_their_own() -> None:
    for classes in (3, 100):
        made = ProbabilityStore(2, classes)
        copy = made.clone()
        copy[:] = torch.eye(classes)[:2]
        torch.testing.assert_close(made[:], torch.full((2, classes), 1 / classes), rtol=1e-3, atol=0)
        made[:] = torch.eye(classes)[2:3].expand(2, -1)
        torch.testing.assert_close(copy[:], torch.eye(classes)[:2])


def test_a_row_costs_what_is_said() -> None:
    for classes, size in ((14, 56), (64, 256), (65, 128), (1000, 128)):
        state = ProbabilityStore(10, classes).state_dict()
        assert sum(values.nbytes for values in state.values()) == 10 * size


def test_large_memory_is_mapped_and_small_memory_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = []

    def scratch(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        mapped.append((shape, dtype))
        return np.zeros(shape, dtype)

    monkeypatch.setattr(module, "scratch_array", scratch)
    monkeypatch.setattr(module, "_MAPPED_FROM", 1000)
    assert per_sample(249).tolist() == [0.0] * 249
    assert per_sample(2, 3, dtype=torch.float16).dtype == torch.float16
    assert mapped == []
    made = per_sample(250)
    assert (made.shape, made.dtype) == ((250,), torch.float32)
    made = per_sample(100, 5, dtype=torch.float16)
    assert (made.shape, made.dtype) == ((100, 5), torch.float16)
    assert mapped == [((250,), np.float32), ((100, 5), np.float16)]


def test_what_lies_in_a_mapped_file_is_written_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAPPED_FROM", 1)
    for classes in (3, 100):
        made = SampleMemory(4, classes)
        made.add_prediction(torch.tensor([3, 1]), torch.eye(classes)[:2])
        torch.testing.assert_close(made.mean[torch.tensor([1, 3])], torch.eye(classes)[[1, 0]])


@pytest.mark.parametrize(("rows", "width"), [(0, 5), (7, 10**9), (10, 3)])
def test_blocks_cover_every_row_once_in_order(rows: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 10)
    found = [np.arange(rows)[block] for block in blocks(rows, width)]
    assert np.concatenate([np.arange(0), *found]).tolist() == list(range(rows))
    assert all(len(block) in (1, max(1, 10 // width)) for block in found)
