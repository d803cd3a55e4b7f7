// What differs between operating systems.
#pragma once

namespace vsvsr {

// Address of a function of the Python that runs in this process, or null when there is none.
void *pythonSymbol(const char *name) noexcept;

// Keeps this library in memory until the process ends: VapourSynth unloads plugins with every core, while Python
// keeps calling back, and destructors that some compilers register for the process's end would be gone.
void pinLibrary() noexcept;

} // namespace vsvsr
