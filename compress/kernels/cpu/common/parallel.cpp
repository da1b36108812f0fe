// A pool of our own threads, and a runner on the OpenMP runtime that PyTorch has already started.
#include "common/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace compress {
namespace {

class Pool {
 public:
  // With fewer threads where the system does not give as many.
  explicit Pool(int threads) {
    workers_.reserve(size_t(threads));
    try {
      while (int(workers_.size()) + 1 < threads) workers_.emplace_back([this] { serve(); });
    } catch (const std::system_error&) {
    }
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  int threads() const { return int(workers_.size()) + 1; }

  void run(compress_body body, void* context, size_t count) {
    std::lock_guard<std::mutex> one_at_a_time(callers_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      body_ = body;
      context_ = context;
      count_ = count;
      next_.store(0, std::memory_order_relaxed);
      busy_ = workers_.size();
      ++round_;
    }
    wake_.notify_all();
    drain();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void drain() {
    for (size_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) body_(context_, i);
  }

  void serve() {
    size_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stopping_ || round_ != seen; });
      if (stopping_) return;
      seen = round_;
      lock.unlock();
      drain();
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex callers_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  std::atomic<size_t> next_{0};
  compress_body body_ = nullptr;
  void* context_ = nullptr;
  size_t count_ = 0, busy_ = 0, round_ = 0;
  bool stopping_ = false;
};

struct PoolRunner : compress_runner {
  explicit PoolRunner(int count) : pool(count) {
    threads = pool.threads();
    self = this;
    run = [](void* me, compress_body body, void* context, size_t n) {
      static_cast<PoolRunner*>(me)->pool.run(body, context, n);
    };
  }
  Pool pool;
};

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

struct Shared {
  compress_body body;
  void* context;
  size_t count;
  std::atomic<size_t> next;
};

struct OpenmpRunner : compress_runner {
  OpenmpRunner(GompParallel start, int count) : parallel(start) {
    threads = count;
    self = this;
    run = [](void* me, compress_body body, void* context, size_t n) {
      auto* runner = static_cast<OpenmpRunner*>(me);
      Shared shared{body, context, n, {0}};
      const auto team = [](void* data) {
        auto& work = *static_cast<Shared*>(data);
        for (size_t i; (i = work.next.fetch_add(1, std::memory_order_relaxed)) < work.count;)
          work.body(work.context, i);
      };
      const size_t members = n < size_t(runner->threads) ? n : size_t(runner->threads);
      runner->parallel(team, &shared, unsigned(members), 0);
    };
  }
  GompParallel parallel;
};

}  // namespace
}  // namespace compress

extern "C" {

compress_runner* compress_pool_create(int32_t threads) {
  try {
    return new compress::PoolRunner(std::min(std::max(threads, 1), compress::kThreadLimit));
  } catch (...) {
    return nullptr;
  }
}

void compress_pool_destroy(compress_runner* pool) { delete static_cast<compress::PoolRunner*>(pool); }

compress_runner* compress_openmp_create(void* gomp_parallel, int32_t threads) {
  if (!gomp_parallel) return nullptr;
  return new (std::nothrow)
      compress::OpenmpRunner(reinterpret_cast<compress::GompParallel>(gomp_parallel), threads < 1 ? 1 : threads);
}

void compress_openmp_destroy(compress_runner* runner) { delete static_cast<compress::OpenmpRunner*>(runner); }

}  // extern "C"
