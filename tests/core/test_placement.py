import torch

from wovr.core.placement import Parked


def test_views_find_their_numbers_again() -> None:
    whole = torch.arange(12.0)
    view = whole.view(3, 4)[1]
    parked = Parked(lambda: [whole, view])
    parked.park()
    assert whole.untyped_storage().nbytes() == 0, "the device is free of it"
    parked.bring()
    assert view.tolist() == [4, 5, 6, 7] and whole.data_ptr() + 16 == view.data_ptr()
    assert (parked.moves, parked.bytes_moved) == (2, 2 * 48)


def test_what_changes_is_copied_each_time_and_what_is_frozen_once() -> None:
    for frozen, copies in ((False, 4), (True, 3)):
        tensor = torch.zeros(5)
        parked = Parked(lambda tensor=tensor: [tensor], frozen=frozen)
        for value in (1.0, 2.0):
            if not frozen:
                tensor.fill_(value)
            parked.park()
            parked.bring()
            assert tensor.tolist() == [0.0 if frozen else value] * 5
        assert parked.bytes_moved == copies * 20


def test_tensors_that_come_and_go() -> None:
    state = {"a": torch.ones(2)}
    parked = Parked(lambda: state.values())
    parked.park()
    parked.bring()
    state["b"] = torch.full((3,), 2.0)
    old = state.pop("a")
    parked.park()
    assert old.tolist() == [1, 1], "no longer one of them"
    parked.bring()
    assert state["b"].tolist() == [2, 2, 2]
