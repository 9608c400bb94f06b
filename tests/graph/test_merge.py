"""Merged graphs against dense matrices with rows and columns added up; groups and the files that they are kept in."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attrib.core.types import FormatError, InputError
from attrib.graph import Graph, Key, MergedGraph, key_of, merge, merge_positions, read_supernodes, write_supernodes
from attrib.graph.supernodes import LONGEST_FILE
from tests.support.graphs import random_graph

SUMS = ("value", "own", "total", "l1", "importance")


def check_sums(graph: Graph, merged: MergedGraph) -> None:
    """All that a merged graph says, from the dense matrix of the graph."""
    count = len(merged.names)
    gather = torch.zeros(count, len(graph.nodes), dtype=torch.float64)
    gather[merged.member_of, torch.arange(len(graph.nodes))] = 1
    dense = gather @ torch.from_numpy(graph.to_scipy().toarray()) @ gather.T
    inner = dense.diagonal().clone()
    dense.diagonal().zero_()
    found = torch.zeros(count, count, dtype=torch.float64)
    found[merged.target, merged.indices] = merged.weight
    assert torch.allclose(found, dense, atol=1e-12)
    assert torch.allclose(merged.inner, inner[merged.targets], atol=1e-12)
    rows = torch.zeros(len(graph.nodes), dtype=torch.float64)
    rows[graph.targets] = 1
    assert torch.equal(merged.targets, (gather @ rows).nonzero()[:, 0])
    assert torch.equal(merged.rows.double(), (gather @ rows)[merged.targets])
    for name in SUMS:
        column = torch.zeros(len(graph.nodes), dtype=torch.float64).index_copy(0, graph.targets, getattr(graph, name))
        assert torch.allclose(getattr(merged, name), (gather @ column)[merged.targets])
    assert all((merged.indices[a:b].diff() > 0).all() for a, b in zip(merged.indptr[:-1], merged.indptr[1:], strict=True))
    assert merged.remainder.abs().max() < 1e-12
    assert torch.allclose(merged.value, merged.own + merged.inner + (found.sum(1))[merged.targets] + merged.dropped)


@pytest.mark.parametrize("seed", range(3))
def test_over_positions_all_that_is_the_same_elsewhere_is_one_node(seed):
    graph = random_graph(seed, positions=5, latents=20)
    merged = merge_positions(graph)
    check_sums(graph, merged)
    assert merged.inner.abs().max() == 0
    for number in range(len(merged.names)):
        members = merged.members(number).tolist()
        keys = {key_of(graph.nodes, n)._replace(position=None) for n in members}
        numbers = {key.latent for key in keys}
        assert len({key._replace(latent=-1) for key in keys}) == 1
        assert len(numbers) == 1 or {key.kind for key in keys} == {"position"}
    lowest = [int(merged.members(number)[0]) for number in range(len(merged.names))]
    assert lowest == sorted(lowest)
    latents = {(key.site, key.latent) for n in graph.nodes.of_kind("latent").tolist() for key in [key_of(graph.nodes, n)]}
    assert len(latents) < len(graph.nodes.of_kind("latent"))
    kinds = [graph.nodes.kind(n) for n in lowest]
    assert kinds.count("latent") == len(latents)
    assert (kinds.count("error"), kinds.count("bias"), kinds.count("position")) == (3, 6, 1)
    assert merged.names[merged.member_of[int(graph.nodes.of_kind("error")[0])]] == "error blocks.0.hook_mlp_out"
    assert merged.names[int(merged.member_of[0])] == "token ' t0'"


def test_a_token_that_comes_twice_is_one_node():
    graph = random_graph(3)
    latent = graph.nodes.latent.clone()
    latent[2] = latent[0]
    again = replace(graph, nodes=replace(graph.nodes, latent=latent, labels=(" t0", " t1", " t0", *graph.nodes.labels[3:])))
    merged = merge_positions(again)
    check_sums(again, merged)
    assert merged.members(merged.find("token ' t0'")).tolist() == [0, 2]


def groups_of(graph: Graph) -> dict[str, list[Key]]:
    """Latents of three layers and one error; a latent and a logit; all errors of one place."""
    latents, errors, logits = graph.nodes.of_kind("latent").tolist(), graph.nodes.of_kind("error").tolist(), graph.nodes.of_kind("logit")
    return {
        "across": [key_of(graph.nodes, n) for n in (latents[0], latents[7], latents[13], errors[4])],
        "end": [key_of(graph.nodes, latents[12]), key_of(graph.nodes, int(logits[1]))],
        "errors": [Key("error", "blocks.2.hook_mlp_out")],
    }


@pytest.mark.parametrize("seed", range(3))
def test_groups_are_sums_and_what_members_give_each_other_is_kept_apart(seed):
    graph = random_graph(seed, share=0.8)
    merged = merge(graph, groups_of(graph))
    check_sums(graph, merged)
    assert len(merged.names) == len(graph.nodes) - 3 - 1 - 3
    across = merged.find("across")
    assert merged.inner[(merged.targets == across).nonzero()[0, 0]] != 0
    assert int(merged.rows[(merged.targets == across).nonzero()[0, 0]]) == 3  # the error has none
    assert len(merged.members(merged.find("errors"))) == len(graph.tokens)
    alone = int(graph.nodes.of_kind("target")[0])
    assert merged.names[int(merged.member_of[alone])] == graph.nodes.label(alone)


def test_no_groups_are_the_graph_itself():
    graph = random_graph(4)
    merged = merge(graph, {})
    check_sums(graph, merged)
    assert torch.equal(merged.member_of, torch.arange(len(graph.nodes)))
    assert torch.equal(merged.weight, graph.weight)
    assert merged.names == tuple(graph.nodes.label(n) for n in range(len(graph.nodes)))


def test_graphs_of_next_to_nothing_merge():
    graph = random_graph(5)
    empty = graph.take(torch.zeros(0, dtype=torch.int64))
    assert (len(merge(empty, {}).names), len(merge_positions(empty))) == (0, 0)
    bare = graph.only(torch.zeros(len(graph), dtype=torch.bool))
    check_sums(bare, merge_positions(bare))
    one = graph.take(torch.cat([torch.arange(8), graph.targets[-2:-1]]))
    check_sums(one, merge_positions(one))
    everything = [key_of(graph.nodes, n) for n in range(len(graph.nodes))]
    whole = merge(graph, {"all": everything})
    check_sums(graph, whole)
    assert (whole.names, len(whole)) == (("all",), 0)


def test_a_key_finds_its_node_alone():
    graph = random_graph(6)
    for node in range(len(graph.nodes)):
        merged = merge(graph, {"it": [key_of(graph.nodes, node)]})
        assert merged.members(merged.find("it")).tolist() == [node]


def test_two_dictionaries_at_one_site_are_told_apart_by_name():
    graph = random_graph(7, positions=2, latents=3)
    first, second = (n for n, each in enumerate(graph.nodes.sets) if each.kind == "latent" and each.site < "blocks.2")
    sets, latent, position = list(graph.nodes.sets), graph.nodes.latent.clone(), graph.nodes.position.clone()
    sets[second] = sets[second]._replace(site=sets[first].site)
    latent[graph.nodes.rows(second)], position[graph.nodes.rows(second)] = (
        latent[graph.nodes.rows(first)],
        position[graph.nodes.rows(first)],
    )
    both = replace(graph, nodes=replace(graph.nodes, sets=tuple(sets), latent=latent, position=position))
    a, b = graph.nodes.first[first], graph.nodes.first[second]
    key, other = key_of(both.nodes, a), key_of(both.nodes, b)
    assert key._replace(name="") == other._replace(name="")
    assert merge(both, {"it": [key]}).members(a).tolist() == [a]
    of_any = merge(both, {"it": [key._replace(name="")]})
    assert of_any.members(of_any.find("it")).tolist() == [a, b]
    check_sums(both, merge_positions(both))
    assert merge_positions(both).member_of[a] != merge_positions(both).member_of[b]


def test_two_directions_are_told_apart_by_their_labels():
    graph = random_graph(8)
    sets = tuple(each._replace(size=2) if each.kind == "target" else each for each in graph.nodes.sets)
    twice = torch.cat([torch.arange(len(graph.nodes)), torch.tensor([len(graph.nodes) - 1])])
    columns = {name: getattr(graph.nodes, name)[twice] for name in ("position", "latent", "activation")}
    both = replace(graph, nodes=replace(graph.nodes, sets=sets, labels=(*graph.nodes.labels, "other"), **columns))
    last = len(graph.nodes)
    assert key_of(both.nodes, last).name == "other"
    merged = merge(both, {"it": [key_of(both.nodes, last)], "that": [key_of(both.nodes, last - 1)]})
    assert (merged.members(merged.find("it")).tolist(), merged.members(merged.find("that")).tolist()) == ([last], [last - 1])
    assert merge_positions(both).names[-2:] == ("target 'direction'", "target 'other'")


def test_groups_of_another_graph_are_refused_or_ignored():
    graph = random_graph(9)
    latent = key_of(graph.nodes, int(graph.targets[0]))
    gone = latent._replace(latent=999)
    with pytest.raises(InputError, match=r"groups: 'it' names latent blocks.0.mlp.hook_in\[999\] of 'transcoder 0' @\d, which the graph"):
        merge(graph, {"it": [latent, gone]})
    merged = merge(graph, {"nothing": [gone], "it": [latent, gone]}, missing="ignore")
    check_sums(graph, merged)
    assert "nothing" not in merged.names
    assert len(merged.members(merged.find("it"))) == 1


def test_groups_that_overlap_or_are_empty_are_refused():
    graph = random_graph(10)
    error = Key("error", "blocks.0.hook_mlp_out")
    with pytest.raises(InputError, match=r"error blocks.0.hook_mlp_out @1 is in 'a' and in 'b'"):
        merge(graph, {"a": [error], "b": [error._replace(position=1)]})
    with pytest.raises(InputError, match=r"groups: 'a' has no nodes"):
        merge(graph, {"a": []})
    with pytest.raises(InputError, match=r"missing: 'maybe'"):
        merge(graph, {}, missing="maybe")
    with pytest.raises(InputError, match=r"name: 'b', which 0 supernodes have"):
        merge(graph, {"a": [error]}).find("b")
    twice = merge(graph, {"a": [error, error._replace(position=1)]})
    assert len(twice.members(twice.find("a"))) == len(graph.tokens)


# ------------------------------------------------------------------------------------------------ files


def test_what_was_written_is_read(tmp_path: Path):
    graph = random_graph(11)
    groups = groups_of(graph) | {"Größe": [Key("target", "blocks.2.hook_resid_post", name="direction")]}
    path = tmp_path / "supernodes.json"
    write_supernodes(path, groups)
    assert read_supernodes(path) == {name: tuple(keys) for name, keys in groups.items()}
    first = path.read_bytes()
    write_supernodes(path, groups)
    assert path.read_bytes() == first
    assert [each.name for each in tmp_path.iterdir()] == ["supernodes.json"]
    assert merge(graph, read_supernodes(path)).names == merge(graph, groups).names
    plain = json.loads(first)["supernodes"]["errors"]
    assert plain == [{"kind": "error", "site": "blocks.2.hook_mlp_out"}]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": [Key("word", "x")]}, r"groups: node 0 of 'a': kind 'word'"),  # type: ignore[arg-type]
        ({"a": [Key("latent", "x", -7)]}, "latent -7"),
        ({"a": [Key("latent", "", 1)]}, "site is ''"),
        ({"": [Key("latent", "x", 1)]}, "a name is ''"),
        ({"a\n": [Key("latent", "x", 1)]}, "a name is"),
        ({"a": []}, "expected a list of at least one node"),
        ({"a": [Key("latent", "x" * 900, n) for n in range(5000)]}, "bytes as a file; expected at most"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, groups: dict[str, list[Key]], message: str):
    path = tmp_path / "supernodes.json"
    path.write_text("mine")
    with pytest.raises(InputError, match=message):
        write_supernodes(path, groups)
    assert path.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def good() -> dict[str, object]:
    return {"format": "attrib supernodes", "version": 1, "supernodes": {"a": [{"kind": "latent", "site": "x", "latent": 1}]}}


def broken(change: Callable[[dict], object]) -> bytes:
    whole = good()
    change(whole)
    return json.dumps(whole).encode()


HOSTILE = {
    "nothing": (b"", "no file of supernodes"),
    "no text": (b"\xff\xfe\x00", "no file of supernodes"),
    "no object": (b"[1]", r"the file is \[1\]; expected an object"),
    "deep": (b"[" * 100_000, "no file of supernodes"),
    "long number": (b'{"version": ' + b"9" * 10_000 + b"}", "no file of supernodes"),
    "NaN": (b'{"version": NaN}', "NaN is no number"),
    "twice": (b'{"supernodes": {"a": 1, "a": 2}}', "'a' stands twice"),
    "too long": (b" " * (LONGEST_FILE + 1), "has more than 4,194,304 bytes"),
    "other format": (broken(lambda whole: whole.update(format="x")), "it is 'x' of version 1; expected 'attrib supernodes' of version 1"),
    "other version": (broken(lambda whole: whole.update(version=2)), "of version 2; expected"),
    "true": (broken(lambda whole: whole.update(version=True)), "of version True; expected"),
    "no version": (broken(lambda whole: whole.pop("version")), r"the file has the fields \['format', 'supernodes'\]; expected format"),
    "more": (broken(lambda whole: whole.update(extra=1)), "the file has the fields"),
    "a list": (broken(lambda whole: whole.update(supernodes=[])), "supernodes: .*expected an object"),
    "empty": (broken(lambda whole: whole["supernodes"].update(a=[])), "expected a list of at least one"),
    "no key": (broken(lambda whole: whole["supernodes"].update(a=[3])), "node 0 of 'a' is 3; expected an object"),
    "misspelt": (
        broken(lambda whole: whole["supernodes"]["a"][0].update(positon=3)),
        "node 0 of 'a' has the fields .*'positon'.*and perhaps latent, name, position",
    ),
    "no site": (broken(lambda whole: whole["supernodes"]["a"][0].pop("site")), "expected kind, site"),
    "kind": (broken(lambda whole: whole["supernodes"]["a"][0].update(kind=["latent"])), "kind .*expected one of token"),
    "real": (broken(lambda whole: whole["supernodes"]["a"][0].update(latent=1.0)), "latent 1.0; expected a whole number from -1"),
    "large": (broken(lambda whole: whole["supernodes"]["a"][0].update(latent=1 << 40)), "latent 1099511627776"),
    "position": (broken(lambda whole: whole["supernodes"]["a"][0].update(position=-1)), "position -1; expected a whole number from 0"),
    "name": (broken(lambda whole: whole["supernodes"]["a"][0].update(name=7)), "name is 7; expected 1 to 1000"),
    "escape": (broken(lambda whole: whole["supernodes"].update({"\x1b[2J": whole["supernodes"]["a"]})), r"a name is '\\x1b\[2J'"),
    "surrogate": (b'{"format": "attrib supernodes", "version": 1, "supernodes": {"\\ud800": [1]}}', "printable"),
    "long name": (broken(lambda whole: whole["supernodes"].update({"a" * 5000: []})), r"a name is 'a{50,60}\.\.\.; expected"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(tmp_path: Path, name: str):
    content, message = HOSTILE[name]
    (path := tmp_path / "file.json").write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        read_supernodes(path)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_what_is_no_file_is_refused(tmp_path: Path):
    with pytest.raises(FormatError, match=r"is missing"):
        read_supernodes(tmp_path / "none")
    with pytest.raises(FormatError, match=r"is no file"):
        read_supernodes(tmp_path)
    groups = {"a": [Key("latent", "x", 1)]}
    with pytest.raises(InputError, match=r"path: .* is a folder"):
        write_supernodes(tmp_path, groups)
    with pytest.raises(InputError, match=r"path: the folder .*there does not exist"):
        write_supernodes(tmp_path / "there" / "file.json", groups)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError("no space left")

    path = tmp_path / "supernodes.json"
    path.write_text("mine")
    monkeypatch.setattr("attrib.graph.supernodes.os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_supernodes(path, {"a": [Key("latent", "x", 1)]})
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]
