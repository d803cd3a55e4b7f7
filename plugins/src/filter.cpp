#include "filter.h"

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "errors.h"
#include "python.h"

namespace vsvsr {

namespace {

using python::Ref;

// Property of a frame that stands for one that cannot be had: the message of who cannot give it.
constexpr const char *ABSENT = "VSVSRAbsent";
// Set by a preview on the frames that it makes.
constexpr const char *APPROXIMATE = "VSVSRApproximate";
// On frames of the inner node whose picture is still on its way from the device.
constexpr const char *UNDER_WAY = "VSVSRUnderWay";

// What the filters of one core know together of frames that a source could not give and then gave: everything that they
// and the host have kept by then may derive from the absence, through filters in between too, and is dropped. It is
// dropped twice: when the frame returns, and once the requests that were under way then are answered, since what they
// carry is older.
class Returns {
public:
    static std::shared_ptr<Returns> of(VSCore *core) {
        static std::mutex mutex;
        static std::map<VSCore *, std::weak_ptr<Returns>> all;
        const std::lock_guard guard(mutex);
        std::erase_if(all, [](const auto &entry) { return entry.second.expired(); });
        std::shared_ptr<Returns> shared = all[core].lock();
        if (!shared)
            all[core] = shared = std::make_shared<Returns>();
        return shared;
    }

    // How often everything kept has been dropped.
    int drops() {
        const std::lock_guard guard(mutex_);
        return drops_;
    }

    // A request begins; what end() takes. Sets `drop` when the host's caches are to be cleared.
    int begin(bool &drop) {
        const std::lock_guard guard(mutex_);
        drop = stale_ && (underWay_.empty() || underWay_.begin()->first == drops_);
        if (drop) {
            stale_ = false;
            ++drops_;
        }
        ++underWay_[drops_];
        return drops_;
    }

    void end(int begun) {
        const std::lock_guard guard(mutex_);
        if (--underWay_[begun] == 0)
            underWay_.erase(begun);
    }

    // A frame has returned, and the host's caches are to be cleared.
    void add() {
        const std::lock_guard guard(mutex_);
        stale_ = true;
        ++drops_;
    }

private:
    std::mutex mutex_; // guards what follows
    int drops_ = 0;
    bool stale_ = false;
    std::map<int, int> underWay_; // requests by `drops_` when they began
};

// One filter of one script.
//
// The outer node (fmParallel) lets the source decode in parallel: it notes that frame n is wanted, requests source n,
// and then inner frame n, whose picture it waits for where that is still on its way from a device. The inner node owns the recurrence, which can follow one request at a time only: fmFrameState
// is VapourSynth's word for that. It requests what else the session needs, in further rounds, and never waits.
//
// Both take the source as it is until it fails for the first time. A request that waits for a frame that fails ends
// with it. From then on they take it through a third node, whose frames never fail.
class Instance {
public:
    Instance(std::string name, VSNode *source, const VSVideoInfo &video, VSCore *core, const VSAPI *vsapi)
        : name_(std::move(name)), source_(source), video_(video), vsapi_(vsapi), returns_(Returns::of(core)) {}

    ~Instance() {
        try {
            const python::Lock lock;
            session_ = Ref();
        } catch (const std::exception &) {
            session_.release(); // Python is gone, and the session with it
        }
    }

    const std::string &name() const { return name_; }
    // Where to request frames of the source.
    VSNode *source() const { return failed_ ? tolerant_ : source_; }
    VSNode *bareSource() const { return source_; }
    VSNode *tolerantSource() const { return tolerant_; }
    VSNode *inner() const { return inner_; }
    void setNodes(VSNode *tolerant, VSNode *inner, VSNode *outer) {
        tolerant_ = tolerant;
        inner_ = inner;
        outer_ = outer;
    }
    const VSVideoInfo &output() const { return output_; }
    const VSAPI *vsapi() const { return vsapi_; }

    void open(const VSMap *arguments);

    // Frame n is wanted until delivered() as often, which takes what this gives.
    int want(int n, VSCore *core) {
        bool drop;
        const int begun = returns_->begin(drop);
        if (drop)
            vsapi_->clearCoreCaches(core);
        const std::lock_guard guard(mutex_);
        ++pending_[n].requests;
        return begun;
    }

    // The source failed.
    void failed() {
        if (failed_.exchange(true))
            return;
        // What it has may derive from the absence of a frame that then returns.
        vsapi_->setCacheMode(outer_, cmForceDisable);
    }

