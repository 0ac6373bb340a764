"""`examples/muon.py`: against PyTorch's Muon, and as one optimizer with AdamW."""

import pytest
import torch
from muon import Muon, MuonAdamW, orthogonal


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_muon_is_that_of_torch(shape):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    mine, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = [Muon([mine], lr=0.1, weight_decay=0.01), torch.optim.Muon([theirs], lr=0.1, weight_decay=0.01)]
    for _ in range(3):
        mine.grad = torch.randn(shape, generator=generator)
        theirs.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0.01)  # theirs iterates in bfloat16
    assert (mine - start).abs().max() > 0.1


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3)])
def test_orthogonal_keeps_directions_and_brings_singular_values_near_one(shape):
    u, s, v = torch.randn(shape, generator=torch.Generator().manual_seed(1)).svd()
    made = orthogonal(u @ s.diag() @ v.T)
    values = (u.T @ made @ v).diagonal()
    torch.testing.assert_close(made, u @ values.diag() @ v.T, rtol=0, atol=1e-4)
    assert ((values > 0.5) & (values < 1.3)).all()


def test_the_rate_of_a_schedule_reaches_both_parts_and_what_is_loaded():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    optimizer = MuonAdamW(model, lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    again = MuonAdamW(model, lr=0.5)
    again.load_state_dict(optimizer.state_dict())
    for group in again.param_groups:
        group["lr"] = 0.0
    before = [p.clone() for p in model.parameters()]
    again.step()
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)
    assert torch.equal(*(o.parts["muon"].state[model[0].weight]["momentum_buffer"] for o in (optimizer, again)))
