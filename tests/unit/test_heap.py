"""Memory that a process frees and takes again is not fresh."""

import os
import platform
import resource
import subprocess
import sys

import pytest

ROUNDS, BLOCKS, BYTES = 10, 16, 8 << 20
# What glibc starts with. Left to itself it raises both as it sees blocks freed, by what a process did before.
SMALLEST = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
PAGE = resource.getpagesize()
PASSES = f"""
import ctypes, resource, sys
import torch
from rayrec.training.heap import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def layers():
    held = [torch.ones({BYTES}, dtype=torch.uint8) for _ in range({BLOCKS})]
layers()
layers()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    layers()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def fresh_pages(how: str) -> int:
    environment = os.environ | SMALLEST
    done = subprocess.run(
        [sys.executable, "-c", PASSES, how], capture_output=True, text=True, check=True, env=environment
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_memory_that_was_freed_is_kept() -> None:
    assert fresh_pages("keep") < 4 * BYTES // PAGE  # of all rounds
    assert fresh_pages("default") > ROUNDS * BYTES // PAGE
