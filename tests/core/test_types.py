"""The vocabulary: hook names, order of sites, policies, and what kind of errors there are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attrib.core.types import (
    EXACT,
    LINEAR,
    POLICIES,
    RELP,
    SITE_KINDS,
    AttribError,
    BudgetError,
    FetchError,
    FormatError,
    InputError,
    Site,
    UnsupportedError,
)

SITES = st.builds(Site, st.integers(0, 10_000), st.sampled_from(SITE_KINDS))


@given(SITES)
def test_a_site_comes_back_from_its_name(site: Site):
    assert Site.parse(str(site)) == site
    assert Site.parse(site) is site


@given(st.text(max_size=40) | st.from_regex(r"blocks\.-?\d{0,3}\.(attn\.)?hook_[a-z_]{1,12}", fullmatch=True))
def test_any_other_text_is_refused_by_name(text: str):
    try:
        answer = str(Site.parse(text))
    except InputError as error:
        answer = str(error)
    assert repr(text) in answer or Site.parse(answer) == Site.parse(text)


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("blocks.7.hook_resid_pre", Site(7, "resid_pre")),
        ("blocks.0.attn.hook_z", Site(0, "z")),
        ("blocks.12.mlp.hook_in", Site(12, "mlp_in")),
        ("blocks.12.mlp.in.hook_in", Site(12, "mlp_in")),
        ("blocks.12.ln2.hook_normalized", Site(12, "mlp_in")),
        ("blocks.3.hook_mlp_out", Site(3, "mlp_out")),
        ("blocks.3.hook_attn_out", Site(3, "attn_out")),
        ("blocks.3.hook_resid_mid", Site(3, "resid_mid")),
        ("blocks.3.hook_resid_post", Site(3, "resid_post")),
    ],
)
def test_names_of_transformer_lens(name: str, site: Site):
    assert Site.parse(name) == site


@pytest.mark.parametrize(
    "name", ["", "blocks.7", "blocks.-1.hook_resid_pre", "blocks.7.hook_q", "hook_embed", "blocks.7.hook_resid_pre ", "ln_final"]
)
def test_wrong_names_get_an_example(name: str):
    with pytest.raises(InputError, match=r"blocks\.7\.hook_resid_pre.*hook_resid_mid"):
        Site.parse(name)


@pytest.mark.parametrize(("layer", "kind"), [(-1, "z"), (-3, "resid_pre")])
def test_a_negative_layer_is_no_site(layer: int, kind: str):
    with pytest.raises(InputError, match="layer >= 0"):
        Site(layer, kind)


def test_the_stream_has_one_depth_between_two_layers():
    assert Site(2, "resid_post").depth == Site(3, "resid_pre").depth
    in_order = [Site(1, kind).depth for kind in SITE_KINDS]
    assert in_order == sorted(set(in_order))


def test_residual_sites_are_the_streams_own():
    assert [kind for kind in SITE_KINDS if Site(0, kind).is_residual] == ["resid_pre", "resid_mid", "resid_post"]


def test_policies():
    assert {"exact": EXACT, "linear": LINEAR, "relp": RELP} == POLICIES
    assert EXACT == ("exact", "exact", "exact")
    assert LINEAR == ("frozen", "frozen", "exact")
    assert RELP == ("frozen", "frozen", "relp")


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (InputError, ValueError),
        (BudgetError, InputError),
        (UnsupportedError, NotImplementedError),
        (FormatError, AttribError),
        (FetchError, AttribError),
    ],
)
def test_errors_are_caught_as_what_they_are(kind: type, builtin: type):
    assert issubclass(kind, AttribError)
    assert issubclass(kind, builtin)