    // Whether the source, asked again, has frame n.
    void found(int n, bool present, VSCore *core) {
        {
            const std::lock_guard guard(mutex_);
            if (!present)
                absent_.insert(n);
            if (!present || !absent_.erase(n))
                return;
        }
        returns_->add();
        vsapi_->clearCoreCaches(core);
    }

    // Source n is at hand as long as n is wanted; takes the reference.
    void offer(int n, const VSFrame *frame) {
        {
            const std::lock_guard guard(mutex_);
            std::swap(pending_[n].source, frame);
        }
        vsapi_->freeFrame(frame);
    }

    void delivered(int n, int begun) {
        returns_->end(begun);
        const VSFrame *unused = nullptr;
        {
            const std::lock_guard guard(mutex_);
            const auto place = pending_.find(n);
            if (--place->second.requests == 0) {
                unused = place->second.source;
                pending_.erase(place);
            }
        }
        vsapi_->freeFrame(unused);
    }

    // A new reference to source n if it is at hand, else null.
    const VSFrame *atHand(int n) {
        const std::lock_guard guard(mutex_);
        const auto place = pending_.find(n);
        const bool here = place != pending_.end() && place->second.source;
        return here ? vsapi_->addFrameRef(place->second.source) : nullptr;
    }

    std::vector<int> wanted() {
        const std::lock_guard guard(mutex_);
        std::vector<int> result;
        for (const auto &[n, pending] : pending_)
            result.push_back(n);
        return result;
    }

    std::vector<int> advance(int n, const std::map<int, const VSFrame *> &sources);
    void render(int n, VSFrame *target);
    // Brings the picture of a frame that the inner node gave, where it is still under way.
    void collect(int n, const VSFrame *frame);
    std::vector<std::pair<std::string, std::int64_t>> counters();

private:
    struct Pending {
        int requests = 0;
        const VSFrame *source = nullptr;
        // Requests of one frame that come together get one frame of the inner node.
        std::shared_ptr<std::mutex> collecting = std::make_shared<std::mutex>();
    };

    void write(const char *method, std::vector<Ref> arguments, VSMap *props);
    // Who holds it collects the picture of frame n, which is wanted.
    std::shared_ptr<std::mutex> collecting(int n) {
        const std::lock_guard guard(mutex_);
        return pending_[n].collecting;
    }

    template <typename Pointer, typename Frame> std::vector<python::Plane> planesOf(Frame *frame, Pointer pointer) const {
        std::vector<python::Plane> planes;
        for (int plane = 0; plane < video_.format.numPlanes; ++plane)
            planes.push_back({reinterpret_cast<std::uintptr_t>((vsapi_->*pointer)(frame, plane)),
                              vsapi_->getStride(frame, plane)});
        return planes;
    }

