"""loss -> step -> loop."""
