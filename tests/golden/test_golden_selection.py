"""Which golden cases are taken: the repository's, or those of the folder that GOLDEN_CASES names."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from framepainter_tests.golden import OWN, SYSTEMS, cases, system_folder
from safetensors.torch import save_file


@pytest.fixture
def given(tmp_path, monkeypatch):
    monkeypatch.setenv("GOLDEN_CASES", str(tmp_path))
    return tmp_path


def test_without_the_variable_the_repositorys(monkeypatch):
    monkeypatch.delenv("GOLDEN_CASES", raising=False)
    assert system_folder("framepainter") == OWN / "framepainter"


def test_a_folder_replaces_only_the_systems_it_holds(given):
    (given / "framepainter").mkdir()
    assert system_folder("framepainter") == given / "framepainter"
    assert system_folder("i2vedit") == OWN / "i2vedit"


def test_an_empty_folder_fails(given):
    with pytest.raises(FileNotFoundError, match="holds no cases"):
        system_folder("framepainter")
    (given / "manifests").mkdir()  # one level too deep
    with pytest.raises(FileNotFoundError, match="none of framepainter, i2vedit, videop2p in it"):
        system_folder("framepainter")
    (given / "framepainter").mkdir()
    with pytest.raises(FileNotFoundError, match="no golden cases in"):
        cases("framepainter")
    shutil.rmtree(given)
    with pytest.raises(FileNotFoundError, match="which is no folder"):
        system_folder("framepainter")


def test_case_and_weights_come_from_the_given_folder(given):
    """Salt and manifest are the case's own: another salt gives other weights under the same names."""
    source = OWN / "framepainter"
    shutil.copytree(source / "manifests", given / "framepainter" / "manifests")
    folder = given / "framepainter" / "control_encoder"
    shutil.copytree(source / "control_encoder", folder)
    (own,) = (c for c in cases("framepainter"))
    first = own.network("control_encoder")
    info = json.loads((folder / "case.json").read_text())
    (folder / "case.json").write_text(json.dumps({**info, "salt": "another", "kind": "something new"}))
    save_file({"x": torch.zeros(1)}, str(folder / "tensors.safetensors"))
    (changed,) = cases("framepainter")
    second = changed.network("control_encoder")
    assert changed.kind == "something new" and set(changed.tensors) == {"x"}
    assert first.keys() == second.keys() and not torch.equal(first["mid_convs.1.weight"], second["mid_convs.1.weight"])


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_case_has_a_test(system):
    """Each kind of case is taken up by a test beside the data, under a name that `-k golden` selects."""
    files = list((OWN / system).glob("test_golden_*.py"))
    text = "".join(f.read_text(encoding="utf-8") for f in files)
    checked = set(re.findall(r"^def (\w+)\(case: Case", text, re.M))
    checked |= set(re.findall(r'(?:each|cases_of|of_kind)\((?:"\w+", )?"(\w+)"\)', text))
    assert files and {c.kind for c in cases(system)} <= checked