    const std::string name_;
    VSNode *const source_;
    const VSVideoInfo video_;
    VSVideoInfo output_{};
    const VSAPI *const vsapi_;
    const std::shared_ptr<Returns> returns_;
    VSNode *tolerant_ = nullptr;
    VSNode *inner_ = nullptr;
    VSNode *outer_ = nullptr; // which owns all others
    std::atomic<bool> failed_ = false;
    Ref session_;
    int drops_ = returns_->drops(); // that the session has followed; the inner node's
    std::mutex mutex_;              // guards what follows; no other lock is taken and nothing is freed under it
    std::map<int, Pending> pending_;
    std::set<int> absent_; // frames that the source could not give when it was asked last
};

// Arguments other than the clip, by name, each a list.
Ref toPython(const VSMap *arguments, const VSAPI *vsapi) {
    std::vector<std::pair<std::string, Ref>> items;
    for (int i = 0; i < vsapi->mapNumKeys(arguments); ++i) {
        const char *key = vsapi->mapGetKey(arguments, i);
        const int type = vsapi->mapGetType(arguments, key);
        std::vector<Ref> values;
        for (int j = 0; j < vsapi->mapNumElements(arguments, key); ++j) {
            if (type == ptInt)
                values.push_back(python::integer(vsapi->mapGetInt(arguments, key, j, nullptr)));
            else if (type == ptFloat)
                values.push_back(python::number(vsapi->mapGetFloat(arguments, key, j, nullptr)));
            else if (type == ptData) {
                const int size = vsapi->mapGetDataSize(arguments, key, j, nullptr);
                const char *data = vsapi->mapGetData(arguments, key, j, nullptr);
                values.push_back(python::text({data, static_cast<std::size_t>(size)}));
            }
        }
        if (!values.empty())
            items.emplace_back(key, python::list(std::move(values)));
    }
    return python::dictionary(items);
}

void Instance::open(const VSMap *arguments) {
    char format[32] = "";
    if (video_.format.colorFamily != cfUndefined)
        vsapi_->getVideoFormatName(&video_.format, format);
    const python::Lock lock;
    std::vector<Ref> values;
    values.push_back(python::text(name_.c_str()));
    values.push_back(toPython(arguments, vsapi_));
    values.push_back(python::text(format));
    values.push_back(python::integer(video_.width));
    values.push_back(python::integer(video_.height));
    values.push_back(python::integer(video_.numFrames));
    std::vector<Ref> opened = python::toVector(python::callBridge("open_filter", std::move(values)));
    session_ = std::move(opened.at(0));
    const int scale = static_cast<int>(python::toInteger(opened.at(1)));
    output_ = video_;
    output_.width *= scale;
    output_.height *= scale;
}

bool isSet(const VSFrame *frame, const char *property, const VSAPI *vsapi) {
    int unset = 0;
    return vsapi->mapGetInt(vsapi->getFramePropertiesRO(frame), property, 0, &unset) != 0;
}

// The source's message where `frame` stands for one that it cannot give, else null.
const char *absence(const VSFrame *frame, const VSAPI *vsapi) {
    int unset = 0;
    return vsapi->mapGetData(vsapi->getFramePropertiesRO(frame), ABSENT, 0, &unset);
}

std::vector<int> Instance::advance(int n, const std::map<int, const VSFrame *> &sources) {
    const std::vector<int> wantedNow = wanted();
    const python::Lock lock;
    if (const int drops = returns_->drops(); drops != drops_) {
        python::callMethod(session_.get(), "forget", {});
        drops_ = drops;
    }
    std::vector<Ref> frames;
    for (const auto &[index, frame] : sources) {
        const bool absent = absence(frame, vsapi_);
        std::vector<Ref> entry;
        entry.push_back(python::integer(index));
        entry.push_back(python::integer(isSet(frame, "_SceneChangePrev", vsapi_)));
        entry.push_back(python::integer(isSet(frame, APPROXIMATE, vsapi_)));
        entry.push_back(python::planes(absent ? std::vector<python::Plane>() : planesOf(frame, &VSAPI::getReadPtr)));
        frames.push_back(python::tuple(std::move(entry)));
    }
    std::vector<Ref> arguments;
    arguments.push_back(python::integer(n));
    arguments.push_back(python::integers(wantedNow));
    arguments.push_back(python::list(std::move(frames)));
    return python::toIntegers(python::callMethod(session_.get(), "advance", std::move(arguments)));
}

// Calls the method that writes the frame into `planes`, and sets the properties that mark it.
void Instance::write(const char *method, std::vector<Ref> arguments, VSMap *props) {
    for (const Ref &mark : python::toVector(python::callMethod(session_.get(), method, std::move(arguments))))
        vsapi_->mapSetInt(props, python::toText(mark).c_str(), 1, maReplace);
}

void Instance::render(int n, VSFrame *target) {
    VSMap *props = vsapi_->getFramePropertiesRW(target);
    vsapi_->mapSetInt(props, "_Matrix", 0, maReplace);
    vsapi_->mapSetInt(props, "_Range", 1, maReplace);
    vsapi_->mapDeleteKey(props, APPROXIMATE);
    vsapi_->mapDeleteKey(props, UNDER_WAY);
    const std::vector<python::Plane> planes = planesOf(target, &VSAPI::getWritePtr);
    const python::Lock lock;
    std::vector<Ref> arguments;
    arguments.push_back(python::integer(n));
    arguments.push_back(python::planes(planes));
    write("render", std::move(arguments), props);
}

void Instance::collect(int n, const VSFrame *frame) {
    const std::shared_ptr<std::mutex> collecting = this->collecting(n);
    const std::lock_guard guard(*collecting);
    if (const char *message = absence(frame, vsapi_))
        throw python::Error(message);
    if (!isSet(frame, UNDER_WAY, vsapi_))
        return;
    // Only requests of frame n have this frame, and all of them come here first.
    VSMap *props = vsapi_->getFramePropertiesRW(const_cast<VSFrame *>(frame));
    try {
        const std::vector<python::Plane> planes = planesOf(frame, &VSAPI::getReadPtr);
        const python::Lock lock;
        std::vector<Ref> arguments;
        arguments.push_back(python::planes(planes));
        write("collect", std::move(arguments), props);
    } catch (const std::exception &error) {
        vsapi_->mapSetData(props, ABSENT, error.what(), -1, dtUtf8, maReplace);
        throw;
    }
    vsapi_->mapDeleteKey(props, UNDER_WAY);
}

std::vector<std::pair<std::string, std::int64_t>> Instance::counters() {
    const python::Lock lock;
    std::vector<std::pair<std::string, std::int64_t>> result;
    for (const Ref &entry : python::toVector(python::callMethod(session_.get(), "counters", {}))) {
        const std::vector<Ref> pair = python::toVector(entry);
        result.emplace_back(python::toText(pair.at(0)), python::toInteger(pair.at(1)));
    }
    return result;
}

// Filters by their output node, for Stats.
std::mutex openMutex;
std::map<const VSNode *, std::shared_ptr<Instance>> openInstances;

// Request for one inner frame.
struct Request {
    std::map<int, const VSFrame *> held; // sources for the next call of advance, with a reference each
    std::vector<int> asked;              // sources requested from VapourSynth, not fetched yet
    VSNode *from = nullptr;              // where
};

struct Inner {
    std::shared_ptr<Instance> instance;

