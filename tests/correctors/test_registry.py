"""The registry's entries against the classes they name, and what is refused by name."""

import inspect
import subprocess
import sys
from collections.abc import Mapping

import pytest

from relabel.config import DEFAULT_CORRECTOR
from relabel.correctors import registry
from relabel.correctors.registry import PRESETS, REGISTRY
from relabel.errors import RelabelError
from relabel.schedule import Settings

every = pytest.mark.parametrize("name", REGISTRY)
SETTINGS: Mapping[str, tuple[str, Settings]] = {
    **{name: (name, registry.settings_of(name)) for name in REGISTRY},
    **{preset: (name, registry.settings_of(name, preset)) for preset, name in PRESETS.items()},
}


@every
def test_an_entry_lists_its_class_s_options_with_their_defaults_first(name: str) -> None:
    parameters = inspect.signature(registry.class_of(name).__init__).parameters
    options = {
        option: parameter.default
        for option, parameter in parameters.items()
        if isinstance(parameter.default, str)
    }
    assert {option: values[0] for option, values in REGISTRY[name].options.items()} == options
    assert ("pretrained" in parameters) == (REGISTRY[name].pretrained is not None)


@every
def test_an_entry_lists_its_class_s_presets_and_what_each_leaves_out(name: str) -> None:
    assert REGISTRY[name].presets.keys() == registry.class_of(name).presets.keys()
    for left_out in REGISTRY[name].presets.values():
        assert left_out
        assert not left_out.endswith(".")


@every
def test_what_an_entry_excludes_and_begins_with_is_among_its_options(name: str) -> None:
    entry = REGISTRY[name]
    pairs = [*entry.excluded, *(pair for pairs in entry.excluded.values() for pair in pairs)]
    pairs += [entry.pretrained] if entry.pretrained else []
    for option, value in pairs:
        assert value in entry.options[option]


@pytest.mark.parametrize(("name", "settings"), SETTINGS.values(), ids=SETTINGS)
def test_settings_can_be_followed(name: str, settings: Settings) -> None:
    registry.check(name, settings.options)
    schedule = settings.schedule.resolved(1_000)
    assert 1 <= schedule.warmup_epochs < schedule.epochs
    assert min(schedule.meta_every, schedule.meta_batch_size, schedule.batch_size) >= 1
    assert min(schedule.learning_rate, schedule.meta_learning_rate, schedule.meta_phase_rate) > 0
    assert schedule.virtual_learning_rate is None or schedule.virtual_learning_rate > 0
    assert 0 <= schedule.averaged_weights <= 1
    assert 0 <= schedule.averaged_model <= 1


@pytest.mark.parametrize("preset", PRESETS)
def test_a_paper_s_milestones_are_whole_epochs(preset: str) -> None:
    name, settings = SETTINGS[preset]
    schedule = settings.schedule
    assert preset == f"{name}-paper"
    assert schedule.epochs * schedule.warmup == pytest.approx(round(schedule.epochs * schedule.warmup))
    assert schedule.milestones is not None, "no paper has the one cycle"
    for milestone in schedule.milestones:
        reached = schedule.epochs * milestone
        assert reached == pytest.approx(round(reached))
        assert round(reached) >= milestone * schedule.epochs, "reached by the epoch's first batch"
    assert list(schedule.milestones) == sorted(schedule.milestones)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_paper_s_settings_do_not_begin_at_what_comes_with_relabel(preset: str) -> None:
    name, settings = SETTINGS[preset]
    assert not registry.begins_pretrained(name, settings.options)


def test_a_preset_names_its_corrector_or_agrees_with_the_one_named() -> None:
    for preset, name in PRESETS.items():
        for given in (None, name):
            assert registry.chosen(given, preset) == name
    assert registry.chosen(None) == DEFAULT_CORRECTOR
    assert [registry.chosen(name) for name in REGISTRY] == list(REGISTRY)


def test_an_unknown_preset_and_one_of_another_corrector_are_refused() -> None:
    with pytest.raises(RelabelError, match=r"^--preset mslc: there is no such one"):
        registry.chosen(None, "mslc")
    with pytest.raises(RelabelError, match=r"^--preset mslc-paper is for mslc, not mlc"):
        registry.chosen("mlc", "mslc-paper")


@pytest.mark.parametrize(
    ("options", "pretrained"),
    [
        ({}, True),
        ({"start": "pretrained", "without": "sd"}, True),
        ({"start": "random"}, False),
        ({"target": "given"}, False),
        ({"without": "tse"}, False),
    ],
)
def test_tmlc_begins_pretrained_where_its_target_and_inputs_are_those(
    options: dict[str, str], pretrained: bool
) -> None:
    assert registry.begins_pretrained("tmlc", options) == pretrained


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mlsc", {}, "--corrector mlsc: no such corrector"),
        ("mlc", {"targets": "hard"}, "--option targets=hard: mlc has no such option"),
        ("none", {"start": "random"}, "--option start=random: none has no such option"),
        ("mlc", {"start": "random"}, "--option start=random: no such value"),
        (
            "tmlc",
            {"start": "pretrained", "target": "given"},
            "start=pretrained and --option target=given exclude",
        ),
    ],
)
def test_what_a_corrector_does_not_have_is_refused(name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(RelabelError, match=message):
        registry.check(name, options)


def test_listing_and_checking_the_correctors_imports_no_torch() -> None:
    code = (
        "import sys; from relabel.correctors import registry; from relabel.config import FitConfig; "
        "registry.check(registry.chosen(None, 'mslc-paper'), {'start': 'random'}); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
