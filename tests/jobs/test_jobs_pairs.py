"""Pairs of prompts, clean and corrupt, from one file: jobs and runs take them, store them, and make the edges again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attrib
from attrib.core.types import FormatError, InputError
from attrib.jobs.config import job_file
from attrib.jobs.folder import PROMPTS, open_job, places_of
from attrib.jobs.run import run
from attrib.jobs.verify import verify
from attrib.runs.rerun import rerun
from attrib.runs.run import corrupt_of, execute, run_file
from tests.support.builders import prompt
from tests.support.job_cases import SITES, corpus, here, make_job, table

WANTED = [{"kind": "latent_to_logit", "source": SITES[0], "top_logits": 2}]
PAIRS = [(5, 5), (3, 4), (4, None), (3, 3), (2, 2)]
"""Tokens of each prompt, and of the one that it is compared with: the second and the third are no pairs."""


def pairs(folder: Path) -> list[tuple[list[int], list[int]]]:
    """The pairs that a file of these holds, which it is given."""
    rows: list[dict[str, Any]] = []
    for number, (clean, corrupt) in enumerate(PAIRS):
        other = {} if corrupt is None else {"corrupt_input_ids": prompt(corrupt, seed=50 + number).tolist()}
        rows.append({"input_ids": prompt(clean, seed=number).tolist(), **other})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [(row["input_ids"], row["corrupt_input_ids"]) for row, (a, b) in zip(rows, PAIRS, strict=True) if a == b]


@pytest.mark.long
@pytest.mark.parametrize("rule", ["patching", "ig:2:corrupt"])
def test_a_job_of_pairs(tmp_path: Path, rule: str) -> None:
    beside, folder = corpus(tmp_path / "corpus", (1,)), tmp_path / "job"
    given = pairs(beside)
    of = {"source": "pairs.jsonl", "corrupt": "corrupt_input_ids"}
    make_job(folder, beside, rule=rule, attribution=WANTED, prompts=of, keep="dense")
    log = [json.loads(line) for line in (folder / PROMPTS / "refused.jsonl").read_text().splitlines()]
    assert [(one["number"], one["reason"]) for one in log] == [
        (1, "has 3 tokens, and its corrupt prompt 4; expected as many"), (2, "has a corrupt prompt that has no key 'corrupt_input_ids'"),
    ]  # fmt: skip
    run(folder, here)
    assert verify(folder, recompute=3) == []
    assert all(each.is_same for each in rerun(folder, 3, places=places_of(folder)))
    model, source = attrib.load_model(beside / "model"), attrib.load_dictionary(beside / SITES[0])
    with attrib.open(folder) as shards:
        for number, (clean, corrupt) in zip((0, 3, 4), given, strict=True):
            stored = shards.edges("latent_to_logit", prompts=[number])
            assert stored.prompts.corrupt is not None
            assert stored.prompts.corrupt.tolist() == corrupt
            other: Any = attrib.Patching([corrupt]) if rule == "patching" else attrib.IntegratedGradients(2, [corrupt])
            alone = attrib.latent_to_logit(model, source, [clean], logits=attrib.TopLogits(2), rule=other)
            assert torch.allclose(stored.dense(0, "attribution"), alone.dense(0, "attribution"), atol=1e-5)
    job = open_job(folder)
    held = np.load(folder / PROMPTS / "beside.npy")
    held[0] += 1
    np.save(folder / PROMPTS / "beside.npy", held)
    with pytest.raises(FormatError, match="are not what they were"):
        [job.prompts(shard) for shard in job.shards]


def test_a_run_of_pairs(tmp_path: Path) -> None:
    beside = corpus(tmp_path)
    given = pairs(beside)
    (beside / "whole.jsonl").write_text("".join(json.dumps({"tokens": a, "other": b}) + "\n" for a, b in given))
    keys: dict[str, Any] = {
        "model": str(beside / "model"), "attribution": [WANTED[0] | {"source": str(beside / SITES[0])}], "rule": "patching",
        "prompts": beside / "whole.jsonl", "corrupt_field": "other", "out": tmp_path / "out.h5",
    }  # fmt: skip
    (edges,) = execute(run_file(keys))
    assert isinstance(edges, attrib.Edges)
    assert edges.prompts.corrupt is not None
    assert edges.prompts.corrupt.tolist() == [token for _, corrupt in given for token in corrupt]
    places = {edges.call["model"]["name"]: beside / "model", edges.call["source"]["name"]: beside / SITES[0]}
    (again,) = rerun(tmp_path / "out.h5", 1, places=places)
    assert again.is_same
    for changed, message in (
        ({"corrupt_field": "nothing"}, r"corrupt_field: .*whole.jsonl, line 1 has no key 'nothing'\. Give every prompt"),
        ({"corrupt": "other.txt"}, "corrupt: given beside corrupt_field; expected one of"),
        ({"prompts": None, "prompt": ["A"]}, "corrupt_field: it is a key of the file of prompts, and there is none"),
        ({"rule": "gradient"}, "corrupt_field: no effect on the rule gradient"),
        ({"prompts": "-"}, r"prompts.corrupt: 'other' has no effect on -, a file of text"),
    ):
        with pytest.raises(InputError, match=message):
            corrupt_of(run_file(keys | changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rule": "patching"}, r"prompts\.corrupt: missing, and the rule patching compares each prompt with another; name the key"),
        ({"prompts": {"source": "pairs.jsonl", "corrupt": "other"}}, r"prompts\.corrupt: no effect on the rule gradient_times_activation"),
        ({"prompts": {"source": "a.jsonl", "corrupt": "b", "long": "truncate"}}, "long is 'truncate' beside corrupt"),
        ({"prompts": {"source": "a.jsonl", "corrupt": "b", "field": "b"}}, "corrupt and field are both 'b'"),
    ],
)
def test_what_is_no_job_of_pairs(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        job_file(table(**changed))


def test_pairs_come_from_files_that_have_keys(tmp_path: Path) -> None:
    beside = corpus(tmp_path / "corpus", (1,))
    (beside / "lines.txt").write_text("A\n")
    for source, form, message in (
        ("lines.txt", None, r"prompts\.corrupt: 'other' has no effect on .*lines.txt, a file of text"),
        ("-", "jsonl", r"prompts\.corrupt: - can be read once, and pairs are read side by side"),
    ):
        of = {"source": source, "corrupt": "other", "form": form}
        with pytest.raises(InputError, match=message):
            make_job(tmp_path / "job", beside, rule="patching", attribution=WANTED, prompts=of)