    const VSFrame *getFrame(int n, int reason, void **frameData, VSFrameContext *context, VSCore *core) const;

private:
    bool advance(int n, Request &request, VSFrameContext *context) const;
    const VSFrame *finish(int n, VSCore *core) const;
    void drop(Request &request) const;
};

void Inner::drop(Request &request) const {
    for (const auto &[index, frame] : request.held)
        instance->vsapi()->freeFrame(frame);
    request.held.clear();
}

// Runs the session until it is done (true) or has to wait for sources (false).
bool Inner::advance(int n, Request &request, VSFrameContext *context) const {
    const VSAPI *vsapi = instance->vsapi();
    for (;;) {
        if (!request.held.contains(n)) {
            const VSFrame *source = instance->atHand(n);
            if (!source)
                throw python::Error("this node is a part of the filter; ask the filter's output for frames");
            request.held[n] = source;
        }
        const std::vector<int> missing = instance->advance(n, request.held);
        drop(request);
        if (missing.empty())
            return true;
        request.from = instance->source();
        for (const int index : missing) {
            if (const VSFrame *frame = instance->atHand(index)) {
                request.held[index] = frame;
            } else {
                vsapi->requestFrameFilter(index, request.from, context);
                request.asked.push_back(index);
            }
        }
        if (!request.asked.empty())
            return false;
    }
}

const VSFrame *Inner::finish(int n, VSCore *core) const {
    const VSAPI *vsapi = instance->vsapi();
    const VSVideoInfo &output = instance->output();
    const VSFrame *source = instance->atHand(n);
    VSFrame *target = vsapi->newVideoFrame(&output.format, output.width, output.height, source, core);
    vsapi->freeFrame(source);
    try {
        instance->render(n, target);
    } catch (...) {
        vsapi->freeFrame(target);
        throw;
    }
    return target;
}

const VSFrame *Inner::getFrame(int n, int reason, void **frameData, VSFrameContext *context, VSCore *core) const {
    const VSAPI *vsapi = instance->vsapi();
    std::unique_ptr<Request> request(static_cast<Request *>(std::exchange(*frameData, nullptr)));
    if (reason == arError) {
        instance->failed();
        drop(*request);
        return nullptr;
    }
    if (!request)
        request = std::make_unique<Request>();
    for (const int index : std::exchange(request->asked, {})) {
        request->held[index] = vsapi->getFrameFilter(index, request->from, context);
        vsapi->releaseFrameEarly(request->from, index, context);
    }
    try {
        if (advance(n, *request, context))
            return finish(n, core);
        *frameData = request.release();
    } catch (...) {
        drop(*request);
        throw;
    }
    return nullptr;
}

// Request for one frame of the filter.
struct OuterRequest {
    VSNode *from;            // where source n was requested
    int begun;               // for Instance::delivered
    bool sourceHere = false; // and inner frame n requested
};

struct Outer {
    std::shared_ptr<Instance> instance;

