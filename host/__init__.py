"""The only place that knows ComfyUI's internals. Imports point one way: nodes -> host -> core."""
