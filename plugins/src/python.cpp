#include "python.h"

#include <atomic>
#include <mutex>

#include "platform.h"

namespace vsvsr::python {

namespace {

using CFunction = Object *(*)(Object *, Object *);

// CPython's PyMethodDef, part of its stable ABI.
struct MethodDef {
    const char *name;
    CFunction function;
    int flags;
    const char *doc;
};
constexpr int noArguments = 0x0004; // METH_NOARGS

struct Api {
    int (*Py_IsInitialized)();
    int (*PyGILState_Ensure)();
    void (*PyGILState_Release)(int);
    void *(*PyEval_SaveThread)();
    void (*PyEval_RestoreThread)(void *);
    void (*Py_DecRef)(Object *);
    Object *(*PyImport_ImportModule)(const char *);
    Object *(*PyObject_GetAttrString)(Object *, const char *);
    Object *(*PyObject_CallObject)(Object *, Object *);
    Object *(*PyObject_Str)(Object *);
    Object *(*PyErr_GetRaisedException)();
    void (*PyErr_Clear)();
    Object *(*PyErr_Occurred)();
    Object *(*PyLong_FromLongLong)(long long);
    long long (*PyLong_AsLongLong)(Object *);
    Object *(*PyFloat_FromDouble)(double);
    Object *(*PyUnicode_DecodeUTF8)(const char *, std::ptrdiff_t, const char *);
    const char *(*PyUnicode_AsUTF8AndSize)(Object *, std::ptrdiff_t *);
    Object *(*PyTuple_New)(std::ptrdiff_t);
    int (*PyTuple_SetItem)(Object *, std::ptrdiff_t, Object *);
    Object *(*PyDict_New)();
    int (*PyDict_SetItemString)(Object *, const char *, Object *);
    std::ptrdiff_t (*PySequence_Size)(Object *);
    Object *(*PySequence_GetItem)(Object *, std::ptrdiff_t);
    Object *(*PySequence_List)(Object *);
    Object *(*PyCFunction_NewEx)(MethodDef *, Object *, Object *);
};

template <typename Function> bool resolve(Function &function, const char *name) {
    function = reinterpret_cast<Function>(pythonSymbol(name));
    return function != nullptr;
}

bool resolveAll(Api &api) {
#define VSVSR_RESOLVE(name) resolve(api.name, #name)
    return VSVSR_RESOLVE(Py_IsInitialized) && VSVSR_RESOLVE(PyGILState_Ensure) && VSVSR_RESOLVE(PyGILState_Release) &&
           VSVSR_RESOLVE(PyEval_SaveThread) && VSVSR_RESOLVE(PyEval_RestoreThread) && VSVSR_RESOLVE(Py_DecRef) &&
           VSVSR_RESOLVE(PyImport_ImportModule) && VSVSR_RESOLVE(PyObject_GetAttrString) &&
           VSVSR_RESOLVE(PyObject_CallObject) && VSVSR_RESOLVE(PyObject_Str) &&
           VSVSR_RESOLVE(PyErr_GetRaisedException) && VSVSR_RESOLVE(PyErr_Clear) && VSVSR_RESOLVE(PyErr_Occurred) &&
           VSVSR_RESOLVE(PyLong_FromLongLong) && VSVSR_RESOLVE(PyLong_AsLongLong) &&
           VSVSR_RESOLVE(PyFloat_FromDouble) && VSVSR_RESOLVE(PyUnicode_DecodeUTF8) &&
           VSVSR_RESOLVE(PyUnicode_AsUTF8AndSize) && VSVSR_RESOLVE(PyTuple_New) && VSVSR_RESOLVE(PyTuple_SetItem) &&
           VSVSR_RESOLVE(PyDict_New) && VSVSR_RESOLVE(PyDict_SetItemString) && VSVSR_RESOLVE(PySequence_Size) &&
           VSVSR_RESOLVE(PySequence_GetItem) && VSVSR_RESOLVE(PySequence_List) && VSVSR_RESOLVE(PyCFunction_NewEx);
#undef VSVSR_RESOLVE
}

Api api;
std::atomic<bool> resolved = false;
// Threads between the start of Lock() and the end of ~Lock(), and whether new ones are turned away.
std::atomic<int> inside = 0;
std::atomic<bool> closed = false;

void leave() noexcept {
    if (inside.fetch_sub(1) == 1)
        inside.notify_all();
}

void require() {
    if (resolved)
        return;
    static std::mutex mutex;
    const std::lock_guard guard(mutex);
    if (!resolved && !resolveAll(api))
        throw Error("this process has no Python 3.12 or newer, which vsvsr needs; use python, vspipe or an editor");
    resolved = true;
}

// A thread that takes the interpreter's lock while the interpreter goes down never returns. So Python's exit calls
// this first: from now on nobody comes in, and those inside finish.
Object *shutDown(Object *, Object *) {
    closed = true;
    void *thread = api.PyEval_SaveThread();
    for (int count = inside; count != 0; count = inside)
        inside.wait(count);
    api.PyEval_RestoreThread(thread);
    return api.PyLong_FromLongLong(0);
}

std::string asText(const Ref &value) {
    std::ptrdiff_t size = 0;
    const char *data = value.get() ? api.PyUnicode_AsUTF8AndSize(value.get(), &size) : nullptr;
    if (!data) {
        api.PyErr_Clear();
        return "unknown Python error";
    }
    return {data, static_cast<std::size_t>(size)};
}

Ref attribute(Object *object, const char *name) {
    return Ref(api.PyObject_GetAttrString(object, name));
}

Ref importBridge() {
    return Ref(api.PyImport_ImportModule("vsvsr.bridge"));
}

// The bridge turns an exception into a line for the user; when it is the bridge that fails, Python's own text must do.
[[noreturn]] void throwRaised() {
    Ref error(api.PyErr_GetRaisedException());
    const std::string plain = asText(Ref(api.PyObject_Str(error.get())));
    const Ref bridge = importBridge();
    const Ref describe = bridge.get() ? attribute(bridge.get(), "describe") : Ref();
    if (!describe.get()) {
        api.PyErr_Clear();
        throw Error("cannot load the Python package vsvsr: " + plain);
    }
    std::vector<Ref> arguments;
    arguments.push_back(std::move(error));
    throw Error(asText(Ref(api.PyObject_CallObject(describe.get(), tuple(std::move(arguments)).get()))));
}

Ref checked(Object *owned) {
    if (!owned)
        throwRaised();
    return Ref(owned);
}

// The bridge module; the first time, Python's exit is told to call shutDown.
Ref bridge() {
    static bool prepared = false; // guarded by the interpreter's lock
    Ref module = checked(importBridge().release());
    if (!prepared) {
        prepared = true;
        static MethodDef definition{"shut_down", &shutDown, noArguments, nullptr};
        std::vector<Ref> arguments;
        arguments.push_back(checked(api.PyCFunction_NewEx(&definition, nullptr, nullptr)));
        callMethod(module.get(), "at_exit", std::move(arguments));
    }
    return module;
}

} // namespace

Lock::Lock() {
    inside.fetch_add(1);
    try {
        if (closed)
            throw Error("Python is shutting down");
        require();
        if (!api.Py_IsInitialized())
            throw Error("Python is not running in this process");
    } catch (...) {
        leave();
        throw;
    }
    state_ = api.PyGILState_Ensure();
}

Lock::~Lock() {
    api.PyGILState_Release(state_);
    leave();
}

Ref &Ref::operator=(Ref &&other) noexcept {
    std::swap(object_, other.object_);
    return *this;
}

Ref::~Ref() {
    if (object_)
        api.Py_DecRef(object_);
}

Ref text(std::string_view value) {
    // As Python itself reads file names: bytes that are no UTF-8 become surrogates, and those bytes again in a path.
    return checked(
        api.PyUnicode_DecodeUTF8(value.data(), static_cast<std::ptrdiff_t>(value.size()), "surrogateescape"));
}

Ref integer(std::int64_t value) {
    return checked(api.PyLong_FromLongLong(value));
}

Ref number(double value) {
    return checked(api.PyFloat_FromDouble(value));
}

Ref tuple(std::vector<Ref> items) {
    Ref result = checked(api.PyTuple_New(static_cast<std::ptrdiff_t>(items.size())));
    for (std::size_t i = 0; i < items.size(); ++i)
        api.PyTuple_SetItem(result.get(), static_cast<std::ptrdiff_t>(i), items[i].release());
    return result;
}

Ref list(std::vector<Ref> items) {
    return checked(api.PySequence_List(tuple(std::move(items)).get()));
}

Ref dictionary(const std::vector<std::pair<std::string, Ref>> &items) {
    Ref result = checked(api.PyDict_New());
    for (const auto &[key, value] : items)
        api.PyDict_SetItemString(result.get(), key.c_str(), value.get());
    return result;
}

Ref integers(const std::vector<int> &values) {
    std::vector<Ref> items;
    for (const int value : values)
        items.push_back(integer(value));
    return list(std::move(items));
}

Ref planes(const std::vector<Plane> &values) {
    std::vector<Ref> items;
    for (const Plane &plane : values) {
        std::vector<Ref> pair;
        pair.push_back(integer(static_cast<std::int64_t>(plane.address)));
        pair.push_back(integer(plane.stride));
        items.push_back(tuple(std::move(pair)));
    }
    return tuple(std::move(items));
}

std::int64_t toInteger(const Ref &value) {
    const long long result = api.PyLong_AsLongLong(value.get());
    if (result == -1 && api.PyErr_Occurred())
        throwRaised();
    return result;
}

std::vector<Ref> toVector(const Ref &sequence) {
    const std::ptrdiff_t size = api.PySequence_Size(sequence.get());
    if (size < 0)
        throwRaised();
    std::vector<Ref> items;
    items.reserve(static_cast<std::size_t>(size));
    for (std::ptrdiff_t i = 0; i < size; ++i)
        items.push_back(checked(api.PySequence_GetItem(sequence.get(), i)));
    return items;
}

std::vector<int> toIntegers(const Ref &value) {
    std::vector<int> result;
    for (const Ref &item : toVector(value))
        result.push_back(static_cast<int>(toInteger(item)));
    return result;
}

std::string toText(const Ref &value) {
    return asText(value);
}

Ref callMethod(Object *object, const char *name, std::vector<Ref> arguments) {
    const Ref method = checked(attribute(object, name).release());
    return checked(api.PyObject_CallObject(method.get(), tuple(std::move(arguments)).get()));
}

Ref callBridge(const char *name, std::vector<Ref> arguments) {
    return callMethod(bridge().get(), name, std::move(arguments));
}

} // namespace vsvsr::python
