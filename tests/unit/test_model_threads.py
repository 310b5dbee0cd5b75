"""Threads that do not wait for each other."""

import threading

import pytest
import torch

from bsym_bids.model.threads import in_threads, one_thread


@pytest.fixture(params=[1, 3], autouse=True)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("items", [[], [5], list(range(20))])
def test_results_come_in_the_order_of_the_items(items, threads):
    assert in_threads(lambda item: item**2, items) == [item**2 for item in items]
    assert torch.get_num_threads() == threads


def test_each_item_has_one_thread_of_torch(threads):
    assert in_threads(lambda _: torch.get_num_threads(), range(9)) == [1] * 9
    assert in_threads(lambda _: torch.get_num_threads(), [0]) == [threads]


@pytest.mark.parametrize("wanted", [None, 1, 2])
def test_as_many_at_once_as_threads(threads, wanted):
    together = threading.Barrier(wanted or threads, timeout=20)
    in_threads(lambda _: together.wait(), range(2 * (wanted or threads)), wanted)
    assert torch.get_num_threads() == threads


def test_one_thread_is_for_a_while(threads):
    with one_thread() as before:
        assert before == threads
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads
    with pytest.raises(ValueError, match="no"), one_thread():
        raise ValueError("no")
    assert torch.get_num_threads() == threads


def test_threads_that_come_later_have_as_many_as_before(threads):
    in_threads(lambda _: None, range(4))
    seen = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [threads]


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_settings_of_gradients_are_the_callers(mode):
    def settings(_):
        return torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    with mode():
        assert in_threads(settings, range(4)) == [settings(None)] * 4


def test_gradients_pass():
    value = torch.ones(3, requires_grad=True)
    sum(in_threads(lambda factor: (factor * value).sum(), [1.0, 2.0, 4.0])).backward()
    assert value.grad.tolist() == [7, 7, 7]


def test_an_error_comes_out_and_leaves_things_as_they_were(threads):
    def fail(item):
        if item == 2:
            raise ValueError("no")
        return item

    with pytest.raises(ValueError, match="no"):
        in_threads(fail, range(5))
    assert torch.get_num_threads() == threads
