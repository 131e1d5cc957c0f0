"""Data depend on (seed, epoch, index) only, never on who loads them."""

from dataclasses import replace

import pytest
import torch

from stepbench.errors import StepbenchError
from stepbench.training.data import Batches, data_digest
from stepbench.training.types import Plan
from stepbench.training.workloads import load
from tests.training.small import tiny

LOADERS = {
    "workers1": {"num_workers": 1},
    "workers3": {"num_workers": 3},
    "prefetch": {"num_workers": 2, "prefetch_factor": 5},
    "persistent": {"num_workers": 2, "persistent_workers": True},
}


def three_epochs(workload, **loader):
    batches = Batches(workload, Plan(loader=loader), batches_an_epoch=3)
    return [next(batches) for _ in range(9)]


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("workload", ["gpt-tiny", "cnn-tiny"])
def test_workers_change_nothing(workload, name):
    alone, ours = three_epochs(load(workload)), three_epochs(load(workload), **LOADERS[name])
    for (inputs, targets), (our_inputs, our_targets) in zip(alone, ours, strict=True):
        assert torch.equal(inputs, our_inputs)
        assert torch.equal(targets, our_targets)


def test_augmentation_changes_with_the_epoch_and_only_with_it():
    dataset = load("cnn-tiny").dataset()
    first, label = dataset[5]
    dataset.epoch = 1
    second, again = dataset[5]
    assert label == again == 5
    assert not torch.equal(first, second)
    dataset.epoch = 0
    assert torch.equal(dataset[5][0], first)
    other = load("cnn-tiny@seed=1").dataset()
    assert not torch.equal(other[5][0], first)


def test_photographs_are_decoded_to_the_size_and_differ_by_tile():
    dataset = load("cnn-tiny@size=24").dataset()
    pixels, _ = dataset[0]
    assert pixels.shape == (3, 24, 24)
    assert pixels.isfinite().all()
    assert pixels.std() > 0.1
    means = torch.stack([dataset[index][0].mean() for index in range(32)])
    assert means.std() > 0.1


def test_what_was_observed_of_the_loader():
    batches = Batches(tiny(), Plan(loader={"num_workers": 2, "prefetch_factor": 3}))
    loaders = set()
    for _ in range(6):
        next(batches)
        loaders.add(batches.loaded_by)
    assert len(loaders) == 2
    assert batches.most_ahead == 6
    alone = Batches(tiny(), Plan())
    next(alone)
    assert (alone.most_ahead, alone.received) == (0, 1)


def test_a_batch_that_is_no_pair_is_inputs_and_targets_both():
    class Dictionaries(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return {"tokens": torch.tensor([index])}

    workload = replace(tiny(), dataset=Dictionaries, data_digest=None)
    inputs, targets = next(Batches(workload, Plan()))
    assert inputs is targets
    assert inputs["tokens"].shape == (8, 1)


def test_a_digest_tells_data_apart():
    nameless = replace(tiny(), data_digest=None)
    assert data_digest(nameless) == data_digest(replace(nameless, seed=3))
    assert data_digest(nameless) != data_digest(replace(tiny("seq=8"), data_digest=None))
    assert "pydoc_data.topics" in data_digest(tiny())


def test_too_few_samples_are_one_clear_line():
    with pytest.raises(StepbenchError, match="fewer than a global batch of 1000000"):
        Batches(load("gpt-tiny@batch=1000000"), Plan())
