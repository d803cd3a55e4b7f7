#include <string>

#include <VapourSynth4.h>

#include "errors.h"
#include "filter.h"
#include "platform.h"
#include "python.h"

namespace {

void VS_CC version(const VSMap *, VSMap *out, void *, VSCore *, const VSAPI *vsapi) {
    using namespace vsvsr;
    try {
        const python::Lock lock;
        for (const python::Ref &entry : python::toVector(python::callBridge("version", {}))) {
            const std::vector<python::Ref> pair = python::toVector(entry);
            const std::string key = python::toText(pair.at(0));
            for (const python::Ref &value : python::toVector(pair.at(1)))
                vsapi->mapSetData(out, key.c_str(), python::toText(value).c_str(), -1, dtUtf8, maAppend);
        }
    } catch (...) {
        reportException("Version", [&](const char *message) { vsapi->mapSetError(out, message); });
    }
}

struct Registration {
    const char *name;
    const char *arguments;
};

#define VSVSR_FILTER(name, arguments) {name, arguments},
constexpr Registration filters[] = {
#include "filters.inc"
};
#undef VSVSR_FILTER

} // namespace

VS_EXTERNAL_API(void) VapourSynthPluginInit2(VSPlugin *plugin, const VSPLUGINAPI *vspapi) {
    vsvsr::pinLibrary();
    vspapi->configPlugin("io.github.vsvsr", "vsvsr", "Neural video super-resolution",
                         VS_MAKE_VERSION(VSVSR_VERSION_MAJOR, VSVSR_VERSION_MINOR), VAPOURSYNTH_API_VERSION, 0, plugin);
    for (const Registration &filter : filters)
        vspapi->registerFunction(filter.name, filter.arguments, "clip:vnode;", vsvsr::createFilter,
                                 const_cast<char *>(filter.name), plugin);
    vspapi->registerFunction("Stats", "clip:vnode;", "any", vsvsr::stats, nullptr, plugin);
    vspapi->registerFunction("Version", "", "any", version, nullptr, plugin);
}
