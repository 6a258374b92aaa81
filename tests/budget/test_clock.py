"""The clock that everything is timed with."""

import time

import pytest
import torch

from vlmcompress.budget import clock

CPU = torch.device("cpu")


def test_elapsed_is_the_time_of_the_call_in_milliseconds():
    assert 20 <= clock.elapsed(lambda: time.sleep(0.02), CPU) < 2000
    assert clock.elapsed(lambda: None, CPU) < 20


def test_marks_of_a_cpu_are_milliseconds_apart():
    start = clock.mark(CPU)
    time.sleep(0.02)
    assert 20 <= clock.milliseconds(start, clock.mark(CPU)) < 2000


def test_a_gpu_is_waited_for_before_the_clock_is_read(monkeypatch):
    done = []
    monkeypatch.setattr(torch.cuda, "synchronize", done.append)
    monkeypatch.setattr(clock.time, "perf_counter", lambda: done.append("read") or 1.5)
    assert clock.now(torch.device("cuda", 0)) == 1500
    assert done == [torch.device("cuda", 0), "read"]
    clock.now(CPU)
    assert done == [torch.device("cuda", 0), "read", "read"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_events_and_the_waiting_clock_agree():
    device = torch.device("cuda")
    square = torch.randn(4096, 4096, device=device)

    def work():
        for _ in range(20):
            square @ square

    work()
    start = clock.mark(device)
    waited = clock.elapsed(work, device)
    assert clock.milliseconds(start, clock.mark(device)) == pytest.approx(waited, rel=0.2)
    assert waited > 1
