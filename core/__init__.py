"""Pure algorithms on torch (and safetensors for files). Nothing here knows ComfyUI."""
