"""TMLC-Net's features, its encoder and its ablations."""

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relabel.correctors.base import Epoch, Memory, Store, TrustedRows, WarmUp, no_rows
from relabel.correctors.registry import check, create
from relabel.correctors.tmlc_net import (
    CANDIDATES,
    TMLCNet,
    kept,
    log_likelihood_ratio,
    mean_losses,
    normalized_features,
)
from relabel.errors import RelabelError
from relabel.saved.corrector_file import shipped_state
from relabel.training.checkpoint import passing_buffers

N, C, D, EPOCHS = 40, 5, 3, 4
PRETRAINED = shipped_state()
GENERATOR = torch.Generator().manual_seed(2)
TRUE = torch.randint(C, (N,), generator=GENERATOR)
GIVEN = torch.where(torch.rand(N, generator=GENERATOR) < 0.4, (TRUE + 1) % C, TRUE)
TRAINED = torch.arange(N) % 7 != 0
PROBABILITIES = [
    (2 * torch.randn(N, C, generator=GENERATOR).double() + t * F.one_hot(TRUE, C)).softmax(dim=1)
    for t in range(EPOCHS)
]
ROWS = torch.arange(N)


def corrector(classes: int = C, target: str = "trusted", without: str = "nothing") -> TMLCNet:
    torch.manual_seed(4)
    return fresh(classes, target=target, without=without)


def fresh(classes: int = C, **options: str) -> TMLCNet:
    corrector = create("tmlc", classes, D, options, PRETRAINED).double()
    assert isinstance(corrector, TMLCNet)
    return corrector


def epoch(probability: Tensor, memory: Store, number: int = 0) -> Epoch:
    return Epoch(
        number=number,
        probability=probability,
        trained=TRAINED,
        given=GIVEN,
        memory=memory,
        meta=TrustedRows(ROWS[:4], TRUE[:4], GIVEN[:4]),
    )


def history(made: TMLCNet, epochs: int = EPOCHS) -> Memory:
    memory: Store = {}
    for number, probability in enumerate(PROBABILITIES[:epochs]):
        memory |= made.observe(epoch(probability, memory, number))
    return of_all_rows(memory)


def of_all_rows(memory: Store) -> Memory:
    return {name: values[:] for name, values in memory.items()}


def normalized(probability: Tensor, given: Tensor, trained: Tensor) -> tuple[Tensor, Tensor]:
    return normalized_features(probability, mean_losses(probability, given, trained))


def features(
    probability: Tensor = PROBABILITIES[0], given: Tensor = GIVEN, trained: Tensor = TRAINED
) -> Tensor:
    """CNL and GNL [N, C, 2] before the logarithm."""
    return torch.expm1(normalized(probability, given, trained)[0])


def of_given_label(values: Tensor, given: Tensor = GIVEN) -> Tensor:
    return values[torch.arange(len(given)), given]


def test_the_class_normalized_loss_of_a_class_is_one_on_average() -> None:
    own = of_given_label(features())[:, 0]
    for label in range(C):
        rows = TRAINED & (label == GIVEN)
        assert rows.sum() > 2
        assert own[rows].mean().item() == pytest.approx(1, abs=1e-12)
    assert own.std() > 0.1


def test_the_global_normalized_loss_is_one_on_average() -> None:
    own = of_given_label(features())[:, 1]
    assert own[TRAINED].mean().item() == pytest.approx(1, abs=1e-12)
    assert own.std() > 0.1


def test_the_features_of_another_class_are_computed_as_if_it_were_given() -> None:
    found, losses = features(), -PROBABILITIES[0].log()
    own = of_given_label(losses)
    for label in range(C):
        class_mean = own[TRAINED & (label == GIVEN)].mean()
        torch.testing.assert_close(found[:, label, 0], losses[:, label] / class_mean)
        torch.testing.assert_close(found[:, label, 1], losses[:, label] / own[TRAINED].mean())


@pytest.mark.parametrize("scale", [0.25, 3.0])
def test_the_scale_of_the_losses_cancels(scale: float) -> None:
    """Losses −log p times `scale`: both means scale with them."""
    mild = PROBABILITIES[0].clamp(min=0.1)  # to its third power above the floor
    torch.testing.assert_close(features(mild**scale), features(mild), rtol=1e-10, atol=1e-12)


