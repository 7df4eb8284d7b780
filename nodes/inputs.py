"""Load Picture or Example, Load Video or Example."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.inputs import files
from .schema import schema


class _InputFile(io.ComfyNode):
    """What both share: the file is checked before a run and read again when it changes."""

    @classmethod
    def _stamp(cls, name: str) -> tuple[str, int, int] | None:
        try:
            found = files.find(name).stat()
        except FileNotFoundError:
            return None
        return name, found.st_mtime_ns, found.st_size

    @classmethod
    def _problem(cls, name: str) -> bool | str:
        try:
            files.find(name)
        except (FileNotFoundError, ValueError) as error:
            return str(error)
        return True


class LoadPicture(_InputFile):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterPicture",
            display_name="Load Picture or Example",
            description="A picture of yours from the input folder, or one of the example pictures that come with FramePainter. "
                        "Own pictures are read as Load Image reads them.",
            search_aliases=["load image", "example image", "upload picture", "photo"],
            inputs=[io.Combo.Input("image", options=files.names("image"),
                                   tooltip="Names that end in [example] come with the pack. Upload your own with the button below, "
                                           "or drop a file on the node.")],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture, turned as its file says."),
                io.Mask.Output(display_name="mask", tooltip="1 where the picture is transparent; a small black one without "
                                                            "transparency."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, image: str):
        return cls._stamp(image)

    @classmethod
    def validate_inputs(cls, image: str):
        return cls._problem(image)

    @classmethod
    def execute(cls, image: str) -> io.NodeOutput:
        return io.NodeOutput(*files.picture(image))


class LoadVideo(_InputFile):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterVideo",
            display_name="Load Video or Example",
            description="A video of yours from the input folder, or one of the example videos that come with FramePainter.",
            search_aliases=["load video", "example video", "upload video", "clip"],
            inputs=[io.Combo.Input("file", options=files.names("video"),
                                   tooltip="Names that end in [example] come with the pack. Upload your own with the button below, "
                                           "or drop a file on the node.")],
            outputs=[io.Video.Output(display_name="video", tooltip="For Read Video, or Get Video Components.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str):
        return cls._stamp(file)

    @classmethod
    def validate_inputs(cls, file: str):
        return cls._problem(file)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(files.video(file))


NODES = [LoadPicture, LoadVideo]