    const VSFrame *getFrame(int n, int reason, void **frameData, VSFrameContext *context, VSCore *core) const;
};

const VSFrame *Outer::getFrame(int n, int reason, void **frameData, VSFrameContext *context, VSCore *core) const {
    const VSAPI *vsapi = instance->vsapi();
    if (reason == arInitial) {
        auto request = std::make_unique<OuterRequest>(instance->source(), instance->want(n, core));
        vsapi->requestFrameFilter(n, request->from, context);
        *frameData = request.release();
        return nullptr;
    }
    std::unique_ptr<OuterRequest> request(static_cast<OuterRequest *>(std::exchange(*frameData, nullptr)));
    if (reason == arError) {
        if (!request->sourceHere)
            instance->failed();
        instance->delivered(n, request->begun);
        return nullptr;
    }
    if (request->sourceHere) {
        const VSFrame *frame = vsapi->getFrameFilter(n, instance->inner(), context);
        try {
            instance->collect(n, frame);
        } catch (...) {
            vsapi->freeFrame(frame);
            instance->delivered(n, request->begun);
            throw;
        }
        instance->delivered(n, request->begun);
        return frame;
    }
    const VSFrame *source = vsapi->getFrameFilter(n, request->from, context);
    if (const char *message = absence(source, vsapi)) {
        vsapi->setFilterError(message, context);
        vsapi->freeFrame(source);
        instance->delivered(n, request->begun);
        return nullptr;
    }
    instance->offer(n, source);
    vsapi->requestFrameFilter(n, instance->inner(), context);
    request->sourceHere = true;
    *frameData = request.release();
    return nullptr;
}

// Gives frame n of the source, or a blank one that is marked `ABSENT`.
//
// VapourSynth ends a request with the first frame that fails it, and a filter cannot go on after that. So the frame is
// asked for from outside the request, and waited for: the core puts another thread to work meanwhile. Nothing else in
// here waits, and this does only behind a source that has failed.
//
// One failure proves nothing: a filter like this one, in between, ends what it has under way when its own source fails
// for the first time, and can give the same frame right after. So a frame is absent when it fails twice.
struct Tolerant {
    std::shared_ptr<Instance> instance;
    VSVideoInfo video;

