"""Neural video super-resolution for VapourSynth."""
