"""Puts this folder on the path of every test, for ``pages``."""

import pytest

# Before they are imported: their asserts then show values, as those of a test do.
pytest.register_assert_rewrite("origins", "pages", "processes")
