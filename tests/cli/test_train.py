"""`repmlp train`: what the command adds to the library."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from repmlp_cli.train import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(2**22).add_(1)  # 16 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
assert keep_freed_memory()
faults()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept_from_the_call_on_and_not_from_the_import():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=120, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 100  # pages of up to 2 MB
    assert after < before / 10


def test_another_c_library_is_left_alone(monkeypatch):
    import repmlp_cli.train as command

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(command.ctypes, "CDLL", lambda name: pytest.fail("it calls mallopt"))
    assert not command.keep_freed_memory()
