// Exceptions at the border to VapourSynth, which is C and cannot carry them.
#pragma once

#include <exception>
#include <new>
#include <string>

namespace vsvsr {

// In a catch block: has `report` tell the user, in one line, of whatever was thrown.
template <typename Report> void reportException(const std::string &name, Report report) noexcept {
    constexpr const char *memory = "vsvsr: the host's memory is used up";
    try {
        throw;
    } catch (const std::bad_alloc &) {
        report(memory);
    } catch (const std::exception &error) {
        try {
            report((name + ": " + error.what()).c_str());
        } catch (const std::bad_alloc &) {
            report(memory);
        }
    } catch (...) {
        report("vsvsr: unknown error");
    }
}

} // namespace vsvsr
