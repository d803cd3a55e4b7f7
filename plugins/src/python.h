// The Python of this process, through functions resolved at run time: no link to libpython, no CPython ABI.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vsvsr::python {

struct Object; // CPython's PyObject

// Python cannot be used, or raised an exception; the message is one line for the user.
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Holds the interpreter's lock. Throws Error when this process has no Python, or when Python is shutting down.
// Take no other lock before this one that somebody takes under it.
class Lock {
public:
    Lock();
    ~Lock();
    Lock(const Lock &) = delete;
    Lock &operator=(const Lock &) = delete;

private:
    int state_;
};

// A reference to a Python object; make, copy and destroy it under a Lock.
class Ref {
public:
    Ref() = default;
    explicit Ref(Object *owned) : object_(owned) {}
    Ref(Ref &&other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
    Ref &operator=(Ref &&other) noexcept;
    ~Ref();

    Object *get() const { return object_; }
    Object *release() { return std::exchange(object_, nullptr); }

private:
    Object *object_ = nullptr;
};

struct Plane {
    std::uintptr_t address;
    std::ptrdiff_t stride;
};

// Values for Python.
Ref text(std::string_view value);
Ref integer(std::int64_t value);
Ref number(double value);
Ref list(std::vector<Ref> items);
Ref tuple(std::vector<Ref> items);
Ref dictionary(const std::vector<std::pair<std::string, Ref>> &items);
Ref integers(const std::vector<int> &values);
Ref planes(const std::vector<Plane> &values);

// Values from Python; Error when the type is another.
std::int64_t toInteger(const Ref &value);
std::vector<int> toIntegers(const Ref &value);
std::string toText(const Ref &value);
std::vector<Ref> toVector(const Ref &sequence);

// Calls function `name` of module vsvsr.bridge, or a method of `object`.
Ref callBridge(const char *name, std::vector<Ref> arguments);
Ref callMethod(Object *object, const char *name, std::vector<Ref> arguments);

} // namespace vsvsr::python
