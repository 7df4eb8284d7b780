"""What the pack puts around the attention layers of ComfyUI's networks."""
