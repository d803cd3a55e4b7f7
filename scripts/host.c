// A host without Python: lists the functions of vsvsr and calls the one that it is given the name of.
#include <VapourSynth4.h>
#include <stdio.h>

int main(int count, char **arguments) {
    (void)count;
    const VSAPI *vsapi = getVapourSynthAPI(VAPOURSYNTH_API_VERSION);
    VSCore *core = vsapi->createCore(0);
    VSPlugin *std = vsapi->getPluginByID("com.vapoursynth.std", core);
    VSPlugin *vsvsr = vsapi->getPluginByNamespace("vsvsr", core);
    if (!vsvsr)
        return 1;
    for (VSPluginFunction *f = vsapi->getNextPluginFunction(NULL, vsvsr); f; f = vsapi->getNextPluginFunction(f, vsvsr))
        printf("%s(%s)\n", vsapi->getPluginFunctionName(f), vsapi->getPluginFunctionArguments(f));
    VSMap *empty = vsapi->createMap();
    VSMap *clip = vsapi->invoke(std, "BlankClip", empty);
    VSMap *result = vsapi->invoke(vsvsr, arguments[1], clip);
    puts(vsapi->mapGetError(result) ? vsapi->mapGetError(result) : "no error");
    vsapi->freeMap(result);
    vsapi->freeMap(clip);
    vsapi->freeMap(empty);
    vsapi->freeCore(core);
    return 0;
}
