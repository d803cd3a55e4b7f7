// A filter of the namespace: two nodes between VapourSynth's requests and a session in Python.
#pragma once

#include <VapourSynth4.h>

namespace vsvsr {

// The function that VapourSynth calls for core.vsvsr.<name>(clip, ...); userData is the name.
void VS_CC createFilter(const VSMap *in, VSMap *out, void *userData, VSCore *core, const VSAPI *vsapi);

// core.vsvsr.Stats(clip): the counters of the filter that made the clip.
void VS_CC stats(const VSMap *in, VSMap *out, void *userData, VSCore *core, const VSAPI *vsapi);

} // namespace vsvsr