def test_the_means_are_over_the_trained_rows() -> None:
    shown = PROBABILITIES[0].clone()
    shown[~TRAINED] = torch.rand(
        int((~TRAINED).sum()), C, generator=torch.Generator().manual_seed(0)
    ).double()
    torch.testing.assert_close(features(shown)[TRAINED], features()[TRAINED], rtol=0, atol=0)


def test_unlabelled_rows_have_features_and_count_in_no_mean() -> None:
    given = torch.where(TRAINED, GIVEN, -1)
    torch.testing.assert_close(features(given=given), features(), rtol=0, atol=0)


def test_a_class_without_a_label_takes_the_mean_of_all() -> None:
    given = torch.where(GIVEN == 2, 3, GIVEN)
    found = features(given=given)
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, 2, 0], found[:, 2, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sure_of", [GIVEN, (GIVEN + 1) % C], ids=["given", "another"])
def test_a_network_that_is_sure_has_finite_features(dtype: torch.dtype, sure_of: Tensor) -> None:
    losses, entropy = normalized(F.one_hot(sure_of, C).to(dtype), GIVEN, TRAINED)
    assert losses.half().isfinite().all()
    assert (losses >= 0).all()
    assert not entropy.any()


def test_a_class_of_one_row_the_network_is_sure_of_has_finite_features() -> None:
    """Its mean loss is 0, which is what every row's loss under that class is divided by."""
    given = torch.where(GIVEN == 2, 3, GIVEN)
    given[1] = 2
    probability = PROBABILITIES[0].clone()
    probability[1] = F.one_hot(torch.tensor(2), C)
    losses, _ = normalized(probability, given, TRAINED)
    assert losses.half().isfinite().all()
    assert losses[1, 2, 0] <= math.log(2) + 1e-12, "not above the class's mean"


def test_the_entropy_is_a_share_of_the_largest_possible() -> None:
    for probability in PROBABILITIES:
        _, entropy = normalized(probability, GIVEN, TRAINED)
        assert entropy.shape == (N,)
        assert ((entropy > 0) & (entropy < 1)).all()
        expected = -(probability * probability.log()).sum(dim=1) / math.log(C)
        torch.testing.assert_close(entropy, expected, rtol=0, atol=1e-3)  # but for the floor
    uniform = torch.full((N, C), 1 / C).double()
    assert normalized(uniform, GIVEN, TRAINED)[1].tolist() == pytest.approx([1.0] * N)


def test_the_history_grows_by_an_epoch_in_order() -> None:
    memory = history(corrector())
    assert memory["losses"].shape == (N, EPOCHS, C, 2)
    assert memory["entropy"].shape == (N, EPOCHS)
    for number, probability in enumerate(PROBABILITIES):
        losses, entropy = normalized(probability, GIVEN, TRAINED)
        torch.testing.assert_close(memory["losses"][:, number], losses.half())
        torch.testing.assert_close(memory["entropy"][:, number], entropy.half())


@pytest.mark.parametrize("epochs", [1, 5, 16, 17, 18, 31, 32, 33, 64, 100, 500])
def test_a_history_of_any_length_keeps_a_few_evenly_spaced_epochs_and_the_newest(epochs: int) -> None:
    made = corrector()
    memory: Store = {}
    for number in range(epochs):  # the number of an epoch, as the share of class 0
        probability = torch.full((N, C), (1 - number / 1000) / (C - 1)).double()
        probability[:, 0] = number / 1000
        memory |= made.observe(epoch(probability, memory, number))
    entropy = memory["entropy"][:][0].double()
    expected = [_entropy(number / 1000) for number in kept(epochs)]
    assert entropy.tolist() == pytest.approx(expected, abs=1e-3)
    assert memory["losses"][:].shape == (N, len(expected), C, 2)
    assert len(expected) <= 17
    assert kept(epochs)[-1] == epochs - 1
    *strides, last = [after - before for before, after in pairwise([-1, *kept(epochs)])]
    assert len(set(strides)) <= 1
    assert not strides or last <= strides[0]
    assert epochs > 16 or kept(epochs) == list(range(epochs))
    assert epochs < 17 or len(expected) > 8


def _entropy(share: float) -> float:
    others = (1 - share) / (C - 1)
    return -(share * math.log(max(share, 1e-4)) + (1 - share) * math.log(others)) / math.log(C)


@pytest.mark.parametrize("learns", [True, False])
def test_a_constant_corrector_s_soft_label_makes_no_graph(
    learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = corrector().requires_grad_(learns)
    memory, seen = history(made), []

    def soft_label(*arguments: object) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return TMLCNet.soft_label(made, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(made, "soft_label", soft_label)
    logits = torch.randn(N, C, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    made.loss(logits, GIVEN, memory).sum().backward()  # type: ignore[no-untyped-call]
    assert seen == [learns]
    assert logits.grad is not None
    expected = logits.detach().softmax(dim=1) - made.soft_label(logits, GIVEN, memory)
    torch.testing.assert_close(logits.grad, expected.detach())
    assert all((parameter.grad is not None) == learns for parameter in made.parameters())


def test_every_epoch_counts() -> None:
    made = corrector()
    memory = history(made)
    soft_label = made.soft_label(torch.empty(0), GIVEN, memory)
    for number in range(EPOCHS):
        changed = {key: value.clone() for key, value in memory.items()}
        changed["losses"][:, number] *= 2
        assert not torch.allclose(made.soft_label(torch.empty(0), GIVEN, changed), soft_label, atol=1e-6)


def test_a_long_history_is_replayed_from_its_first_epoch_to_its_last_in_strides() -> None:
    made = corrector()
    memory = {key: value[:, torch.arange(23) % EPOCHS] for key, value in history(made).items()}
    soft_label = made.soft_label(torch.empty(0), GIVEN, memory)
    counting = []
    for number in range(23):
        changed = {key: value.clone() for key, value in memory.items()}
        changed["losses"][:, number] *= 2
        if not torch.equal(made.soft_label(torch.empty(0), GIVEN, changed), soft_label):
            counting.append(number)
    assert (counting[0], counting[-1]) == (23 // 6, 22)
    strides = [after - before for before, after in pairwise(counting)]
    assert max(strides) - min(strides) <= 1
    picked = {key: value[:, counting] for key, value in memory.items()}
    torch.testing.assert_close(made.soft_label(torch.empty(0), GIVEN, picked), soft_label)
    torch.testing.assert_close(made.trusted_loss(GIVEN, TRUE, picked), made.trusted_loss(GIVEN, TRUE, memory))


def test_eight_epochs_of_a_long_history_are_replayed() -> None:
    """What a batch costs does not grow with the run."""
    made = corrector()
    memory = {key: value[:, torch.arange(17) % EPOCHS] for key, value in history(made).items()}
    seen: list[int] = []
    made.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    for epochs in (1, 7, 8, 9, 17):
        made.soft_label(torch.empty(0), GIVEN, {key: value[:, :epochs] for key, value in memory.items()})
    assert seen == [1, 7, 8, 8, 8]


def test_a_state_carried_from_epoch_to_epoch_is_that_of_the_replayed_history() -> None:
    made = corrector()
    memory, state = history(made), None
    for number in range(EPOCHS):
        losses, entropy = (memory[name][:, number].double() for name in ("losses", "entropy"))
        own = F.one_hot(GIVEN, C).double()
        features = torch.cat([losses, entropy[:, None, None].expand(-1, C, 1), own[:, :, None]], dim=2)
        _, state = made.encoder(features.view(N * C, 1, 4), state)
        first = {name: values[:, : number + 1] for name, values in memory.items()}
        expected = state[0][0].view(N, C, -1)
        torch.testing.assert_close(made.states(GIVEN, first), expected, rtol=1e-12, atol=1e-14)


def test_a_pair_s_encoding_knows_the_features_of_that_pair_only() -> None:
    made = corrector()
    memory = history(made)
    hidden = made.states(GIVEN, memory)
    assert hidden.shape == (N, C, 64)
    label = 3
    features = torch.cat(
        [
            memory["losses"][:, :, label].double(),
            memory["entropy"][:, :, None].double(),
            GIVEN.eq(label).double()[:, None, None].expand(-1, EPOCHS, 1),
        ],
        dim=2,
    )
    expected = made.encoder(features)[0][:, -1]
    torch.testing.assert_close(hidden[:, label], expected, rtol=1e-12, atol=1e-14)
    scores = made.decoder(hidden).squeeze(2)
    torch.testing.assert_close(
        made.soft_label(torch.empty(0), GIVEN, memory), torch.softmax(scores, dim=1), rtol=1e-12, atol=1e-14
    )


def test_renaming_the_classes_renames_features_and_soft_labels() -> None:
    order = torch.tensor([2, 0, 4, 1, 3])
    renamed = order.argsort()[GIVEN]
    torch.testing.assert_close(
        features(PROBABILITIES[0][:, order], renamed), features()[:, order], rtol=1e-12, atol=1e-12
    )
    made = corrector()
    memory = history(made)
    permuted = {"losses": memory["losses"][:, :, order], "entropy": memory["entropy"]}
    torch.testing.assert_close(
        made.soft_label(torch.empty(0), renamed, permuted),
        made.soft_label(torch.empty(0), GIVEN, memory)[:, order],
        rtol=1e-12,
        atol=1e-14,
    )


def many_classes(made: TMLCNet, epochs: int, classes: int = 100) -> tuple[Memory, Tensor, list[Tensor]]:
    """Memory after some epochs over many classes, the given labels (one row has none), the predictions."""
    generator = torch.Generator().manual_seed(0)
    given = torch.randint(10, (N,), generator=generator)
    given[5] = -1
    trained = given >= 0
    memory: Store = {}
    predictions = []
    for number in range(epochs):
        predictions.append((3 * torch.randn(N, classes, generator=generator).double()).softmax(dim=1))
        finished = epoch(predictions[-1], memory, number)
        memory = {**memory, **made.observe(replace(finished, given=given, trained=trained))}
    return of_all_rows(memory), given, predictions


def test_the_same_weights_run_at_twenty_classes_and_at_a_hundred() -> None:
    twenty, hundred = corrector(20), TMLCNet(100, 2 * D).double()
    hundred.load_state_dict(twenty.state_dict())
    memory, given, _ = many_classes(hundred, 7)
    wide = hundred.soft_label(torch.empty(0), given, memory)
    assert wide.shape == (N, 100)
    torch.testing.assert_close(wide.sum(dim=1), torch.ones(N).double())
    assert ((wide > 0).sum(dim=1) <= 20).all()
    candidates = memory["candidates"].long()
    histories = {name: memory[name] for name in ("losses", "entropy")}
    places = torch.where(given >= 0, (candidates == given[:, None]).int().argmax(dim=1), -1)
    narrow = twenty.soft_label(torch.empty(0), places, histories)
    torch.testing.assert_close(wide.gather(1, candidates), narrow)


@pytest.mark.parametrize(
    ("epochs", "chosen", "stored"), [(1, 0, 1), (2, 1, 1), (4, 2, 2), (5, 4, 1), (9, 4, 5)]
)
def test_beyond_twenty_classes_the_given_and_the_likeliest_have_a_history(
    epochs: int, chosen: int, stored: int
) -> None:
    made = fresh(100)
    memory, given, predictions = many_classes(made, epochs)
    assert memory["candidates"].shape == (N, 20)
    assert memory["losses"].shape == (N, stored, 20, 2)
    for row in range(N):
        candidates = set(memory["candidates"][row].tolist())
        assert len(candidates) == 20
        likeliest = predictions[chosen][row].topk(20).indices.tolist()
        expected = {int(given[row]), *likeliest} if given[row] >= 0 else set(likeliest)
        assert candidates <= expected
        assert given[row] < 0 or int(given[row]) in candidates
        assert set(likeliest[:19]) <= candidates
    losses, _ = normalized(predictions[-1], given, given >= 0)
    own = losses.gather(1, memory["candidates"].long()[:, :, None].expand(-1, -1, 2))
    torch.testing.assert_close(memory["losses"][:, -1], own.half())


def test_candidates_are_in_the_order_of_their_classes() -> None:
    memory, _, _ = many_classes(fresh(100), 1)
    assert (memory["candidates"].diff(dim=1) > 0).all()


def test_a_true_class_that_is_no_candidate_teaches_nothing() -> None:
    made = fresh(100)
    memory, given, _ = many_classes(made, 6)
    candidates = memory["candidates"].long()
    inside = candidates[:, 3]
    outside = torch.tensor([min(set(range(100)) - set(row.tolist())) for row in candidates])
    half = torch.arange(N) % 2 == 0
    mixed = made.trusted_loss(given, torch.where(half, inside, outside), memory)
    alone = made.trusted_loss(given[half], inside[half], {key: value[half] for key, value in memory.items()})
    torch.testing.assert_close(mixed, alone)
    nothing = made.trusted_loss(given, outside, memory)
    assert nothing.item() == 0
    assert all(not grad.any() for grad in torch.autograd.grad(nothing, list(made.parameters())))


def test_a_row_without_a_label_keeps_no_share_for_it() -> None:
    made, unlabelled = corrector(), torch.full((N,), -1)
    memory = history(made)
    free, labelled = (made.soft_label(torch.empty(0), given, memory) for given in (unlabelled, GIVEN))
    made.kept_share.fill_(0.4)
    assert torch.equal(made.soft_label(torch.empty(0), unlabelled, memory), free)
    expected = 0.6 * labelled + 0.4 * F.one_hot(GIVEN, C)
    torch.testing.assert_close(made.soft_label(torch.empty(0), GIVEN, memory), expected)


def test_without_normalization_the_features_are_losses_and_entropies() -> None:
    memory = history(corrector(without="nnp"), 2)
    for number in range(2):
        losses = -PROBABILITIES[number].clamp(min=1e-4).log()
        found = memory["losses"][:, number].double()
        torch.testing.assert_close(found, torch.stack([losses, losses], dim=2), rtol=1e-3, atol=1e-6)
        entropy = (PROBABILITIES[number] * losses).sum(dim=1)
        torch.testing.assert_close(memory["entropy"][:, number].double(), entropy, rtol=1e-3, atol=1e-6)


def test_without_the_time_series_the_last_epoch_is_all() -> None:
    made = corrector(without="tse")
    memory = history(made)
    assert memory["losses"].shape == (N, 1, C, 2)
    assert memory["entropy"].shape == (N, 1)
    last = of_all_rows(made.observe(epoch(PROBABILITIES[-1], {})))
    torch.testing.assert_close(memory, last, rtol=0, atol=0)


def test_without_the_decoder_s_distribution_the_best_class_is_the_label() -> None:
    memory = history(corrector())
    soft = corrector().soft_label(torch.empty(0), GIVEN, memory)
    hard = corrector(without="sd").soft_label(torch.empty(0), GIVEN, memory)
    assert torch.equal(hard, F.one_hot(soft.argmax(dim=1), C).double())


def trained(target: str, epochs: int, steps: int) -> tuple[Tensor, float]:
    """The soft labels and the trusted loss after learning from every row."""
    made = corrector(target=target)
    memory = history(made, epochs)
    optimizer = torch.optim.Adam(made.parameters(), lr=2e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = made.trusted_loss(GIVEN, TRUE, memory)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        return made.soft_label(torch.empty(0), GIVEN, memory), made.trusted_loss(GIVEN, TRUE, memory).item()


def test_the_printed_target_teaches_the_smoothed_given_label() -> None:
    """Eq. 10: nothing is ever corrected."""
    soft_label, loss = trained("given", 2, 80)
    smoothed = 0.9 * F.one_hot(GIVEN, C).double() + 0.1 / C
    torch.testing.assert_close(soft_label, smoothed, rtol=0, atol=0.02)
    entropy = -(smoothed * smoothed.log()).sum(dim=1).mean().item()
    assert entropy <= loss < entropy + 0.01


def test_true_labels_teach_corrections() -> None:
    soft_label, loss = trained("trusted", EPOCHS, 40)
    assert (GIVEN == TRUE).double().mean() < 0.75
    assert (soft_label.argmax(dim=1) == TRUE).double().mean() > 0.9
    own = soft_label.gather(1, TRUE[:, None])
    assert loss == pytest.approx(-own.log().mean().item())


def warm_up(meta: int) -> WarmUp:
    rows = ROWS[:meta]
    return WarmUp(
        mean_probability=PROBABILITIES[0],
        probability=PROBABILITIES[0],
        given=GIVEN,
        head=nn.Linear(D, C),
        features=lambda: torch.zeros(N, D),
        meta=TrustedRows(rows, TRUE[rows], GIVEN[rows]),
        in_training=no_rows(),
    )


def beginning(made: TMLCNet, meta: int) -> TMLCNet:
    made.initialise(warm_up(meta))
    return made


@pytest.mark.parametrize("without", ["nothing", "sd"])
@pytest.mark.parametrize("meta", [2, 40])
def test_it_begins_at_the_pretrained_corrector_and_few_meta_rows_hold_it_there(
    without: str, meta: int
) -> None:
    made = beginning(corrector(without=without), meta)
    for name, parameter in made.named_parameters():
        assert torch.equal(parameter, PRETRAINED[name].double())
    assert made.kept_share == 0
    memory = history(made)
    at_start = made.trusted_loss(GIVEN, TRUE, memory)
    with torch.no_grad():
        made.encoder.bias_hh_l0[0] += 0.5
        made.decoder[2].weight[0, 1] -= 2.0
    pulled = made.trusted_loss(GIVEN, TRUE, memory)
    made.prior_precision.zero_()
    free = made.trusted_loss(GIVEN, TRUE, memory)
    assert pulled.item() == pytest.approx(free.item() + 10 / meta / 2 * (0.5**2 + 2.0**2))
    assert free != at_start


@pytest.mark.parametrize(
    "options",
    [{"start": "random"}, {"target": "given"}, {"without": "nnp"}, {"without": "tse"}],
    ids=lambda options: next(iter(options.values())),
)
def test_it_begins_at_random_where_asked_to_and_where_the_pretrained_one_means_nothing(
    options: dict[str, str],
) -> None:
    torch.manual_seed(4)
    made = fresh(**options)
    before = [parameter.detach().clone() for parameter in made.parameters()]
    beginning(made, 10)
    assert all(torch.equal(*pair) for pair in zip(made.parameters(), before, strict=True))
    assert made.kept_share == 0.5
    assert made.prior_precision == 0


def structured(classes: int = C) -> np.ndarray:
    """p(given | true) with half of class 0 labelled 1."""
    transition = np.full((classes, classes), 0.1 / (classes - 1))
    np.fill_diagonal(transition, 0.9)
    transition[0] = 0.02 / (classes - 2)
    transition[0, :2] = 0.5, 0.48
    return transition


def with_noise(matrix: np.ndarray | None, made: TMLCNet) -> TMLCNet:
    """`made`, after a warm-up that knows that noise matrix."""

    class Known(WarmUp):
        transition = None if matrix is None else SimpleNamespace(matrix=matrix)

    made.initialise(Known(**vars(warm_up(10))))
    return made


def test_symmetric_noise_has_no_log_ratio() -> None:
    for classes, rate in ((2, 0.3), (10, 0.6), (100, 0.01)):
        even = np.full((classes, classes), rate / (classes - 1))
        np.fill_diagonal(even, 1 - rate)
        assert np.abs(log_likelihood_ratio(even)).max() < 1e-12


def test_the_log_ratio_is_against_symmetric_noise_of_the_same_rate() -> None:
    transition = np.array([[0.9, 0.1, 0.0001], [0.2, 0.7, 0.0999], [0.3, 0.2, 0.5]])
    found = log_likelihood_ratio(transition)
    assert found[1, 1] == pytest.approx(math.log(0.7 / 0.7))
    assert found[2, 0] == pytest.approx(math.log(0.3 / 0.15))
    assert found[0, 2] == pytest.approx(math.log(0.0001 / 0.15))


def test_the_soft_label_gains_half_the_log_ratio_of_the_noise() -> None:
    """q_c is multiplied by (T_{c,y} / even)^½; rows without a label have no y."""
    given = torch.where(ROWS % 7 == 0, -1, GIVEN)
    made = with_noise(structured(), corrector())
    memory = history(made)
    found = made.soft_label(torch.empty(0), given, memory)
    made.log_ratio = None
    before = made.soft_label(torch.empty(0), given, memory)
    mean_rate = 1 - np.diag(structured()).mean()
    even = np.full((C, C), mean_rate / (C - 1))
    np.fill_diagonal(even, 1 - mean_rate)
    ratio = torch.from_numpy(np.sqrt(structured() / even))
    labelled = given >= 0
    expected = before.clone()
    expected[labelled] *= ratio.T[given[labelled]]
    expected /= expected.sum(dim=1, keepdim=True)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[~labelled], before[~labelled])
    ones = given == 1
    assert (found[ones, 0] > 1.5 * before[ones, 0]).any(), "half of class 0 is labelled 1"


def test_its_loss_is_that_of_the_soft_label_with_the_log_ratio() -> None:
    made = with_noise(structured(), corrector())
    memory = history(made)
    made.prior_precision.zero_()
    own = made.soft_label(torch.empty(0), GIVEN, memory).gather(1, TRUE[:, None])
    assert made.trusted_loss(GIVEN, TRUE, memory).item() == pytest.approx(-own.log().mean().item())


def test_with_many_classes_only_candidates_gain_the_log_ratio() -> None:
    given = ROWS % 100
    made = fresh(100)
    transition = structured(100)
    made.log_ratio = torch.from_numpy(log_likelihood_ratio(transition))
    generator = torch.Generator().manual_seed(5)
    memory = {
        "losses": torch.rand(N, 3, CANDIDATES, 2, generator=generator).double(),
        "entropy": torch.rand(N, 3, generator=generator).double(),
        "candidates": torch.stack([torch.randperm(100, generator=generator)[:CANDIDATES] for _ in ROWS]),
    }
    found = made.soft_label(torch.empty(0), given, memory)
    made.log_ratio = None
    before = made.soft_label(torch.empty(0), given, memory)
    expected = before * torch.from_numpy(np.exp(log_likelihood_ratio(transition))).T[given]
    torch.testing.assert_close(found, expected / expected.sum(dim=1, keepdim=True))
    assert (found > 0).sum(dim=1).max() == CANDIDATES


@pytest.mark.parametrize(
    ("options", "gains"),
    [({}, True), ({"without": "sd"}, True), ({"start": "random"}, False), ({"without": "tse"}, False)],
)
def test_the_log_ratio_comes_with_the_pretrained_start(options: dict[str, str], gains: bool) -> None:
    made = with_noise(structured(), fresh(**options))
    assert list(passing_buffers(made)) == (["log_ratio"] if gains else [])
    if made.log_ratio is not None:
        torch.testing.assert_close(made.log_ratio, torch.from_numpy(log_likelihood_ratio(structured())) / 2)
    assert not passing_buffers(with_noise(None, fresh(**options)))


def test_anchor_points_alone_do_not_tell_the_noise() -> None:
    made, before = corrector(), warm_up(10)
    made.initialise(replace(before, meta=replace(before.meta, given=torch.full((10,), -1))))
    assert before.transition is not None
    assert passing_buffers(made) == {}


@pytest.mark.parametrize("other", [{"target": "given"}, {"without": "nnp"}, {"without": "tse"}])
def test_asking_for_the_pretrained_start_where_it_means_nothing_is_refused(other: dict[str, str]) -> None:
    ((name, value),) = other.items()
    message = f"--option start=pretrained and --option {name}={value} exclude each other."
    with pytest.raises(RelabelError, match=message):
        check("tmlc", {"start": "pretrained", **other})
    check("tmlc", {"start": "pretrained", "without": "sd"})
    check("tmlc", other)


def test_the_prior_goes_through_a_file_with_the_parameters_and_the_log_ratio_does_not() -> None:
    made, other = beginning(corrector(), 5), corrector()
    other.load_state_dict(made.state_dict())
    memory = history(made)
    assert made.log_ratio is not None
    assert other.log_ratio is None
    made.log_ratio = None
    with torch.no_grad():
        for each in (made, other):
            each.decoder[0].bias[0] += 1.0
    assert made.prior_precision == 2
    assert made.trusted_loss(GIVEN, TRUE, memory) == other.trusted_loss(GIVEN, TRUE, memory)


def test_candidates_are_chosen_early_and_ask_for_early_predictions_of_unlabelled_rows() -> None:
    assert TMLCNet(21, D).needs.unlabelled_predictions
    assert not TMLCNet(20, D).needs.unlabelled_predictions
