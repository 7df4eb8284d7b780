"""Load Picture or Example, Load Video or Example."""

from __future__ import annotations

import math

from comfy_api.latest import io

from ..host.inputs import files
from ..host.outputs import stamp
from .schema import schema


class _InputFile(io.ComfyNode):
    """A file of one kind: checked before a run, and read again when it changes."""

    INPUT: str  # id of the combo
    KIND: files.Kind

    @classmethod
    def _schema(cls, **settings) -> io.Schema:
        names = io.Combo.Input(cls.INPUT, options=files.names(cls.KIND),
                               tooltip="Names that end in [example] come with the pack. Upload your own with the button below, or "
                                       "drop a file on the node.")
        return schema(inputs=[names], **settings)

    @classmethod
    def fingerprint_inputs(cls, **given: str) -> list | float:
        name = given.get(cls.INPUT)
        if name is None:  # another node gives it, so the file is not known yet
            return math.nan
        return [name, stamp(files.find, name)]

    @classmethod
    def validate_inputs(cls, **given: str) -> bool | str:
        try:
            if cls.INPUT in given:
                files.find(given[cls.INPUT])
        except (FileNotFoundError, ValueError) as error:
            return str(error)
        return True


class LoadPicture(_InputFile):
    INPUT, KIND = "image", "image"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls._schema(
            node_id="FramePainterPicture",
            display_name="Load Picture or Example",
            description="A picture of yours from the input folder, or one of the example pictures that come with FramePainter. "
                        "Your pictures are read as Load Image reads them.",
            search_aliases=["load image", "example image", "upload picture", "photo"],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture, rotated as its file says."),
                io.Mask.Output(display_name="mask", tooltip="1 where the picture is transparent; a small black mask if nothing "
                                                            "is."),
            ],
        )

    @classmethod
    def execute(cls, image: str) -> io.NodeOutput:
        return io.NodeOutput(*files.picture(image))


class LoadVideo(_InputFile):
    INPUT, KIND = "file", "video"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls._schema(
            node_id="FramePainterVideo",
            display_name="Load Video or Example",
            description="A video of yours from the input folder, or one of the example videos that come with FramePainter.",
            search_aliases=["load video", "example video", "upload video", "clip"],
            outputs=[io.Video.Output(display_name="video", tooltip="For Read Video, or Get Video Components.")],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(files.video(file))


NODES = [LoadPicture, LoadVideo]
