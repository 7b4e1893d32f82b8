import io

import torch
from torch import Tensor

from relabel.ledger import Ledger

CPU = torch.device("cpu")
ONE, TWO = torch.tensor([0.8, 0.1, 0.1]), torch.tensor([0.2, 0.2, 0.6])


def ledger() -> Ledger:
    """Rows 0 and 2 seen once, row 3 twice, row 1 never."""
    made = Ledger(4, 3)
    made.add_prediction(torch.tensor([3, 0]), torch.stack([ONE, TWO]))
    made.add_prediction(torch.tensor([2, 3]), torch.stack([TWO, TWO]))
    return made


def test_the_average_is_over_a_row_s_own_visits() -> None:
    uniform = torch.full((3,), 1 / 3)
    expected = torch.stack([TWO, uniform, TWO, (ONE + TWO) / 2])
    torch.testing.assert_close(ledger().mean_probability(), expected)
    assert ledger().visits.tolist() == [1, 0, 1, 2]


def test_the_newest_prediction_is_kept_beside_the_average() -> None:
    uniform = torch.full((3,), 1 / 3)
    made = ledger()
    torch.testing.assert_close(made.latest, torch.stack([TWO, uniform, TWO, TWO]))
    made.forget_predictions()
    torch.testing.assert_close(made.latest, torch.stack([TWO, uniform, TWO, TWO]))
    made.add_prediction(torch.tensor([3, 1]), torch.stack([ONE, TWO]))
    torch.testing.assert_close(made.latest, torch.stack([TWO, TWO, TWO, ONE]))


def test_the_newest_prediction_is_a_copy() -> None:
    made, probability = Ledger(2, 3), ONE[None].clone()
    made.add_prediction(torch.tensor([1]), probability)
    probability.zero_()
    torch.testing.assert_close(made.latest[1], ONE)


def test_forgetting_starts_the_average_anew_and_keeps_the_memory() -> None:
    made = ledger()
    made.memory = {"soft_label": torch.ones(4, 3)}
    made.forget_predictions()
    torch.testing.assert_close(made.mean_probability(), torch.full((4, 3), 1 / 3))
    made.add_prediction(torch.tensor([3]), ONE[None])
    torch.testing.assert_close(made.mean_probability()[3], ONE)
    assert made.memory["soft_label"].all()


def test_predictions_are_kept_in_float32_and_without_a_graph() -> None:
    made = Ledger(2, 3)
    probability = ONE[None].bfloat16().requires_grad_()
    made.add_prediction(torch.tensor([1]), probability)
    for found in (made.mean_probability(), made.latest):
        assert found.dtype == torch.float32
        assert not found.requires_grad


def test_memory_is_read_and_written_by_row() -> None:
    made = Ledger(4, 3)
    made.memory = {"soft_label": torch.zeros(4, 3), "seen": torch.zeros(4, dtype=torch.long)}
    rows = torch.tensor([3, 1])
    values: dict[str, Tensor] = {
        "soft_label": torch.stack([ONE, TWO]).double().requires_grad_(),
        "seen": torch.tensor([7, 8]),
    }
    made.write(rows, values)
    read = made.read(rows.flip(0), CPU)
    torch.testing.assert_close(read["soft_label"], torch.stack([TWO, ONE]))
    assert made.memory["seen"].tolist() == [0, 8, 0, 7]
    assert read["soft_label"].dtype == torch.float32
    assert not read["soft_label"].requires_grad


def test_what_was_read_stays_when_the_memory_is_written() -> None:
    made = Ledger(2, 3)
    made.memory = {"soft_label": torch.zeros(2, 3)}
    rows = torch.tensor([0, 1])
    read = made.read(rows, CPU)
    made.write(rows, {"soft_label": torch.ones(2, 3)})
    assert not read["soft_label"].any()


def test_histories_of_any_shape_keep_their_number_format() -> None:
    made = Ledger(4, 3)
    made.memory = {"losses": torch.zeros(4, 2, 3, 2, dtype=torch.half)}
    made.write(torch.tensor([2]), {"losses": torch.full((1, 2, 3, 2), 0.5)})
    assert made.memory["losses"].dtype == torch.half
    assert made.read(torch.tensor([2, 0]), CPU)["losses"].flatten(1).mean(dim=1).tolist() == [0.5, 0]


def test_a_memory_may_be_longer_than_the_rows() -> None:
    """Features of trusted images outside of the source stand behind those of its rows."""
    made = Ledger(2, 3)
    made.memory = {"features": torch.arange(6.0).reshape(3, 2)}
    assert made.read(torch.tensor([1]), CPU)["features"].tolist() == [[2, 3]]


def test_an_empty_memory_reads_and_writes_nothing() -> None:
    made = Ledger(2, 3)
    assert made.read(torch.tensor([0]), CPU) == {}
    made.write(torch.tensor([0]), {})
    assert made.memory == {}


def test_the_state_goes_through_a_file() -> None:
    made = ledger()
    made.memory = {"soft_label": torch.rand(4, 3)}
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    restored = Ledger(4, 3)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(restored.mean_probability(), made.mean_probability())
    assert torch.equal(restored.latest, made.latest)
    assert torch.equal(restored.memory["soft_label"], made.memory["soft_label"])
    restored.add_prediction(torch.tensor([1]), ONE[None])
    made.add_prediction(torch.tensor([1]), ONE[None])
    assert torch.equal(restored.mean_probability(), made.mean_probability())
