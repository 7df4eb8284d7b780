"""ComfyUI-FramePainter: edit a picture by drawing on it, on Stable Video Diffusion."""

# Under pytest this file is imported as a plain module, without a package around it; then there is nothing to offer.
if __package__:
    from comfy_api.latest import ComfyExtension, io

    from .nodes import NODES

    WEB_DIRECTORY = "./js"

    class FramePainterExtension(ComfyExtension):
        async def get_node_list(self) -> list[type[io.ComfyNode]]:
            return NODES

    async def comfy_entrypoint() -> FramePainterExtension:
        return FramePainterExtension()

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
