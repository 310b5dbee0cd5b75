"""The loop: schedules, checkpoints that resume bit for bit, the best weights kept."""

import numpy as np
import pytest
import torch
from torch import nn

from bsym_bids.errors import BadDataError
from bsym_bids.training.loop import CHECKPOINT, LOG, Phase, Schedule, generator_of, train

SETTINGS = {"what": "a test", "share": (0.1, 0.4)}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 1)
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(
                    torch.linspace(-1, 1, parameter.numel()).view_as(parameter) + number
                )


class Fit(nn.Module):
    """Predict the sum of three random numbers."""

    def __init__(self, net, fails_at=None):
        super().__init__()
        self.net, self.fails_at, self.calls = net, fails_at, 0
        self.extra = nn.Linear(1, 1)  # what only the objective has

    def loss(self, random):
        self.calls += 1
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=random)
        loss = (self.net.second(self.net.first(x).tanh()) - x.sum(1, keepdim=True)).square().mean()
        return {"fit": loss, "total": loss + 0 * self.extra.weight.sum()}


def phases(net, schedule, fails_at=None, validate=None):
    def make(name, fails):
        def phase():
            objective = Fit(net, fails)
            return Phase(name, objective, objective.loss, validate, schedule)

        return phase

    return [make("one", None), make("two", fails_at)]


def state_of(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def run(out, fails_at=None, schedule=None, validate=None, settings=SETTINGS, seed=0):
    net = Net()
    schedule = schedule or Schedule(12, 0.01, validate_every=3)
    rows = train(phases(net, schedule, fails_at, validate), net, out, seed, settings)
    return net, rows


def test_the_rate_rises_and_falls():
    schedule = Schedule(100, 0.5, warmup_share=0.1)
    shares = [schedule.share(step) for step in range(100)]
    assert shares[0] == pytest.approx(0.1) and max(shares) <= 1
    assert np.argmax(shares) in (9, 10)
    assert shares[50] == pytest.approx(0.5) and shares[-1] < 1e-3


def test_parts_have_the_rates_that_are_named(tmp_path):
    net = Net()
    before = state_of(net)

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = net.first, net.second

    objective = Named()

    def loss(random):
        x = torch.randn(8, 3, generator=random)
        total = net.second(net.first(x)).square().mean()
        return {"total": total}

    schedule = Schedule(1, 0.1, warmup_share=0, rates={"second": 0.01})
    phase = Phase("p", objective, loss, None, schedule)
    train([lambda: phase], net, tmp_path, 0, {})
    moved = {key: (net.state_dict()[key] - value).abs().max() for key, value in before.items()}
    # The first step of Adam is as long as the rate, wherever there is a gradient.
    assert moved["first.weight"] == pytest.approx(0.1, rel=1e-3)
    assert moved["second.weight"] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("fails_at", [1, 2, 4, 5, 8, 12])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, fails_at):
    whole, _ = run(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(broken, fails_at)
    resumed, rows = run(broken)
    for key, value in state_of(whole).items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    steps = [(row["phase"], row["step"]) for row in rows]
    assert steps == sorted(set(steps)) and steps[-1] == ("two", 12)
    assert (broken / LOG).read_text().count("\n") == 1 + len(rows)


def test_a_finished_training_is_not_trained_again(tmp_path):
    first, _ = run(tmp_path)
    again, _ = run(tmp_path, fails_at=1)  # its first step would raise
    for key, value in state_of(first).items():
        assert torch.equal(value, again.state_dict()[key])


def test_the_best_weights_are_kept_even_those_before_the_first_step(tmp_path):
    falling = iter(range(100, 0, -1))
    net, rows = run(tmp_path, validate=lambda: float(next(falling)))
    for key, value in Net().state_dict().items():
        assert torch.equal(value, net.state_dict()[key]), key
    assert [r["step"] for r in rows if r["objective"] == "validation"][:2] == [0, 3]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(BadDataError, match=r"checkpoint\.pt: was made with other .*\(what\)"):
        run(tmp_path, settings={**SETTINGS, "what": "another"})


def test_a_damaged_checkpoint_is_refused(tmp_path):
    run(tmp_path)
    content = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(content[: len(content) // 2])
    with pytest.raises(BadDataError, match="cannot be read"):
        run(tmp_path)


def test_a_loss_that_is_not_finite_stops(tmp_path):
    schedule = Schedule(12, 1e30, warmup_share=0)
    with pytest.raises(BadDataError, match="not finite") as caught:
        run(tmp_path, schedule=schedule)
    assert "learning-rate" in caught.value.hint


def test_training_lowers_the_loss(tmp_path):
    _, rows = run(tmp_path, schedule=Schedule(300, 0.02, validate_every=50))
    losses = [row["loss"] for row in rows if row["phase"] == "one"]
    assert losses[-1] < 0.3 * losses[0]


def test_draws_hang_on_seed_phase_and_step():
    draws = {
        float(torch.rand((), generator=generator_of(*key)))
        for key in ((0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0))
    }
    assert len(draws) == 4
    assert float(torch.rand((), generator=generator_of(0, "a", 0))) in draws
