"""One thread for every test: the models are tiny, and threads of a busy machine wait for each other."""

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported, and by the processes tests start


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: add --run-slow"))
