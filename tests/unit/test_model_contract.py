"""What a model was made for, against what it gets: deviations, and what cannot be."""

from pathlib import Path

import pytest
from model_recipe import ROIS, STEPS
from model_tiny import HEADS, SIZES, tiny_model, tiny_states

from bsym_bids import atlas
from bsym_bids.errors import BadDataError
from bsym_bids.model import BrainSymphony, cards, contract, resolve_release
from bsym_bids.model.cards import known_releases, read_card
from bsym_bids.model.contract import (
    check_card_fits,
    check_contract,
    check_network,
    contract_deviations,
    roi_names_sha256,
)
from bsym_bids.model.weights import Release, load_model, random_state_dicts

FILES = {branch: Path("/release") / f"{branch}.pth" for branch in SIZES}


def release(**stated):
    """Return a release whose card has this contract."""
    return Release("lab-x", "1", True, {"contract": stated}, FILES, folder=Path("/release"))


@pytest.mark.parametrize("name", known_releases())
def test_known_releases_are_made_for_the_atlas_and_the_windows(name):
    stated = read_card(name)["contract"]
    assert stated["rois"] == atlas.N_ROIS == ROIS
    assert stated["window_frames"] == STEPS
    assert stated["roi_names_sha256"] == roi_names_sha256()
    assert contract_deviations(read_card(name), stated["repetition_time"], "robust") == []


def test_order_of_the_rois_counts(monkeypatch):
    before, names = roi_names_sha256(), atlas.roi_names()
    monkeypatch.setattr(atlas, "roi_names", lambda: names[::-1])
    assert roi_names_sha256() != before
    with pytest.raises(BadDataError, match=r"untrained\.yaml: contract\.roi_names_sha256 is "):
        check_contract(resolve_release("untrained"), STEPS)


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"rois": 400}, "contract.rois is 400, but the atlas has 450"),
        ({"window_frames": 160}, "contract.window_frames is 160, but windows have 200"),
        ({"roi_names_sha256": "0" * 64}, "contract.roi_names_sha256 is 000"),
    ],
)
def test_other_rois_and_windows_are_refused_by_card_and_key(stated, words):
    with pytest.raises(BadDataError, match=rf"/release/model\.yaml: {words}") as error:
        check_contract(release(**stated), STEPS)
    assert "--model" in error.value.hint


def test_what_a_card_does_not_say_is_not_checked():
    check_contract(Release("lab-x", "1", True, {}), STEPS)
    check_contract(release(), STEPS)
    assert contract_deviations({}, 2.0, "none") is None
    assert contract_deviations({"contract": {}}, 2.0, "none") == []


@pytest.mark.parametrize(
    ("repetition_time", "deviates"),
    [(0.8, False), (0.72, False), (0.896, False), (0.704, False), (0.9, True), (0.7, True)],
)
def test_repetition_time_may_differ_within_the_tolerance(repetition_time, deviates):
    found = contract_deviations(read_card("brainsymphony-v1"), repetition_time, "robust")
    assert bool(found) is deviates
    if deviates:
        assert f"{repetition_time:g} s apart" in found[0] and "0.8 s, give or take 12%" in found[0]


def test_without_a_tolerance_none_is_given():
    card = {"contract": {"repetition_time": 2.0}}
    assert contract_deviations(card, 2.0, "robust") == []
    assert "2.01 s apart" in contract_deviations(card, 2.01, "robust")[0]


def test_every_deviation_is_stated():
    found = contract_deviations(read_card("brainsymphony-v1"), 2.0, "zscore")
    assert len(found) == 2
    assert "'zscore'" in found[1] and "--scaling robust" in found[1]


# --- weights against the card, and against the data ----------------------------------------------


def test_weights_for_something_else_than_the_card_says_are_refused():
    check_card_fits(release(rois=12, window_frames=20), tiny_model())
    check_card_fits(release(), tiny_model())
    with pytest.raises(BadDataError) as error:
        check_card_fits(release(rois=450), tiny_model())
    assert "/release/model.yaml: contract.rois is 450" in str(error.value)
    assert "/release/perceiver.pth: latents is made for 12" in str(error.value)
    with pytest.raises(BadDataError, match=r"perceiver\.pth: head\.2\.weight is made for 20"):
        check_card_fits(release(window_frames=200), tiny_model())


def test_loading_compares_the_card():
    card = read_card("untrained")
    card["contract"]["rois"] = 400
    with pytest.raises(BadDataError, match=r"contract\.rois is 400, but perceiver: latents"):
        load_model(Release("untrained", "1", False, card))


def test_network_for_other_rois_or_frames_is_refused_by_file_and_key(monkeypatch):
    with pytest.raises(BadDataError, match=r"/release/perceiver\.pth: latents is made for 12 ROIs"):
        check_network(release(), tiny_model(), 20)
    monkeypatch.setattr(atlas, "N_ROIS", 12)
    check_network(release(), tiny_model(), 20)
    with pytest.raises(BadDataError, match=r"perceiver\.pth: head\.2\.weight .* 20 frames instead"):
        check_network(release(), tiny_model(), 200)


@pytest.mark.parametrize("branch", contract.FUNCTIONAL)
def test_network_without_a_functional_branch_is_refused(branch):
    states = tiny_states()
    del states[branch]
    model = BrainSymphony.from_state_dicts(**states, **HEADS)
    with pytest.raises(BadDataError, match=rf"model\.yaml: files\.{branch} is missing"):
        check_network(release(), model, 20)


def test_network_that_asks_for_gradients_is_refused(monkeypatch):
    monkeypatch.setattr(atlas, "N_ROIS", 12)
    states = tiny_states()
    sizes = SIZES["spatial"] | {"gradients": 10}
    del sizes["positions"]
    states |= random_state_dicts({"sizes": {"spatial": sizes}}, 0)
    model = BrainSymphony.from_state_dicts(**states, **HEADS)
    with pytest.raises(BadDataError, match=r"spatial\.pth: pos_enc\.proj\.weight"):
        check_network(release(), model, 20)


def test_place_of_a_card(tmp_path):
    assert cards.card_place("untrained", tmp_path) == str(cards.known_card_path("untrained"))
    assert cards.card_place("lab-x", tmp_path) == str(tmp_path / "model.yaml")
    (tmp_path / "model.json").touch()
    assert cards.card_place("lab-x", tmp_path) == str(tmp_path / "model.json")


def test_published_sizes_pass():
    check_network(
        Release("untrained", "1", False, {}), load_model(resolve_release("untrained")), 200
    )