    const VSFrame *getFrame(int n, VSCore *core) const;
};

const VSFrame *Tolerant::getFrame(int n, VSCore *core) const {
    const VSAPI *vsapi = instance->vsapi();
    std::vector<char> message(1 << 16); // Python says last, after a traceback, what went wrong
    const VSFrame *frame = nullptr;
    for (int attempt = 0; attempt < 2 && !frame; ++attempt)
        frame = vsapi->getFrame(n, instance->bareSource(), message.data(), static_cast<int>(message.size()));
    instance->found(n, frame != nullptr, core);
    if (frame)
        return frame;
    VSFrame *blank = vsapi->newVideoFrame(&video.format, video.width, video.height, nullptr, core);
    vsapi->mapSetData(vsapi->getFramePropertiesRW(blank), ABSENT, message.data(), -1, dtUtf8, maReplace);
    return blank;
}

// Has `make` give a frame, or null while it waits; what it throws becomes the filter's error.
template <typename Make>
const VSFrame *guarded(const Instance &instance, int reason, VSFrameContext *context, Make make) noexcept {
    try {
        return make();
    } catch (...) {
        reportException(instance.name(), [&](const char *message) {
            // After arError the source's own message is on its way to the user.
            if (reason != arError)
                instance.vsapi()->setFilterError(message, context);
        });
        return nullptr;
    }
}

const VSFrame *VS_CC getInner(int n, int reason, void *data, void **frameData, VSFrameContext *context, VSCore *core,
                              const VSAPI *) {
    const Inner &inner = *static_cast<Inner *>(data);
    return guarded(*inner.instance, reason, context,
                   [&] { return inner.getFrame(n, reason, frameData, context, core); });
}

const VSFrame *VS_CC getOuter(int n, int reason, void *data, void **frameData, VSFrameContext *context, VSCore *core,
                              const VSAPI *) {
    const Outer &outer = *static_cast<Outer *>(data);
    return guarded(*outer.instance, reason, context,
                   [&] { return outer.getFrame(n, reason, frameData, context, core); });
}

const VSFrame *VS_CC getTolerant(int n, int reason, void *data, void **, VSFrameContext *context, VSCore *core,
                                 const VSAPI *) {
    const Tolerant &tolerant = *static_cast<Tolerant *>(data);
    return guarded(*tolerant.instance, reason, context, [&] { return tolerant.getFrame(n, core); });
}

void VS_CC freeTolerant(void *data, VSCore *, const VSAPI *) {
    delete static_cast<Tolerant *>(data);
}

void VS_CC freeInner(void *data, VSCore *, const VSAPI *) {
    delete static_cast<Inner *>(data);
}

void VS_CC freeOuter(void *data, VSCore *core, const VSAPI *vsapi) {
    const std::unique_ptr<Outer> outer(static_cast<Outer *>(data));
    std::string line = outer->instance->name() + ":";
    try {
        for (const auto &[name, count] : outer->instance->counters())
            line += " " + name + "=" + std::to_string(count);
        vsapi->logMessage(mtDebug, line.c_str(), core);
    } catch (const std::exception &) {
        // Python is gone, and the counters with it.
    }
    {
        const std::lock_guard guard(openMutex);
        std::erase_if(openInstances, [&](const auto &entry) { return entry.second == outer->instance; });
    }
    vsapi->freeNode(outer->instance->inner());
    vsapi->freeNode(outer->instance->tolerantSource());
    vsapi->freeNode(outer->instance->bareSource());
}

// The nodes of a filter that is open; the outer one.
VSNode *createNodes(const std::shared_ptr<Instance> &instance, VSCore *core) {
    const VSAPI *vsapi = instance->vsapi();
    const std::string &name = instance->name();
    VSNode *source = instance->bareSource();
    const VSVideoInfo &video = *vsapi->getVideoInfo(source);
    const VSFilterDependency ofTolerant{source, rpStrictSpatial};
    VSNode *tolerant = vsapi->createVideoFilter2((name + "Source").c_str(), &video, getTolerant, freeTolerant, fmParallel,
                                                 &ofTolerant, 1, new Tolerant{instance, video}, core);
    vsapi->setCacheMode(tolerant, cmForceDisable); // a frame that is absent now may be there the next time
    const VSFilterDependency ofInner[] = {{source, rpGeneral}, {tolerant, rpGeneral}};
    VSNode *inner = vsapi->createVideoFilter2((name + "Recurrence").c_str(), &instance->output(), getInner, freeInner,
                                              fmFrameState, ofInner, 2, new Inner{instance}, core);
    vsapi->setCacheMode(inner, cmForceDisable); // its pictures may be under way
    const VSFilterDependency ofOuter[] = {{source, rpGeneral}, {tolerant, rpGeneral}, {inner, rpStrictSpatial}};
    VSNode *outer = vsapi->createVideoFilter2(name.c_str(), &instance->output(), getOuter, freeOuter, fmParallel, ofOuter,
                                              3, new Outer{instance}, core);
    instance->setNodes(tolerant, inner, outer);
    return outer;
}

} // namespace

void VS_CC createFilter(const VSMap *in, VSMap *out, void *userData, VSCore *core, const VSAPI *vsapi) {
    const char *name = static_cast<const char *>(userData);
    VSNode *source = vsapi->mapGetNode(in, "clip", 0, nullptr);
    try {
        const auto instance = std::make_shared<Instance>(name, source, *vsapi->getVideoInfo(source), core, vsapi);
        instance->open(in);
        VSNode *outer = createNodes(instance, core);
        {
            const std::lock_guard guard(openMutex);
            openInstances[outer] = instance;
        }
        vsapi->mapConsumeNode(out, "clip", outer, maReplace);
    } catch (...) {
        reportException(name, [&](const char *message) { vsapi->mapSetError(out, message); });
        vsapi->freeNode(source);
    }
}

void VS_CC stats(const VSMap *in, VSMap *out, void *, VSCore *, const VSAPI *vsapi) {
    VSNode *node = vsapi->mapGetNode(in, "clip", 0, nullptr);
    std::shared_ptr<Instance> instance;
    {
        const std::lock_guard guard(openMutex);
        if (const auto place = openInstances.find(node); place != openInstances.end())
            instance = place->second;
    }
    vsapi->freeNode(node);
    if (!instance) {
        vsapi->mapSetError(out, "Stats: the clip is not the direct output of a vsvsr filter; give that");
        return;
    }
    try {
        for (const auto &[name, count] : instance->counters())
            vsapi->mapSetInt(out, name.c_str(), count, maReplace);
    } catch (...) {
        reportException("Stats", [&](const char *message) { vsapi->mapSetError(out, message); });
    }
}

} // namespace vsvsr
