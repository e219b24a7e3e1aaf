"""Hooks for transformers' common tests: their markers, and a failed run if a skip has no reason in our table."""

import pytest
from skips import is_listed

# Declared in transformers' own pytest configuration, which its source distribution lacks.
MARKERS = [
    "accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "is_training_test", "order",
    "torch_compile_test",
]  # fmt: skip

unlisted: set[str] = set()


def pytest_configure(config: pytest.Config):
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: set by transformers' common tests")


def pytest_runtest_logreport(report: pytest.TestReport):
    _, *test_class, name = report.nodeid.split("::")
    if report.skipped and test_class and not is_listed(name):
        unlisted.add(name)


def pytest_sessionfinish(session: pytest.Session):
    if unlisted and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter):
    if unlisted:
        terminalreporter.section("skipped without a reason in tests/hf/skips.py", red=True)
        for name in sorted(unlisted):
            terminalreporter.write_line(name)
