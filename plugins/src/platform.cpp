#include "platform.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace vsvsr {

#ifdef _WIN32

void *pythonSymbol(const char *name) noexcept {
    const HMODULE python = GetModuleHandleA("python3.dll");
    return python ? reinterpret_cast<void *>(GetProcAddress(python, name)) : nullptr;
}

void pinLibrary() noexcept {
    HMODULE self = nullptr;
    GetModuleHandleExA(GET_MODULE_HANDLE_EX_FLAG_PIN | GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS,
                       reinterpret_cast<const char *>(&pinLibrary), &self);
}

#else

void *pythonSymbol(const char *name) noexcept {
    return dlsym(RTLD_DEFAULT, name);
}

void pinLibrary() noexcept {
    Dl_info self{};
    if (dladdr(reinterpret_cast<void *>(&pinLibrary), &self) != 0)
        dlopen(self.dli_fname, RTLD_NOW | RTLD_NODELETE);
}

#endif

} // namespace vsvsr
