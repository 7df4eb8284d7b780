"""What `dev.py` does: find or set up a ComfyUI, start it, run the demo. Standard library only."""
