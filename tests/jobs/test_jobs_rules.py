"""A job by another rule: its shards are verified by computing them anew, and made again from what they say."""

from pathlib import Path

import pytest

import attrib
from attrib.jobs.folder import places_of
from attrib.jobs.run import run
from attrib.jobs.verify import verify
from attrib.runs.rerun import rerun
from tests.support.job_cases import SITES, corpus, here, make_job


@pytest.mark.long
@pytest.mark.parametrize("rule", ["ig:2", "ablation"])
def test_a_job_by_a_rule(tmp_path: Path, rule: str) -> None:
    beside, folder = corpus(tmp_path / "corpus", (5, 1, 4)), tmp_path / "job"
    wanted = [{"kind": "latent_to_logit", "source": SITES[0], "top_logits": 2}, {"kind": "token_to_latent", "target": SITES[0]}]
    make_job(folder, beside, rule=rule, attribution=wanted)
    run(folder, here)
    assert verify(folder, recompute=3) == []
    with attrib.open(folder) as shards:
        assert {edges.gap is not None and bool(edges.gap.isfinite().all()) for edges in shards.values()} == {True}
        names = {"ig:2": "IntegratedGradients(steps=2", "ablation": "Ablation()"}
        assert shards.call["rule"].startswith(names[rule])
    assert all(each.is_same for each in rerun(folder, 0, places=places_of(folder)))
