"""Pure algorithms: torch and the standard library only. Nothing here knows ComfyUI."""
