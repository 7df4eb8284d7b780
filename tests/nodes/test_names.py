"""Every error and warning of a node begins with its display name, once."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module")
def report(pack):
    return pack("host.report")


@pytest.fixture
def node(pack):
    """A node that does what it is told to, under the decorator of the others."""
    from comfy_api.latest import io

    class Told(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return pack("nodes.schema").schema(node_id="Told", display_name="Told What", inputs=[], outputs=[])

        @classmethod
        def execute(cls, do):
            """What it does."""
            return do()

    return pack("nodes.schema").guarded(Told)


def test_every_node_is_named(pack):
    for node in pack("nodes").NODES:
        assert node.execute.__func__.__name__ != "under_its_name"  # the wrapper shows the node's own signature
        assert node.execute.__func__.__wrapped__, node


@pytest.mark.parametrize("error, text", [
    (ValueError("'a' is 3."), "Told What: 'a' is 3."),
    (RuntimeError("the loss is NaN."), "Told What: the loss is NaN."),
    (FileNotFoundError("there is no 'x'"), "Told What: there is no 'x'"),
    (PermissionError(13, "Permission denied", "/a/b"), "Told What: '/a/b': Permission denied."),
    (OSError(28, "No space left on device"), "Told What: No space left on device."),
    (ValueError("Told What: said by its patch."), "Told What: said by its patch."),
    (ValueError("Other: said by another node's patch."), "Told What: Other: said by another node's patch."),
    (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), "Told What: 'utf-8' codec"),
])
def test_an_error_begins_with_the_nodes_name(node, error, text):
    def do():
        raise error

    with pytest.raises((ValueError, RuntimeError, OSError)) as raised:
        node.execute(do)
    assert str(raised.value).startswith(text) and str(raised.value).count("Told What") == 1
    if "codec" not in text and not isinstance(error, PermissionError) and getattr(error, "errno", None) is None:
        assert raised.value is error


def test_what_is_no_users_business_stays(node):
    import comfy.model_management as mm

    for error in (KeyError("a"), mm.InterruptProcessingException(), torch.cuda.OutOfMemoryError("out of memory")):
        def do(error=error):
            raise error

        before = str(error)
        with pytest.raises(type(error)) as raised:
            node.execute(do)
        assert raised.value is error and str(error) == before


def test_a_warning_is_named_and_shown_on_its_node(report, node, caplog, monkeypatch):
    from comfy_execution.utils import CurrentNodeContext

    shown = []

    class Server:
        client_id = "page"

        def send_progress_text(self, text, node_id):
            shown.append((node_id, text))

    monkeypatch.setattr(report, "server", Server)
    node.execute(lambda: report.warn("odd."))
    assert shown == [] and "FramePainter: Told What: odd." in caplog.text
    with CurrentNodeContext("prompt", "17", 0):
        node.execute(lambda: report.warn("odd."))
        node.execute(lambda: report.warn("seen.", "18"))
        report.warn("outside.")
    assert shown == [("17", "Told What: odd."), ("18", "Told What: seen."), ("17", "outside.")]


def test_progress_is_a_place_to_cancel(report, monkeypatch):
    import comfy.model_management as mm
    import comfy.utils

    told = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda done, total, preview, node_id=None: told.append((done, total)))
    steps = report.Steps(3)
    steps.step()
    steps.reach(3)
    steps.reach(4, 8)
    assert told == [(1, 3), (3, 3), (4, 8)]

    def interrupt():
        raise mm.InterruptProcessingException

    monkeypatch.setattr(mm, "throw_exception_if_processing_interrupted", interrupt)
    for call in (steps.step, lambda: steps.reach(5)):
        with pytest.raises(mm.InterruptProcessingException):
            call()
    assert len(told) == 3


@pytest.mark.parametrize("kind, module, node, broken", [
    ("StateError", "core.training.state", "PropagateEdit", ("host.video.propagate", "Job")),
    ("NonFinite", "core.training.loop", "PropagateEdit", ("host.video.propagate", "Job")),
    ("WrongModel", "host.models.network", "PropagateEdit", ("host.video.propagate", "Job")),
    ("StateError", "core.training.state", "TrainMotionLora", ("host.training.motion_lora", "train"))])
def test_an_error_from_below_bears_the_name_of_the_node_that_runs(pack, monkeypatch, kind, module, node, broken):
    """Propagate Edit trains LoRAs as well; what goes wrong there was told as another node's, or as nobody's."""
    from types import SimpleNamespace

    error = getattr(pack(module), kind)("'state-000007' cannot be read.")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(pack(broken[0]), broken[1], fail)
    cls = next(n for n in pack("nodes").NODES if n.__name__ == node)
    inputs = {i.id: getattr(i, "default", None) for i in cls.define_schema().inputs}
    inputs |= {i.id: i.options[0] for i in cls.define_schema().inputs if getattr(i, "options", None) and inputs[i.id] is None}
    inputs |= {"plan": SimpleNamespace(fps=8.0)} if "plan" in inputs else {}
    with pytest.raises(type(error)) as raised:
        cls.execute(**inputs)
    name = cls.define_schema().display_name
    assert raised.value is error and str(error) == f"{name}: 'state-000007' cannot be read."
