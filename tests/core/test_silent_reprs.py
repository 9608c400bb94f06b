"""What a person sees of a result: one line in a terminal, a small table in a notebook, and nothing that tokens could run there."""

from pathlib import Path

import torch

import attrib
from attrib.core.edges import Edges
from attrib.jobs.records import Failure
from attrib.jobs.run import run
from tests.support.builders import build, dictionary, prompt
from tests.support.job_cases import corpus, here, make_job


def result(prompts: int = 3) -> Edges:
    model = build("llama", torch.float32)
    source, target = (dictionary("topk", f"blocks.{layer}.hook_resid_pre", torch.float32) for layer in (0, 2))
    return attrib.latent_to_latent(model, source, target, [prompt(5, seed=number) for number in range(prompts)])


def test_a_result_and_its_tables_are_one_short_line_each() -> None:
    edges = result()
    assert repr(edges) == (
        f"Edges(latent_to_latent blocks.0.hook_resid_pre -> blocks.2.hook_resid_pre: 3 prompts, {len(edges.targets)} targets "
        f"x {len(edges.sources)} sources, {len(edges):,} edges, float32)"
    )
    assert repr(edges.sources) == f"Nodes({len(edges.sources)} latents at blocks.0.hook_resid_pre, 3 prompts)"
    assert repr(edges.prompts) == "Prompts(3 of 15 tokens in all)"


def test_notebooks_show_the_strongest_edges_with_tokens_as_text() -> None:
    edges = result(1)
    object.__setattr__(edges.prompts, "strings", ("<script>alert(1)</script>",) * 5)
    shown = edges._repr_html_()
    assert shown.count("<tr") == 1 + 8
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert len(shown) < 10_000


def test_a_job_and_what_its_run_came_to_are_one_short_line_each(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", corpus(tmp_path / "corpus", (3,) * 6), shards={"prompts": 1})
    ran = run(job.folder, here)
    assert repr(job) == f"Job('{job.folder}', 6 prompts, 18 tokens, 6 shards)"
    assert repr(ran) == f"Ran({job!r}, 6 shards done, 0 failed, 0 made again)"
    failure = Failure(shard=0, id="0", kind="error", reason="of a test", details="Traceback\n" * 100, attempts=1, finished=0.0)
    assert "Traceback" not in repr(failure)
    assert failure.model_dump()["details"] == "Traceback\n" * 100
