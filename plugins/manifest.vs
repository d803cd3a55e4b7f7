[VapourSynth Manifest V1]
vsvsr
