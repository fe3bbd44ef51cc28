"""Protects Muon: its updates are those of torch, whatever the shapes, and a checkpoint holds its state."""

import torch
from torch import nn

from pretrain.optimizer import Muon

SHAPES = [(12, 8), (8, 12), (8, 8), (12, 8), (8, 8)]


def matrices():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def take_steps(optimizer, parameters, seeds):
    for seed in seeds:
        torch.manual_seed(seed)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        parameters[seed % len(SHAPES)].grad = None  # a matrix without a gradient stays
        optimizer.step()


def test_the_updates_are_those_of_torch():
    ours, theirs = matrices(), matrices()
    take_steps(Muon(ours, lr=0.02, weight_decay=0.1), ours, range(4))
    take_steps(torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95), theirs, range(4))
    for mine, other in zip(ours, theirs, strict=True):
        # bf16 products of several matrices at once may be rounded differently from one at a time
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-3)
        assert (mine - other).norm() < 1e-2 * (other - matrices()[0].mean()).norm()


def test_it_continues_from_its_state():
    whole, halves = matrices(), matrices()
    take_steps(Muon(whole, lr=0.02, weight_decay=0.1), whole, range(4))
    first = Muon(halves, lr=0.02, weight_decay=0.1)
    take_steps(first, halves, range(2))
    second = Muon(halves, lr=0.5, weight_decay=0.0)
    second.load_state_dict(first.state_dict())
    take_steps(second, halves, range(2, 4))
    assert all(torch.equal(one, other) for one, other in zip(whole, halves, strict=True))
