"""Why an intervention has no number, in words."""

from attrib.core.types import Site

_WRITES = {
    "mlp_out": "what layer {layer}'s MLP writes",
    "attn_out": "what layer {layer}'s attention writes",
    "z": "what layer {layer}'s heads bring",
}
_READS = {"mlp_in": "what layer {layer}'s MLP reads"}
_STREAM = "the stream at {site}"


_HELD = (
    "Norms stay as they were in the prompt, so nothing keeps small what an MLP reads, and a gated one about squares it. A smaller step "
    "may have a number."
)


def why_lost(at: str, dtype: str, *, norms_are_held: bool) -> str:
    """Why a measurement has no number.

    Args:
        at: the site at which the pass first has none, as `Agreement.table` says in `lost`; "" where that is in reading the target.
        dtype: of the passes.
        norms_are_held: whether the policy freezes the denominators of norms, so that only growth can be the cause.
    """
    where = "what the target reads"
    if at:
        site = Site.parse(at)
        where = (_WRITES | _READS).get(site.kind, _STREAM).format(layer=site.layer, site=site)
    if not norms_are_held:
        return f"{where} is no number any more: it is too large for {dtype}, or nothing is left that a norm could divide by."
    return f"{where} grew beyond what {dtype} holds. {_HELD}"


def why_too_large(*, norms_are_held: bool) -> str:
    """Why a page, whose numbers are float32, does not show a measurement."""
    return "the target moved by more than 3e38, the largest number that a page holds." + (f" {_HELD}" if norms_are_held else "")
