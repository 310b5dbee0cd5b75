"""Pages: what they say of where files lie."""

import json

from markupsafe import escape

from bsym_bids.reports.pages import without_places


def test_places_become_names_of_datasets_and_nothing_else_changes(tmp_path):
    bids = tmp_path / "in & out"
    links = {"raw": bids.as_uri(), "fmriprep": (bids / "derivatives" / "x").as_uri()}
    links["wrong"] = "file:///"
    (tmp_path / "dataset_description.json").write_text(json.dumps({"DatasetLinks": links}))
    said = (
        f"<p>{escape(bids)}/sub-01: --x={escape(bids)}/derivatives/x/sub-01 {tmp_path}/logs/a</p>"
    )
    image = f'<img src="data:image/png;base64,AB{tmp_path}/C">'
    found = without_places(said + image, tmp_path)
    assert found == "<p>raw:sub-01: --x=fmriprep:sub-01 logs/a</p>" + image
